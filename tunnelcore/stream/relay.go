package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stacks"
)

// HalfIdle is how long a direction may say nothing after the other has ended.
const HalfIdle = 5 * time.Minute

// ErrHalfIdle ends a relay of which one direction has ended and the other is
// silent for HalfIdle.
var ErrHalfIdle = errors.New("half-closed and silent for too long")

// Relay joins a and b: what one sends the other gets, an end of one direction
// leaves the other open, and an abort of one is an abort of the other. It owns
// both: when it returns neither has a call under way, and both are closed or
// closing.
//
// It returns the bytes that went from a to b and from b to a, and nil when both
// directions have ended; else the reason: the first failure, ErrHalfIdle, or the
// cause of ctx.
func Relay(ctx context.Context, a, b net.Conn) (ab, ba int64, err error) {
	// What was left of a handshake. Fails only on a connection whose own calls
	// will fail, or that has no deadlines: then there is no HalfIdle either.
	_, _ = a.SetDeadline(time.Time{}), b.SetDeadline(time.Time{})
	r := &relay{a: a, b: b}
	stop := context.AfterFunc(ctx, func() { r.abort(context.Cause(ctx)) })
	defer stop()
	// The caller has a stack: one goroutine more is enough.
	var other sync.WaitGroup
	other.Go(func() {
		stacks.Grow4K()
		r.direction(a, b, &r.ba)
	})
	r.direction(b, a, &r.ab)
	other.Wait()
	r.over.Do(func() {}) // waits, if ctx aborts it just now
	return r.ab, r.ba, r.cause
}

// relay is what both directions of one know. It keeps no context of its own, which
// is more than all else that an idle one needs on the heap.
type relay struct {
	a, b   net.Conn
	ab, ba int64       // bytes
	ending atomic.Bool // one direction is about to end
	half   atomic.Bool // it has

	over  sync.Once // end or abort, whichever comes first
	cause error     // of abort; for who has passed over
}

// end lets go of both, as both directions have ended.
func (r *relay) end() {
	r.over.Do(func() {
		r.a.Close()
		r.b.Close()
	})
}

// abort makes the calls of both directions fail.
func (r *relay) abort(cause error) {
	r.over.Do(func() {
		r.cause = cause
		abortFor(r.a, cause)
		abortFor(r.b, cause)
	})
}

// direction copies src to dst until src ends, and passes the end on. It calls
// end if the other one has ended; else it stays to watch a stream that may still
// be aborted.
func (r *relay) direction(dst, src net.Conn, n *int64) {
	if err := r.copy(dst, src, n); err != nil {
		r.abort(err)
		return
	}
	if r.half.Swap(true) {
		r.end()
		return
	}
	_ = dst.SetReadDeadline(time.Now().Add(HalfIdle)) // as in Relay
	if s, ok := src.(*Stream); ok {
		if err := s.awaitClose(); err != nil {
			r.abort(err)
		}
	}
}

// copy moves bytes from src to dst until src ends, then ends dst's direction.
func (r *relay) copy(dst, src net.Conn, total *int64) error {
	most, stream := bufferSize, (*Stream)(nil)
	if s, ok := dst.(*Stream); ok {
		stream, most = s, min(most, s.opts.MessageMax)
	}
	in := newSource(src, dst, most)
	for {
		buf, n, err := in.read()
		if n > 0 {
			*total += int64(n)
		}
		if buf != nil {
			err := send(dst, stream, (*buf)[:socket.Headroom+n])
			putBuffer(buf)
			if err != nil {
				return err
			}
		}
		switch {
		case err == nil:
			if r.half.Load() {
				_ = src.SetReadDeadline(time.Now().Add(HalfIdle)) // as in Relay
			}
		case err == io.EOF:
			// Once we have ended the other direction of src, nothing is written to it
			// that could have taken the report of a reset.
			if wasReset(src) && !r.ending.Load() {
				return fmt.Errorf("read: %w", syscall.ECONNRESET)
			}
			r.ending.Store(true)
			return closeWrite(dst)
		case errors.Is(err, os.ErrDeadlineExceeded) && r.half.Load():
			return ErrHalfIdle
		default:
			return err
		}
	}
}

// send writes buf behind its headroom to dst, which is stream if that is set.
func send(dst net.Conn, stream *Stream, buf []byte) error {
	if stream != nil {
		return stream.writeInPlace(buf)
	}
	_, err := dst.Write(buf[socket.Headroom:])
	return err
}

// closeWrite ends the writing direction of c. A connection without half-close
// stays open until the relay is over.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// abortFor is Abort for cause, of which a stream may have something to say.
func abortFor(c net.Conn, cause error) {
	if s, ok := c.(*Stream); ok {
		s.part(cause)
		return
	}
	Abort(c)
}

// Abort closes c so that its other end sees an abort: a reset, not an end.
func Abort(c net.Conn) {
	switch kind := c.(type) {
	case interface{ Abort() }:
		kind.Abort()
	case interface{ NetConn() net.Conn }:
		// TLS: its Close would say goodbye, which is an end, and could wait for the
		// peer to read.
		Abort(kind.NetConn())
	case interface{ SetLinger(int) error }:
		_ = kind.SetLinger(0) // else it closes with an end; nothing to be done
		c.Close()
	default:
		c.Close()
	}
}
