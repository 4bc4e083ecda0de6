// Package stream makes net.Conns of transfer sockets, and joins two connections.
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

// lingerTime is how long a closed stream waits for the peer to end its
// direction, and then for its close frame (protocol §6.6).
const lingerTime = 10 * time.Second

// Options of a Stream.
type Options struct {
	// MessageMax bounds the payload of the binary messages it sends, in bytes.
	MessageMax int
	// Remote is what RemoteAddr returns; nil: the socket's peer.
	Remote net.Addr
	// Owner waits for the goroutine that a closed stream may leave behind for
	// lingerTime. It must count something else until the stream is closed.
	Owner *sync.WaitGroup
	// Closed is called once, when the socket is closed: nothing of the stream is
	// left then.
	Closed func(*Stream)
}

// Stream is one visitor connection on a transfer socket of its own (protocol
// §6, basic profile): a net.Conn with half-close. A binary message is a piece of
// the byte stream, an empty one ends its direction.
//
// Reads resume after a deadline; a write that meets one breaks the stream, as
// part of a frame may be on its way. One goroutine may read and another write.
type Stream struct {
	s    *socket.Socket
	opts Options

	readMu    sync.Mutex
	inMessage bool
	empty     bool // nothing of the current message has been read

	writeMu sync.Mutex

	readEnded  atomic.Bool // the peer's end has been read
	writeEnded atomic.Bool // ours has been sent
	broken     atomic.Bool // a read or write failed, deadlines of reads excepted
	closed     atomic.Bool

	received, sent atomic.Int64 // bytes
}

// New makes a stream of a transfer socket, which it owns from then on.
func New(s *socket.Socket, opts Options) *Stream {
	if opts.MessageMax <= 0 {
		opts.MessageMax = wire.DefaultMessage
	}
	return &Stream{s: s, opts: opts}
}

// Read reads what the peer has sent; io.EOF after its end. A close before that
// is ErrAborted.
func (c *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	return c.readLocked(p)
}

func (c *Stream) readLocked(p []byte) (int, error) {
	for {
		if c.readEnded.Load() {
			return 0, io.EOF
		}
		if !c.inMessage {
			op, err := c.s.Next()
			if err != nil {
				return 0, c.readFailed(err)
			}
			if op != socket.Binary {
				c.broken.Store(true)
				_ = c.s.WriteClose(wire.CloseMalformed, "text on a transfer socket", time.Second) // the peer is faulty
				return 0, fmt.Errorf("%w: text on a transfer socket", ErrAborted)
			}
			c.inMessage, c.empty = true, true
		}
		n, err := c.s.Read(p)
		switch {
		case n > 0:
			c.empty = false
			c.received.Add(int64(n))
			return n, nil
		case err == io.EOF:
			c.inMessage = false
			if c.empty {
				c.readEnded.Store(true)
			}
		default:
			return 0, c.readFailed(err)
		}
	}
}

func (c *Stream) readFailed(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if c.closed.Load() {
			return net.ErrClosed
		}
		return err
	}
	c.broken.Store(true)
	return fmt.Errorf("%w: %w", ErrAborted, err)
}

// Write sends p. It returns when the operating system has taken it all: a peer
// that reads slowly makes it wait.
func (c *Stream) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	var n int
	for n < len(p) {
		piece := p[n:min(len(p), n+c.opts.MessageMax)]
		if err := c.sendLocked(len(piece), func() error {
			return c.s.WriteMessage(socket.Binary, piece)
		}); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// writeInPlace sends buf[socket.Headroom:], which it may change.
func (c *Stream) writeInPlace(buf []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.sendLocked(len(buf)-socket.Headroom, func() error {
		return c.s.WriteInPlace(socket.Binary, buf)
	})
}

// sendLocked sends n bytes of payload, which is never 0: an empty message would
// be an end. It wants writeMu.
func (c *Stream) sendLocked(n int, send func() error) error {
	if c.writeEnded.Load() || c.closed.Load() {
		return net.ErrClosed
	}
	if err := send(); err != nil {
		return c.writeFailed(err)
	}
	c.sent.Add(int64(n))
	return nil
}

func (c *Stream) writeFailed(err error) error {
	c.broken.Store(true)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrAborted, err)
}

// ReadFrom sends what it reads from r until its end, and is what io.Copy uses.
// It does not end the direction.
func (c *Stream) ReadFrom(r io.Reader) (int64, error) {
	buf := getBuffer()
	defer putBuffer(buf)
	most := min(len(*buf), socket.Headroom+c.opts.MessageMax)
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
	return c.closeWriteLocked()
}

func (c *Stream) closeWriteLocked() error {
	if c.writeEnded.Load() {
		return nil
	}
	if err := c.s.WriteMessage(socket.Binary, nil); err != nil {
		return c.writeFailed(err)
	}
	c.writeEnded.Store(true)
	return nil
}

// Close ends our direction and lets go of the stream; calls under way return.
// The socket lives on for a moment, so that nothing sent is lost: until the peer
// has ended its direction and closed too, at most lingerTime.
func (c *Stream) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	if c.broken.Load() {
		c.finish()
		return nil
	}
	// Calls under way hold the locks: let them go.
	past := time.Unix(1, 0)
	_, _ = c.s.SetReadDeadline(past), c.s.SetWriteDeadline(past) // fails only on a closed socket
	c.opts.Owner.Go(c.linger)
	return nil
}

// linger brings a closed stream to its end.
func (c *Stream) linger() {
	defer c.finish()
	c.readMu.Lock()
	defer c.readMu.Unlock()
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if c.broken.Load() {
		return
	}
	until := time.Now().Add(lingerTime)
	_, _ = c.s.SetReadDeadline(until), c.s.SetWriteDeadline(until) // as above
	if c.closeWriteLocked() != nil {
		return
	}
	// Data instead of the peer's end means that it was not done: an abort.
	var b [1]byte
	if n, err := c.readLocked(b[:]); n > 0 || err != io.EOF {
		return
	}
	// Both directions have ended. Closing TCP with bytes unread would reset it,
	// and could destroy what the peer has not read yet (protocol §6.6).
	if c.s.WriteClose(wire.CloseNormal, "", lingerTime) != nil {
		return
	}
	for {
		if _, err := c.s.Next(); err != nil {
			return
		}
	}
}

// Abort closes the stream at once; the peer sees that it was not an end.
func (c *Stream) Abort() {
	if c.closed.Swap(true) {
		// A close that lingers is cut short.
		c.s.Close()
		return
	}
	c.broken.Store(true)
	c.finish()
}

func (c *Stream) finish() {
	c.s.Close()
	if c.opts.Closed != nil {
		c.opts.Closed(c)
	}
}

// awaitClose blocks, after the peer's end was read, until the stream is closed
// here (nil) or gone (ErrAborted). Without it an abort by a peer that has
// nothing more to say would only be seen with the next write.
func (c *Stream) awaitClose() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	for {
		_, err := c.s.Next()
		switch {
		case c.closed.Load() || c.writeEnded.Load():
			return nil
		case err == nil: // data after the end
			c.broken.Store(true)
			_ = c.s.WriteClose(wire.CloseMalformed, "data after the end", time.Second) // the peer is faulty
			return ErrAborted
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return c.readFailed(err)
		}
	}
}

// Transferred returns the bytes of payload received and sent so far.
func (c *Stream) Transferred() (received, sent int64) { return c.received.Load(), c.sent.Load() }

// Idle pings the peer if nothing moved since the number that the last call
// returned, so that middleboxes keep the connection and a dead one is found.
func (c *Stream) Idle(last int64) int64 {
	now := c.received.Load() + c.sent.Load()
	if now == last && !c.closed.Load() {
		// A failure shows in the next read or write.
		_, _ = c.s.Ping()
	}
	return now
}

// LocalAddr and RemoteAddr are those of the socket, unless Options.Remote says
// otherwise.
func (c *Stream) LocalAddr() net.Addr { return c.s.LocalAddr() }

func (c *Stream) RemoteAddr() net.Addr {
	if c.opts.Remote != nil {
		return c.opts.Remote
	}
	return c.s.RemoteAddr()
}

// SetDeadline, SetReadDeadline and SetWriteDeadline: as of net.Conn.
func (c *Stream) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *Stream) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.s.SetReadDeadline(t)
}

func (c *Stream) SetWriteDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.s.SetWriteDeadline(t)
}

var _ net.Conn = (*Stream)(nil)
