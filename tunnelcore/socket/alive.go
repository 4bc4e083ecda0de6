package socket

import (
	"net"
	"syscall"
	"time"
)

// Acknowledged asks TCP about the peer's system, which acknowledges what it gets
// even when nobody reads it there: answered says that nothing waits to be
// acknowledged, or that something came from there within d. known is false where
// the system does not tell.
func (s *Socket) Acknowledged(d time.Duration) (answered, known bool) {
	ok := s.ask(func(fd uintptr) { answered, known = acknowledged(fd, d) })
	return answered, known && ok
}

// Queued reports whether something that was written waits in the system, for the
// peer's to take or to acknowledge it; false where the system does not tell.
func (s *Socket) Queued() bool {
	var queued bool
	return s.ask(func(fd uintptr) { queued = unacknowledged(fd) }) && queued
}

// ask calls f with the connection below TLS; false if it has none, or is closed:
// whoever uses it will see.
func (s *Socket) ask(f func(fd uintptr)) bool {
	c, ok := lowest(s.conn).(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	return err == nil && raw.Control(f) == nil
}

// lowest is the connection below TLS, and below whatever has a method NetConn.
func lowest(conn net.Conn) net.Conn {
	for {
		c, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return conn
		}
		conn = c.NetConn()
	}
}
