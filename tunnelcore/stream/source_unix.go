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
	to  *Stream // that it may pass bulk to; nil: none
	raw syscall.RawConn
	try func(fd uintptr) (done bool)
	buf *[]byte
	n   int
	err error
	piece
	pass    bool // what waits is not to be read, if it is enough to be passed on
	waiting int  // so much is, in bytes
}

func newTCPSource(c *net.TCPConn, to *Stream, most int) source {
	raw, err := c.SyscallConn()
	if err != nil { // closed: reading will say so
		return plainSource{c, most}
	}
	s := &tcpSource{c: c, to: to, raw: raw, piece: piece{most: most}}
	s.try = s.attempt
	return s
}

func (s *tcpSource) attempt(fd uintptr) (done bool) {
	if s.pass {
		if s.waiting = min(socket.Waiting(fd), bulkSize); s.waiting >= bufferSize {
			return true
		}
		s.waiting = 0
	}
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
	s.pass = s.to != nil && s.mayPass() && s.to.passesOut()
	if err := s.raw.Read(s.try); err != nil { // a deadline, or closed
		return nil, 0, err
	}
	if s.waiting > 0 {
		bulkUsed.Add(1)
		defer bulkUsed.Add(-1)
		n, err := s.to.passFrom(s.c, s.waiting)
		s.waiting = 0
		return nil, n, err
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
