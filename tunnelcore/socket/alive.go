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
	c, ok := lowest(s.conn).(syscall.Conn)
	if !ok {
		return false, false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false, false // closed: whoever uses it will see
	}
	err = raw.Control(func(fd uintptr) { answered, known = acknowledged(fd, d) })
	return answered, known && err == nil
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
