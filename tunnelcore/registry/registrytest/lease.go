package registrytest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

var leaseTests = []test{
	{"refresh prolongs", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		before := s.device("cam")
		for range 3 {
			s.pass(s.Lease)
			if lost := s.refresh(l.Holder); len(lost) != 0 {
				s.Fatalf("lost %+v", lost)
			}
		}
		r := s.label(l.Label, "cam")
		s.runs(r, s.whileLive())
		if !r.Seen.After(before.Seen) || r.Online != before.Online || r.Generation != before.Generation {
			s.Errorf("record %+v after %+v", r, before)
		}
		s.pass(s.Lease) // a full lease remains
		s.label(l.Label, "cam")
		s.pass(s.Lease/3 + s.margin())
		s.gone("cam", l.Label)
	}},
	{"refresh sets what it is told", func(s *suite) {
		l := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1"))
		for _, lease := range []time.Duration{2 * s.Lease, s.Lease} {
			if lost, err := s.Registry.Refresh(s.ctx, lease, []registry.Holder{l.Holder}); err != nil || len(lost) != 0 {
				s.Fatalf("Refresh: %v, %v", lost, err)
			}
			s.runs(s.device("cam"), lease+lease/3)
		}
	}},
	{"refresh tells who is lost", func(s *suite) {
		n := s.node("n1", "e1")
		old := s.claim(s.ask(n, "cam", "t1")).Holder
		cam := s.claim(s.ask(n, "cam", "t2")).Holder
		door := s.claim(s.ask(n, "door", "t1")).Holder
		bell := s.claim(s.ask(n, "bell", "t1")).Holder
		s.release(bell, "bye")
		nobody := registry.Holder{Device: "nobody", Generation: 1, Tunnel: "t"}
		forged := cam
		forged.Tunnel = "t1"
		s.pass(s.Lease / 2)
		belled := s.device("bell")
		lost := s.refresh(old, cam, bell, nobody, door, forged, registry.Holder{})
		if want := []registry.Holder{old, bell, nobody, forged, {}}; !slices.Equal(lost, want) {
			s.Errorf("lost %+v,\nwant %+v", lost, want)
		}
		s.runs(s.device("cam"), s.whileLive())
		s.runs(s.device("door"), s.whileLive())
		s.same(belled, s.device("bell")) // offline: its lease runs out
		if lost := s.refresh(); len(lost) != 0 {
			s.Errorf("of none lost %+v", lost)
		}
	}},
	{"refresh of a fleet", func(s *suite) {
		n := s.node("n1", "e1")
		const claimers, fleet = 30, 1500
		holders := make([]registry.Holder, fleet)
		many(claimers, func(first int) {
			for i := first; i < fleet; i += claimers {
				l, err := s.Registry.Claim(s.ctx, s.ask(n, fmt.Sprintf("d%04d", i), "t1"))
				if err != nil {
					s.Errorf("Claim: %v", err)
				}
				holders[i] = l.Holder
			}
		})
		var want []registry.Holder
		for i := 499; i < fleet; i += 500 {
			holders[i].Generation--
			want = append(want, holders[i])
		}
		if lost := s.refresh(holders...); !slices.Equal(lost, want) {
			s.Errorf("lost %+v, want %+v", lost, want)
		}
	}},
	{"release", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		before := s.device("cam")
		s.pass(s.Lease / 4)
		s.release(l.Holder, "the agent was stopped")
		r := s.label(l.Label, "cam")
		if r.Online != (registry.Incumbent{}) || r.Why != "the agent was stopped" || r.Generation != l.Generation {
			s.Errorf("record %+v, want offline and why", r)
		}
		if !r.Seen.After(before.Seen) {
			s.Errorf("seen %v, before %v", r.Seen, before.Seen)
		}
		s.runs(r, s.Lease)
		s.lost(l.Holder) // twice
		next := s.claim(s.ask(n, "cam", "t2"))
		if r := s.device("cam"); r.Why != "" || r.Online.Holder != next.Holder {
			s.Errorf("record %+v, want online without why", r)
		}
		s.lost(l.Holder)
	}},
	{"release ends the lease", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.release(l.Holder, "")
		s.pass(s.Lease - s.slack())
		s.label(l.Label, "cam")
		s.pass(s.slack() + s.margin())
		s.gone("cam", l.Label)
	}},
	{"release with another holder", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		for _, h := range []registry.Holder{
			{},
			{Device: "cam"},
			{Device: "cam", Generation: l.Generation, Tunnel: "t2"},
			{Device: "cam", Generation: l.Generation - 1, Tunnel: "t1"},
			{Device: "cam", Generation: l.Generation + 1, Tunnel: "t1"},
			{Device: "door", Generation: l.Generation, Tunnel: "t1"},
			{Device: strings.Repeat("x", 1000), Generation: 1, Tunnel: "t1"},
		} {
			s.lost(h)
		}
		if lost := s.refresh(l.Holder); len(lost) != 0 {
			s.Errorf("lost %+v", lost)
		}
	}},
	{"release cuts a long why", func(s *suite) {
		l := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1"))
		why := strings.Repeat("é", registry.MaxWhy) // twice the bytes; 255 is within a character
		s.release(l.Holder, why)
		if got := s.device("cam").Why; got != why[:registry.MaxWhy-1] {
			s.Errorf("why has %d bytes: %q", len(got), got)
		}
	}},
}

var lookTests = []test{
	{"unknown", func(s *suite) {
		s.claim(s.ask(s.node("n1", "e1"), "cam", "t1"))
		s.gone("l-cam", "cam") // a label is no device, a device no label
		s.gone("", "")
		s.gone("CAM", "L-CAM")
		s.gone(strings.Repeat("x", 1000), strings.Repeat("x", 1000))
	}},
	{"list", func(s *suite) {
		n := s.node("n1", "e1")
		var want []string
		for i := range 40 {
			id := fmt.Sprintf("d-%02d", (i*7)%40) // not in their order
			l := s.claim(s.ask(n, id, "t1"))
			if i%5 == 0 {
				if err := s.Registry.Release(s.ctx, l.Holder, 0, "gone"); err != nil {
					s.Fatal(err)
				}
				continue
			}
			want = append(want, id)
		}
		slices.Sort(want)
		list := func(after string, limit int) []string {
			s.Helper()
			page, err := s.Registry.Devices(s.ctx, after, limit)
			if err != nil {
				s.Fatalf("Devices(%q, %d): %v", after, limit, err)
			}
			var ids []string
			for _, r := range page {
				s.same(s.device(r.Device), r)
				ids = append(ids, r.Device)
			}
			return ids
		}
		for _, limit := range []int{1, 7, 31, 32, 33, 1000} {
			var got []string
			for after := ""; ; {
				page := list(after, limit)
				got = append(got, page...)
				if len(page) < limit {
					break
				}
				after = page[len(page)-1]
			}
			if !slices.Equal(got, want) {
				s.Errorf("in pages of %d: %v,\nwant %v", limit, got, want)
			}
		}
		for _, after := range []string{"d-00", "d-17", "d-17x", "d", "e", "d-39"} {
			at, found := slices.BinarySearch(want, after)
			if found {
				at++
			}
			if got := list(after, 3); !slices.Equal(got, want[at:min(at+3, len(want))]) {
				s.Errorf("after %s: %v", after, got)
			}
		}
		for _, limit := range []int{0, -1} {
			if got := list("", limit); len(got) != 0 {
				s.Errorf("limit %d: %v", limit, got)
			}
		}
	}},
	{"list in the order of bytes", func(s *suite) {
		n := s.node("n1", "e1")
		ids := []string{"a", "a-1", "a0", "a1", "aa", "b"}
		for i := range ids {
			s.claim(s.ask(n, ids[len(ids)-1-i], "t1"))
		}
		page, err := s.Registry.Devices(s.ctx, "", 10)
		if err != nil {
			s.Fatal(err)
		}
		var got []string
		for _, r := range page {
			got = append(got, r.Device)
		}
		if !slices.Equal(got, ids) {
			s.Errorf("%v, want %v", got, ids)
		}
	}},
	{"list after leases have ended", func(s *suite) {
		n := s.node("n1", "e1")
		for i := range 10 {
			c := s.ask(n, fmt.Sprintf("d%d", i), "t1")
			if i < 8 {
				s.claim(c)
				continue
			}
			c.Lease *= 4
			s.claim(c)
		}
		s.pass(s.whileLive() + s.margin())
		page, err := s.Registry.Devices(s.ctx, "", 2)
		if err != nil || len(page) != 2 || page[0].Device != "d8" || page[1].Device != "d9" {
			s.Errorf("Devices = %+v, %v, want d8 and d9", page, err)
		}
	}},
	{"copies", func(s *suite) {
		h := s.claim(s.ask(s.node("n1", "e1"), "cam", "t1")).Holder
		want := []uint16{22, 80}
		ports := s.lease(h, 40000, 40009, want...)
		r := s.device("cam")
		want[0] = 443
		ports[22] = 1
		for _, look := range []func() (registry.Record, error){
			func() (registry.Record, error) { return s.Registry.ByLabel(s.ctx, "l-cam") },
			func() (registry.Record, error) { return s.Registry.ByDevice(s.ctx, "cam") },
			func() (registry.Record, error) {
				page, err := s.Registry.Devices(s.ctx, "", 1)
				return page[0], err
			},
		} {
			got, err := look()
			if err != nil {
				s.Fatal(err)
			}
			s.same(r, got)
			got.Ports[22] = 1
			delete(got.Ports, 80)
		}
		s.same(r, s.device("cam"))
		again, err := s.Registry.LeasePorts(s.ctx, h, []uint16{22, 80}, 40000, 40009) // changes nothing
		if err != nil {
			s.Fatal(err)
		}
		clear(again)
		s.same(r, s.device("cam"))
	}},
}

var callTests = []test{
	{"with an ended context", func(s *suite) {
		n := s.node("n1", "e1")
		h := s.claim(s.ask(n, "cam", "t1")).Holder
		s.lease(h, 40000, 40009, 22)
		before := s.device("cam")
		ctx, cancel := contextEnded(s.ctx)
		defer cancel()
		r := s.Registry
		for name, call := range map[string]func() error{
			"Claim":           func() error { _, err := r.Claim(ctx, s.ask(n, "cam", "t2")); return err },
			"Claim of a new":  func() error { _, err := r.Claim(ctx, s.ask(n, "door", "t2")); return err },
			"LeasePorts":      func() error { _, err := r.LeasePorts(ctx, h, nil, 0, 0); return err },
			"Refresh":         func() error { _, err := r.Refresh(ctx, 2*s.Lease, []registry.Holder{h}); return err },
			"Refresh of none": func() error { _, err := r.Refresh(ctx, 2*s.Lease, nil); return err },
			"Release":         func() error { return r.Release(ctx, h, s.Lease, "bye") },
			"ByLabel":         func() error { _, err := r.ByLabel(ctx, "l-cam"); return err },
			"ByDevice":        func() error { _, err := r.ByDevice(ctx, "cam"); return err },
			"Devices":         func() error { _, err := r.Devices(ctx, "", 1); return err },
			"Beat": func() error {
				return r.Beat(ctx, registry.Node{NodeRef: registry.NodeRef{ID: "n2", Epoch: "e1"}})
			},
			"Leave": func() error { return r.Leave(ctx, n) },
			"Nodes": func() error { _, err := r.Nodes(ctx); return err },
		} {
			if err := call(); !errors.Is(err, ctx.Err()) {
				s.Errorf("%s: %v, want %v", name, err, ctx.Err())
			}
		}
		s.same(before, s.device("cam"))
		s.gone("door", "l-door")
		if nodes, err := r.Nodes(s.ctx); err != nil || len(nodes) != 1 {
			s.Errorf("Nodes = %+v, %v", nodes, err)
		}
	}},
	{"with invalid arguments", func(s *suite) {
		n := s.node("n1", "e1")
		h := s.claim(s.ask(n, "cam", "t1")).Holder
		before := s.device("cam")
		check := func(what string, err error) {
			s.Helper()
			if !errors.Is(err, registry.ErrInvalid) {
				s.Errorf("%s: %v, want ErrInvalid", what, err)
			}
		}
		claim := func(what string, change func(*registry.Claim)) {
			s.Helper()
			c := s.ask(n, "cam", "t2")
			change(&c)
			_, err := s.Registry.Claim(s.ctx, c)
			check("Claim with "+what, err)
		}
		for _, name := range []string{"", strings.Repeat("x", registry.MaxName+1)} {
			bytes := fmt.Sprintf(" of %d bytes", len(name))
			claim("device"+bytes, func(c *registry.Claim) { c.Device = name })
			claim("instance"+bytes, func(c *registry.Claim) { c.Instance = name })
			claim("tunnel"+bytes, func(c *registry.Claim) { c.Tunnel = name })
			claim("label"+bytes, func(c *registry.Claim) { c.Label = name })
			claim("node"+bytes, func(c *registry.Claim) { c.Node.ID = name })
			claim("epoch"+bytes, func(c *registry.Claim) { c.Node.Epoch = name })
			check("Beat with id"+bytes, s.Registry.Beat(s.ctx, registry.Node{NodeRef: registry.NodeRef{ID: name, Epoch: "e"}}))
			check("Beat with epoch"+bytes, s.Registry.Beat(s.ctx, registry.Node{NodeRef: registry.NodeRef{ID: "n2", Epoch: name}}))
		}
		for _, lease := range []time.Duration{0, -1, -time.Hour} {
			claim("lease "+lease.String(), func(c *registry.Claim) { c.Lease = lease })
			_, err := s.Registry.Refresh(s.ctx, lease, []registry.Holder{h})
			check("Refresh with "+lease.String(), err)
			if lease < 0 {
				check("Release with "+lease.String(), s.Registry.Release(s.ctx, h, lease, "bye"))
			}
		}
		for _, c := range []struct {
			want        []uint16
			first, last uint16
		}{{[]uint16{22}, 40001, 40000}, {nil, 1, 0}, {[]uint16{22, 0}, 40000, 40009}, {[]uint16{0}, 0, 0}} {
			_, err := s.Registry.LeasePorts(s.ctx, h, c.want, c.first, c.last)
			check(fmt.Sprintf("LeasePorts of %v in %d-%d", c.want, c.first, c.last), err)
		}
		s.same(before, s.device("cam"))
		longest := strings.Repeat("x", registry.MaxName)
		s.claim(registry.Claim{
			Device: longest, Instance: longest, Tunnel: longest, Label: longest,
			Node: registry.NodeRef{ID: longest, Epoch: longest}, Lease: s.Lease,
		})
		s.label(longest, longest)
	}},
}
