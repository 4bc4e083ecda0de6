package tunnelcore

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// opening is a stream that a visitor waits for. It belongs to its tunnel's mu
// while it is in the tunnel's map; whoever takes it out settles it.
type opening struct {
	tunnel  *tunnel
	session *session
	id      string
	number  uint32
	result  chan result // buffered: settling never waits
	once    sync.Once
	release func() // gives the session's slot back; only the first call does
}

type result struct {
	conn *stream.Stream
	err  error
}

// Dial opens a stream to a port of a device, on behalf of a visitor at from. A
// device whose tunnel has just broken is waited for, up to Settings.Wait. Errors
// are *answers.Error: device_offline, device_refused, device_timeout, device_busy,
// unknown_device, unavailable. The connection is a *stream.Stream.
func (h *Hub) Dial(ctx context.Context, device string, port uint16, from netip.AddrPort) (net.Conn, error) {
	c, err := h.dial(ctx, device, port, from)
	if errors.Is(err, errNoTunnel) && h.await(ctx, device) {
		c, err = h.dial(ctx, device, port, from)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// errNoTunnel: the device has no tunnel, or it broke before the stream was there,
// so that nothing of the visitor's was lost with it.
var errNoTunnel = errors.New("no tunnel")

func noTunnel(message string) error {
	return &answers.Error{Code: wire.DeviceOffline, RetryAfter: 10 * time.Second, Message: message, Cause: errNoTunnel}
}

func (h *Hub) dial(ctx context.Context, device string, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	h.mu.Lock()
	d, stop := h.devices[device], h.stopping
	h.mu.Unlock()
	if stop {
		return nil, stopping
	}
	if d == nil {
		return nil, noTunnel("")
	}
	t, s := d.live()
	if t == nil {
		return nil, noTunnel("")
	}
	if _, ok := t.port(port); !ok {
		return nil, &answers.Error{Code: wire.UnknownDevice, Message: "the device does not offer this port"}
	}
	crowded := func() {
		if f := h.settings.Load().Crowded; f != nil {
			f(t.holder.Tunnel)
		}
	}
	if err := s.slots.acquire(ctx, slotTime, crowded); errors.Is(err, errNoSlot) {
		return nil, &answers.Error{Code: wire.DeviceBusy, RetryAfter: slotTime, Message: "the device serves as many visitors as it can"}
	} else if err != nil {
		return nil, answers.From(err)
	}
	o := &opening{
		tunnel: t, session: s, id: wire.NewID(),
		result: make(chan result, 1), release: sync.OnceFunc(s.slots.release),
	}
	c, err := t.open(ctx, o, port, from)
	if err != nil {
		o.release()
	}
	return c, err
}

// open asks the agent for a stream and waits for its transfer socket.
func (t *tunnel) open(ctx context.Context, o *opening, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, min(t.hub.settings.Load().OpenTimeout, wire.IDLifetime*time.Second))
	defer cancel()
	select {
	case <-t.greeted: // `ready` comes before everything else (protocol §4.1)
	case <-t.ended:
		return nil, noTunnel("the device's connection broke")
	case <-ctx.Done():
		return nil, answers.From(ctx.Err())
	}
	t.mu.Lock()
	o.number = t.numberLocked()
	t.opening[o.id] = o
	t.mu.Unlock()
	message := wire.Encode(&wire.Open{Stream: o.number, ID: o.id, Port: port, From: from.String()})
	if err := t.sock.WriteMessage(socket.Text, message); err != nil {
		t.abandon(o)
		return nil, noTunnel("the device's connection broke")
	}
	select {
	case r := <-o.result:
		return r.conn, r.err
	case <-t.ended:
		t.abandon(o)
		return nil, noTunnel("the device's connection broke")
	case <-ctx.Done():
		t.abandon(o)
		return nil, answers.From(ctx.Err())
	}
}

// numberLocked counts streams up from 1, over those that are being opened when it
// starts over (protocol §6.1). It wants mu.
func (t *tunnel) numberLocked() uint32 {
	for {
		t.next++
		if t.next != 0 && t.openingLocked(t.next) == nil {
			return t.next
		}
	}
}

// openingLocked finds an opening by its number. There are few: no more than slots.
// It wants mu.
func (t *tunnel) openingLocked(number uint32) *opening {
	for _, o := range t.opening {
		if o.number == number {
			return o
		}
	}
	return nil
}

// takeOpening takes the opening of that id, which is thereby used.
func (t *tunnel) takeOpening(id string) *opening {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.opening[id]
	delete(t.opening, id)
	return o
}

// abandon gives o up: what arrives for it later is closed.
func (t *tunnel) abandon(o *opening) {
	t.takeOpening(o.id)
	o.settle(result{err: context.Canceled})
	if r := <-o.result; r.conn != nil { // it was settled a moment before
		r.conn.Abort()
	}
}

// refused handles the agent's word that its local service did not answer. After
// the transfer socket is attached it says nothing new.
func (t *tunnel) refused(m *wire.Refused) {
	t.mu.Lock()
	o := t.openingLocked(m.Stream)
	if o != nil {
		delete(t.opening, o.id)
	}
	t.mu.Unlock()
	if o != nil {
		o.fail(&answers.Error{Code: wire.DeviceRefused, Message: "the service on the device did not answer: " + m.Reason})
	}
}

func (o *opening) fail(err error) { o.settle(result{err: err}) }

// settle gives the visitor r; false when something was settled before.
func (o *opening) settle(r result) (first bool) {
	o.once.Do(func() { first = true; o.result <- r })
	return first
}

// attach makes a stream of a transfer socket and gives it to the visitor.
func (o *opening) attach(sock *socket.Socket) {
	t, h := o.tunnel, o.tunnel.hub
	if !h.begin() {
		sock.Close()
		o.fail(stopping)
		return
	}
	c := stream.New(sock, stream.Options{
		MessageMax: t.messageMax,
		Owner:      &h.wg,
		Closed: func(c *stream.Stream) {
			t.device.remove(o.session, c)
			o.release()
			h.wg.Done()
		},
	})
	if !t.device.add(o.session, c) {
		// Another instance of the device has taken over.
		sock.Close()
		h.wg.Done()
		o.fail(noTunnel("the device has started anew"))
		return
	}
	if !o.settle(result{conn: c}) || h.ctx.Err() != nil {
		c.Abort() // the visitor has given up, or Shutdown has lost its patience
	}
}
