package roundtrip

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// bufferSize is that of a connection's buffer: most heads fit, and pieces of
// bodies that are at least as large go past it.
const bufferSize = 4 << 10

// MaxHead bounds the head of an answer, informational ones before it included,
// in bytes.
const MaxHead = 64 << 10

// buffers are those that connections read into. Connections that wait for a next
// request have none.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// conn is a connection to a device's service. It belongs to whoever has taken it
// from its pool, and is not safe for concurrent use, abort excepted.
type conn struct {
	net.Conn
	pool *Pool
	port uint16

	small *[bufferSize]byte // from buffers; nil while there is no buffer
	buf   []byte            // small, or larger
	r, w  int               // buf[r:w] has been read from the connection and by nobody else
	until time.Time         // the read deadline that is set; zero: none
	heard bool              // something has come
	write write             // of a head

	// What follows is the pool's.
	since   time.Time     // when it became idle
	watched chan struct{} // closed when nobody waits for it to speak or end any more; nil: nobody does
	one     [1]byte       // see waitForByte
	stale   bool          // it has spoken or ended while it was idle; read after watched is closed
}

// abort closes the connection so that the device sees that it was cut.
func (c *conn) abort() { abort(c.Conn) }

func abort(c net.Conn) {
	under := c
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		under = t.NetConn() // TLS' goodbye could wait for a device that does not read
	}
	if a, ok := under.(interface{ Abort() }); ok {
		a.Abort()
		return
	}
	under.Close()
}

// buffered is what was read from the connection and not yet used.
func (c *conn) buffered() []byte { return c.buf[c.r:c.w] }

// fill reads more, after what is buffered. errFull: there is no room.
func (c *conn) fill() error {
	switch {
	case c.buf == nil:
		c.small = buffers.Get().(*[bufferSize]byte)
		c.buf = c.small[:]
	case c.r > 0:
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	if c.w == len(c.buf) {
		return errFull
	}
	for range 100 { // a connection may say nothing, but not for ever
		n, err := c.Conn.Read(c.buf[c.w:])
		c.w += n
		if n > 0 {
			c.heard = true
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

var errFull = errors.New("the buffer is full")

// grow doubles the buffer.
func (c *conn) grow() {
	larger := make([]byte, 2*len(c.buf))
	c.w = copy(larger, c.buf[c.r:c.w])
	c.r = 0
	c.freeBuffer()
	c.buf = larger
}

// freeBuffer gives the buffer back. The caller has copied what it needs.
func (c *conn) freeBuffer() {
	if c.small != nil {
		buffers.Put(c.small)
	}
	c.small, c.buf = nil, nil
}

// dropBuffer gives the buffer and what is in it back.
func (c *conn) dropBuffer() {
	c.freeBuffer()
	c.r, c.w = 0, 0
}

// setUntil sets the read deadline; zero takes it away.
func (c *conn) setUntil(t time.Time) {
	if c.until != t {
		c.until = t
		_ = c.SetReadDeadline(t) // fails only on a connection whose reads fail
	}
}

// readHead reads the head of an answer, of at most *limit bytes, which it is
// taken off. expired is called when the read deadline is there: it has set another
// one, or returns an error. The head is valid until the next read.
func (c *conn) readHead(limit *int, expired func() error) ([]byte, error) {
	seen := 0
	for {
		if n := headEnd(c.buffered(), seen); n > *limit {
			break
		} else if n > 0 {
			head := c.buffered()[:n]
			c.r += n
			*limit -= n
			return head, nil
		}
		if seen = c.w - c.r; seen >= *limit {
			break
		}
		if begins := c.buffered()[:min(seen, len(version))]; string(begins) != version[:len(begins)] {
			return nil, malformed("it begins with %.40q", c.buffered())
		}
		err := c.fill()
		switch {
		case err == errFull:
			c.grow()
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = expired()
			if err != nil {
				return nil, err
			}
		case err == io.EOF && seen > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
	}
	return nil, malformed("its header is longer than %d KiB", MaxHead>>10)
}

// upgraded is the body of a 101: the connection, from now on the caller's.
type upgraded struct {
	net.Conn
	mu   sync.Mutex // guards rest
	rest []byte     // came behind the head
}

func (u *upgraded) Read(p []byte) (int, error) {
	u.mu.Lock()
	if len(u.rest) > 0 {
		n := copy(p, u.rest)
		u.rest = u.rest[n:]
		u.mu.Unlock()
		return n, nil
	}
	u.rest = nil
	u.mu.Unlock()
	return u.Conn.Read(p)
}

// ReadFrom is what io.Copy uses.
func (u *upgraded) ReadFrom(r io.Reader) (int64, error) {
	if to, ok := u.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{u.Conn}, r)
}

// CloseWrite ends our direction, and leaves the other.
func (u *upgraded) CloseWrite() error {
	if c, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return http.ErrNotSupported
}
