package tunnelcore

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// opening is a stream that can get a transfer socket. It is in its tunnel's map
// until somebody takes it out, who attaches it, or puts it back, or lets it be. In
// the basic profile the visitor waits for that; with early it has the stream.
type opening struct {
	tunnel  *tunnel
	session *session
	id      string
	number  uint32
	release func() // gives the session's slot back; only the first call does

	// Of the basic profile.
	result chan result // buffered: settling never waits
	once   sync.Once

	// With early. What is not set before the opening is in the map is guarded by
	// tunnel.mu.
	stream  *stream.Stream
	credit  int         // reserved
	unmoved bool        // it is counted in tunnel.unmoved
	over    bool        // the stream is
	late    *time.Timer // nil: the device may be silent
}

type result struct {
	stream *stream.Stream
	err    error
}

// numberLocked counts streams up from 1, over those that live when it starts over
// (protocol §6.1). It wants mu.
func (t *tunnel) numberLocked() uint32 {
	for {
		t.next++
		if t.next != 0 && t.openingLocked(t.next) == nil && (t.mux == nil || !t.mux.Has(t.next)) {
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

// keepLocked puts o where takeOpening finds it. It wants mu.
func (t *tunnel) keepLocked(o *opening) {
	if t.opening == nil {
		t.opening = make(map[string]*opening)
	}
	t.opening[o.id] = o
}

// takeOpening takes the opening of that id, if there is one.
func (t *tunnel) takeOpening(id string) *opening {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.opening[id]
	delete(t.opening, id)
	return o
}

// open asks the agent for a stream and waits for its transfer socket.
func (t *tunnel) open(ctx context.Context, o *opening, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	o.result = make(chan result, 1)
	t.mu.Lock()
	o.number = t.numberLocked()
	t.keepLocked(o)
	t.mu.Unlock()
	message := wire.Encode(&wire.Open{Stream: o.number, ID: o.id, Port: port, From: from.String()})
	if err := t.sock.WriteMessage(socket.Text, message); err != nil {
		t.abandon(o)
		return nil, noTunnel("the device's connection broke")
	}
	select {
	case r := <-o.result:
		return r.stream, r.err
	case <-t.ended:
		t.abandon(o)
		return nil, noTunnel("the device's connection broke")
	case <-ctx.Done():
		t.abandon(o)
		return nil, answers.From(ctx.Err())
	}
}

// abandon gives o up: what arrives for it later is closed.
func (t *tunnel) abandon(o *opening) {
	t.takeOpening(o.id)
	o.settle(result{err: context.Canceled})
	if r := <-o.result; r.stream != nil { // it was settled a moment before
		r.stream.Abort()
	}
}

// openEarly makes a stream that begins on the control socket. It does not wait for
// the agent, but when everything is inline and no credit is left.
func (t *tunnel) openEarly(ctx context.Context, o *opening, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	h := t.hub
	o.credit = t.credit.take()
	if o.credit == 0 && t.caps.Has(wire.Inline) {
		var err error
		if o.credit, err = t.credit.wait(ctx, t.ended); err != nil {
			return nil, err
		}
	}
	if !h.begin() {
		t.credit.giveBack(o.credit)
		return nil, stopping
	}
	c, err := t.beginEarly(o, port, from)
	if err != nil {
		t.credit.giveBack(o.credit)
		h.wg.Done()
		select { // so that who waits for the device does not find this tunnel again
		case <-t.ended:
		case <-ctx.Done():
		}
		return nil, noTunnel("the device's connection broke")
	}
	added := t.device.add(o.session, c)
	t.mu.Lock()
	over := o.over
	t.mu.Unlock()
	switch {
	case over: // closed has passed add by
		t.device.remove(o.session, c)
		return nil, noTunnel("the device's connection broke")
	case !added:
		c.Abort()
		return nil, noTunnel("the device has started anew")
	}
	return c, nil
}

// beginEarly makes the stream of o, and puts o where the agent's answer is looked
// for: nobody looks before both are done.
func (t *tunnel) beginEarly(o *opening, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o.number = t.numberLocked()
	options := stream.Options{
		MessageMax: t.messageMax,
		Owner:      &t.hub.wg,
		Open:       wire.Encode(&wire.Open{Stream: o.number, ID: o.id, Port: port, From: from.String(), Early: o.credit}),
		Moved:      o.moved,
		Closed:     o.closed,
		Told:       o.told,
	}
	if t.caps.Has(wire.Reuse) {
		options.Parked = t.park
	}
	c, err := t.mux.Open(o.number, o.credit, options)
	if err != nil {
		return nil, err
	}
	o.stream = c
	t.hub.streams.Add(1)
	t.unmoved++
	o.unmoved = true
	t.keepLocked(o)
	if !t.caps.Has(wire.Inline) {
		o.late = time.AfterFunc(t.hub.settings.Load().OpenTimeout, o.silent)
	}
	return c, nil
}

// moved is called when nothing of an early stream travels on the control socket
// any more. What is kept of it counts on (protocol §10.1).
func (o *opening) moved(kept int) {
	t := o.tunnel
	t.mu.Lock()
	o.movedLocked()
	n := 0
	if !o.over { // else closed has given all back
		n = max(0, o.credit-kept)
		o.credit -= n
	}
	t.mu.Unlock()
	t.credit.giveBack(n)
}

// movedLocked counts a stream no more that would end with its tunnel. It wants
// tunnel.mu.
func (o *opening) movedLocked() {
	if o.unmoved {
		o.unmoved = false
		o.tunnel.unmoved--
	}
}

// closed is called when nothing is left of an early stream.
func (o *opening) closed(c *stream.Stream) {
	t := o.tunnel
	t.mu.Lock()
	o.over = true
	o.movedLocked()
	delete(t.opening, o.id)
	if o.late != nil {
		o.late.Stop()
	}
	t.mu.Unlock()
	t.device.remove(o.session, c)
}

// told is called after closed, when the agent reads of the end before it reads of
// another stream: only then may that have the room of this one.
func (o *opening) told() {
	t := o.tunnel
	t.mu.Lock()
	credit := o.credit
	t.mu.Unlock()
	t.credit.giveBack(credit)
	o.release()
	t.hub.streams.Add(-1)
	t.hub.wg.Done()
}

// silent ends an early stream of which nothing has come in time, not even a
// transfer socket: the agent does not serve it.
func (o *opening) silent() {
	t := o.tunnel
	t.mu.Lock()
	waits := t.opening[o.id] == o
	t.mu.Unlock()
	if received, _ := o.stream.Transferred(); waits && received == 0 {
		o.stream.Fail(&answers.Error{Code: wire.DeviceTimeout})
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
	switch err := (&answers.Error{Code: wire.DeviceRefused, Message: "the service on the device did not answer: " + m.Reason}); {
	case o == nil:
	case o.stream != nil:
		o.stream.Fail(err)
	default:
		o.fail(err)
	}
}

func (o *opening) fail(err error) { o.settle(result{err: err}) }

// settle gives the visitor r; false when something was settled before.
func (o *opening) settle(r result) (first bool) {
	o.once.Do(func() { first = true; o.result <- r })
	return first
}

// unattached says that the handshake for a transfer socket failed. With early the
// agent may try again with the same id.
func (o *opening) unattached(err error) {
	if o.stream == nil {
		o.fail(&answers.Error{Code: wire.DeviceRefused, Message: "the device did not complete the connection", Cause: err})
		return
	}
	o.tunnel.mu.Lock()
	defer o.tunnel.mu.Unlock()
	if !o.over {
		o.tunnel.keepLocked(o)
	}
}

// attach gives the stream its transfer socket. In the basic profile that makes it.
func (o *opening) attach(sock *socket.Socket) {
	if o.stream != nil {
		// A failure is that of a stream that has ended meanwhile.
		_ = o.stream.Attach(sock)
		return
	}
	t, h := o.tunnel, o.tunnel.hub
	if !h.begin() {
		sock.Close()
		o.fail(stopping)
		return
	}
	h.streams.Add(1)
	c := stream.New(sock, stream.Options{
		MessageMax: t.messageMax,
		Owner:      &h.wg,
		Closed: func(c *stream.Stream) {
			t.device.remove(o.session, c)
			o.release()
			h.streams.Add(-1)
			h.wg.Done()
		},
	})
	if !t.device.add(o.session, c) {
		// Another instance of the device has taken over.
		c.Abort()
		o.fail(noTunnel("the device has started anew"))
		return
	}
	if !o.settle(result{stream: c}) || h.ctx.Err() != nil {
		c.Abort() // the visitor has given up, or Shutdown has lost its patience
	}
}
