package socket

import (
	"io"
	"net"
)

// feed is what the buffer of a socket reads from once payload has gone past it: the
// connection, behind what came with that payload. Sockets that only wait have none.
type feed struct {
	conn     net.Conn
	now      now
	head     [Headroom]byte // of the next frame, or a part of it
	from, to int            // of head, what is not read yet
	err      error          // the connection's, which tells it once
	bare     bool           // payload was passed on: read no more than a header
}

// bareHead is the header of a frame that may be worth passing on: it is long, and
// not masked.
const bareHead = 10

// headMost is how much is read of what is behind a frame: no payload of a long one
// that follows, which could not be passed on then.
func (s *Socket) headMost() int {
	if s.client {
		return bareHead
	}
	return Headroom
}

func (f *feed) Read(p []byte) (int, error) {
	if f.from < f.to {
		n := copy(p, f.head[f.from:f.to])
		f.from += n
		return n, nil
	}
	if f.err != nil {
		return 0, f.err
	}
	if f.bare {
		p = p[:min(len(p), bareHead)]
	}
	return f.conn.Read(p)
}

// payload reads into p, and keeps what is behind p[:most]. It waits if it may.
func (f *feed) payload(p []byte, most int, wait bool) (n int, err error) {
	switch {
	case f.err != nil:
		return 0, f.err
	case wait:
		n, err = f.conn.Read(p)
	default:
		n, f.err = f.now.read(p)
	}
	if n > most {
		f.from, f.to = 0, copy(f.head[:], p[most:n])
		n = most
	}
	return n, err
}

// Fill reads payload of the current message into p[:most] as Read does, but all of
// it that has come, up to the end of a frame. With Headroom bytes in p behind that,
// the header of the next frame need not be read for itself.
func (s *Socket) Fill(p []byte, most int) (int, error) {
	for range 100 { // as bufio: a connection may say nothing, but not for ever
		if err := s.More(); err != nil {
			return 0, err
		}
		n, err := s.fill(p, most, true)
		if n > 0 || most == 0 {
			return n, nil
		}
		if err != nil {
			return 0, s.failed(err)
		}
	}
	return 0, s.failed(io.ErrNoProgress)
}

// FillNow is Fill without waiting: it returns 0 when nothing has come, or what
// came is for Fill to tell.
func (s *Socket) FillNow(p []byte, most int) int {
	if s.remaining == 0 || s.readErr != nil {
		return 0
	}
	n, _ := s.fill(p, most, false) // there is none without waiting
	return n
}

// fill wants payload to be on its way.
func (s *Socket) fill(p []byte, most int, wait bool) (n int, err error) {
	most = int(min(int64(most), s.remaining))
	if s.br.Buffered() > 0 {
		n, _ = s.br.Read(p[:most]) // what is buffered
		wait = false
	}
	switch {
	case n == most:
	case s.feed == nil && wait && most < s.br.Size(): // little enough to go through the buffer
		n, err = s.br.Read(p[:most])
	default:
		if s.feed == nil {
			s.feed = &feed{conn: s.conn, now: newNow(s.conn)}
			s.br.Reset(s.feed) // it is empty
		}
		end := most
		if int64(most) == s.remaining {
			end = min(len(p), most+s.headMost())
		}
		s.feed.bare = false
		var k int
		k, err = s.feed.payload(p[n:end], most-n, wait)
		n += k
	}
	if n == 0 {
		return 0, err
	}
	if !s.client {
		s.mask = applyMask(p[:n], s.mask)
	}
	s.remaining -= int64(n)
	s.heard.Add(1)
	return n, nil
}

// Following reports whether the header of another data frame with payload has come
// behind a frame that was read to its end: then neither Next nor More waits.
func (s *Socket) Following() bool {
	if s.remaining > 0 || s.readErr != nil || s.ahead {
		return false
	}
	if s.br.Buffered() == 0 {
		if s.feed == nil || s.feed.from == s.feed.to {
			return false
		}
		_, _ = s.br.Peek(1) // takes what there is
	}
	head, _ := s.br.Peek(s.br.Buffered())
	if len(head) < 2 || head[0]&0x0f >= opClose {
		return false
	}
	size, code := 2, head[1]&0x7f
	switch code {
	case 0:
		return false
	case 126:
		size += 2
	case 127:
		size += 8
	}
	if head[1]&0x80 != 0 {
		size += 4
	}
	return len(head) >= size
}
