package registrytest

import (
	"errors"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

var claimTests = []test{
	{"new device", func(s *suite) {
		n := s.node("n1", "e1")
		c := s.ask(n, "cam", "t1")
		l := s.claim(c)
		if l.Label != c.Label || !l.Fresh || l.Previous != (registry.Incumbent{}) {
			s.Errorf("lease %+v: want the candidate label, fresh, nobody replaced", l)
		}
		r := s.label(c.Label, "cam")
		online := registry.Incumbent{Holder: l.Holder, Instance: c.Instance, Node: n}
		if r.Online != online || r.Generation != l.Generation || r.Why != "" || len(r.Ports) != 0 {
			s.Errorf("record %+v, want online %+v, no why, no ports", r, online)
		}
		if r.Until.UnixMilli() != l.Until.UnixMilli() {
			s.Errorf("record until %v, lease until %v", r.Until, l.Until)
		}
		s.runs(r, s.whileLive())
	}},
	{"keeps its label while the lease runs", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.claim(s.ask(n, "other", "t"))
		s.release(l.Holder, "bye")
		s.pass(s.Lease / 2)
		for _, candidate := range []string{"l-new", "l-other"} { // a taken one does not matter
			c := s.ask(n, "cam", "t-"+candidate)
			c.Label = candidate
			again := s.claim(c)
			if again.Label != "l-cam" || again.Fresh || again.Generation <= l.Generation {
				s.Errorf("lease %+v after %+v: want the same label, not fresh, a newer generation", again, l)
			}
			l = again
		}
		if _, err := s.Registry.ByLabel(s.ctx, "l-new"); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("the candidate that was not needed: %v, want ErrUnknown", err)
		}
		s.label("l-other", "other")
	}},
	{"takes a new label after the lease", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.release(l.Holder, "bye")
		s.pass(s.Lease + s.margin())
		s.gone("cam", "l-cam")
		c := s.ask(n, "cam", "t2")
		c.Label = "l-new"
		again := s.claim(c)
		if again.Label != "l-new" || !again.Fresh || again.Generation <= l.Generation {
			s.Errorf("lease %+v after %+v: want the new label, fresh, a newer generation", again, l)
		}
		if _, err := s.Registry.ByLabel(s.ctx, "l-cam"); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("the old label: %v, want ErrUnknown", err)
		}
		s.lost(l.Holder)
	}},
	{"a label is one device's", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		c := s.ask(n, "thief", "t1")
		c.Label = l.Label
		if _, err := s.Registry.Claim(s.ctx, c); !errors.Is(err, registry.ErrLabelTaken) {
			s.Fatalf("Claim of a live device's label: %v, want ErrLabelTaken", err)
		}
		s.label(l.Label, "cam")
		s.gone("thief", "l-thief")
		s.release(l.Holder, "bye")
		if _, err := s.Registry.Claim(s.ctx, c); !errors.Is(err, registry.ErrLabelTaken) {
			s.Fatalf("Claim of an offline device's label: %v, want ErrLabelTaken", err)
		}
		s.pass(s.Lease + s.margin())
		if got := s.claim(c); got.Label != l.Label || !got.Fresh {
			s.Errorf("after the lease: %+v", got)
		}
		s.label(l.Label, "thief")
		// Who had it comes back, and may not have it.
		if _, err := s.Registry.Claim(s.ctx, s.ask(n, "cam", "t2")); !errors.Is(err, registry.ErrLabelTaken) {
			s.Errorf("Claim of the label that was lost: %v, want ErrLabelTaken", err)
		}
		s.label(l.Label, "thief")
	}},
	{"the same instance takes over", func(s *suite) {
		n1, n2 := s.node("n1", "e1"), s.node("n2", "e1")
		c := s.ask(n1, "cam", "t1")
		l := s.claim(c)
		again := s.claim(s.ask(n2, "cam", "t2"))
		replaced := registry.Incumbent{Holder: l.Holder, Instance: c.Instance, Node: n1}
		if again.Previous != replaced || again.Fresh || again.Label != l.Label || again.Generation <= l.Generation {
			s.Errorf("lease %+v after %+v: want the same label, a newer generation, and that it replaced %+v", again, l, replaced)
		}
		if r := s.device("cam"); r.Online.Holder != again.Holder || r.Online.Node != n2 {
			s.Errorf("record %+v, want it on n2", r)
		}
		s.lost(l.Holder)
	}},
	{"another instance is refused", func(s *suite) {
		n := s.node("n1", "e1")
		c := s.ask(n, "cam", "t1")
		l := s.claim(c)
		by := registry.Incumbent{Holder: l.Holder, Instance: c.Instance, Node: n}
		c.Instance, c.Tunnel = "second", "t2"
		s.held(c, by)
		s.pass(s.Lease / 2)
		s.refresh(l.Holder)
		s.pass(s.Lease)
		s.held(c, by) // as long as it is refreshed
		s.release(l.Holder, "bye")
		if got := s.claim(c); got.Previous != (registry.Incumbent{}) || got.Label != l.Label {
			s.Errorf("after the release: %+v, want the same label, nobody replaced", got)
		}
	}},
	{"who is found dead is replaced", func(s *suite) {
		n := s.node("n1", "e1")
		first := s.claim(s.ask(n, "cam", "t1"))
		current := s.claim(s.ask(n, "cam", "t2"))
		by := registry.Incumbent{Holder: current.Holder, Instance: "cam-first", Node: n}
		c := s.ask(n, "cam", "t3")
		c.Instance = "second"
		for _, wrong := range []registry.Holder{
			{},
			first.Holder, // somebody came in between
			{Device: "cam", Generation: current.Generation, Tunnel: "t1"},
			{Device: "cam", Generation: current.Generation + 1, Tunnel: "t2"},
			{Device: "other", Generation: current.Generation, Tunnel: "t2"},
		} {
			c.Evict = wrong
			s.held(c, by)
		}
		c.Evict = current.Holder
		l := s.claim(c)
		if l.Previous != by || l.Fresh || l.Label != first.Label || l.Generation <= current.Generation {
			s.Errorf("lease %+v, want that it replaced %+v", l, by)
		}
		s.lost(current.Holder)
		// The eviction is spent: who lost does not win by naming it again.
		c.Instance, c.Tunnel = "third", "t4"
		s.held(c, registry.Incumbent{Holder: l.Holder, Instance: "second", Node: n})
		// One that names a holder where there is none is granted.
		s.release(l.Holder, "bye")
		if got := s.claim(c); got.Previous != (registry.Incumbent{}) {
			s.Errorf("lease %+v, want nobody replaced", got)
		}
	}},
	{"a tunnel dies with its node", func(s *suite) {
		c := s.ask(registry.NodeRef{}, "cam", "t1")
		second := func() registry.Claim {
			c := c
			c.Instance, c.Node = c.Instance+"+", s.node("fine", "e1")
			return c
		}
		take := func(how string, old registry.Lease) {
			s.Helper()
			r := s.label(c.Label, "cam")
			if r.Online != (registry.Incumbent{}) || r.Why != registry.WhyNodeGone || r.Generation != old.Generation {
				s.Errorf("%s: record %+v, want offline, %q", how, r, registry.WhyNodeGone)
			}
			l := s.claim(second())
			if l.Previous != (registry.Incumbent{}) || l.Fresh || l.Generation <= old.Generation {
				s.Errorf("%s: lease %+v, want nobody replaced, the same label", how, l)
			}
			s.lost(old.Holder)
			s.release(l.Holder, "bye")
		}

		c.Node = registry.NodeRef{ID: "never", Epoch: "e1"}
		take("never beaten", s.claim(c))

		c.Node = s.node("leaves", "e1")
		l := s.claim(c)
		s.held(second(), registry.Incumbent{Holder: l.Holder, Instance: c.Instance, Node: c.Node})
		if err := s.Registry.Leave(s.ctx, c.Node); err != nil {
			s.Fatal(err)
		}
		take("left", l)

		c.Node = s.node("restarts", "e1")
		l = s.claim(c)
		if err := s.Registry.Leave(s.ctx, c.Node); err != nil {
			s.Fatal(err)
		}
		s.node("restarts", "e2")
		take("restarted", l)
	}},
	{"a tunnel dies with the heartbeat of its node", func(s *suite) {
		n := s.node("n1", "e1")
		c := s.ask(n, "cam", "t1")
		c.Lease = max(s.Lease, 2*s.NodeTTL)
		l := s.claim(c)
		s.alive = nil
		by := registry.Incumbent{Holder: l.Holder, Instance: c.Instance, Node: n}
		c.Instance = "second"
		s.pass(s.NodeTTL - s.slack())
		s.held(c, by)
		s.pass(s.slack() + s.margin())
		if r := s.device("cam"); r.Online != (registry.Incumbent{}) || r.Why != registry.WhyNodeGone {
			s.Errorf("record %+v, want offline", r)
		}
		// It was only late: it beats again, and the tunnel lives.
		s.beat(registry.Node{NodeRef: n})
		s.held(c, by)
		s.pass(s.NodeTTL + s.margin())
		if got := s.claim(c); got.Previous != (registry.Incumbent{}) || got.Label != l.Label {
			s.Errorf("lease %+v, want the same label, nobody replaced", got)
		}
	}},
	{"a lease that has run out holds nothing", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.pass(s.whileLive() + s.margin())
		s.gone("cam", l.Label)
		s.lost(l.Holder)
		c := s.ask(n, "cam", "t2")
		c.Instance, c.Label = "second", "l-new"
		got := s.claim(c)
		if !got.Fresh || got.Label != "l-new" || got.Generation <= l.Generation || got.Previous != (registry.Incumbent{}) {
			s.Errorf("lease %+v, want a fresh one", got)
		}
		s.lost(l.Holder)
	}},
}
