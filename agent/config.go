package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/agent/internal/hosthead"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Profile chooses among the ways in which streams travel.
type Profile string

// The profiles. Whatever is chosen works with every edge.
const (
	// ProfileFull begins streams on the control socket, gives those that last a
	// transfer socket of their own, and uses transfer sockets again.
	ProfileFull Profile = "full"
	// ProfileBasic is one transfer socket for each stream, and nothing else.
	ProfileBasic Profile = "basic"
	// ProfileInline keeps everything on the control socket: one connection, and
	// one TLS session, is all there ever is, and streams share what it carries.
	ProfileInline Profile = "inline"
)

// Config says what an agent is. Servers, Device and Forwards are needed; the rest
// has a default that works. Its values are not to be changed after New.
type Config struct {
	// Servers are the URLs of the edge, as wss://HOST[:PORT] (or https://, which
	// is the same). They are tried in random order. ws:// and http:// are for
	// loopback only, unless AllowPlaintext is set.
	Servers []string
	// Device is the device's id: at most 56 of a-z, 0-9, and - inside, no --.
	Device string
	// Token is the device's secret. Empty: none is sent, for edges that ask for a
	// client certificate.
	Token string
	// TokenSource, if set, is asked for the token before each attempt, so that a
	// renewed one counts without a restart. It wins over Token.
	TokenSource func(ctx context.Context) (string, error)
	// Forwards are the ports that visitors can reach: 1 to 32.
	Forwards []Forward

	// TLS is the template for connections to the edge and to https proxies; nil
	// is right for an edge with a public certificate. It is copied; ServerName,
	// if empty, is the server's host, ALPN is always http/1.1, and what is below
	// TLS 1.2 is never spoken.
	TLS *tls.Config
	// AllowPlaintext lets the token and all traffic travel without TLS to servers
	// elsewhere than on loopback.
	AllowPlaintext bool
	// Proxy returns the proxy for a server's URL (scheme http or https), nil for
	// none. The default reads the environment as http.ProxyFromEnvironment does:
	// HTTPS_PROXY, HTTP_PROXY and NO_PROXY. Proxies are http:// or https://, and are asked to CONNECT;
	// user and password in their URL are sent as Basic authentication.
	Proxy func(*url.URL) (*url.URL, error)
	// RedirectTo are domains to which, hosts below them included, an edge may send
	// the agent, and with it the token. The hosts of Servers and their siblings
	// (edge-2.example.com for edge.example.com) need not be named.
	RedirectTo []string
	// Resolver looks up names; nil is the system's.
	Resolver *net.Resolver

	// Built is when this program was made. A clock that is behind it, or behind the day
	// on which this package was written, is wrong: certificates are then judged by the
	// date that the edge tells, for which nobody vouches.
	Built time.Time

	// Profile is ProfileFull by default.
	Profile Profile
	// Heartbeat is how often the edge is asked to ping: 10 s to 15 min, by default
	// what the edge prefers, 25 s unless it was configured. The edge may decide
	// otherwise. A tunnel is given up after two missed ones and 10 s. AutoHeartbeat
	// finds the longest that the network bears.
	Heartbeat time.Duration
	// MaxBackoff bounds the pause between attempts to connect: 30 s by default.
	// After a refusal of the credential it is 5 to 15 minutes.
	MaxBackoff time.Duration
	// Streams bounds the visitors' connections at once: 1 to 65535, 256 by
	// default.
	Streams int
	// Grace is how long streams may go on after Run's context has ended: 5 s by
	// default; negative for not at all.
	Grace time.Duration
	// Once makes Run return the first failure instead of trying again.
	Once bool

	// Logger gets what an operator reads; nil discards it.
	Logger *slog.Logger
	// OnUp is called each time a tunnel is up and all ports have been told, and
	// again when the edge tells others. OnDown is called after a tunnel has ended
	// and after each failed attempt, with the reason and the pause until the next
	// one. Both are called one at a time and must not block.
	OnUp   func(Up)
	OnDown func(err error, next time.Duration)
}

// Kind says what a port speaks.
type Kind string

// The kinds of a port. HTTP and HTTPS get a hostname at the edge; TCP gets a
// public port, if the edge has them.
const (
	HTTP  Kind = Kind(wire.HTTP)
	HTTPS Kind = Kind(wire.HTTPS)
	TCP   Kind = Kind(wire.TCP)
)

// Forward is a port of the device that visitors can reach.
type Forward struct {
	// Port is the number by which visitors know it. It need not be open, nor be
	// the target's.
	Port uint16
	// Kind is, by default, HTTP for port 80, HTTPS for 443, TCP for others.
	Kind Kind
	// Target is the host:port to connect to.
	Target string
	// Dial makes the connection instead of Target. Its context is valid for the
	// call only, ends after 10 s, and Visitor tells for whom it is. Connections
	// with CloseWrite() error pass the visitor's end of stream on; those with
	// Abort() its abort.
	Dial func(ctx context.Context) (net.Conn, error)
	// ProxyProtocol writes the visitor's address ahead of its first byte, as a
	// header of version 2 of the PROXY protocol.
	ProxyProtocol bool
	// Host is what a service of kind HTTP gets as Host of each request, in place of
	// the name that visitors use: for services that answer to one name only.
	// Answers are not rewritten.
	Host string
}

// Up describes a tunnel.
type Up struct {
	Server   string // URL of the edge, as the tunnel reached it
	Label    string // the device's label,
	Hostname string // and its hostname
	Ports    []Port // in the order of Config.Forwards
}

// Port tells where visitors find a forwarded port.
type Port struct {
	Number uint16
	Kind   Kind
	// URL is https://… (or http://…) or tcp://host:port; empty when the port
	// cannot be reached from outside.
	URL string
}

type visitorKey struct{}

// Visitor returns the address of the visitor for whom a Forward's Dial was
// called; the zero value when the edge did not tell.
func Visitor(ctx context.Context) netip.AddrPort {
	from, _ := ctx.Value(visitorKey{}).(netip.AddrPort)
	return from
}

// Defaults of Config.
const (
	defaultMaxBackoff = 30 * time.Second
	defaultGrace      = 5 * time.Second

	minHeartbeat = 10 * time.Second
	maxHeartbeat = wire.MaxHeartbeat * time.Second
	maxDevice    = 56 // leaves room for --65535 in a DNS label
)

// ConfigError is the fault that New finds with a Config.
type ConfigError struct {
	Field string // of Config, such as Servers
	Err   error  // what is wrong with it, and what it accepts
}

func (e *ConfigError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// wrong makes a *ConfigError.
func wrong(field, format string, args ...any) error {
	return &ConfigError{field, fmt.Errorf(format, args...)}
}

// withDefaults returns c with what is zero filled in, or says what is wrong with
// it.
func (c Config) withDefaults() (Config, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.Profile, ProfileFull)
	setDefault(&c.MaxBackoff, defaultMaxBackoff)
	setDefault(&c.Streams, wire.DefaultStreams)
	setDefault(&c.Grace, defaultGrace)
	if c.Proxy == nil {
		c.Proxy = readEnvironment(os.Getenv).proxy
		warnOfProxies(c.Logger, os.Getenv)
	}
	return c, c.check()
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// check says what of a configuration, its defaults filled in, can never work: a ConfigError
// that names the field.
func (c Config) check() error {
	if err := names.CheckDevice(c.Device); err != nil {
		return &ConfigError{"Device", err}
	}
	if len(c.Device) > maxDevice {
		return wrong("Device", "longer than %d characters", maxDevice)
	}
	if err := checkToken(c.Token); err != nil {
		return &ConfigError{"Token", err}
	}
	switch c.Profile {
	case ProfileFull, ProfileBasic, ProfileInline:
	default:
		return wrong("Profile", "%q is not one: full, basic or inline", c.Profile)
	}
	switch {
	case c.Heartbeat != 0 && c.Heartbeat != AutoHeartbeat && c.Heartbeat < minHeartbeat || c.Heartbeat > maxHeartbeat:
		return wrong("Heartbeat", "%v is not from %v to %v", c.Heartbeat, minHeartbeat, maxHeartbeat)
	case c.MaxBackoff < time.Second || c.MaxBackoff > time.Hour:
		return wrong("MaxBackoff", "%v is not from 1s to 1h", c.MaxBackoff)
	case c.Streams < 1 || c.Streams > wire.MaxStreams:
		return wrong("Streams", "%d is not from 1 to %d", c.Streams, wire.MaxStreams)
	}
	for _, domain := range c.RedirectTo {
		// At least two labels: a redirect carries the token.
		if d := normalDomain(domain); !strings.Contains(d, ".") || strings.ContainsAny(d, "/:@* ") {
			return wrong("RedirectTo", "%q is not a domain such as example.com", domain)
		}
	}
	return checkForwards(c.Forwards)
}

// checkToken makes sure that a token can stand in a header (RFC 6750 §2.1).
func checkToken(token string) error {
	for i := range len(token) {
		if c := token[i]; c <= ' ' || c > '~' {
			return fmt.Errorf("character %d is a space or not printable ASCII", i+1)
		}
	}
	return nil
}

// checkForwards is check for the ports, which no two forwards share.
func checkForwards(forwards []Forward) error {
	if len(forwards) == 0 || len(forwards) > wire.MaxPorts {
		return wrong("Forwards", "%d given, 1 to %d are possible", len(forwards), wire.MaxPorts)
	}
	seen := make(map[uint16]bool)
	for _, f := range forwards {
		switch {
		case f.Port == 0:
			return wrong("Forwards", "port 0; 1 to 65535 are possible")
		case seen[f.Port]:
			return wrong("Forwards", "port %d is given twice", f.Port)
		case f.Kind != "" && f.Kind != HTTP && f.Kind != HTTPS && f.Kind != TCP:
			return wrong("Forwards", "port %d: kind %q is not http, https or tcp", f.Port, f.Kind)
		case (f.Target == "") == (f.Dial == nil):
			return wrong("Forwards", "port %d: needs either Target or Dial", f.Port)
		}
		seen[f.Port] = true
		if err := checkHost(f); err != nil {
			return &ConfigError{"Forwards", err}
		}
		if f.Dial != nil {
			continue
		}
		host, port, err := net.SplitHostPort(f.Target)
		if err != nil || host == "" || !validPort(port) {
			return wrong("Forwards", "port %d: target %q is not host:port", f.Port, f.Target)
		}
	}
	return nil
}

// checkHost says what is wrong with the Host that a forward writes into requests.
func checkHost(f Forward) error {
	kind := f.Kind
	if kind == "" {
		kind = Kind(wire.DefaultKind(f.Port))
	}
	switch {
	case f.Host == "":
		return nil
	case kind != HTTP:
		return fmt.Errorf("port %d: another Host is possible on kind http alone, not on %s: the agent cannot look into it", f.Port, kind)
	}
	if err := hosthead.CheckHost(f.Host); err != nil {
		return fmt.Errorf("port %d: host: %w", f.Port, err)
	}
	return nil
}

func validPort(s string) bool {
	p, err := wire.ParsePort(s)
	return err == nil && p.Number != 0 && !strings.Contains(s, "/")
}

// parseServer reads the URL of a server; its scheme becomes ws or wss. Errors do
// not repeat what may be a secret.
func parseServer(s string, allowPlaintext bool) (*url.URL, error) {
	const form = "wss://HOST[:PORT]"
	shown := redacted(s)
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not a URL of the form %s", shown, form)
	}
	switch u.Scheme {
	case "wss", "https":
		u.Scheme = "wss"
	case "ws", "http":
		u.Scheme = "ws"
	default:
		return nil, fmt.Errorf("%q: scheme is not wss, https, ws or http; give %s", shown, form)
	}
	switch {
	case u.Port() != "" && !validPort(u.Port()):
		return nil, fmt.Errorf("%q: port is not from 1 to 65535", shown)
	case u.Hostname() == "":
		return nil, fmt.Errorf("%q is not of the form %s", shown, form)
	case u.User != nil:
		return nil, fmt.Errorf("%q: user and password do not belong into the URL", shown)
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "", u.Opaque != "":
		return nil, fmt.Errorf("%q has more than scheme, host and port", shown)
	case u.Scheme == "ws" && !allowPlaintext && !isLoopback(u.Hostname()):
		return nil, fmt.Errorf("%q would send the token unencrypted; use wss://, or allow it on a network that you trust (--allow-plaintext)", shown)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// redacted is a URL, which need not be one, without user, password and query.
func redacted(s string) string {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		scheme, _, found := strings.Cut(s[:i], "://")
		if found && !strings.Contains(scheme, ":") {
			s = scheme + "://…" + s[i:]
		} else {
			s = "…" + s[i:]
		}
	}
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		s = s[:i+1] + "…"
	}
	return s
}

// isLoopback reports whether host is this machine, by address or by the name
// that stands for it everywhere (RFC 6761 §6.3).
func isLoopback(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	host = normalDomain(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// normalDomain is d in lower case, without a dot at either end.
func normalDomain(d string) string { return strings.ToLower(strings.Trim(d, ".")) }
