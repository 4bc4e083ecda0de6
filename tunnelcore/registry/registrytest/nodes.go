package registrytest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func contextEnded(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx, cancel
}

func (s *suite) nodes(want ...registry.Node) {
	s.Helper()
	got, err := s.Registry.Nodes(s.ctx)
	for i := range got {
		if got[i].At.IsZero() {
			s.Errorf("the heartbeat of %s has no time", got[i].ID)
		}
		got[i].At = time.Time{}
	}
	if err != nil || !slices.Equal(got, want) {
		s.Errorf("Nodes = %+v, %v\nwant %+v", got, err, want)
	}
}

func (s *suite) leave(id, epoch string) {
	s.Helper()
	if err := s.Registry.Leave(s.ctx, registry.NodeRef{ID: id, Epoch: epoch}); err != nil {
		s.Fatalf("Leave(%s, %s): %v", id, epoch, err)
	}
}

func (s *suite) refused(n registry.Node) {
	s.Helper()
	if err := s.Registry.Beat(s.ctx, n); !errors.Is(err, registry.ErrNodeLive) {
		s.Errorf("Beat(%v): %v, want ErrNodeLive", n.NodeRef, err)
	}
}

func node(id, epoch string) registry.Node {
	return registry.Node{NodeRef: registry.NodeRef{ID: id, Epoch: epoch}}
}

var nodeTests = []test{
	{"list", func(s *suite) {
		s.nodes()
		b := registry.Node{
			NodeRef: registry.NodeRef{ID: "b", Epoch: "e1"},
			URL:     "wss://b.example.com", Internal: "10.0.0.2:9443",
			Clients: 12, Capacity: 15000,
		}
		s.beat(b)
		s.beat(node("c", "e1"))
		s.beat(node("a", "e1"))
		s.nodes(node("a", "e1"), b, node("c", "e1"))
		b.URL, b.Internal, b.Clients, b.Capacity, b.Draining = "", "", 0, 1, true
		s.beat(b)
		s.nodes(node("a", "e1"), b, node("c", "e1"))
	}},
	{"silence", func(s *suite) {
		s.beat(node("a", "e1"))
		s.beat(node("b", "e1"))
		s.pass(s.NodeTTL / 2)
		s.beat(node("b", "e1"))
		s.pass(s.NodeTTL/2 - s.slack())
		s.nodes(node("a", "e1"), node("b", "e1"))
		s.pass(s.slack() + s.margin())
		s.nodes(node("b", "e1"))
		s.pass(s.NodeTTL / 2)
		s.nodes()
		s.beat(node("a", "e1")) // it was only late
		s.nodes(node("a", "e1"))
	}},
	{"an id is one process'", func(s *suite) {
		s.beat(node("a", "e1"))
		s.refused(node("a", "e2"))
		s.pass(s.NodeTTL / 2)
		s.refused(node("a", "e2"))
		s.beat(node("a", "e1"))
		s.pass(s.NodeTTL / 2)
		s.refused(node("a", "e2")) // which did not keep it from beating
		s.nodes(node("a", "e1"))
		s.pass(s.NodeTTL/2 + s.margin())
		s.beat(node("a", "e2"))
		s.refused(node("a", "e1")) // who was silent has lost it
		s.nodes(node("a", "e2"))
	}},
	{"leave", func(s *suite) {
		s.leave("a", "e1") // never there
		s.beat(node("a", "e1"))
		s.beat(node("b", "e1"))
		s.leave("a", "e0")
		s.nodes(node("a", "e1"), node("b", "e1"))
		s.leave("a", "e1")
		s.nodes(node("b", "e1"))
		s.leave("a", "e1")
		s.beat(node("a", "e2"))
		s.leave("a", "e1") // late
		s.nodes(node("a", "e2"), node("b", "e1"))
		s.refused(node("a", "e1"))
	}},
}

var reopenTests = []test{
	{"leases, ports and rests are kept", func(s *suite) {
		s.needReopen()
		n := s.node("n1", "e1")
		cam, door := s.claim(s.ask(n, "cam", "t1")), s.claim(s.ask(n, "door", "t1"))
		camPorts := s.lease(cam.Holder, 40000, 40001, 22, 80)
		s.lease(cam.Holder, 40000, 40001, 22) // that of 80 rests
		s.release(door.Holder, "bye")
		camBefore, doorBefore := s.device("cam"), s.device("door")
		s.reopen()

		s.same(doorBefore, s.label(door.Label, "door"))
		camBefore.Online, camBefore.Why = registry.Incumbent{}, registry.WhyNodeGone
		s.same(camBefore, s.label(cam.Label, "cam"))
		thief := s.ask(n, "thief", "t1")
		thief.Label = cam.Label
		if _, err := s.Registry.Claim(s.ctx, thief); !errors.Is(err, registry.ErrLabelTaken) {
			s.Errorf("Claim of a kept label: %v, want ErrLabelTaken", err)
		}

		n = s.node("n1", "e2")
		other := s.ask(n, "cam", "t2")
		other.Instance = "second" // the restart has ended the tunnel
		next := s.claim(other)
		if next.Label != cam.Label || next.Fresh || next.Generation <= cam.Generation || next.Previous != (registry.Incumbent{}) {
			s.Errorf("lease %+v after %+v", next, cam)
		}
		s.lost(cam.Holder)
		s.full(next.Holder, camPorts[80], camPorts[80], 443) // rests
		s.samePorts(map[uint16]uint16{22: camPorts[22]}, s.lease(next.Holder, 40000, 40001, 22))
	}},
	{"time passes meanwhile", func(s *suite) {
		s.needReopen()
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.lease(l.Holder, 40000, 40000, 22)
		s.pass(s.whileLive() + s.margin())
		s.reopen()
		s.gone("cam", l.Label)
		n = s.node("n1", "e2")
		next := s.claim(s.ask(n, "cam", "t2"))
		if !next.Fresh || next.Generation <= l.Generation {
			s.Errorf("lease %+v after %+v", next, l)
		}
		s.full(next.Holder, 40000, 40000, 80)
	}},
	{"again and again", func(s *suite) {
		s.needReopen()
		var last int64
		for i := range 4 {
			n := s.node("n1", string(rune('a'+i)))
			l := s.claim(s.ask(n, "cam", "t1"))
			if l.Fresh != (i == 0) || l.Generation <= last {
				s.Errorf("round %d: %+v after generation %d", i, l, last)
			}
			last = l.Generation
			s.reopen()
		}
		if r := s.device("cam"); r.Why != registry.WhyNodeGone {
			s.Errorf("record %+v", r)
		}
	}},
}

func (s *suite) needReopen() {
	s.Helper()
	if s.Reopen == nil {
		s.Skip("this registry keeps nothing, or cannot be reopened here")
	}
}

// reopen is a crash of registry and nodes.
func (s *suite) reopen() {
	s.Helper()
	s.Registry = s.Reopen()
	for _, n := range s.alive {
		s.leave(n.ID, n.Epoch)
	}
	s.alive = nil
}
