package socket

import "time"

// SetWriteTimeout bounds how long a write may wait for the peer to take
// anything; 0 lets it take as long as the peer likes. It is set before the
// socket is shared.
func (s *Socket) SetWriteTimeout(d time.Duration) { s.writeTimeout = d }

// SetWriteMost bounds the bytes that a connection other than TCP is given at a
// time, and so its TLS records: 16 KiB unless it is less. It is set before the
// socket is shared.
func (s *Socket) SetWriteMost(n int) { s.piece = max(1, min(n, pieceSize)) }

// SetReadDeadline is as of net.Conn.
func (s *Socket) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// SetWriteDeadline is as of net.Conn. The write timeout bounds each write
// besides, and so does WriteClose.
func (s *Socket) SetWriteDeadline(t time.Time) error {
	s.deadlineMu.Lock()
	defer s.deadlineMu.Unlock()
	if !s.closing {
		s.writeBy = t
	} else {
		s.writeBy = earliest(s.writeBy, t)
	}
	return s.setDeadlineLocked()
}

// closeWithin announces a close frame, once: writes under way get d to end, and
// no new one begins.
func (s *Socket) closeWithin(d time.Duration) {
	s.deadlineMu.Lock()
	defer s.deadlineMu.Unlock()
	if s.closing {
		return
	}
	s.closing = true
	s.writeBy = earliest(s.writeBy, time.Now().Add(d))
	_ = s.setDeadlineLocked() // fails only on a connection whose writes fail
}

// arm sets the deadline for what is written next. New data is ErrClosed when a
// close frame is to be next.
func (s *Socket) arm(data bool) error {
	s.deadlineMu.Lock()
	defer s.deadlineMu.Unlock()
	if s.closing && data {
		return ErrClosed
	}
	if s.writeTimeout == 0 {
		return nil // what is set is right
	}
	s.armedBy = time.Now().Add(s.writeTimeout)
	return s.setDeadlineLocked()
}

// setDeadlineLocked wants deadlineMu.
func (s *Socket) setDeadlineLocked() error {
	return s.conn.SetWriteDeadline(earliest(s.writeBy, s.armedBy))
}

// earliest is the earlier of two deadlines, of which zero is none.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
