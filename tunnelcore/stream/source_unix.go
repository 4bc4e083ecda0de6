//go:build unix

package stream

import (
	"io"
	"net"
	"os"
	"syscall"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// tcpSource takes a buffer for the time of the system call alone, which does not
// wait: the runtime calls try again when the connection can be read.
type tcpSource struct {
	c   *net.TCPConn
	raw syscall.RawConn
	try func(fd uintptr) (done bool)
	buf *[]byte
	n   int
	err error
	piece
}

func newTCPSource(c *net.TCPConn, most int) source {
	raw, err := c.SyscallConn()
	if err != nil { // closed: reading will say so
		return plainSource{c, most}
	}
	s := &tcpSource{c: c, raw: raw, piece: piece{most: most}}
	s.try = s.attempt
	return s
}

func (s *tcpSource) attempt(fd uintptr) (done bool) {
	var most int
	s.buf, most = s.get()
	for {
		s.n, s.err = syscall.Read(int(fd), (*s.buf)[socket.Headroom:socket.Headroom+most])
		if s.err != syscall.EINTR {
			break
		}
	}
	if s.err == nil && s.n > 0 {
		s.saw(s.n)
		return true
	}
	putBuffer(s.buf)
	s.buf, s.n = nil, 0
	return s.err != syscall.EAGAIN
}

func (s *tcpSource) read() (*[]byte, int, error) {
	if err := s.raw.Read(s.try); err != nil { // a deadline, or closed
		return nil, 0, err
	}
	buf := s.buf
	s.buf = nil
	switch {
	case s.err != nil:
		return nil, 0, &net.OpError{
			Op: "read", Net: "tcp", Source: s.c.LocalAddr(), Addr: s.c.RemoteAddr(),
			Err: os.NewSyscallError("read", s.err),
		}
	case buf == nil:
		return nil, 0, io.EOF
	}
	return buf, s.n, nil
}
