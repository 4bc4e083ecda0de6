package tunnelcore

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Dial opens a stream to a port of a device, on behalf of a visitor at from. A
// device whose tunnel has just broken is waited for, up to Settings.Wait; one that is
// connected to another node is reached through that, and not waited for if that node says
// nothing. Errors are *answers.Error:
// device_offline, device_busy, unknown_device, unavailable; nothing was sent to the
// device then. The connection is a *stream.Stream; with Limits.BandwidthPerDevice one
// that passes no more.
//
// With an agent that has the capability early Dial does not wait for the device's
// word: reads and writes of the stream fail with what it was, an *answers.Error in
// the chain of their errors, which answers.From finds: device_refused or
// device_timeout, of which another attempt brings no better; or, with ErrLost in
// the chain, device_offline. In the basic profile Dial itself fails with these.
func (h *Hub) Dial(ctx context.Context, device string, port uint16, from netip.AddrPort) (net.Conn, error) {
	began := time.Now()
	c, err := h.dial(ctx, device, port, from)
	if errors.Is(err, errNoTunnel) {
		err = h.retry(ctx, device, err, func() (err error) {
			c, err = h.dial(ctx, device, port, from)
			return err
		})
	}
	h.observeOpen(device, port, began, err)
	if err != nil {
		return nil, err
	}
	return h.pace(device, c), nil
}

// ErrLost is in the chain of what the reads and writes of a stream fail with whose
// tunnel has ended before the stream had a transfer socket. It is for who dialled
// to dial again, which waits for the device to come back, and to send again what
// may be sent twice. What must not be sent twice may be sent again if ErrUnsent is
// in the chain, too. Streams with a transfer socket outlive their tunnel.
var ErrLost = stream.ErrLost

// ErrUnsent is in the chain, besides ErrLost, when nothing that was written to the
// stream has left the edge.
var ErrUnsent = stream.ErrUnsent

// lost is what streams fail with whose tunnel has ended.
func lost() error {
	return &answers.Error{Code: wire.DeviceOffline, RetryAfter: 10 * time.Second, Message: "the device's connection broke", Cause: ErrLost}
}

// errNoTunnel: the device has no tunnel, or it broke before the stream was there,
// so that nothing of the visitor's was lost with it.
var errNoTunnel = errors.New("no tunnel")

func noTunnel(message string) error {
	return &answers.Error{Code: wire.DeviceOffline, RetryAfter: 10 * time.Second, Message: message, Cause: errNoTunnel}
}

func busy() error {
	return &answers.Error{Code: wire.DeviceBusy, RetryAfter: slotTime, Message: "the device serves as many visitors as it can"}
}

func (h *Hub) dial(ctx context.Context, device string, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	if t, s := h.liveTunnel(device); t != nil {
		return h.dialTunnel(ctx, t, s, port, from)
	}
	c, err := h.dialRemote(ctx, device, port, from)
	if errors.Is(err, errNoTunnel) && h.isStopping() && h.alone() {
		return nil, stopping // it was here, perhaps
	}
	return c, err
}

// liveTunnel is the tunnel of a device that is connected to this node, and its
// session; nil when there is none, or this node stops.
func (h *Hub) liveTunnel(device string) (*tunnel, *session) {
	h.mu.Lock()
	d, stop := h.devices[device], h.stopping
	h.mu.Unlock()
	if d == nil || stop {
		return nil, nil
	}
	return d.live()
}

// dialTunnel opens a stream of a tunnel of this node.
func (h *Hub) dialTunnel(ctx context.Context, t *tunnel, s *session, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	if _, ok := t.port(port); !ok {
		return nil, &answers.Error{Code: wire.UnknownDevice, Message: "the device does not offer this port"}
	}
	if err := s.slots.acquire(ctx, slotTime, func() { h.crowded(t.holder.Tunnel) }); errors.Is(err, errNoSlot) {
		h.limited(t.holder.Device, limitStreams)
		return nil, busy()
	} else if err != nil {
		return nil, answers.From(err)
	}
	o := &opening{tunnel: t, session: s, id: wire.NewID(), release: sync.OnceFunc(s.slots.release)}
	ctx, cancel := context.WithTimeout(ctx, min(h.settings.Load().OpenTimeout, wire.IDLifetime*time.Second))
	defer cancel()
	var c *stream.Stream
	err := t.greet(ctx)
	switch {
	case err != nil:
	case t.mux != nil:
		c, err = t.openEarly(ctx, o, port, from)
	default:
		c, err = t.open(ctx, o, port, from)
	}
	if err != nil {
		o.release()
	}
	return c, err
}

// crowded tells the host that a device has no room for a visitor.
func (h *Hub) crowded(tunnel string) {
	if f := h.settings.Load().Crowded; f != nil {
		f(tunnel)
	}
}

// greet waits until the agent was told what is in force: `ready` comes before
// everything else (protocol §4.1).
func (t *tunnel) greet(ctx context.Context) error {
	select {
	case <-t.greeted:
		return nil
	case <-t.ended:
		return noTunnel("the device's connection broke")
	case <-ctx.Done():
		return answers.From(ctx.Err())
	}
}
