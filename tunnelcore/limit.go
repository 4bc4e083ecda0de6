package tunnelcore

import (
	"net/netip"
	"sync"
	"time"
)

// maxAddresses bounds what a handshakeLimiter remembers. Past it, addresses that
// are not known yet are let through: authentication still stands behind it.
const maxAddresses = 1 << 16

// refusalMemory is how long a refused handshake counts against its address.
const refusalMemory = time.Minute

// handshakeLimiter bounds, per client address, the handshakes that are under way
// or were refused lately, so that one address can neither guess secrets fast nor
// hold the doors. The zero value with a limit set is ready.
type handshakeLimiter struct {
	mu     sync.Mutex // guards what follows
	limit  int
	by     map[netip.Addr]*attempts
	swept  time.Time
	nowFor func() time.Time // nil: time.Now
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

// begin asks for a handshake from addr. When it may go on, done must be called,
// with whether the agent proved who it is; else retry is when to come again.
func (l *handshakeLimiter) begin(addr netip.Addr) (done func(proved bool), retry time.Duration, ok bool) {
	key := addressKey(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.sweepLocked(now)
	a := l.by[key]
	if a == nil {
		a = &attempts{at: now}
		if l.by == nil {
			l.by = make(map[netip.Addr]*attempts)
		}
		if len(l.by) < maxAddresses {
			l.by[key] = a
		}
	}
	l.decay(a, now)
	if over := float64(a.underWay) + a.refused + 1 - float64(l.limit); over > 0 {
		wait := time.Duration(over / float64(l.limit) * float64(refusalMemory))
		return nil, max(wait, time.Second), false
	}
	a.underWay++
	return func(proved bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		a.underWay--
		if !proved {
			l.decay(a, l.now())
			a.refused++
		}
	}, 0, true
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

// addressKey is what one client can change at no cost taken away: the lower half
// of an IPv6 address.
func addressKey(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a.WithZone("")
}

// bucket admits rate events per second, and bursts of as many.
type bucket struct {
	mu     sync.Mutex // guards what follows
	rate   float64
	tokens float64
	at     time.Time
}

func (b *bucket) setRate(perSecond int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate == 0 {
		b.tokens, b.at = float64(perSecond), time.Now()
	}
	b.rate = float64(perSecond)
}

// take takes one; false: come again later.
func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(b.rate, b.tokens+b.rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
