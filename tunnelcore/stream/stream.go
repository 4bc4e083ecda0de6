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
	// lingerTime. It must count something else until the stream is closed. nil:
	// nobody waits.
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

	// readMu guards the fields below it, until the stream is closed: then they
	// are linger's.
	readMu    sync.Mutex
	inMessage bool
	empty     bool  // nothing of the current message has been read
	readErr   error // sticky, deadlines excepted

	writeMu sync.Mutex // one message at a time

	deadlineMu sync.Mutex // held to set deadlines: those of Close are the last

	readEnded  atomic.Bool // the peer's end has been read
	writeEnded atomic.Bool // ours has been sent, or is on its way
	broken     atomic.Bool // a read or write failed, deadlines of reads excepted
	closed     atomic.Bool // written under deadlineMu
	reading    atomic.Bool // somebody waits for the peer

	received, sent atomic.Int64 // bytes

	keep keepAlive // KeepAlive's own
}

// New makes a stream of a transfer socket, which it owns from then on.
func New(s *socket.Socket, opts Options) *Stream {
	if opts.MessageMax <= 0 {
		opts.MessageMax = wire.DefaultMessage
	}
	if opts.Owner == nil {
		opts.Owner = new(sync.WaitGroup)
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

// readLocked wants readMu, or to be linger.
func (c *Stream) readLocked(p []byte) (int, error) {
	for {
		if err := c.payloadLocked(); err != nil {
			return 0, err
		}
		n, err := c.s.Read(p)
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
			if op != socket.Binary {
				return c.malformed("text on a transfer socket")
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
		return net.ErrClosed
	}
	return c.payloadLocked()
}

// readFailed turns an error of the socket's reader into the stream's.
func (c *Stream) readFailed(err error) error {
	late := errors.Is(err, os.ErrDeadlineExceeded)
	if !late {
		c.broken.Store(true)
		c.readErr = fmt.Errorf("%w: %w", ErrAborted, err)
	}
	switch {
	case c.closed.Load():
		return net.ErrClosed
	case late:
		return err
	}
	return c.readErr
}

// malformed closes the socket to a peer that breaks the protocol.
func (c *Stream) malformed(reason string) error {
	c.broken.Store(true)
	c.readErr = fmt.Errorf("%w: %s", ErrAborted, reason)
	_ = c.s.WriteClose(wire.CloseMalformed, reason, time.Second) // the peer is faulty
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
	if err := c.writableLocked(); err != nil {
		return err
	}
	if err := c.s.WriteInPlace(socket.Binary, buf); err != nil {
		return c.writeFailed(err)
	}
	c.sent.Add(int64(len(buf) - socket.Headroom))
	return nil
}

// writableLocked wants writeMu.
func (c *Stream) writableLocked() error {
	if c.writeEnded.Load() || c.closed.Load() {
		return net.ErrClosed
	}
	return nil
}

// writeFailed turns an error of the socket's writer into the stream's.
func (c *Stream) writeFailed(err error) error {
	c.broken.Store(true)
	switch {
	case c.closed.Load():
		return net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
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
	if c.closed.Load() {
		return net.ErrClosed
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
	if err := c.s.WriteMessage(socket.Binary, nil); err != nil {
		c.writeEnded.Store(false)
		return c.writeFailed(err)
	}
	return nil
}

// Close ends our direction and lets go of the stream; calls under way return,
// and one that was writing makes it an abort. The socket lives on for a moment,
// so that nothing sent is lost: until the peer has ended its direction and
// closed too, at most lingerTime. Data that the peer sends meanwhile, or has sent
// and nobody read, make it an abort too.
func (c *Stream) Close() error {
	if !c.close() {
		return nil
	}
	if c.broken.Load() {
		c.finish()
		return nil
	}
	c.opts.Owner.Go(c.linger)
	return nil
}

// close marks the stream closed, and makes the calls under way return. It
// reports whether it was open.
func (c *Stream) close() bool {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	if c.closed.Swap(true) {
		return false
	}
	past := time.Unix(1, 0)
	_, _ = c.s.SetReadDeadline(past), c.s.SetWriteDeadline(past) // fails only on a closed socket
	return true
}

// linger brings a closed stream to its end.
func (c *Stream) linger() {
	defer c.finish()
	// Calls under way hold a lock until they return; later ones see that the
	// stream is closed. What follows is alone, and must not make them wait.
	c.readMu.Lock()
	c.writeMu.Lock()
	broken := c.broken.Load()
	c.writeMu.Unlock()
	c.readMu.Unlock()
	if broken {
		return
	}
	until := time.Now().Add(lingerTime)
	_, _ = c.s.SetReadDeadline(until), c.s.SetWriteDeadline(until) // fails only on a closed socket
	// What we send must not wait for the peer to read while it waits for us.
	sent := make(chan error, 1)
	go func() { sent <- c.closeWriteLocked() }()
	// Data instead of the peer's end means that it was not done: an abort.
	var b [1]byte
	n, err := c.readLocked(b[:])
	if n > 0 || err != io.EOF {
		c.s.Close()
		<-sent
		return
	}
	if <-sent != nil {
		return
	}
	// Both directions have ended. Closing TCP with bytes unread would reset it,
	// and could destroy what the peer has not read yet (protocol §6.6).
	go func() { sent <- c.s.WriteClose(wire.CloseNormal, "", lingerTime) }()
	for err == nil || err == io.EOF {
		_, err = c.s.Next()
	}
	<-sent
}

// Abort closes the stream at once; the peer sees that it was not an end.
func (c *Stream) Abort() {
	if !c.close() {
		c.s.Close() // a close that lingers is cut short
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
// here or our direction has ended and the peer closed (nil), or until it is
// aborted. Without it an abort by a peer that has nothing more to say would only
// be seen with the next write.
func (c *Stream) awaitClose() error {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	c.reading.Store(true)
	defer c.reading.Store(false)
	for {
		if c.closed.Load() {
			return nil
		}
		_, err := c.s.Next()
		switch {
		case c.closed.Load():
			return nil
		case err == nil:
			return c.malformed("data after the end")
		case c.writeEnded.Load() && !errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = c.SetReadDeadline(time.Time{}) // it was for reads, which have ended
		default:
			return c.readFailed(err)
		}
	}
}

// Transferred returns the bytes of payload received and sent so far.
func (c *Stream) Transferred() (received, sent int64) { return c.received.Load(), c.sent.Load() }

// missedPings is after how many pings in a row a peer is gone from which nothing
// came.
const missedPings = 2

// keepAlive is what KeepAlive remembers of its last call.
type keepAlive struct {
	moved  int64
	heard  uint32
	missed int
}

// KeepAlive is called now and then, by one goroutine at a time. It pings the peer
// if nothing moved since the last call, so that middleboxes keep the connection,
// and aborts the stream when the pings stay unanswered: TCP's own keep-alive waits
// for data that is not acknowledged, and such a ping is. Answers are only read
// while somebody reads, so that a reader who is slow counts for nothing.
func (c *Stream) KeepAlive() {
	k := &c.keep
	moved, heard := c.received.Load()+c.sent.Load(), c.s.Heard()
	idle := moved == k.moved
	if !idle || heard != k.heard || !c.reading.Load() {
		k.missed = 0
	}
	k.moved, k.heard = moved, heard
	switch {
	case c.closed.Load() || !idle:
	case k.missed >= missedPings:
		c.Abort()
	default:
		// A failure shows in the next read or write.
		if sent, _ := c.s.Ping(); sent {
			k.missed++
		}
	}
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
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.s.SetReadDeadline(t)
}

func (c *Stream) SetWriteDeadline(t time.Time) error {
	c.deadlineMu.Lock()
	defer c.deadlineMu.Unlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	return c.s.SetWriteDeadline(t)
}

var _ net.Conn = (*Stream)(nil)
