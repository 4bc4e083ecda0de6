package socket

import (
	"io"
	"net"
	"syscall"
)

// PassesOut reports whether PassFrom is for this socket: its payload goes out as it
// is, neither masked nor encrypted, and the system can move it by itself.
func (s *Socket) PassesOut() bool { return canPass && s.tcp && !s.client }

// PassFrom sends n bytes as binary messages of at most most bytes, without taking
// them into this process. src has them already (Queued): until they are on their way
// nobody else may read there. It is of the class of data, and may be called
// concurrently.
func (s *Socket) PassFrom(src *net.TCPConn, n, most int) (sent int, err error) {
	s.lock(regular)
	defer s.unlock()
	for sent < n && err == nil {
		if err = s.readyLocked(byte(Binary)); err != nil {
			break
		}
		piece := min(n-sent, most)
		if err = s.beginLocked(piece); err != nil {
			break
		}
		for again := true; again; {
			var k int64
			k, err = s.conn.(*net.TCPConn).ReadFrom(&io.LimitedReader{R: src, N: int64(piece)})
			piece -= int(k)
			sent += int(k)
			if err == nil && piece > 0 {
				err = io.ErrUnexpectedEOF // src has broken
			}
			again, err = s.wroteLocked(k, err)
		}
	}
	return sent, err
}

// beginLocked sends the header of a message whose payload follows at once. It wants
// the turn, and the deadlines armed.
func (s *Socket) beginLocked(length int) error {
	raw, err := s.conn.(syscall.Conn).SyscallConn()
	if err != nil {
		_, err = s.wroteLocked(0, err)
		return err
	}
	var head [Headroom]byte
	p := head[s.header(byte(Binary), &head, length):]
	for again := true; again; {
		var n int
		wait := raw.Write(func(fd uintptr) (done bool) {
			n, err = sendMore(fd, p)
			p = p[n:]
			return err != syscall.EAGAIN && (err != nil || len(p) == 0)
		})
		if wait != nil { // a deadline, or closed
			err = wait
		}
		again, err = s.wroteLocked(int64(n), err)
	}
	return err
}

// PassTo moves payload of the current message to dst without taking it into this
// process, and waits for it: up to most bytes of it, fewer only with an error or
// when the connection ends. It does nothing, and says so with passed, when there is
// less, or some of it is here already, or it has to be unmasked or decrypted. Only
// More or Next tell what is wrong with the socket.
func (s *Socket) PassTo(dst *net.TCPConn, least, most int) (n int, passed bool, err error) {
	if !canPass || !s.tcp || !s.client || s.readErr != nil || s.remaining < int64(least) ||
		s.br.Buffered() > 0 || s.feed != nil && s.feed.from < s.feed.to {
		return 0, false, nil
	}
	k, err := dst.ReadFrom(&io.LimitedReader{R: s.conn, N: min(int64(most), s.remaining)})
	n = int(k)
	if n > 0 {
		s.remaining -= k
		s.heard.Add(1)
		if s.feed != nil {
			s.feed.bare = true
		}
	}
	return n, n > 0 || err != nil, err
}
