package redisregistry

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// DefaultKeyPrefix is what all keys begin with unless Options say otherwise.
const DefaultKeyPrefix = "iottunnel:"

// Options say where Redis is, and how to speak to it. One of URL, Sentinel and
// Cluster is needed.
type Options struct {
	// URL of a single server: redis://[user:password@]host[:port][/database],
	// rediss:// for TLS, or unix://[user:password@]/path/to/socket[?db=database].
	URL string
	// Sentinel finds the server by asking sentinels, and follows a failover.
	Sentinel *Sentinel
	// Cluster are the addresses, host:port, of some nodes of a Redis Cluster; the
	// others are found through them.
	Cluster []string

	// KeyPrefix is what all keys begin with; default DefaultKeyPrefix. Edges with
	// the same prefix are one cluster. It has no braces.
	KeyPrefix string

	// Username and Password log in (ACL); with a Password alone, as the user
	// `default`. They win over those in URL.
	Username, Password string
	// DB is the database's number, for Sentinel; with URL it stands there, and a
	// cluster has just one.
	DB int
	// TLS is how TLS is spoken; nil: not at all, except for rediss:// where it
	// means the system's authorities. ServerName is filled in for URL. Sentinels
	// are spoken to in the same way.
	TLS *tls.Config

	// DialTimeout bounds connecting, and Timeout each read and write, besides the
	// context's deadline. Defaults 2 s.
	DialTimeout, Timeout time.Duration
	// PoolSize bounds the connections to each server. Default 10 per processor.
	PoolSize int

	// Require makes Open fail unless Redis answers. Without it Open does not wait
	// for Redis, and calls fail until it is there.
	Require bool

	// Logger is told of what an operator wants to know; nil means silence.
	Logger *slog.Logger

	// Times that tests shorten; zero means what the constants of these names say.
	nodeTTL, portRest, settle, newTime time.Duration
	// now is the clock of the tests' Redis; nil: the machine's.
	now func() time.Time
}

// Sentinel is how to find a server that sentinels watch.
type Sentinel struct {
	Master string   // the name under which they watch it
	Addrs  []string // of sentinels, host:port
	// Username and Password log in to the sentinels.
	Username, Password string
}

const (
	defaultTimeout = 2 * time.Second
	// settleTime is how long after Redis has lost data no new label or port is
	// handed out, unless all nodes have written again sooner what they hold.
	settleTime = 15 * time.Second
	// clusterReload bounds for how long a lost master of a cluster is asked while
	// its replica has its slots; it costs one command per heartbeat.
	clusterReload = 2 * time.Second
)

// quiet drops what go-redis would write to standard error, line after line while
// Redis is away. Calls return the same as errors.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(quiet{}) } // there is only one for the process

// Open makes a registry on Redis. It connects when it is first used; an error
// tells of wrong options, and never repeats a password.
func Open(ctx context.Context, o Options) (*Registry, error) {
	if o.KeyPrefix == "" {
		o.KeyPrefix = DefaultKeyPrefix
	}
	if err := checkPrefix(o.KeyPrefix); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := connect(o)
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	r := newRegistry(c, o)
	if o.Require {
		if err := r.Ping(ctx); err != nil {
			// That it does not answer is the error that matters.
			_ = r.Close()
			return nil, err
		}
	}
	return r, nil
}

// connect makes the client; it does not connect yet.
func connect(o Options) (redis.UniversalClient, error) {
	u := redis.UniversalOptions{
		Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLS,
		DialTimeout: orDefault(o.DialTimeout, defaultTimeout),
		ReadTimeout: orDefault(o.Timeout, defaultTimeout), WriteTimeout: orDefault(o.Timeout, defaultTimeout),
		ContextTimeoutEnabled: true,
		PoolSize:              o.PoolSize,
		// A repeated call is harmless: scripts find that they were carried out.
		MaxRetries: 2, MinRetryBackoff: 10 * time.Millisecond, MaxRetryBackoff: 100 * time.Millisecond,
		DialerRetries: 1, DialerRetryTimeout: 10 * time.Millisecond,
		// Batches go through the one pool; a second one would cost megabytes.
		PipelinePoolSize: -1,
		ReadBufferSize:   16 << 10, WriteBufferSize: 16 << 10,
		DisableIdentity:          true, // one command less to allow
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	given := 0
	for _, is := range []bool{o.URL != "", o.Sentinel != nil, len(o.Cluster) > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("one of url, sentinel and cluster is needed, and only one")
	}
	switch {
	case o.URL != "":
		return connectURL(o, u)
	case o.Sentinel != nil:
		if o.Sentinel.Master == "" {
			return nil, errors.New("sentinel: the name of the master is missing")
		}
		if err := checkAddrs("sentinel", o.Sentinel.Addrs); err != nil {
			return nil, err
		}
		u.MasterName, u.Addrs = o.Sentinel.Master, o.Sentinel.Addrs
		u.SentinelUsername, u.SentinelPassword = o.Sentinel.Username, o.Sentinel.Password
		return redis.NewFailoverClient(u.Failover()), nil
	default:
		if o.DB != 0 {
			return nil, fmt.Errorf("cluster: database %d: a cluster has only database 0", o.DB)
		}
		if err := checkAddrs("cluster", o.Cluster); err != nil {
			return nil, err
		}
		u.Addrs = o.Cluster
		cluster := u.Cluster()
		// Who has which slots is read again only after so long, or when a master says
		// that it has them no more: a dead one says nothing.
		cluster.ClusterStateReloadInterval = clusterReload
		return redis.NewClusterClient(cluster), nil
	}
}

// connectURL is connect for a URL.
func connectURL(o Options, u redis.UniversalOptions) (redis.UniversalClient, error) {
	const want = "want redis://[user:password@]host[:port][/database], rediss://… or unix:///path"
	parsed, err := redis.ParseURL(o.URL)
	if err != nil {
		// The reason quotes pieces of the URL, and a password may be among them.
		return nil, errors.New("url: cannot be understood; " + want)
	}
	if plain, err := url.Parse(o.URL); err != nil || (plain.Scheme != "unix" && plain.RawQuery != "") || plain.Fragment != "" {
		return nil, errors.New("url: options belong into the configuration, not into the URL; " + want)
	}
	if parsed.Network != "unix" {
		if err := checkAddrs("url", []string{parsed.Addr}); err != nil {
			return nil, err
		}
	}
	u.DB = parsed.DB
	if o.Password == "" {
		u.Username, u.Password = parsed.Username, parsed.Password
	}
	if t := parsed.TLSConfig; t != nil && o.TLS != nil {
		u.TLSConfig = o.TLS.Clone()
		if u.TLSConfig.ServerName == "" {
			u.TLSConfig.ServerName = t.ServerName
		}
	} else if t != nil {
		u.TLSConfig = &tls.Config{ServerName: t.ServerName, MinVersion: tls.VersionTLS12}
	} else if o.TLS != nil {
		return nil, fmt.Errorf("url: TLS is configured, but the scheme is %s: write rediss://", strings.SplitN(o.URL, ":", 2)[0])
	}
	u.Addrs = []string{parsed.Addr}
	simple := u.Simple()
	simple.Network = parsed.Network
	return redis.NewClient(simple), nil
}

func checkAddrs(what string, addrs []string) error {
	if len(addrs) == 0 {
		return fmt.Errorf("%s: addresses are missing", what)
	}
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || host == "" || port == "" {
			return fmt.Errorf("%s: address %q: want host:port", what, addr)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%s: port %q: want 1 to 65535", what, port)
		}
	}
	return nil
}

func orDefault(d, or time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return or
}

// newRegistry makes the registry of a client, with the defaults of times.
func newRegistry(c redis.UniversalClient, o Options) *Registry {
	_, clustered := c.(*redis.ClusterClient)
	r := &Registry{
		c:        c,
		keys:     keys{o.KeyPrefix},
		log:      o.Logger,
		nodeTTL:  orDefault(o.nodeTTL, registry.NodeTTL),
		portRest: orDefault(o.portRest, registry.PortRest),
		newTime:  orDefault(o.newTime, newTime),
		perCall:  keysPerCall,
		now:      o.now,
		turns:    make(chan struct{}, turnsOf(cmp.Or(o.PoolSize, 10*runtime.GOMAXPROCS(0)))),
		watch:    newWatch(orDefault(o.settle, settleTime)),
		// One try that is not answered, and another.
		claimTime: 2 * orDefault(o.Timeout, defaultTimeout),
	}
	r.life, r.end = context.WithCancel(context.Background())
	r.tail, r.grace = r.portRest, r.portRest/2
	if r.now == nil {
		r.now = time.Now
	}
	if clustered {
		r.perCall = 1
	}
	return r
}
