package caddymodule

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
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
	// tlsTimeout bounds the TLS handshake with a device; the hub bounds the rest.
	tlsTimeout = 20 * time.Second
)

// conns are the HTTP connections to devices. Each tunnel keeps its own: none
// outlives its tunnel, and those of one can be closed for its device to have
// room.
type conns struct {
	hub      *tunnelcore.Hub
	fresh    *http.Transport // takes a new connection for each request
	byTunnel sync.Map        // tunnel id → *http.Transport, which keeps connections
}

func newConns(hub *tunnelcore.Hub) *conns {
	c := &conns{hub: hub, fresh: newTransport(hub)}
	c.fresh.DisableKeepAlives = true
	return c
}

// kept returns the transport of the tunnel that v goes to.
func (c *conns) kept(ctx context.Context, v *visit) *http.Transport {
	tunnel := v.target.Tunnel
	if t, ok := c.byTunnel.Load(tunnel); ok {
		return t.(*http.Transport)
	}
	t, _ := c.byTunnel.LoadOrStore(tunnel, newTransport(c.hub))
	// If the tunnel has ended meanwhile, nobody else will forget it.
	if now, err := c.hub.Lookup(ctx, v.hostname); err != nil || now.Tunnel != tunnel {
		c.forget(tunnel)
	}
	return t.(*http.Transport)
}

// forget drops the connections of a tunnel that has ended.
func (c *conns) forget(tunnel string) {
	if t, ok := c.byTunnel.LoadAndDelete(tunnel); ok {
		t.(*http.Transport).CloseIdleConnections()
	}
}

// makeRoom closes the connections of a tunnel that wait for a next request: its
// device has no room for a visitor.
func (c *conns) makeRoom(tunnel string) {
	if t, ok := c.byTunnel.Load(tunnel); ok {
		t.(*http.Transport).CloseIdleConnections()
	}
}

// closeIdle closes all connections that wait for a next request.
func (c *conns) closeIdle() {
	c.byTunnel.Range(func(_, t any) bool {
		t.(*http.Transport).CloseIdleConnections()
		return true
	})
}

// newTransport returns a transport whose connections are streams of hub, to the
// device of the visit in the context. The visitor who is told to the device is
// the one whose request made the connection.
func newTransport(hub *tunnelcore.Hub) *http.Transport {
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
