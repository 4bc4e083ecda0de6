package tunnelcore

import (
	"net/netip"
	"sync"
	"time"
)

// maxAddresses bounds what a handshakeLimiter remembers. Past it, those that are
// not known yet are let through: authentication still stands behind it.
const maxAddresses = 1 << 16

// refusalMemory is how long a refused handshake counts against its address.
const refusalMemory = time.Minute

// handshakeLimiter bounds, per client address, the handshakes that are under way,
// and per address and device those that were refused lately: one address can
// neither guess secrets fast nor hold the doors, and who guesses keeps no other
// device behind the same NAT out. The zero value with a limit set is ready.
type handshakeLimiter struct {
	mu     sync.Mutex // guards what follows
	limit  int
	by     map[attempt]*attempts
	swept  time.Time
	nowFor func() time.Time // nil: time.Now
}

// attempt is what refusals are counted by. Handshakes under way are counted
// without a device.
type attempt struct {
	addr   netip.Addr
	device string
}

type attempts struct {
	underWay int
	// refused is a bucket that empties within refusalMemory.
	refused float64
	at      time.Time
}

func (l *handshakeLimiter) setLimit(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = n
}

func (l *handshakeLimiter) now() time.Time {
	if l.nowFor != nil {
		return l.nowFor()
	}
	return time.Now()
}

// begin asks for a handshake of a device from addr. When it may go on, done must
// be called, with whether the agent proved who it is; else retry is when to come
// again.
func (l *handshakeLimiter) begin(addr netip.Addr, device string) (done func(proved bool), retry time.Duration, ok bool) {
	key := AddressKey(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.sweepLocked(now)
	all, one := l.getLocked(attempt{addr: key}, now), l.getLocked(attempt{key, device}, now)
	if all.underWay >= l.limit {
		return nil, time.Second, false
	}
	if over := one.refused + 1 - float64(l.limit); over > 0 {
		return nil, max(time.Duration(over/float64(l.limit)*float64(refusalMemory)), time.Second), false
	}
	all.underWay++
	return func(proved bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		all.underWay--
		if !proved {
			l.decay(one, l.now())
			one.refused++
		}
		// Else all that came in the last minute would be remembered.
		l.forgetLocked(attempt{addr: key}, all)
		l.forgetLocked(attempt{key, device}, one)
	}, 0, true
}

// getLocked returns what is remembered of a. It wants mu.
func (l *handshakeLimiter) getLocked(a attempt, now time.Time) *attempts {
	found := l.by[a]
	if found == nil {
		found = &attempts{at: now}
		if l.by == nil {
			l.by = make(map[attempt]*attempts)
		}
		if len(l.by) < maxAddresses {
			l.by[a] = found
		}
	}
	l.decay(found, now)
	return found
}

// forgetLocked forgets a that has nothing to its name, if it is still known as
// such. It wants mu.
func (l *handshakeLimiter) forgetLocked(a attempt, known *attempts) {
	if known.underWay == 0 && known.refused == 0 && l.by[a] == known {
		delete(l.by, a)
	}
}

// decay wants mu.
func (l *handshakeLimiter) decay(a *attempts, now time.Time) {
	a.refused -= float64(l.limit) * float64(now.Sub(a.at)) / float64(refusalMemory)
	a.refused = max(a.refused, 0)
	a.at = now
}

// sweepLocked forgets, now and then, the addresses that have nothing to their
// name. It wants mu.
func (l *handshakeLimiter) sweepLocked(now time.Time) {
	if now.Sub(l.swept) < refusalMemory {
		return
	}
	l.swept = now
	for addr, a := range l.by {
		if l.decay(a, now); a.underWay == 0 && a.refused == 0 {
			delete(l.by, addr)
		}
	}
}

// AddressKey is what clients are told apart by: their address without what one client
// can change at no cost, the lower half of an IPv6 address.
func AddressKey(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a.WithZone("")
}

// bucket admits bursts, and so many events per second in the long run.
type bucket struct {
	mu     sync.Mutex // guards what follows
	burst  float64
	rate   float64
	tokens float64
	at     time.Time // zero: it is full
}

func (b *bucket) set(burst, rate float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.burst, b.rate = burst, rate
}

// giveBack undoes a take.
func (b *bucket) giveBack() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.burst, b.tokens+1)
}

// take takes one; false: come again later.
func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fillLocked()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// fillLocked adds what has come since the last time, and returns how long ago that
// was. It wants mu.
func (b *bucket) fillLocked() (since time.Duration) {
	now := time.Now()
	if b.at.IsZero() {
		b.tokens = b.burst
	} else {
		since = now.Sub(b.at)
		b.tokens = min(b.burst, b.tokens+b.rate*since.Seconds())
	}
	b.at = now
	return since
}

// gatePatience bounds how far agents are put off that find the gate closed.
const gatePatience = time.Minute

// gate lets so many agents in per second, and tells the others when to come again:
// each a bit later than the one before, so that they come as fast as they can be let
// in, and not all at once (protocol §5.7).
type gate struct {
	bucket
	told float64 // agents that were told to come again, and whose time has not come
}

// enter lets one in; else retry is when to come again.
func (g *gate) enter() (retry time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = max(0, g.told-g.rate*g.fillLocked().Seconds())
	if g.tokens >= 1 {
		g.tokens--
		return 0, true
	}
	g.told = min(g.told+1, g.rate*gatePatience.Seconds())
	return max(time.Second, time.Duration(g.told/g.rate*float64(time.Second))), false
}
