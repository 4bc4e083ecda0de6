package tunnelcore

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// Questions to the registry about labels of which nothing is known, and that turn
	// out not to exist: so many at once, and so many per second, of one visitor address.
	unknownBurst, unknownRate = 200, 100.0
	// allUnknownBurst and allUnknownRate, per second, bound those of all addresses, and
	// those about devices: a registry stands ten times as many.
	allUnknownBurst, allUnknownRate = 10_000, 10_000.0
	// maxStrangers bounds the addresses that are told apart. Past it, those that are not
	// known yet are bound by what holds for all.
	maxStrangers = 1 << 14
)

// budget is how many questions are let through: at once, and per second.
type budget struct{ burst, rate float64 }

// strangers bound what visitors ask for that does not exist: each address has a bucket
// of its own, so that nobody can use up the look-ups of others. Methods may be called
// concurrently.
type strangers struct {
	each budget // of an address
	all  bucket

	mu    sync.Mutex // guards what follows
	by    map[netip.Addr]*stranger
	swept time.Time
}

// stranger is one address's bucket. It is forgotten once it is full.
type stranger struct {
	tokens float64
	at     time.Time
}

func newStrangers(each, all budget) *strangers {
	s := &strangers{each: each, by: make(map[netip.Addr]*stranger)}
	s.all.set(all.burst, all.rate)
	return s
}

// take takes a question of an address; false: come again later. Without an address,
// as for questions about devices, only what holds for all counts.
func (s *strangers) take(from netip.Addr) bool {
	if !from.IsValid() {
		return s.all.take()
	}
	from = AddressKey(from)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.sweepLocked(now)
	one := s.by[from]
	switch {
	case one != nil:
		s.fill(one, now)
	case len(s.by) < maxStrangers:
		one = &stranger{s.each.burst, now}
		s.by[from] = one
	default:
		return s.all.take()
	}
	if one.tokens < 1 || !s.all.take() {
		return false
	}
	one.tokens--
	return true
}

// giveBack undoes a take.
func (s *strangers) giveBack(from netip.Addr) {
	s.all.giveBack()
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.by[AddressKey(from)]; one != nil {
		one.tokens = min(s.each.burst, one.tokens+1)
	}
}

// fill adds to an address's bucket what has come since the last time.
func (s *strangers) fill(one *stranger, now time.Time) {
	one.tokens = min(s.each.burst, one.tokens+s.each.rate*now.Sub(one.at).Seconds())
	one.at = now
}

// sweepLocked forgets, now and then, the addresses whose buckets are full. It wants mu.
func (s *strangers) sweepLocked(now time.Time) {
	if now.Sub(s.swept) < time.Second {
		return
	}
	s.swept = now
	for from, one := range s.by {
		if s.fill(one, now); one.tokens >= s.each.burst {
			delete(s.by, from)
		}
	}
}
