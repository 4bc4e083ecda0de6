package caddymodule

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Limits of connections to devices.
const (
	// keptIdle is how long a connection waits for the next request: less than the
	// minute after which small HTTP servers close theirs.
	keptIdle = 30 * time.Second
	// keptPerPort is as many as a device has streams by default: with fewer, a
	// page opened by many visitors would dial again and again.
	keptPerPort = wire.DefaultStreams
	// maxResponseHeader bounds, in bytes, the header of a device's answer.
	maxResponseHeader = 64 << 10
	// continueWait is how long the body of a request that expects a 100 is held
	// back for the device to ask for it or to refuse: many small servers do neither.
	continueWait = time.Second
	// tlsTimeout bounds the TLS handshake with a device; the hub bounds the rest.
	tlsTimeout = 20 * time.Second
)

// conns are the HTTP connections to devices. Each tunnel keeps its own: none
// outlives its tunnel, and those of one can be closed for its device to have
// room.
type conns struct {
	hub *tunnelcore.Hub

	mu            sync.Mutex // guards what follows
	answerTimeout time.Duration
	fresh         *http.Transport            // takes a new connection for each request
	byTunnel      map[string]*http.Transport // tunnel id → transport, which keeps connections
}

func newConns(hub *tunnelcore.Hub) *conns {
	return &conns{hub: hub, byTunnel: make(map[string]*http.Transport)}
}

// setAnswerTimeout bounds the time from the end of a request to the header of its
// answer, for requests from now on.
func (c *conns) setAnswerTimeout(d time.Duration) {
	c.mu.Lock()
	if c.fresh != nil && c.answerTimeout == d {
		c.mu.Unlock()
		return
	}
	c.answerTimeout = d
	c.fresh = newTransport(c.hub, d)
	c.fresh.DisableKeepAlives = true
	old := c.byTunnel
	c.byTunnel = make(map[string]*http.Transport)
	c.mu.Unlock()
	for _, t := range old {
		t.CloseIdleConnections()
	}
}

// single returns the transport that keeps no connection.
func (c *conns) single() *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fresh
}

// kept returns the transport of the tunnel that v goes to.
func (c *conns) kept(ctx context.Context, v *visit) *http.Transport {
	tunnel := v.target.Tunnel
	c.mu.Lock()
	t, ok := c.byTunnel[tunnel]
	if !ok {
		t = newTransport(c.hub, c.answerTimeout)
		c.byTunnel[tunnel] = t
	}
	c.mu.Unlock()
	if !ok {
		// If the tunnel has ended meanwhile, nobody else will forget it.
		if now, err := c.hub.Lookup(ctx, v.hostname); err != nil || now.Tunnel != tunnel {
			c.forget(tunnel)
		}
	}
	return t
}

// forget drops the connections of a tunnel that has ended.
func (c *conns) forget(tunnel string) {
	c.mu.Lock()
	t, ok := c.byTunnel[tunnel]
	delete(c.byTunnel, tunnel)
	c.mu.Unlock()
	if ok {
		t.CloseIdleConnections()
	}
}

// makeRoom closes the connections of a tunnel that wait for a next request: its
// device has no room for a visitor.
func (c *conns) makeRoom(tunnel string) {
	c.mu.Lock()
	t, ok := c.byTunnel[tunnel]
	c.mu.Unlock()
	if ok {
		t.CloseIdleConnections()
	}
}

// closeIdle closes all connections that wait for a next request.
func (c *conns) closeIdle() {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.byTunnel))
	c.mu.Unlock()
	for _, t := range all {
		t.CloseIdleConnections()
	}
}

// newTransport returns a transport whose connections are streams of hub, to the
// device of the visit in the context. The visitor who is told to the device is
// the one whose request made the connection.
func newTransport(hub *tunnelcore.Hub, answerTimeout time.Duration) *http.Transport {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		v := ctx.Value(visitKey{}).(*visit)
		return hub.Dial(ctx, v.target.Device, v.target.Port, v.from)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext: dial,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return secure(ctx, conn)
		},
		Protocols:              protocols,
		DisableCompression:     true, // what the visitor did not ask for is not added
		MaxIdleConnsPerHost:    keptPerPort,
		IdleConnTimeout:        keptIdle,
		MaxResponseHeaderBytes: maxResponseHeader,
		ExpectContinueTimeout:  continueWait,
		ResponseHeaderTimeout:  answerTimeout, // counts from the end of the request's body
	}
}

// secure speaks TLS through a stream, for devices whose service is HTTPS. Their
// certificates are their own: nobody vouches for them, and the tunnel has
// authenticated the device.
func secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	v := ctx.Value(visitKey{}).(*visit)
	ctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	tc := tls.Client(conn, &tls.Config{
		ServerName:         v.sni,
		InsecureSkipVerify: true,             // see above
		MinVersion:         tls.VersionTLS10, // old firmware; the outer connection has its own
		NextProtos:         []string{"http/1.1"},
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}
