package caddymodule

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/caddymodule/roundtrip"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Limits of connections to devices.
const (
	// keptPerDevice is as many as a device has streams by default: with fewer, a
	// page opened by many visitors would dial again and again.
	keptPerDevice = wire.DefaultStreams
	// tlsTimeout bounds the TLS handshake with a device; the hub bounds the rest.
	tlsTimeout = 20 * time.Second
)

// conns are the HTTP connections to devices. Each tunnel keeps its own: none
// outlives its tunnel, and those of one can be closed for its device to have
// room. Requests of different devices share no lock here.
type conns struct {
	hub           *tunnelcore.Hub
	answerTimeout atomic.Int64 // nanoseconds from the end of a request to the header of its answer
	byTunnel      sync.Map     // tunnel id → *roundtrip.Pool
	none          *roundtrip.Pool
}

func newConns(hub *tunnelcore.Hub) *conns {
	none := roundtrip.NewPool(0)
	none.Close()
	return &conns{hub: hub, none: none}
}

// kept returns the connections of the tunnel that v goes to.
func (c *conns) kept(ctx context.Context, v *visit) *roundtrip.Pool {
	tunnel := v.target.Tunnel
	if p, ok := c.byTunnel.Load(tunnel); ok {
		return p.(*roundtrip.Pool)
	}
	p, had := c.byTunnel.LoadOrStore(tunnel, roundtrip.NewPool(keptPerDevice))
	if !had {
		// If the tunnel has ended meanwhile, nobody else will forget it.
		if now, err := c.hub.Lookup(ctx, v.hostname); err != nil || now.Tunnel != tunnel {
			c.forget(tunnel)
		}
	}
	return p.(*roundtrip.Pool)
}

// forget drops the connections of a tunnel that has ended.
func (c *conns) forget(tunnel string) {
	if p, ok := c.byTunnel.LoadAndDelete(tunnel); ok {
		p.(*roundtrip.Pool).Close()
	}
}

// makeRoom closes the connections of a tunnel that wait for a next request: its
// device has no room for a visitor.
func (c *conns) makeRoom(tunnel string) {
	if p, ok := c.byTunnel.Load(tunnel); ok {
		p.(*roundtrip.Pool).CloseIdle()
	}
}

// closeIdle closes all connections that wait for a next request.
func (c *conns) closeIdle() {
	c.byTunnel.Range(func(_, p any) bool {
		p.(*roundtrip.Pool).CloseIdle()
		return true
	})
}

// roundtrip asks streams whether they are quiet before they serve again.
var _ interface{ Quiet() bool } = (*stream.Stream)(nil)

// Dial opens a stream to the port of the device that v is for. The visitor who is
// told to the device is the one whose request makes the connection.
func (v *visit) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := v.edge.hub.Dial(ctx, v.target.Device, v.target.Port, v.from)
	if err != nil || v.target.Kind != wire.HTTPS {
		return conn, err
	}
	return v.secure(ctx, conn)
}

// secure speaks TLS through a stream, for devices whose service is HTTPS. Their
// certificates are their own: nobody vouches for them, and the tunnel has
// authenticated the device.
func (v *visit) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	_, domain, _ := strings.Cut(v.hostname, ".")
	ctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	tc := tls.Client(conn, &tls.Config{
		ServerName:         v.target.Label + "." + domain, // the device's own hostname, without a port
		InsecureSkipVerify: true,                          // see above
		MinVersion:         tls.VersionTLS10,              // old firmware; the outer connection has its own
		NextProtos:         []string{"http/1.1"},
	})
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}
