package caddymodule

import (
	"net/netip"
	"testing"
)

// No address takes all places for handshakes, and all places are given back.
func TestSNIPlaces(t *testing.T) {
	p := sniPlaces{most: 5, each: 3, by: make(map[netip.Addr]int)}
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	take := func(from netip.Addr, want bool) {
		t.Helper()
		if got := p.take(from); got != want {
			t.Errorf("%v: %v", from, got)
		}
	}
	for range 3 {
		take(one, true)
	}
	take(one, false)
	take(two, true)
	take(two, true)
	take(two, false) // there are no more
	p.leave(one)
	take(two, true)
	for range 2 {
		p.leave(one)
	}
	for range 3 {
		p.leave(two)
	}
	if p.taken != 0 || len(p.by) != 0 {
		t.Errorf("%d places are taken, by %v", p.taken, p.by)
	}
}
