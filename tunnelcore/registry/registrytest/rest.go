package registrytest

import (
	"errors"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// What a device may do with its own public ports that rest. Those whose names speak
// of waiting need time to pass; the others are over before a rest is.
var restTests = []test{
	{"the same port takes it back", func(s *suite) {
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		ports := s.lease(h, 40000, 40001, 22, 80)
		s.lease(h, 0, 0)
		s.samePorts(ports, s.lease(h, 40000, 40001, 22, 80))
		s.lease(h, 40000, 40001, 80)
		s.full(h, 40000, 40001, 443, 80)
		s.samePorts(ports, s.lease(h, 40000, 40001, 80, 22))
		// It is leased again: nothing of its rest is left.
		s.full(h, 40000, 40001, 22, 80, 443)
		s.lease(h, 0, 0)
		s.samePorts(map[uint16]uint16{80: ports[80]}, s.lease(h, ports[80], ports[80], 80))
		s.full(h, ports[80], ports[80], 22)
	}},
	{"no other takes it", func(s *suite) {
		n := s.node("n1", "e1")
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(s.ask(n, "door", "t1")).Holder
		s.lease(cam, 40000, 40000, 22)
		s.lease(cam, 0, 0)
		s.full(door, 40000, 40000, 22)
		s.full(cam, 40000, 40000, 80)
		s.lease(cam, 40000, 40000, 22)
	}},
	{"the next tunnel takes it back", func(s *suite) {
		n := s.node("n1", "e1")
		ports := s.lease(s.claim(s.ask(n, "cam", "t1")).Holder, 40000, 40009, 22)
		s.lease(s.claim(s.ask(n, "cam", "t2")).Holder, 0, 0)
		s.samePorts(ports, s.lease(s.claim(s.ask(n, "cam", "t3")).Holder, 40000, 40009, 22))
	}},
	{"the last one of several comes back", func(s *suite) {
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		for _, public := range []uint16{40005, 40002, 40008} {
			s.lease(h, public, public, 22)
			s.Advance(s.margin())
		}
		s.lease(h, 0, 0)
		s.samePorts(map[uint16]uint16{22: 40008}, s.lease(h, 40000, 40009, 22))
		s.lease(h, 0, 0)
		s.samePorts(map[uint16]uint16{22: 40002}, s.lease(h, 40000, 40007, 22))
	}},
	{"a new lease takes it back", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		ports := s.lease(l.Holder, 40000, 40009, 22, 80)
		s.lease(l.Holder, 40000, 40009, 80)
		if err := s.Registry.Release(s.ctx, l.Holder, 0, "revoked"); err != nil {
			s.Fatal(err)
		}
		h := s.claim(s.ask(n, "cam", "t2")).Holder
		if p := s.device("cam").Ports; len(p) != 0 {
			s.Errorf("ports %v of a new lease, want none", p)
		}
		s.full(h, ports[80], ports[80], 22)
		s.samePorts(ports, s.lease(h, 40000, 40009, 22, 80))
	}},
	{"alternating ports need no more than both", func(s *suite) {
		n := s.node("n1", "e1")
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(s.ask(n, "door", "t1")).Holder
		var first, second map[uint16]uint16
		for range 10 {
			a, b := s.lease(cam, 40000, 40064, numbers(1, 32)...), s.lease(cam, 40000, 40064, numbers(101, 132)...)
			if first == nil {
				first, second = a, b
			}
			s.samePorts(first, a)
			s.samePorts(second, b)
		}
		s.lease(door, 40000, 40064, 22)
		s.full(door, 40000, 40064, 22, 80)
	}},
	{"so many and no more", func(s *suite) {
		n := s.node("n1", "e1")
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(s.ask(n, "door", "t1")).Holder
		s.tooMany(cam, numbers(1, registry.MaxPorts+1)...)
		all := s.lease(cam, 40000, 40999, numbers(1, registry.MaxPorts)...)
		s.tooMany(cam, numbers(2, registry.MaxPorts+1)...)
		some := s.lease(cam, 40000, 40999, numbers(1, 30)...)
		s.tooMany(cam, 1, 101)
		s.tooMany(cam, 101)
		s.samePorts(some, s.lease(cam, 40000, 40999, numbers(1, 30)...))
		s.samePorts(map[uint16]uint16{64: all[64]}, s.lease(cam, 40000, 40999, 64))
		if none := s.lease(cam, 0, 0); len(none) != 0 {
			s.Errorf("ports %v, want none", none)
		}
		s.tooMany(cam, 101)
		s.samePorts(all, s.lease(cam, 40000, 40999, numbers(1, registry.MaxPorts)...))
		s.lease(door, 40000, 40999, numbers(1, registry.MaxPorts)...) // which is each one's own
	}},
	{"those of an ended lease count", func(s *suite) {
		n := s.node("n1", "e1")
		h := s.claim(s.ask(n, "cam", "t1")).Holder
		s.lease(h, 40000, 40999, numbers(1, registry.MaxPorts)...)
		if err := s.Registry.Release(s.ctx, h, 0, "revoked"); err != nil {
			s.Fatal(err)
		}
		s.tooMany(s.claim(s.ask(n, "cam", "t2")).Holder, 101)
	}},
	{"waiting ends it", func(s *suite) {
		n := s.node("n1", "e1")
		c := s.ask(n, "cam", "t1")
		c.Lease = max(s.Lease, 3*s.PortRest)
		h := s.claim(c).Holder
		s.lease(h, 40000, 40999, numbers(1, registry.MaxPorts)...)
		s.lease(h, 0, 0)
		s.tooMany(h, 101)
		s.pass(s.PortRest + s.margin())
		s.lease(h, 40000, 40999, numbers(101, 100+registry.MaxPorts)...)
		s.tooMany(h, 1)
	}},
	{"it is kept over a crash", func(s *suite) {
		s.needReopen()
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		ports := s.lease(h, 40000, 40999, numbers(1, registry.MaxPorts)...)
		s.lease(h, 40000, 40999, numbers(1, 10)...)
		s.reopen()
		h = s.claim(s.ask(s.node("n1", "e2"), "cam", "t2")).Holder
		s.tooMany(h, 101)
		s.samePorts(ports, s.lease(h, 40000, 40999, numbers(1, registry.MaxPorts)...))
	}},
}

// numbers returns first to last.
func numbers(first, last uint16) (ports []uint16) {
	for p := first; p <= last; p++ {
		ports = append(ports, p)
	}
	return ports
}

// tooMany fails unless the ports are refused as too many, and nothing changes.
func (s *suite) tooMany(h registry.Holder, want ...uint16) {
	s.Helper()
	before := s.device(h.Device)
	if ports, err := s.Registry.LeasePorts(s.ctx, h, want, 40000, 40999); !errors.Is(err, registry.ErrTooManyPorts) {
		s.Fatalf("LeasePorts(%+v, %v) = %v, %v, want ErrTooManyPorts", h, want, ports, err)
	}
	s.same(before, s.device(h.Device))
}
