package tunnelcore

import (
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// rest gives back what the handshakes of a crowd have needed and its tunnels do not.
func (h *Hub) rest() {
	// The runtime decides how large a stack goroutines begin with, whenever it
	// collects: after what those need that there are.
	runtime.GC()
	for _, t := range h.live() {
		t.rest()
	}
	select {
	case <-time.After(tickTime): // until all have begun anew
	case <-h.ctx.Done():
		return
	}
	debug.FreeOSMemory()
}

// rest makes the goroutine that reads t begin anew, once: in a crowd it has begun
// with a larger stack than it needs, and would keep that for as long as the tunnel
// lives.
func (t *tunnel) rest() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rested || t.why != "" { // then close sets a deadline of its own
		return
	}
	t.rested, t.roused = true, true
	_ = t.sock.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed socket
}

// wasRoused reports whether a read has failed with err because of rest. It can be
// tried again then.
func (t *tunnel) wasRoused(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.roused {
		return false
	}
	t.roused = false
	var until time.Time
	if t.why != "" { // close sets one of its own, or has: the agent has time to answer it
		until = time.Now().Add(2 * closeTime)
	}
	return t.sock.SetReadDeadline(until) == nil
}

const (
	// crowdLeast is how many tunnels more make a crowd, or a quarter of those there
	// were if that is more.
	crowdLeast = 1000
	// crowdTime is how long a crowd does not grow before it has settled.
	crowdTime = 30 * time.Second
)

// crowd tells when many agents have come. Their handshakes leave the heap twice as
// large as those who stay need it, and full of holes.
type crowd struct {
	settled int // tunnels, when the last one had settled
	size    int
	since   time.Time // of size, or nearly so
}

// settles reports, once, that a crowd is there and has settled.
func (c *crowd) settles(tunnels int, now time.Time) bool {
	c.settled = min(c.settled, tunnels)
	switch {
	case tunnels < c.settled+max(crowdLeast, c.settled/4):
		c.size = tunnels
	case tunnels > c.size+c.size/50:
		c.size, c.since = tunnels, now
	case now.Sub(c.since) >= crowdTime:
		c.settled = tunnels
		return true
	}
	return false
}
