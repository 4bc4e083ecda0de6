package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Deadlines of the hops to an edge.
const (
	tcpTimeout       = 15 * time.Second // with the name's look-up
	proxyTimeout     = 15 * time.Second
	tlsTimeout       = 15 * time.Second
	handshakeTimeout = 20 * time.Second // an edge may make a newcomer wait for the incumbent's pong
	readyTimeout     = 30 * time.Second
	transferTimeout  = 15 * time.Second // all hops of a transfer socket
	targetTimeout    = 10 * time.Second
)

// HopError tells at which hop on the way to the edge an attempt failed.
type HopError struct {
	Hop string // tcp, proxy, tls, handshake, ready
	Err error
}

func (e *HopError) Error() string { return e.Hop + ": " + e.Err.Error() }
func (e *HopError) Unwrap() error { return e.Err }

// hop runs f under a deadline. What f returns is its own business when it fails.
func hop[T any](ctx context.Context, name string, limit time.Duration, f func(context.Context) (T, error)) (T, error) {
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer cancel()
	v, err := f(limited)
	if err == nil {
		return v, nil
	}
	if limited.Err() != nil {
		err = context.Cause(limited)
	}
	var hopErr *HopError
	if errors.As(err, &hopErr) {
		return v, err
	}
	return v, &HopError{name, err}
}

// dialer makes connections to edges.
type dialer struct {
	tls            *tls.Config
	proxy          func(*url.URL) (*url.URL, error)
	allowPlaintext bool
	clock          *clock
	meter          meter
	// tcp dials; keepAlive as of net.Dialer.
	tcp   func(ctx context.Context, keepAlive time.Duration, addr string) (net.Conn, error)
	avoid *avoided
}

// newDialer makes the one dialer of an agent, whose configuration was checked.
func newDialer(c Config) *dialer {
	avoid := new(avoided)
	template := c.TLS.Clone() // nil stays nil
	if template == nil {
		template = new(tls.Config)
	}
	// An HTTP/1.1 upgrade is what follows (RFC 7301).
	template.NextProtos = []string{"http/1.1"}
	template.MinVersion = max(template.MinVersion, tls.VersionTLS12)
	if template.ClientSessionCache == nil {
		// Each transfer socket resumes the control socket's session.
		template.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	}
	clock := newClock(c)
	if template.Time == nil {
		template.Time = clock.judge
	}
	return &dialer{
		tls:            template,
		clock:          clock,
		proxy:          c.Proxy,
		allowPlaintext: c.AllowPlaintext,
		tcp: func(ctx context.Context, keepAlive time.Duration, addr string) (net.Conn, error) {
			d := net.Dialer{Resolver: c.Resolver, KeepAlive: keepAlive}
			conn, err := avoid.dial(ctx, &d, c.Resolver.LookupNetIP, addr)
			if err != nil {
				return nil, explainDNS(err, c.Resolver)
			}
			return conn, nil
		},
		avoid: avoid,
	}
}

// route is a way to an edge: up to TLS, a connection is made along it.
type route struct {
	url   *url.URL // wss or ws
	proxy *url.URL // nil: none
	// addr, if set, is where the control socket's connection leads: transfer
	// sockets go there too, without asking for the name again.
	addr string
}

// route finds the way to u.
func (d *dialer) route(u *url.URL) (route, error) {
	plain := *u
	plain.Scheme = map[string]string{"wss": "https", "ws": "http"}[u.Scheme]
	proxy, err := d.proxy(&plain)
	if err != nil {
		return route{}, &HopError{"proxy", err}
	}
	if proxy == nil {
		return route{url: u}, nil
	}
	switch {
	case proxy.Scheme != "http" && proxy.Scheme != "https", proxy.Hostname() == "":
		return route{}, &HopError{"proxy", errNoProxy}
	case u.Scheme == "ws" && !d.allowPlaintext && !isLoopback(proxy.Hostname()):
		// The proxy's loopback is not ours.
		return route{}, &HopError{"proxy", fmt.Errorf("%s would see the token unencrypted", proxy.Host)}
	}
	return route{url: u, proxy: proxy}, nil
}

// connect makes a connection along r, up to TLS. keepAlive as of net.Dialer;
// wrap, if set, gets the connection of TCP, and what it returns is used instead.
func (d *dialer) connect(ctx context.Context, r route, keepAlive time.Duration, wrap func(net.Conn) net.Conn) (net.Conn, error) {
	d.askDate(ctx, r)
	addr := hostPort(r.url)
	first, name := addr, "tcp"
	switch {
	case r.proxy != nil:
		first, name = hostPort(r.proxy), "proxy" // else the proxy's fault reads like the edge's
	case r.addr != "":
		first = r.addr
	}
	conn, err := hop(ctx, name, tcpTimeout, func(ctx context.Context) (net.Conn, error) {
		return d.tcp(ctx, keepAlive, first)
	})
	if err != nil {
		return nil, err
	}
	switch {
	case wrap != nil:
		conn = wrap(conn)
	case r.url.Scheme == "wss": // without TLS the kernel does some of the work, uncounted
		conn = d.meter.on(conn)
	}
	if r.proxy != nil {
		conn, err = hop(ctx, "proxy", proxyTimeout, func(ctx context.Context) (net.Conn, error) {
			return d.throughProxy(ctx, conn, r.proxy, addr)
		})
		if err != nil {
			return nil, err
		}
	}
	if r.url.Scheme != "wss" {
		if r.proxy == nil && !d.allowPlaintext && !leadsToLoopback(conn) {
			conn.Close()
			return nil, &HopError{"tcp", fmt.Errorf("%s is not on loopback, and plaintext is not allowed", r.url.Host)}
		}
		return conn, nil
	}
	secure, err := hop(ctx, "tls", tlsTimeout, func(ctx context.Context) (net.Conn, error) {
		return d.secure(ctx, conn, d.tls, r.url.Hostname())
	})
	if err != nil {
		d.failed(ctx, r, conn)
	}
	return secure, err
}

// failed notes that an attempt has failed on a connection along r: other addresses of
// the name are better. Whether a proxy's fault is the edge's cannot be told.
func (d *dialer) failed(ctx context.Context, r route, conn net.Conn) {
	if r.proxy == nil && ctx.Err() == nil {
		d.avoid.add(conn.RemoteAddr())
	}
}

// leadsToLoopback reports whether conn stays on this machine; connections that
// are not TCP do.
func leadsToLoopback(conn net.Conn) bool {
	addr, ok := conn.RemoteAddr().(*net.TCPAddr)
	return !ok || addr.IP.IsLoopback()
}

// secure makes TLS of conn, which it closes if that fails.
func (d *dialer) secure(ctx context.Context, conn net.Conn, template *tls.Config, host string) (net.Conn, error) {
	config := template
	if config.ServerName == "" {
		config = template.Clone()
		config.ServerName = host
	}
	c := tls.Client(conn, config)
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, explainTLS(err)
	}
	return c, nil
}

// explainTLS adds what people look for last: a device's clock.
func explainTLS(err error) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired { // or not valid yet
		return fmt.Errorf("%w; this device's clock says %s", err, time.Now().UTC().Format(time.DateTime))
	}
	return err
}

// hostPort is u's host with its port, the scheme's if it names none.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "ws" || u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// upgrade makes a WebSocket of conn, which it owns from then on. An answer that
// is not 101 is in the error as a *RefusedError.
func upgrade(ctx context.Context, conn net.Conn, u *url.URL, bearer string, buffer int) (*socket.Socket, error) {
	return upgradeWithin(ctx, handshakeTimeout, conn, u, bearer, buffer)
}

// upgradeWithin is upgrade with a deadline of its own.
func upgradeWithin(ctx context.Context, limit time.Duration, conn net.Conn, u *url.URL, bearer string, buffer int) (*socket.Socket, error) {
	return hop(ctx, "handshake", limit, func(ctx context.Context) (*socket.Socket, error) {
		header := map[string][]string{"User-Agent": {"iottunnel-agent"}}
		if bearer != "" {
			header["Authorization"] = []string{"Bearer " + bearer}
		}
		s, err := socket.Dial(ctx, conn, u, header, wire.Subprotocol, buffer)
		var answer *socket.StatusError
		if errors.As(err, &answer) {
			return nil, newRefused(answer)
		}
		return s, err
	})
}

// directAddr is the address to which conn leads, for further connections along
// r; empty through a proxy.
func directAddr(s *socket.Socket, r route) string {
	if r.proxy != nil || s.RemoteAddr() == nil {
		return ""
	}
	addr, err := netip.ParseAddrPort(s.RemoteAddr().String())
	if err != nil {
		return ""
	}
	return addr.String()
}
