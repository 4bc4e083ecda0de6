package conformance

import (
	"fmt"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// soonest is the longest first pause of an agent that comes back soon (5.6).
	soonest = 500 * time.Millisecond
	// slowest and slowestLate bound the pause of one that comes back slowly.
	slowest, slowestLate = 5 * time.Minute, 15 * time.Minute
	// glance is how long the tool looks whether an agent stays away, without --slow.
	glance = 4 * time.Second
)

// slack is what a busy machine may add to a time that an agent draws.
func (t *T) slack() time.Duration { return t.patience() * 3 / 10 }

// soonest is the longest pause of an agent that comes back soon. One that has been
// through other cases has lost young tunnels, and may take its time.
func (t *T) soonest() time.Duration {
	if t.rig.agent == nil {
		return t.rig.cfg.MaxBackoff
	}
	return soonest
}

// awaitRetry waits for the agent's next attempt.
func (t *T) awaitRetry(want string, within time.Duration) *handshake {
	h := t.tryControl(within + t.slack())
	t.check(h != nil, want, "none within %v", within+t.slack())
	return h
}

// again ends a tunnel and waits for the next handshake. Whether and when an agent comes
// back is for other rules to say.
func (t *T) again(u *tunnel) *handshake {
	u.finish(wire.CloseRestart)
	h := t.tryControl(t.rig.cfg.MaxBackoff + t.patience())
	if h == nil {
		t.skip("the agent does not come back after 1012: see 5.5")
	}
	return h
}

// lost is again, by the end of TCP.
func (t *T) lost(u *tunnel) *handshake {
	u.cut()
	h := t.tryControl(t.rig.cfg.MaxBackoff + t.patience())
	if h == nil {
		t.skip("the agent does not come back when its connection was lost: see 5.5")
	}
	return h
}

// awaitSlow wants the agent to stay away for 5 to 15 minutes. Without --slow, it only
// sees whether the agent comes back sooner than a backoff would have it.
func (t *T) awaitSlow(want string) {
	within := min(glance, t.rig.cfg.MaxBackoff+t.slack())
	if t.rig.cfg.Slow {
		within = slowest - time.Second
	}
	if h := t.tryControl(within); h != nil {
		t.fail(want, "an attempt within %v", within)
	}
	if t.rig.cfg.Slow {
		t.awaitRetry(want+": and it comes, as an agent never stops for good", slowestLate-within)
	}
}

// afterClose ends a tunnel with a code, and looks when the agent comes back.
func afterClose(code int) func(*T) {
	return func(t *T) {
		u := t.up(t.caps())
		switch code {
		case 1006:
			u.cut()
		default:
			u.finish(code)
		}
		switch name := fmt.Sprintf("after %d ", code); {
		case wire.RetryAfterClose(code) == wire.RetrySlow:
			t.awaitSlow(name + "the agent comes back slowly")
		case wire.RetryAfterClose(code) == wire.RetryBackoff:
			t.awaitRetry(name+"an attempt within max_backoff", t.rig.cfg.MaxBackoff)
		default:
			t.awaitRetry(fmt.Sprintf("%san attempt within %v", name, t.soonest()), t.soonest())
		}
	}
}

// afterStatus answers a handshake with a status, and looks when the agent comes back.
func afterStatus(status int) func(*T) {
	return func(t *T) {
		t.control().refuse(status)
		if wire.RetryAfterStatus(status) == wire.RetrySlow {
			t.awaitSlow(fmt.Sprintf("after %d the agent comes back slowly", status))
			return
		}
		t.awaitRetry(fmt.Sprintf("after %d an attempt within max_backoff", status), t.rig.cfg.MaxBackoff)
	}
}

func retryAfter(t *T) {
	const told = 3 * time.Second
	h := t.control()
	for _, status := range []int{503, 429} {
		from := time.Now() // before it, as the tool may be held up behind it
		h.refuse(status, "Retry-After: 3")
		want := fmt.Sprintf("after %d with Retry-After: 3, an attempt after 3 s and up to a fifth more", status)
		h = t.awaitRetry(want, told+told/5)
		after := h.at.Sub(from)
		t.check(after > told-100*time.Millisecond, want, "one after %d ms", after.Milliseconds())
	}
}

func retryAfterLong(t *T) {
	t.control().refuse(503, "Retry-After: 86400")
	want := "Retry-After of more than 10 minutes counts as 10 minutes"
	const most = 10 * time.Minute
	if h := t.tryControl(most - time.Second); h != nil {
		t.fail(want, "an attempt before")
	}
	t.awaitRetry(want+", and up to a fifth more", most/5+time.Second)
}

// growing loses each attempt without an answer: the pauses are within bounds that
// double, and differ.
func growing(t *T) {
	h := t.control()
	limit := t.soonest()
	var pauses []time.Duration
	for range 5 {
		h.conn.Close()
		t.logf("edge → agent", "handshake", nil, "the end of the connection, without an answer")
		from := time.Now()
		h = t.awaitRetry(fmt.Sprintf("an attempt within %v", limit), limit)
		pauses = append(pauses, h.at.Sub(from))
		limit = min(2*limit, t.rig.cfg.MaxBackoff)
	}
	least, most := pauses[0], pauses[0]
	for _, p := range pauses {
		least, most = min(least, p), max(most, p)
	}
	t.check(most-least > 5*time.Millisecond, "pauses that are drawn at random, and anew each time", "%v", pauses)
}

// settled loses tunnels that have lasted: the pause is that of the start again.
func settled(t *T) {
	u := t.up(t.caps())
	for range 4 {
		u = t.lost(u).greet(t, t.caps())
	}
	for range 4 {
		u.quiet("a tunnel that lasts", 8*time.Second, func(e event) bool { return e.op == opEnd || e.op == opClose })
		u.awaitPong()
	}
	u.cut()
	t.awaitRetry("an attempt within 500 ms, as the tunnel has lasted for 30 s", soonest)
}

// otherEdge refuses at one edge: the agent tries the other one.
func otherEdge(t *T) {
	h := t.control()
	first := h.request.Host
	h.refuse(503, "Retry-After: 60")
	want := "an attempt with the other edge, at once"
	n := t.tryControl(t.patience())
	t.check(n != nil, want, "none within %v", t.patience())
	t.check(n.request.Host != first, want, "one with %s again", first)
	n.greet(t, t.caps()).awaitPong()
}
