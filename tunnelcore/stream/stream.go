// Package stream makes net.Conns of streams, whichever sockets they travel on, and
// joins two connections.
package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// ErrAborted is a read or write error of a stream whose peer closed before both
// directions had ended: what was read is not all that the other side meant to
// send.
var ErrAborted = errors.New("stream aborted by the other end")

// ErrLost is a read or write error of a stream whose control socket has ended, or
// takes nothing more, before the stream had moved to a transfer socket. ErrUnsent
// is besides it when nothing was sent that was written to the stream.
var (
	ErrLost   = errors.New("the control socket has ended under the stream")
	ErrUnsent = errors.New("nothing was sent")
)

// Options of a Stream.
type Options struct {
	// MessageMax bounds the payload of the binary messages it sends, in bytes.
	MessageMax int
	// Remote is what RemoteAddr returns; nil: the socket's peer.
	Remote net.Addr
	// Owner waits for the goroutine that a closed stream may leave behind for
	// lingerTime, and for that of Wanted. It must count something else until the
	// stream is closed. nil: nobody waits.
	Owner *sync.WaitGroup
	// Closed is called once, when nothing of the stream is left. A transfer socket
	// is closed then, or was parked.
	Closed func(*Stream)
	// Parked takes a transfer socket on which both directions have ended, instead
	// of closing it: it is between two messages, without deadlines, and may already
	// have the next one (protocol §11.1). nil: without `reuse`.
	Parked func(*socket.Socket)

	// Why says what reads and writes fail with when the socket fails with err, the
	// peer's close frame above all; nil for ErrAborted. For New alone.
	Why func(err error) error
	// Farewell is the close frame of a stream that Relay aborts for cause: the peer's
	// Why reads it. Code 0: as without Farewell, the connection just ends. For New alone.
	Farewell func(cause error) (code int, reason string)
	// SkipTexts has text messages mean nothing (protocol §15.4), instead of being
	// malformed (§6.9). For New alone.
	SkipTexts bool

	// The rest is for Mux.Open.

	// Open is the message `open`, at the edge. It leaves together with the first
	// bytes, if they come within openTime.
	Open []byte
	// Told is called once, behind Closed, when the peer knows that the stream is over
	// before it reads anything that is sent on the control socket from then on: where it
	// is owed a reset, that has been sent, or cannot be. Until then the stream counts
	// among those that the peer has (protocol §3.4). nil: nobody counts.
	Told func()
	// Wanted is called at most once, in a goroutine of its own, when the stream
	// should get a transfer socket (protocol §10.4): see Attach and Unwanted.
	Wanted func(*Stream)
	// Moved is called at most once, when nothing of the stream will travel on the
	// control socket any more, with the early bytes that somebody may hold still: as
	// many as were sent, or are not read yet (protocol §10.1). nil: nobody counts.
	Moved func(kept int)
}

// filled is o with its defaults.
func (o Options) filled() Options {
	if o.MessageMax <= 0 {
		o.MessageMax = wire.DefaultMessage
	}
	if o.Owner == nil {
		o.Owner = new(sync.WaitGroup)
	}
	return o
}

// Stream is one visitor connection: a net.Conn with half-close. It travels on a
// transfer socket of its own from the start (New; protocol §6, basic profile), or
// begins on a control socket (Mux.Open; protocol §10, §12) and may get a transfer
// socket later.
//
// Reads resume after a deadline; a write that meets one breaks the stream, as
// part of a frame may be on its way. One goroutine may read and another write.
type Stream struct {
	opts Options

	// mu guards deadlines, s and what is early. Held to set them: those of Close
	// are the last.
	mu   sync.Mutex
	s    *socket.Socket // the transfer socket; nil while there is none, then for good
	e    *early         // nil for streams that began on a transfer socket
	over bool           // finish was called

	// readMu guards the fields below it, until the stream is closed: then they
	// are linger's.
	readMu    sync.Mutex
	inDirect  bool // what is to be read comes on s
	inMessage bool
	empty     bool  // nothing of the current message has been read
	readErr   error // sticky, deadlines excepted

	writeMu   sync.Mutex // one message at a time; guards outDirect, as readMu does
	outDirect bool       // what is written goes on s

	readEnded  atomic.Bool // the peer's end has been read
	writeEnded atomic.Bool // ours has been sent, or is on its way
	broken     atomic.Bool // a read or write failed, deadlines of reads excepted
	closed     atomic.Bool // written under mu
	reading    atomic.Bool // somebody waits for the peer, on s

	failure atomic.Pointer[error] // by Fail or AbortFor: what calls return

	received, sent atomic.Int64 // bytes

	keep keepAlive // KeepAlive's own
}

// New makes a stream of a transfer socket, which it owns from then on.
func New(s *socket.Socket, opts Options) *Stream {
	return &Stream{s: s, opts: opts.filled(), inDirect: true, outDirect: true}
}

// Read reads what the peer has sent; io.EOF after its end. A close before that
// is ErrAborted.
func (c *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return c.fill(p, len(p))
}

// fill is Read into p[:most], which is not empty: all that has come. What is
// behind that in p is scratch; with socket.Headroom bytes it saves system calls.
func (c *Stream) fill(p []byte, most int) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.closed.Load() {
		return 0, c.whyClosed()
	}
	return c.readLocked(p, most)
}

// readLocked wants readMu, or to be linger.
func (c *Stream) readLocked(p []byte, most int) (int, error) {
	for {
		if err := c.payloadLocked(); err != nil {
			return 0, err
		}
		var n int
		var err error
		if c.inDirect {
			n, err = c.s.Fill(p, most)
			for n > 0 && n < most && c.s.Following() && c.payloadLocked() == nil { // errors stick
				k := c.s.FillNow(p[n:], most-n)
				if n += k; k == 0 {
					break
				}
			}
		} else {
			n = c.takeEarly(p[:most])
		}
		if n > 0 {
			c.received.Add(int64(n))
			return n, nil
		}
		if err != nil {
			return 0, c.readFailed(err)
		}
	}
}

// payloadLocked waits until there is payload to read. It wants readMu, or to be
// linger.
func (c *Stream) payloadLocked() error {
	if !c.inDirect && c.readErr == nil {
		if err := c.awaitEarly(); err != nil || !c.inDirect {
			return err
		}
	}
	c.reading.Store(true)
	defer c.reading.Store(false)
	for {
		if c.readErr != nil {
			return c.readErr
		}
		if c.readEnded.Load() {
			return io.EOF
		}
		if !c.inMessage {
			op, err := c.s.Next()
			if err != nil {
				return c.readFailed(err)
			}
			if op == socket.Text && c.opts.SkipTexts {
				continue
			}
			if op != socket.Binary {
				return c.malformed(c.s, "text on a transfer socket")
			}
			c.inMessage, c.empty = true, true
		}
		switch err := c.s.More(); err {
		case nil:
			c.empty = false
			return nil
		case io.EOF:
			c.inMessage = false
			if c.empty {
				c.readEnded.Store(true)
			}
		default:
			return c.readFailed(err)
		}
	}
}

// wait blocks until Read has something to return, or to fail with.
func (c *Stream) wait() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.closed.Load() {
		return c.whyClosed()
	}
	return c.payloadLocked()
}

// readFailed turns an error of the socket's reader into the stream's. It wants
// readMu, or to be linger.
func (c *Stream) readFailed(err error) error {
	late := errors.Is(err, os.ErrDeadlineExceeded)
	if !late {
		c.broken.Store(true)
		c.readErr = c.aborted(err)
	}
	switch {
	case c.closed.Load():
		return c.whyClosed()
	case late:
		return err
	}
	return c.readErr
}

// aborted is err as one of a stream that did not end. What Fail gave it counts
// more.
func (c *Stream) aborted(err error) error {
	if f := c.failure.Load(); f != nil {
		return *f
	}
	if c.opts.Why != nil {
		if ended := c.s.Ended(); ended != nil { // says more than that nothing can be written
			err = ended
		}
		if why := c.opts.Why(err); why != nil {
			return why
		}
	}
	if errors.Is(err, ErrAborted) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrAborted, err)
}

// malformed closes the socket to a peer that breaks the protocol.
func (c *Stream) malformed(s *socket.Socket, reason string) error {
	c.broken.Store(true)
	c.readErr = fmt.Errorf("%w: %s", ErrAborted, reason)
	_ = s.WriteClose(wire.CloseMalformed, reason, time.Second) // the peer is faulty
	return c.readErr
}

// Write sends p. It returns when the operating system has taken it all: a peer
// that reads slowly makes it wait.
func (c *Stream) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	var n int
	for n < len(p) {
		if err := c.writableLocked(); err != nil {
			return n, err
		}
		if !c.outDirect {
			k, err := c.writeEarly(p[n:])
			n += k
			if err != nil {
				return n, err
			}
			continue
		}
		piece := p[n:min(len(p), n+c.opts.MessageMax)]
		if err := c.s.WriteMessage(socket.Binary, piece); err != nil {
			return n, c.writeFailed(err)
		}
		n += len(piece)
		c.sent.Add(int64(len(piece)))
	}
	return n, nil
}

// writeInPlace sends buf[socket.Headroom:], which it may change, and which is
// not empty: that would be an end.
func (c *Stream) writeInPlace(buf []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	for {
		if err := c.writableLocked(); err != nil {
			return err
		}
		if c.outDirect {
			break
		}
		n, err := c.writeEarly(buf[socket.Headroom:])
		if err != nil {
			return err
		}
		if buf = buf[n:]; len(buf) == socket.Headroom { // what was sent is headroom now
			return nil
		}
	}
	if err := c.s.WritePieces(socket.Binary, buf, c.opts.MessageMax); err != nil {
		return c.writeFailed(err)
	}
	c.sent.Add(int64(len(buf) - socket.Headroom))
	return nil
}

// writableLocked wants writeMu.
func (c *Stream) writableLocked() error {
	if c.writeEnded.Load() || c.closed.Load() {
		return c.whyClosed()
	}
	return nil
}

// whyClosed is what calls on a closed stream return.
func (c *Stream) whyClosed() error {
	if f := c.failure.Load(); f != nil {
		return *f
	}
	return net.ErrClosed
}

// writeFailed turns an error of the socket's writer into the stream's.
func (c *Stream) writeFailed(err error) error {
	c.broken.Store(true)
	switch {
	case c.closed.Load():
		return c.whyClosed()
	case errors.Is(err, os.ErrDeadlineExceeded) && (c.opts.Why == nil || c.s.Ended() == nil):
		return err
	}
	return c.aborted(err)
}

// ReadFrom sends what it reads from r until its end, and is what io.Copy uses.
// It does not end the direction.
func (c *Stream) ReadFrom(r io.Reader) (int64, error) {
	buf := getBuffer()
	defer putBuffer(buf)
	most := socket.Headroom + min(bufferSize, c.opts.MessageMax)
	var total int64
	for {
		n, err := r.Read((*buf)[socket.Headroom:most])
		if n > 0 {
			if err := c.writeInPlace((*buf)[:socket.Headroom+n]); err != nil {
				return total, err
			}
			total += int64(n)
		}
		switch {
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// CloseWrite ends our direction; the peer reads io.EOF. Reading goes on.
func (c *Stream) CloseWrite() error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.closed.Load() {
		return c.whyClosed()
	}
	return c.closeWriteLocked()
}

// closeWriteLocked wants writeMu, or to be called for linger.
func (c *Stream) closeWriteLocked() error {
	// Marked before it is sent: the peer may answer with its close frame before
	// the write returns, and that is no abort.
	if c.writeEnded.Swap(true) {
		return nil
	}
	var err error
	if !c.outDirect {
		err = c.endEarly()
	}
	if err == nil && c.outDirect {
		err = c.s.WriteMessage(socket.Binary, nil)
	}
	if err != nil {
		c.writeEnded.Store(false)
		return c.writeFailed(err)
	}
	return nil
}

// Transferred returns the bytes of payload received and sent so far.
func (c *Stream) Transferred() (received, sent int64) { return c.received.Load(), c.sent.Load() }

// LocalAddr and RemoteAddr are those of the socket, unless Options.Remote says
// otherwise.
func (c *Stream) LocalAddr() net.Addr { return c.socket().LocalAddr() }

func (c *Stream) RemoteAddr() net.Addr {
	if c.opts.Remote != nil {
		return c.opts.Remote
	}
	return c.socket().RemoteAddr()
}

// socket is what the stream travels on.
func (c *Stream) socket() *socket.Socket {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s == nil {
		return c.e.mux.sock
	}
	return c.s
}

// SetDeadline, SetReadDeadline and SetWriteDeadline: as of net.Conn.
func (c *Stream) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *Stream) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.setReadLocked(t)
}

func (c *Stream) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.setWriteLocked(t)
}

func (c *Stream) setReadLocked(t time.Time) error {
	if c.e != nil {
		c.e.setReadByLocked(t)
	}
	if c.s == nil {
		return nil
	}
	return c.s.SetReadDeadline(t)
}

func (c *Stream) setWriteLocked(t time.Time) error {
	if c.e != nil {
		c.e.setWriteByLocked(t)
	}
	if c.s == nil {
		return nil
	}
	return c.s.SetWriteDeadline(t)
}

var _ net.Conn = (*Stream)(nil)
