//go:build unix

package socket

import (
	"net"
	"os"
	"syscall"
)

// now reads what has come already.
type now struct{ *direct }

// direct reads from a TCP connection without waiting.
type direct struct {
	c   *net.TCPConn
	raw syscall.RawConn
	try func(fd uintptr) (done bool)
	p   []byte
	n   int
	err error
}

// newNow returns one that never has anything for connections other than TCP.
func newNow(conn net.Conn) now {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return now{}
	}
	raw, err := c.SyscallConn()
	if err != nil { // closed: reading will say so
		return now{}
	}
	d := &direct{c: c, raw: raw}
	d.try = d.attempt
	return now{d}
}

func (d *direct) attempt(fd uintptr) (done bool) {
	for {
		d.n, d.err = syscall.Read(int(fd), d.p)
		if d.err != syscall.EINTR {
			return true
		}
	}
}

// read returns 0 and no error when nothing has come, or the end; or when a deadline
// has passed. Other errors are told once.
func (d now) read(p []byte) (int, error) {
	if d.direct == nil {
		return 0, nil
	}
	d.p, d.n, d.err = p, 0, nil
	_ = d.raw.Read(d.try) // a deadline, or closed: the next read says so
	d.p = nil
	if d.err == nil {
		return d.n, nil
	}
	if d.err == syscall.EAGAIN {
		return 0, nil
	}
	return 0, &net.OpError{
		Op: "read", Net: "tcp", Source: d.c.LocalAddr(), Addr: d.c.RemoteAddr(),
		Err: os.NewSyscallError("read", d.err),
	}
}
