package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stacks"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// A transfer socket that could not be had is tried again after firstDial, then
	// after twice as long each time, up to lastDial, and up to a fifth longer
	// (protocol §10.4).
	firstDial, lastDial = 100 * time.Millisecond, 5 * time.Second
	// overTime is how long a stream that the edge does not know any more may take to
	// end: its last frames may still be on their way.
	overTime = 10 * time.Second
	// attachTime is the least that an edge gets to attach a parked socket.
	attachTime = time.Second
	// measureEvery is how old the round trip of a tunnel may be.
	measureEvery = 30 * time.Second
	// settleTime is how long a tunnel that another one has taken the place of stays
	// for the streams that need it; settleTick is how often they are looked at. It is
	// mostly the edge that ends it, as soon as it sends no visitors to it any more: that
	// may take leaveTime.
	settleTime, settleTick = 10 * time.Second, 10 * time.Millisecond
	leaveTime              = time.Second
)

// visit is a visitor's connection that begins on the control socket.
type visit struct {
	*streams
	tunnel  *tunnel
	open    *wire.Open
	forward Forward
	done    func()        // called when it is over
	joined  chan struct{} // closed when the target has answered
}

// begin makes the stream of o, whose frames may be next, and serves it in a
// goroutine, which calls done.
func (s *streams) begin(t *tunnel, o *wire.Open, f Forward, done func()) error {
	v := &visit{s, t, o, f, done, make(chan struct{})}
	opts := stream.Options{
		MessageMax: wire.BulkMessage,
		Remote:     net.TCPAddrFromAddrPort(visitor(o.From)),
		Owner:      &s.wg,
		Closed:     s.forget,
	}
	if !t.caps.Has(wire.Inline) {
		opts.Wanted = v.provide
	}
	if t.caps.Has(wire.Reuse) {
		opts.Parked = t.parking.put
	}
	c, err := t.mux.Open(o.Stream, o.Early, opts)
	if err != nil {
		done()
		return err
	}
	s.remember(c, v)
	s.wg.Go(func() {
		stacks.Grow8K()
		v.serve(c)
	})
	return nil
}

// serve joins c and the target.
func (v *visit) serve(c *stream.Stream) {
	local, err := v.agent.dialTarget(v.ctx, v.forward, visitor(v.open.From))
	if err != nil {
		err = &targetError{v.forward, err}
		v.tunnel.refuse(v.open, reason(err))
		v.complain(v.open.Port, err)
		c.Refused(err)
		c.Abort()
		v.done()
		return
	}
	close(v.joined)
	v.relay(v.open, c, local, v.done)
}

// provide gets c a transfer socket, for as long as it wants one.
func (v *visit) provide(c *stream.Stream) {
	select {
	case <-v.joined: // `refused` is possible until a frame is sent, as `move` is
	case <-c.Unwanted():
		return
	}
	v.tunnel.measure()
	ctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	v.wg.Go(func() {
		select {
		case <-c.Unwanted():
			cancel()
		case <-ctx.Done():
		}
	})
	for pause := firstDial; ; pause = min(2*pause, lastDial) {
		sock, err := v.transferSocket(ctx)
		var refused *RefusedError
		switch {
		case err == nil:
			err := c.Attach(sock) // fails when it has just come to its end
			v.debug(v.open, "transfer socket", "error", err)
			return
		case ctx.Err() != nil:
			return
		case errors.As(err, &refused) && refused.Status == statusNotFound:
			if wait(ctx, overTime) {
				v.debug(v.open, "the edge does not know the stream any more")
				c.Abort()
			}
			return
		}
		v.debug(v.open, "no transfer socket yet", "error", err)
		if !wait(ctx, pause+rand.N(pause/retrySpread)) {
			return
		}
	}
}

// wait sleeps; false when ctx has ended before.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// transferSocket attaches a parked one to the stream, or dials one.
func (v *visit) transferSocket(ctx context.Context) (*socket.Socket, error) {
	t := v.tunnel
	if k := t.parking.take(); k != nil {
		sock, err := k.attach(ctx, v.open, max(attachTime, 4*t.sock.RTT()))
		if err == nil {
			v.debug(v.open, "parked transfer socket attached")
		}
		if err == nil || ctx.Err() != nil {
			return sock, err
		}
		// Not the next one: the edge may not know the stream, or the way to it has
		// changed and all of them are dead.
		v.debug(v.open, "parked transfer socket in vain", "error", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, transferTimeout, fmt.Errorf("no answer within %v", transferTimeout))
	defer cancel()
	u, secret, err := t.transfer(v.open.ID)
	if err != nil {
		return nil, err
	}
	conn, err := v.agent.dialer.connect(ctx, t.route, 0, nil)
	if err != nil {
		return nil, err
	}
	return upgrade(ctx, conn, u, secret, socket.StreamBuffer)
}

// settle waits until t can be closed without the end of a stream, but not before
// least, or until limit has come, or ctx or t has ended.
func (s *streams) settle(ctx context.Context, t *tunnel, least, limit time.Time) {
	for now := time.Now(); now.Before(limit) && (now.Before(least) || s.needs(t)) && !ended(t) && wait(ctx, settleTick); now = time.Now() {
	}
}

// needs reports whether a stream needs the control socket of t.
func (s *streams) needs(t *tunnel) bool {
	if t.mux == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.sockets {
		if v != nil && v.tunnel == t && t.mux.Has(v.open.Stream) {
			return true
		}
	}
	return false
}
