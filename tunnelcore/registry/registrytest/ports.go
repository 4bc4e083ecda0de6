package registrytest

import (
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

var portTests = []test{
	{"one for each, in the range", func(s *suite) {
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		ports := s.lease(h, 40000, 40009, 22, 80, 22, 554)
		seen := map[uint16]bool{}
		for _, p := range []uint16{22, 80, 554} {
			public := ports[p]
			if public < 40000 || public > 40009 || seen[public] {
				s.Errorf("ports %v: %d has none of its own in the range", ports, p)
			}
			seen[public] = true
		}
		if len(ports) != 3 {
			s.Errorf("ports %v, want three", ports)
		}
		if p := s.lease(h, 65535, 65535, 22); p[22] != 65535 || len(p) != 1 {
			s.Errorf("ports %v, want 65535", p)
		}
	}},
	{"the same again", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		ports := s.lease(l.Holder, 40000, 40999, 22, 80)
		s.samePorts(ports, s.lease(l.Holder, 40000, 40999, 80, 22))
		more := s.lease(l.Holder, 40000, 40999, 22, 80, 443)
		if more[22] != ports[22] || more[80] != ports[80] || len(more) != 3 {
			s.Errorf("ports %v after %v", more, ports)
		}
		// They are the lease's, not the tunnel's.
		next := s.claim(s.ask(n, "cam", "t2"))
		s.samePorts(more, s.device("cam").Ports)
		s.samePorts(more, s.lease(next.Holder, 40000, 40999, 22, 80, 443))
		s.release(next.Holder, "bye")
		s.samePorts(more, s.device("cam").Ports)
		s.pass(s.Lease / 2)
		third := s.claim(s.ask(n, "cam", "t3"))
		s.samePorts(more, s.lease(third.Holder, 40000, 40999, 22, 80, 443))
	}},
	{"all or nothing", func(s *suite) {
		n := s.node("n1", "e1")
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(s.ask(n, "door", "t1")).Holder
		s.full(cam, 40000, 40001, 22, 80, 443)
		s.lease(cam, 40000, 40001, 22)
		s.full(door, 40000, 40001, 22, 80)
		s.full(cam, 40000, 40001, 22, 80, 443) // keeps the one it has
		s.lease(door, 40000, 40001, 22)
		s.full(cam, 40000, 40001, 22, 80)
		s.full(cam, 40000, 40001, 80) // what it would give back rests
	}},
	{"a port is one device's", func(s *suite) {
		n := s.node("n1", "e1")
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(s.ask(n, "door", "t1")).Holder
		for _, p := range s.lease(cam, 40000, 40003, 1, 2) {
			for _, q := range s.lease(door, 40000, 40003, 1, 2) {
				if p == q {
					s.Errorf("%d is leased twice", p)
				}
			}
		}
	}},
	{"given back", func(s *suite) {
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		ports := s.lease(h, 40000, 40009, 22, 80)
		less := s.lease(h, 40000, 40009, 80)
		if len(less) != 1 || less[80] != ports[80] {
			s.Errorf("ports %v after %v, want 80 kept", less, ports)
		}
		if none := s.lease(h, 0, 0, 22, 80); len(none) != 0 {
			s.Errorf("ports %v, want none", none)
		}
		s.lease(h, 40000, 40009, 22)
		if none := s.lease(h, 40000, 40009); len(none) != 0 {
			s.Errorf("ports %v, want none", none)
		}
	}},
	{"another range", func(s *suite) {
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		ports := s.lease(h, 40000, 40001, 22, 80)
		first, last := ports[22], ports[22] // shrinks to the one of 22
		s.full(h, first, last, 22, 80)
		s.samePorts(map[uint16]uint16{22: first}, s.lease(h, first, last, 22))
		moved := s.lease(h, 50000, 50009, 22)
		if moved[22] < 50000 || moved[22] > 50009 {
			s.Errorf("ports %v, want one of 50000-50009", moved)
		}
		s.full(h, first, last, 80) // it rests
	}},
	{"a port that was given back rests", func(s *suite) {
		n := s.node("n1", "e1")
		long := func(c registry.Claim) registry.Claim { c.Lease = max(s.Lease, 3*s.PortRest); return c }
		cam, door := s.claim(long(s.ask(n, "cam", "t1"))).Holder, s.claim(long(s.ask(n, "door", "t1"))).Holder
		s.lease(cam, 40000, 40000, 22)
		s.full(door, 40000, 40000, 22)
		s.lease(cam, 0, 0)
		s.rests(40000, door, cam)
		s.lease(door, 40000, 40000, 22)
	}},
	{"a port rests after its lease", func(s *suite) {
		n := s.node("n1", "e1")
		c := s.ask(n, "door", "t1")
		c.Lease = 3*s.Lease + 3*s.PortRest
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(c).Holder
		s.lease(cam, 40000, 40000, 22)
		s.release(cam, "bye")
		s.full(door, 40000, 40000, 22)
		s.pass(s.Lease + s.margin())
		s.gone("cam", "l-cam")
		again := s.ask(n, "cam", "t2")
		again.Lease = c.Lease
		cam = s.claim(again).Holder
		if p := s.device("cam").Ports; len(p) != 0 {
			s.Errorf("ports %v of a new lease, want none", p)
		}
		s.pass(s.PortRest - s.margin() - s.slack())
		s.full(door, 40000, 40000, 22)
		s.full(cam, 40000, 40000, 80)
		s.pass(s.slack() + s.margin())
		s.lease(door, 40000, 40000, 22)
	}},
	{"a port rests after a lease that ended unseen", func(s *suite) {
		n := s.node("n1", "e1")
		cam := s.claim(s.ask(n, "cam", "t1")).Holder
		s.lease(cam, 40000, 40000, 22)
		s.pass(s.whileLive() + s.PortRest/2)
		door := s.claim(s.ask(n, "door", "t1")).Holder
		s.full(door, 40000, 40000, 22)
		s.pass(s.PortRest/2 + s.margin())
		door = s.claim(s.ask(n, "door", "t2")).Holder
		s.lease(door, 40000, 40000, 22)
	}},
	{"a lease that ends at once", func(s *suite) {
		n := s.node("n1", "e1")
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(s.ask(n, "door", "t1")).Holder
		s.lease(cam, 40000, 40000, 22)
		if err := s.Registry.Release(s.ctx, cam, 0, "revoked"); err != nil {
			s.Fatal(err)
		}
		s.gone("cam", "l-cam")
		s.full(door, 40000, 40000, 22)
	}},
}

// rests fails unless the port, which was one's 22, cannot be had for PortRest from
// now, by an 80 of any of the holders; it returns when it can.
func (s *suite) rests(port uint16, holders ...registry.Holder) {
	s.Helper()
	check := func() {
		s.Helper()
		for _, h := range holders {
			s.full(h, port, port, 80)
		}
	}
	check()
	s.pass(s.PortRest - s.slack())
	check()
	s.pass(s.slack() + s.margin())
}
