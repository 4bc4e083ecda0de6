//go:build unix

package stream

import (
	"errors"
	"net"
	"syscall"
)

// wasReset tells an end that was read from c from a reset. The system reports a
// reset to one call, and to a write as well as to a read: the next read returns
// an end. A TCP connection of which both directions have ended looks like one
// that was reset, and so does one that was closed here meanwhile: who aborts it
// because a write was told of the reset must not make the next read an end.
func wasReset(c net.Conn) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	var gone bool
	err = raw.Control(func(fd uintptr) {
		_, err := syscall.Getpeername(int(fd))
		gone = errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.EINVAL) // Linux, BSD
	})
	return err != nil || gone
}
