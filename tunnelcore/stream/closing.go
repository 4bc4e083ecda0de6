package stream

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// lingerTime is how long a closed stream waits for the peer to end its
// direction, and then for its close frame (protocol §6.6).
const lingerTime = 10 * time.Second

// Close ends our direction and lets go of the stream; calls under way return,
// and one that was writing makes it an abort. The socket lives on for a moment,
// so that nothing sent is lost: until the peer has ended its direction and
// closed too, at most lingerTime. Data that the peer sends meanwhile, or has sent
// and nobody read, make it an abort too.
func (c *Stream) Close() error {
	if !c.close() {
		return nil
	}
	c.failure.Store(nil) // who closes it has been told, or does not want to know
	c.mu.Lock()
	settled := c.settledLocked()
	c.mu.Unlock()
	switch {
	case c.broken.Load():
		c.finish(false)
	case settled:
		c.finish(true)
	default:
		c.opts.Owner.Go(c.linger)
	}
	return nil
}

// close marks the stream closed, and makes the calls under way return. It
// reports whether it was open.
func (c *Stream) close() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Swap(true) {
		return false
	}
	past := time.Unix(1, 0)
	_ = c.setReadLocked(past) // fails only on a closed socket
	// Where no write is under way, none begins any more, and what is being written may
	// be the answer to the peer's close frame.
	if !c.writeMu.TryLock() {
		_ = c.setWriteLocked(past)
		return true
	}
	c.writeMu.Unlock()
	return true
}

// linger brings a closed stream to its end.
func (c *Stream) linger() {
	var clean bool
	defer func() { c.finish(clean) }()
	// What follows is alone, and must not make later calls wait.
	if c.brokenOff() {
		return
	}
	until := time.Now().Add(lingerTime)
	c.mu.Lock()
	_, _ = c.setReadLocked(until), c.setWriteLocked(until) // fails only on a closed socket
	c.mu.Unlock()
	// What we send must not wait for the peer to read while it waits for us.
	sent := make(chan error, 1)
	go func() { sent <- c.closeWriteLocked() }()
	// Data instead of the peer's end means that it was not done: an abort.
	var b [1]byte
	n, err := c.readLocked(b[:], len(b))
	if n > 0 || err != io.EOF {
		c.cut()
		<-sent
		return
	}
	if <-sent != nil {
		return
	}
	clean = true
	c.mu.Lock()
	s := c.s
	c.mu.Unlock()
	if s == nil || c.opts.Parked != nil {
		return
	}
	// Both directions have ended. Closing TCP with bytes unread would reset it,
	// and could destroy what the peer has not read yet (protocol §6.6).
	go func() { sent <- s.WriteClose(wire.CloseNormal, "", lingerTime) }()
	for err == nil || err == io.EOF {
		_, err = s.Next()
	}
	<-sent
}

// AbortFor is Abort for somebody else than who uses the stream: calls under way and
// later ones return err.
func (c *Stream) AbortFor(err error) {
	c.failure.CompareAndSwap(nil, &err)
	c.Abort()
}

// Abort closes the stream at once; the peer sees that it was not an end.
func (c *Stream) Abort() {
	first := c.close()
	c.cut() // also a close that lingers
	if first {
		c.finish(false)
	}
}

// partTime is how long a stream that was given up may take to tell the peer why.
const partTime = 5 * time.Second

// part is Abort for cause, which the peer is told with the Farewell.
func (c *Stream) part(cause error) {
	code, reason := 0, ""
	if c.opts.Farewell != nil {
		code, reason = c.opts.Farewell(cause)
	}
	if code == 0 || !c.close() {
		c.Abort()
		return
	}
	c.opts.Owner.Go(func() { c.sayFarewell(code, reason) })
}

// sayFarewell sends the close frame of a stream that is closed, and then waits for
// the peer to close: what it still sends, unread, would make TCP reset the
// connection, and could destroy the frame.
func (c *Stream) sayFarewell(code int, reason string) {
	defer c.finish(false)
	if c.brokenOff() {
		return
	}
	until := time.Now().Add(partTime)
	c.mu.Lock()
	_, _ = c.setReadLocked(until), c.setWriteLocked(until) // fails only on a closed socket
	c.mu.Unlock()
	err := c.s.WriteClose(code, reason, partTime)
	for err == nil {
		_, err = c.s.Next()
	}
}

// brokenOff waits until the calls that were under way when the stream was closed have
// returned, which hold a lock until then; later ones see that it is closed. It
// reports whether one of them has left the stream broken.
func (c *Stream) brokenOff() bool {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.broken.Load()
}

// cut makes whatever goes on fail. The peer sees an abort.
func (c *Stream) cut() {
	c.mu.Lock()
	if c.over { // what was the transfer socket may have another stream
		c.mu.Unlock()
		return
	}
	c.broken.Store(true)
	if c.e != nil {
		c.abortLocked()
	}
	s := c.s
	c.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// finish lets go of the sockets. clean says that both directions have ended.
func (c *Stream) finish(clean bool) {
	c.mu.Lock()
	if c.e != nil {
		clean = c.finishLocked(clean)
	}
	c.over = true
	s := c.s
	c.mu.Unlock()
	switch {
	case s == nil:
	case clean && c.opts.Parked != nil:
		_, _ = s.SetReadDeadline(time.Time{}), s.SetWriteDeadline(time.Time{}) // whose turn is next will see
		c.opts.Parked(s)
	default:
		s.Close()
	}
	if c.opts.Closed != nil {
		c.opts.Closed(c)
	}
	if c.opts.Told != nil {
		c.overForPeer()
	}
}

// awaitClose blocks, after the peer's end was read, until the stream is closed
// here or our direction has ended and the peer closed (nil), or until it is
// aborted. Without it an abort by a peer that has nothing more to say would only
// be seen with the next write.
func (c *Stream) awaitClose() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	s, err := c.awaitSocket()
	if s == nil {
		return err
	}
	c.reading.Store(true)
	defer c.reading.Store(false)
	for !c.closed.Load() {
		// Left where it is: with `reuse` it may be for the next stream.
		_, err := s.Peek()
		switch {
		case c.closed.Load():
			return nil
		case err == nil && c.writeEnded.Load() && c.opts.Parked != nil:
			return nil
		case err == nil:
			return c.malformed(s, "data after the end")
		case c.writeEnded.Load() && !errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = c.SetReadDeadline(time.Time{}) // it was for reads, which have ended
		default:
			return c.readFailed(err)
		}
	}
	return nil
}
