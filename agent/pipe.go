package agent

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// ErrAborted is in the error of a read or write on a connection that the visitor,
// or the way to it, has cut off: what was read is not all that was to come.
var ErrAborted = stream.ErrAborted

// pipeBuffer bounds what one direction of a pipe holds, in bytes.
const pipeBuffer = 32 << 10

var pipeBuffers = sync.Pool{New: func() any { return new([pipeBuffer]byte) }}

// newPipe makes two connected ends in memory, each a net.Conn with CloseWrite and
// Abort. remote is what the first end's RemoteAddr returns, local what the
// second's does.
func newPipe(local, remote net.Addr) (*pipeConn, *pipeConn) {
	a, b := newFlow(), newFlow()
	return &pipeConn{in: a, out: b, local: local, remote: remote},
		&pipeConn{in: b, out: a, local: remote, remote: local}
}

// pipeConn is one end of a pipe. Any of its methods may be called concurrently.
type pipeConn struct {
	in, out       *flow
	local, remote net.Addr
}

// Read reads what the other end has written; io.EOF after its end.
func (c *pipeConn) Read(p []byte) (int, error) { return c.in.read(p) }

// Write returns when all of p is in the buffer, or read.
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(p) }

// CloseWrite ends this end's direction.
func (c *pipeConn) CloseWrite() error { return c.out.end() }

// Close ends this end's direction and refuses what the other end still sends.
func (c *pipeConn) Close() error {
	_ = c.out.end() // harmless when it has ended
	c.out.leave(&c.out.writer, net.ErrClosed)
	c.in.leave(&c.in.reader, net.ErrClosed)
	return nil
}

// Abort makes the calls of both ends fail at once; what is in the buffers is
// lost.
func (c *pipeConn) Abort() {
	for _, f := range []*flow{c.in, c.out} {
		f.abort()
	}
	c.Close()
}

func (c *pipeConn) LocalAddr() net.Addr  { return c.local }
func (c *pipeConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline, SetReadDeadline and SetWriteDeadline: as of net.Conn. Nothing is
// lost by one.
func (c *pipeConn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *pipeConn) SetReadDeadline(t time.Time) error  { return c.in.deadline(&c.in.reader, t) }
func (c *pipeConn) SetWriteDeadline(t time.Time) error { return c.out.deadline(&c.out.writer, t) }

// flow is one direction of a pipe: a bounded buffer with a reader and a writer.
type flow struct {
	mu             sync.Mutex // guards what follows
	reader, writer side
	ended          bool // by the writer
	aborted        bool
	// ring holds size bytes from start on; nil while it is empty, so that an idle
	// connection costs nothing.
	ring        *[pipeBuffer]byte
	start, size int
}

// side is one end of a flow. The flow's mutex guards it.
type side struct {
	wake   sync.Cond
	err    error // why it has left; nil while it has not
	late   bool  // its deadline has passed
	timer  *time.Timer
	number int // of its deadlines: a timer that fires late knows that it does
}

func newFlow() *flow {
	f := new(flow)
	f.reader.wake.L, f.writer.wake.L = &f.mu, &f.mu
	return f
}

func (f *flow) read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.reader.err != nil:
			return 0, f.reader.err
		case f.aborted:
			return 0, ErrAborted
		case f.reader.late:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case f.size > 0:
			n := f.takeLocked(p)
			f.writer.wake.Broadcast()
			return n, nil
		case f.ended:
			return 0, io.EOF
		}
		f.reader.wake.Wait()
	}
}

func (f *flow) write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var n int
	for {
		switch {
		case f.writer.err != nil:
			return n, f.writer.err
		case f.ended:
			return n, net.ErrClosed
		case f.aborted:
			return n, ErrAborted
		case f.reader.err != nil:
			return n, io.ErrClosedPipe
		case f.writer.late:
			return n, os.ErrDeadlineExceeded
		case n == len(p):
			return n, nil
		case f.size < pipeBuffer:
			n += f.putLocked(p[n:])
			f.reader.wake.Broadcast()
			continue
		}
		f.writer.wake.Wait()
	}
}

// takeLocked moves bytes from the ring to p. It wants mu.
func (f *flow) takeLocked(p []byte) (n int) {
	for len(p) > 0 && f.size > 0 {
		m := copy(p, f.ring[f.start:min(f.start+f.size, pipeBuffer)])
		p, n = p[m:], n+m
		f.start, f.size = (f.start+m)%pipeBuffer, f.size-m
	}
	if f.size == 0 {
		f.emptyLocked()
	}
	return n
}

// putLocked moves bytes from p to the ring. It wants mu.
func (f *flow) putLocked(p []byte) (n int) {
	if f.ring == nil {
		f.ring = pipeBuffers.Get().(*[pipeBuffer]byte)
	}
	for len(p) > 0 && f.size < pipeBuffer {
		at := (f.start + f.size) % pipeBuffer
		m := copy(f.ring[at:min(at+pipeBuffer-f.size, pipeBuffer)], p)
		p, n = p[m:], n+m
		f.size += m
	}
	return n
}

// emptyLocked gives the ring back. It wants mu.
func (f *flow) emptyLocked() {
	if f.ring != nil {
		pipeBuffers.Put(f.ring)
		f.ring = nil
	}
	f.start, f.size = 0, 0
}

// end is the writer's word that nothing follows.
func (f *flow) end() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writer.err != nil {
		return f.writer.err
	}
	f.ended = true
	f.reader.wake.Broadcast()
	f.writer.wake.Broadcast()
	return nil
}

func (f *flow) abort() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.aborted = true
	f.emptyLocked()
	f.reader.wake.Broadcast()
	f.writer.wake.Broadcast()
}

// leave makes all further calls of s, one of f's sides, fail with err.
func (f *flow) leave(s *side, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	s.stopLocked()
	if s == &f.reader {
		f.emptyLocked()
	}
	f.reader.wake.Broadcast()
	f.writer.wake.Broadcast()
}

// deadline sets that of s, one of f's sides.
func (f *flow) deadline(s *side, t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	s.stopLocked()
	s.late = false
	if t.IsZero() {
		return nil
	}
	left := time.Until(t)
	if left <= 0 {
		s.late = true
		s.wake.Broadcast()
		return nil
	}
	number := s.number
	s.timer = time.AfterFunc(left, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if s.number == number {
			s.late = true
			s.wake.Broadcast()
		}
	})
	return nil
}

// stopLocked forgets the deadline. It wants the flow's mutex.
func (s *side) stopLocked() {
	s.number++
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

var _ net.Conn = (*pipeConn)(nil)
