package socket

import (
	"net"
	"syscall"
	"time"
)

// unsentMost is what the kernel of a control socket keeps unsent, in bytes: so
// much stands before a ping, and no more.
const unsentMost = 16 << 10

// TuneControl makes the connection below s fit for many streams and a heartbeat:
// next to nothing queues in the kernel, and what the peer does not acknowledge
// for patience ends it. There is no keep-alive of TCP's: it would only go out
// between two pings. What the system cannot do is left out.
func (s *Socket) TuneControl(patience time.Duration) { TuneControl(s.conn, patience) }

// TuneControl is for a connection that is not a socket yet. It finds the TCP
// connection below TLS, and below whatever has a method NetConn.
func TuneControl(conn net.Conn, patience time.Duration) {
	conn = lowest(conn)
	if c, ok := conn.(interface{ SetKeepAlive(bool) error }); ok {
		_ = c.SetKeepAlive(false) // fails only on a closed connection
	}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return // closed: whoever uses it will see
	}
	_ = raw.Control(func(fd uintptr) { tune(fd, unsentMost, patience) }) // as above
}
