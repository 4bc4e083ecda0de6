package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/names"
)

// caller asks edges for something else than a tunnel. Of a Config, what says how an
// edge is reached counts, and Device and Token.
type caller struct {
	cfg     Config
	dialer  *dialer
	servers []*url.URL
}

// newCaller checks what counts of c. Its error is a *ConfigError.
func newCaller(c Config) (*caller, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Proxy == nil {
		c.Proxy = readEnvironment(os.Getenv).proxy
		warnOfProxies(c.Logger, os.Getenv)
	}
	if err := names.CheckDevice(c.Device); err != nil {
		return nil, &ConfigError{"Device", err}
	}
	if err := checkToken(c.Token); err != nil {
		return nil, &ConfigError{"Token", err}
	}
	if len(c.Servers) == 0 {
		return nil, errNoServers
	}
	k := &caller{cfg: c, dialer: newDialer(c)}
	for _, s := range c.Servers {
		u, err := parseServer(s, c.AllowPlaintext)
		if err != nil {
			return nil, &ConfigError{"Servers", err}
		}
		k.servers = append(k.servers, u)
	}
	rand.Shuffle(len(k.servers), func(i, j int) { k.servers[i], k.servers[j] = k.servers[j], k.servers[i] })
	return k, nil
}

var errNoServers = wrong("Servers", "none given; at least one wss://HOST[:PORT]")

// each asks one edge after the other until one answers, whatever it says.
func (k *caller) each(ctx context.Context, ask func(*url.URL) error) error {
	var failed failures
	for _, u := range k.servers {
		err := ask(u)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failed = append(failed, fmt.Errorf("%s: %w", u.Host, err))
		var refused *RefusedError
		if errors.As(err, &refused) && refused.Code != "" && refused.Status != statusTooMany {
			break // other edges know the same; only what is too much is each one's own
		}
	}
	return failed
}

// RetryAfter is how long the edge asks not to be asked again, at most 10 min; 0 when
// it named no time.
func (e *RefusedError) RetryAfter() time.Duration { return e.retryAfter }
