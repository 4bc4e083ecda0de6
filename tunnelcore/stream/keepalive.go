package stream

import "time"

// missedPings is after how many pings in a row a peer is gone of which nothing came,
// not even an acknowledgement.
const missedPings = 2

// silentTime is how long a peer may answer no ping, where the system does not tell
// whether its TCP is alive.
const silentTime = 5 * time.Minute

// keepAlive is what KeepAlive remembers of its last call.
type keepAlive struct {
	at     time.Time
	moved  int64
	heard  uint32
	missed int
	since  time.Time // when the first of them was sent
}

// KeepAlive is called now and then, by one goroutine at a time. It pings the peer
// if nothing moved since the last call, so that middleboxes keep the connection,
// and aborts the stream when the pings stay unanswered: TCP's own keep-alive waits
// for data that is not acknowledged, and such a ping is. Answers are only read
// while somebody reads, so that a reader who is slow counts for nothing. Nor does a
// peer who is: as long as its system acknowledges what comes, it is not gone.
func (c *Stream) KeepAlive() {
	c.mu.Lock()
	s := c.s
	c.mu.Unlock()
	if s == nil {
		return // the control socket has its heartbeat
	}
	k, now := &c.keep, time.Now()
	moved, heard := c.received.Load()+c.sent.Load(), s.Heard()
	idle := moved == k.moved
	if !idle || heard != k.heard || !c.reading.Load() {
		k.missed = 0
	}
	patience := time.Duration(0)
	if k.missed > 0 {
		answered, known := s.Acknowledged(now.Sub(k.at))
		switch {
		case answered:
			k.missed = 0
		case !known:
			patience = silentTime
		}
	}
	k.at, k.moved, k.heard = now, moved, heard
	switch {
	case c.closed.Load() || !idle:
	case k.missed >= missedPings && now.Sub(k.since) >= patience:
		c.Abort()
	default:
		// What waits to be taken asks as well as a ping, which would wait behind it. A
		// failure shows in the next read or write.
		asked := s.Queued()
		if !asked {
			asked, _ = s.Ping()
		}
		if asked {
			if k.missed == 0 {
				k.since = now
			}
			k.missed++
		}
	}
}
