package stream

// missedPings is after how many pings in a row a peer is gone from which nothing
// came.
const missedPings = 2

// keepAlive is what KeepAlive remembers of its last call.
type keepAlive struct {
	moved  int64
	heard  uint32
	missed int
}

// KeepAlive is called now and then, by one goroutine at a time. It pings the peer
// if nothing moved since the last call, so that middleboxes keep the connection,
// and aborts the stream when the pings stay unanswered: TCP's own keep-alive waits
// for data that is not acknowledged, and such a ping is. Answers are only read
// while somebody reads, so that a reader who is slow counts for nothing.
func (c *Stream) KeepAlive() {
	c.mu.Lock()
	s := c.s
	c.mu.Unlock()
	if s == nil {
		return // the control socket has its heartbeat
	}
	k := &c.keep
	moved, heard := c.received.Load()+c.sent.Load(), s.Heard()
	idle := moved == k.moved
	if !idle || heard != k.heard || !c.reading.Load() {
		k.missed = 0
	}
	k.moved, k.heard = moved, heard
	switch {
	case c.closed.Load() || !idle:
	case k.missed >= missedPings:
		c.Abort()
	default:
		// A failure shows in the next read or write.
		if sent, _ := s.Ping(); sent {
			k.missed++
		}
	}
}
