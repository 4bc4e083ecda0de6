package registrytest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// listed fails unless just those public ports are leased, each as "device:port",
// and returns the version of the list.
func (s *suite) listed(want map[uint16]string) int64 {
	s.Helper()
	list, version, err := s.Registry.Ports(s.ctx, 0)
	if err != nil || list == nil || version == 0 {
		s.Fatalf("Ports: %v, version %d, %v, want a list with a version", list, version, err)
	}
	got := map[uint16]string{}
	for _, l := range list {
		got[l.Public] = fmt.Sprintf("%s:%d", l.Device, l.Port)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || len(list) != len(want) {
		s.Errorf("Ports: %v, want %v", got, want)
	}
	again, same, err := s.Registry.Ports(s.ctx, version)
	if err != nil || again != nil || same != version {
		s.Errorf("Ports(%d): %v, version %d, %v, want nothing new", version, again, same, err)
	}
	return version
}

// changed fails if the list still has that version.
func (s *suite) changed(version int64) {
	s.Helper()
	if list, now, err := s.Registry.Ports(s.ctx, version); err != nil || list == nil || now == version {
		s.Errorf("Ports(%d): %v, version %d, %v, want a list", version, list, now, err)
	}
}

// of is what listed wants of the ports of a device.
func of(device string, ports map[uint16]uint16) map[uint16]string {
	all := map[uint16]string{}
	for port, public := range ports {
		all[public] = fmt.Sprintf("%s:%d", device, port)
	}
	return all
}

var publicTests = []test{
	{"what is leased", func(s *suite) {
		n := s.node("n1", "e1")
		none := s.listed(map[uint16]string{})
		cam, door := s.claim(s.ask(n, "cam", "t1")).Holder, s.claim(s.ask(n, "do:or", "t1")).Holder
		want := of("cam", s.lease(cam, 40000, 40009, 22, 80))
		s.changed(none)
		version := s.listed(want)
		for public, owner := range of("do:or", s.lease(door, 40000, 40009, 22)) {
			want[public] = owner
		}
		s.changed(version)
		version = s.listed(want)
		// Neither another tunnel nor a goodbye changes what is leased.
		cam = s.claim(s.ask(n, "cam", "t2")).Holder
		s.lease(cam, 40000, 40009, 22, 80)
		s.release(door, "bye")
		s.refresh(cam)
		if now := s.listed(want); now != version {
			s.Errorf("version %d became %d, and nothing has changed", version, now)
		}
	}},
	{"one for another", func(s *suite) {
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		ports := s.lease(h, 40000, 40009, 22, 80)
		version := s.listed(of("cam", ports))
		for _, want := range [][]uint16{{22, 443}, {80, 443}, {22, 80}, {}} {
			ports = s.lease(h, 40000, 40009, want...)
			s.changed(version)
			version = s.listed(of("cam", ports))
		}
	}},
	{"a lease that ends at once", func(s *suite) {
		n := s.node("n1", "e1")
		h := s.claim(s.ask(n, "cam", "t1")).Holder
		version := s.listed(of("cam", s.lease(h, 40000, 40009, 22)))
		if err := s.Registry.Release(s.ctx, h, 0, "revoked"); err != nil {
			s.Fatal(err)
		}
		s.changed(version)
		s.listed(map[uint16]string{})
		h = s.claim(s.ask(n, "cam", "t2")).Holder
		version = s.listed(of("cam", s.lease(h, 40000, 40009, 22)))
		if err := s.Registry.Drop(s.ctx, "cam"); err != nil {
			s.Fatal(err)
		}
		s.changed(version)
		s.listed(map[uint16]string{})
	}},
	{"a lease that ends by itself", func(s *suite) {
		n := s.node("n1", "e1")
		h := s.claim(s.ask(n, "cam", "t1")).Holder
		ports := s.lease(h, 40000, 40009, 22)
		s.release(h, "bye")
		version := s.listed(of("cam", ports))
		s.pass(s.Lease + s.margin())
		s.changed(version)
		version = s.listed(map[uint16]string{})
		again := s.claim(s.ask(n, "cam", "t2")).Holder
		ports = s.lease(again, 40000, 40009, 22)
		s.changed(version)
		s.listed(of("cam", ports))
	}},
	{"calls that are given up", func(s *suite) {
		ctx, cancel := context.WithCancel(s.ctx)
		cancel()
		if list, _, err := s.Registry.Ports(ctx, 0); err == nil {
			s.Errorf("Ports of a call that was given up: %v", list)
		}
		if now, err := s.Registry.Time(ctx); err == nil {
			s.Errorf("Time of a call that was given up: %v", now)
		}
	}},
}

var timeTests = []test{
	{"the leases' clock", func(s *suite) {
		before, err := s.Registry.Time(s.ctx)
		if err != nil {
			s.Fatal(err)
		}
		l := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1"))
		after, err := s.Registry.Time(s.ctx)
		if err != nil {
			s.Fatal(err)
		}
		// Servers of a cluster agree within milliseconds here.
		begin := l.Until.Add(-s.whileLive())
		if slack := 20 * time.Millisecond; begin.Before(before.Add(-slack)) || begin.After(after.Add(slack)) {
			s.Errorf("a lease begins at %v by its end, between %v and %v", begin, before, after)
		}
	}},
}

// hinted waits until there is such a hint.
func (s *suite) hinted(hints <-chan registry.Hint, want registry.Hint) {
	s.Helper()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	for {
		select {
		case got, open := <-hints:
			if got == want {
				return
			}
			if !open {
				s.Fatalf("the channel was closed before %+v", want)
			}
		case <-late.C:
			s.Fatalf("no hint %+v", want)
		}
	}
}

// subscribe returns a subscription that is in force.
func (s *suite) subscribe(ctx context.Context, n registry.NodeRef) <-chan registry.Hint {
	s.Helper()
	hints := s.Registry.Hints(ctx)
	probe := s.ask(n, "probe-"+strings.ToLower(s.Name()[max(0, len(s.Name())-40):]), "t1")
	probe.Label = "l-probe"
	for range 200 { // a subscription may take a moment, and its absence costs nothing but freshness
		h := s.claim(probe).Holder
		select {
		case <-hints:
			if err := s.Registry.Release(s.ctx, h, 0, "probed"); err != nil {
				s.Fatal(err)
			}
			return hints
		case <-time.After(100 * time.Millisecond):
		}
	}
	s.Fatal("no hint at all")
	return nil
}

var hintTests = []test{
	{"what changes", func(s *suite) {
		n := s.node("n1", "e1")
		hints := s.subscribe(s.ctx, n)
		cam := registry.Hint{Device: "cam", Label: "l-cam"}
		first := s.claim(s.ask(n, "cam", "t1"))
		s.hinted(hints, cam)
		second := s.claim(s.ask(n, "cam", "t2"))
		s.hinted(hints, cam)
		s.lease(second.Holder, 40000, 40009, 22)
		s.hinted(hints, registry.Hint{Ports: true})
		s.lease(second.Holder, 40000, 40009)
		s.hinted(hints, registry.Hint{Ports: true})
		s.lost(first.Holder)
		s.release(second.Holder, "bye")
		s.hinted(hints, cam)
		again := s.ask(n, "cam", "t3")
		s.claim(again)
		s.hinted(hints, cam)
		if err := s.Registry.Drop(s.ctx, "cam"); err != nil {
			s.Fatal(err)
		}
		s.hinted(hints, cam)
		again.Label = "l-new"
		s.claim(again)
		s.hinted(hints, registry.Hint{Device: "cam", Label: "l-new"})
	}},
	{"each subscriber by itself", func(s *suite) {
		n := s.node("n1", "e1")
		ctx, cancel := context.WithCancel(s.ctx)
		one, two := s.subscribe(ctx, n), s.subscribe(s.ctx, n)
		s.claim(s.ask(n, "cam", "t1"))
		s.hinted(one, registry.Hint{Device: "cam", Label: "l-cam"})
		s.hinted(two, registry.Hint{Device: "cam", Label: "l-cam"})
		cancel()
		for range one { // ends
		}
		s.claim(s.ask(n, "door", "t1"))
		s.hinted(two, registry.Hint{Device: "door", Label: "l-door"})
	}},
	{"one that does not listen", func(s *suite) {
		n := s.node("n1", "e1")
		idle, busy := s.subscribe(s.ctx, n), s.subscribe(s.ctx, n)
		var last registry.Hint
		for i := range 400 { // more than wait for one
			device := fmt.Sprintf("d%03d", i)
			s.claim(s.ask(n, device, "t1"))
			last = registry.Hint{Device: device, Label: "l-" + device}
			s.hinted(busy, last)
		}
		missed := false
		for got := range idle {
			missed = missed || got == registry.Hint{}
			if got == last {
				break
			}
		}
		if !missed {
			s.Error("nothing says that hints were missed")
		}
	}},
}
