package roundtrip

import (
	"io"
	"maps"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// body is the body of an answer. When its end has been read, its connection
// serves the next request, or is closed. Closed before that, it takes the
// connection with it.
//
// One goroutine may read while another closes.
type body struct {
	watch
	upload   *upload // of the request's body; nil: it was sent with the head
	res      *http.Response
	framing  framing
	reuse    bool
	detached bool // all of it is in rest, and the connection was let go

	settled atomic.Bool // whoever sets it decides what becomes of the connection

	mu     sync.Mutex // guards what follows, and reading
	left   int64      // to come, by its length
	chunks chunks
	small  *[bufferSize]byte // what rest is in
	rest   []byte
	err    error // sticky
	slow   bool  // it was prepared for a device that takes its time
}

// detach takes the body from the connection's buffer, if all of it is there: then
// the connection is free before anybody has read the body.
func (b *body) detach() {
	c := b.c
	if b.upload != nil || int64(len(c.buffered())) < b.left || c.small == nil {
		return
	}
	rest := c.buffered()
	b.small, b.rest, b.detached = c.small, rest[:b.left], true
	b.reuse = b.reuse && len(rest) == len(b.rest) // for more nobody has asked
	c.small, c.buf, c.r, c.w = nil, nil, 0, 0
	b.end(true)
}

// Read reads the body.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.detached {
		n := copy(p, b.rest)
		if b.rest = b.rest[n:]; len(b.rest) == 0 {
			b.forgetLocked(io.EOF)
		}
		return n, b.err
	}
	n, err := b.readLocked(p)
	if err == nil {
		return n, nil
	}
	b.finishLocked(err)
	if n > 0 && b.err != io.EOF {
		return n, nil // and the error next time
	}
	return n, b.err
}

// readLocked reads from the connection, or what was read ahead. It returns io.EOF
// with the last byte, where the end is known then. It wants mu.
func (b *body) readLocked(p []byte) (n int, err error) {
	c := b.c
	for {
		n, err := b.takeLocked(p)
		if n > 0 || err != nil {
			return n, err
		}
		if b.settled.Load() {
			return 0, http.ErrBodyReadAfterClose
		}
		b.waitLocked()
		if len(p) >= bufferSize && b.plainLocked() >= bufferSize {
			return b.readPlainLocked(p)
		}
		switch err := c.fill(); {
		case err == errFull:
			return 0, malformed("its trailer is too long")
		case err != nil:
			return 0, b.endOr(err)
		}
	}
}

// plainLocked is how many bytes of the body come next as they are. It wants mu.
func (b *body) plainLocked() int64 {
	switch {
	case b.framing == byEnd:
		return math.MaxInt64
	case b.framing == byLength:
		return b.left
	case b.chunks.state == inData:
		return b.chunks.left
	}
	return 0
}

// readPlainLocked reads such bytes past the buffer. It wants mu.
func (b *body) readPlainLocked(p []byte) (n int, err error) {
	if b.framing == byChunks {
		n, err = b.c.Read(p[:min(int64(len(p)), b.chunks.left)])
		if b.chunks.left -= int64(n); b.chunks.left == 0 {
			b.chunks.state = afterData
		}
		return n, b.endOr(err)
	}
	n, err = b.c.Read(p)
	if b.framing == byLength {
		if int64(n) > b.left {
			n, b.reuse = int(b.left), false // for more nobody has asked
		}
		b.left -= int64(n)
	}
	return n, b.endOr(err)
}

// takeLocked moves what is buffered. It wants mu.
func (b *body) takeLocked(p []byte) (n int, err error) {
	c := b.c
	if b.framing == byChunks {
		var used int
		n, used, err = b.chunks.decode(p, c.buffered())
		c.r += used
		switch {
		case err == errMore:
			err = nil
		case err == nil && b.chunks.state == atEnd:
			err = io.EOF
		}
		return n, err
	}
	if b.framing == byLength {
		p = p[:min(int64(len(p)), b.left)]
	}
	n = copy(p, c.buffered())
	c.r += n
	b.left -= int64(n)
	if n == 0 {
		return 0, nil
	}
	return n, b.endOr(nil)
}

// endOr is io.EOF if the length says so, and err if not. The end of the connection
// before that is unexpected.
func (b *body) endOr(err error) error {
	switch {
	case b.framing == byLength && b.left == 0:
		return io.EOF
	case err == io.EOF && b.framing != byEnd:
		return io.ErrUnexpectedEOF
	}
	return err
}

// waitLocked prepares for a read that takes as long as the device likes. It wants
// mu.
func (b *body) waitLocked() {
	if b.slow {
		return
	}
	b.slow = true
	b.c.setUntil(time.Time{})
	if !b.begun {
		b.begin()
	}
}

// finishLocked ends the body with err. It wants mu.
func (b *body) finishLocked(err error) {
	if err == io.EOF {
		b.mergeTrailer()
	} else {
		err = b.reason(err)
	}
	b.err = err
	b.end(err == io.EOF)
}

// mergeTrailer adds what came to what was announced.
func (b *body) mergeTrailer() {
	if len(b.chunks.trailer) > 0 && b.res.Trailer == nil {
		b.res.Trailer = make(http.Header, len(b.chunks.trailer))
	}
	maps.Copy(b.res.Trailer, b.chunks.trailer)
}

// end lets the connection go, for the next request if that can be. whole says that
// the answer has been read up to its end.
func (b *body) end(whole bool) {
	c := b.c
	free := !b.settled.Swap(true) // else Close has aborted it
	untouched := b.watch.end()
	sent := b.upload == nil || b.upload.settle(whole)
	switch {
	case b.reuse && whole && free && untouched && sent:
		c.pool.put(c)
		return
	case whole && free && untouched && sent:
		c.Close()
	case free:
		c.abort()
	}
	c.dropBuffer()
}

// forgetLocked gives the memory of a detached body back. It wants mu.
func (b *body) forgetLocked(err error) {
	buffers.Put(b.small)
	b.small, b.rest, b.err = nil, nil, err
}

// Close lets go of the body. A Read under way returns.
func (b *body) Close() error {
	if !b.mu.TryLock() {
		if !b.detached && !b.settled.Swap(true) {
			b.c.abort()
		}
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	switch {
	case b.err != nil:
	case b.detached:
		b.forgetLocked(http.ErrBodyReadAfterClose)
	default:
		whole := b.drainLocked()
		b.err = http.ErrBodyReadAfterClose
		b.end(whole)
	}
	return nil
}

// drainLocked reads what is left of the body, and reports whether all of it was
// there. It wants mu.
func (b *body) drainLocked() bool {
	if b.framing == byEnd {
		return false
	}
	var p [512]byte
	for range bufferSize / len(p) {
		n, err := b.takeLocked(p[:])
		if err != nil || n == 0 {
			return err == io.EOF
		}
	}
	return false
}

// upgrade makes the connection the caller's.
func (b *body) upgrade() io.ReadWriteCloser {
	c := b.c
	b.settled.Store(true)
	u := &upgraded{Conn: c.Conn, rest: append([]byte(nil), c.buffered()...)}
	c.dropBuffer()
	if b.upload != nil {
		b.upload.settle(false)
	}
	b.watch.end() // who has upgraded looks after the visitor
	c.setUntil(time.Time{})
	return u
}
