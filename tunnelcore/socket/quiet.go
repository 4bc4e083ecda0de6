package socket

import "syscall"

// Quiet reports whether nothing has come that was not read: no payload, no frame, no
// end. It does not wait, and takes nothing; what TLS has read ahead of its readers it
// cannot see. It belongs to the reader.
func (s *Socket) Quiet() bool {
	if s.readErr != nil || s.ahead || s.remaining > 0 || s.br.Buffered() > 0 {
		return false
	}
	if f := s.feed; f != nil && (f.from < f.to || f.err != nil) {
		return false
	}
	c, ok := lowest(s.conn).(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	quiet := true
	err = raw.Control(func(fd uintptr) { quiet = nothingToRead(fd) })
	return quiet && err == nil
}
