package agent

import (
	"errors"
	"sync"
	"time"
)

// AutoHeartbeat as Config.Heartbeat has the agent find out how long the network between
// it and the edge bears silence: it begins with 25 s, asks for twice as much when that
// has held, up to 15 min, and for less when a tunnel was lost in silence. Until a
// greater one is known to hold, visitors may have to wait for up to its length.
const AutoHeartbeat time.Duration = -1

const (
	// firstHeartbeat holds in most networks: NATs forget TCP connections after minutes.
	firstHeartbeat = 25 * time.Second
	// proof is how many silences of its length a heartbeat must have survived.
	proof = 3
	// badTime is how long a silence counts as fatal: networks change.
	badTime = 24 * time.Hour
	// patience after a heartbeat that is not proven, which may come a tenth later: then
	// the agent asks for a sign of life itself, and gives up as long after that.
	askAfter = 5 * time.Second
)

// rhythm is what is known of the silence that the network bears. Its zero value knows
// nothing.
type rhythm struct {
	mu      sync.Mutex // guards what follows
	good    time.Duration
	bad     time.Duration // was too long; 0: none is known
	since   time.Time     // of bad
	top     time.Duration // the edge gives no more; 0: it was not asked for too much
	held    int           // silences of the present heartbeat
	suspect time.Duration // heartbeat of the tunnel that was lost in silence, just now
}

// ask is the heartbeat for the next tunnel.
func (r *rhythm) ask() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.askLocked()
}

// askLocked wants mu.
func (r *rhythm) askLocked() time.Duration {
	if r.bad != 0 && time.Since(r.since) > badTime {
		r.bad = 0
	}
	good, bad := r.good, r.bad
	if r.suspect != 0 { // not to be lost to it again: it is bad as soon as this attempt is no failure
		good, bad = below(good, r.suspect), r.suspect
	}
	if good == 0 && bad == 0 {
		return firstHeartbeat
	}
	most := maxHeartbeat
	if r.top != 0 {
		most = r.top
	}
	next := 2 * good
	if bad != 0 {
		if next = (good + bad) / 2; bad-good <= max(good/8, 5*time.Second) {
			next = good // near enough
		}
	}
	return max(min(next, most).Truncate(time.Second), minHeartbeat)
}

// below is good, or what to go by in its place once bad, which is no longer, was too long.
func below(good, bad time.Duration) time.Duration {
	if good >= bad {
		return max(bad/2, minHeartbeat)
	}
	return good
}

// began takes note of a tunnel with that heartbeat; asked is what was asked for. The one
// before was lost to silence and to nothing else if it is back right away.
func (r *rhythm) began(asked, inForce time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if inForce < asked {
		r.top = inForce
	}
	if r.suspect != 0 {
		r.good, r.bad, r.since = below(r.good, r.suspect), r.suspect, time.Now()
		r.suspect = 0
	}
	r.held = 0
}

// survived takes note of so many silences of that length, and reports whether the next
// tunnel would be asked for with a greater one.
func (r *rhythm) survived(inForce time.Duration, silences int) (more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held += silences; r.held >= proof && inForce > r.good {
		r.good = inForce
	}
	return r.good >= inForce && r.askLocked() > inForce
}

// proven reports whether a heartbeat is known to hold.
func (r *rhythm) proven(inForce time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.good >= inForce
}

// ended takes note of why a tunnel has ended that was silent for so long.
func (r *rhythm) ended(err error, inForce, silent time.Duration) {
	var closed *ClosedError
	r.mu.Lock()
	defer r.mu.Unlock()
	if !errors.As(err, &closed) && silent >= inForce*4/5 && inForce > minHeartbeat {
		r.suspect = inForce
	}
}

// failed takes note of an attempt in vain: the network is not there at all, and may not
// have been when the tunnel was lost.
func (r *rhythm) failed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspect = 0
}

// heartbeat is what the next tunnel is asked for with; 0 for what the edge prefers.
func (a *Agent) heartbeat() time.Duration {
	if a.rhythm != nil {
		return a.rhythm.ask()
	}
	return a.cfg.Heartbeat
}

// listen has the silences of t counted, if they matter, and returns the timer of heard.
func (a *Agent) listen(t *tunnel) *time.Timer {
	if a.rhythm == nil {
		never := time.NewTimer(0)
		never.Stop()
		return never
	}
	inForce := t.heartbeat()
	a.rhythm.began(t.asked, inForce)
	t.conn.long.Store(int64(inForce * 4 / 5))
	return time.NewTimer(t.late() + askAfter)
}

// heard looks at the silences of t. It reports whether it is time for a tunnel with a
// longer heartbeat: not while visitors are there, who could notice.
func (a *Agent) heard(t *tunnel, next *time.Timer) (move bool) {
	inForce := t.heartbeat()
	if a.rhythm.survived(inForce, int(t.conn.silences.Swap(0))) && a.streams.number() == 0 {
		a.log.Debug("the heartbeat holds; asking for a longer one", "heartbeat", inForce, "next", a.rhythm.ask())
		return true
	}
	if silent := time.Since(t.conn.heard()); silent >= t.late()+askAfter {
		t.sock.PingSoon() // what is lost is known the sooner
		next.Reset(t.late() + askAfter)
	} else {
		next.Reset(t.late() + askAfter - silent)
	}
	return false
}
