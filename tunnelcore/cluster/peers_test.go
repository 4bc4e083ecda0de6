package cluster

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func node(id, epoch string) registry.Node {
	return registry.Node{NodeRef: registry.NodeRef{ID: id, Epoch: epoch}, Capacity: 1000}
}

func TestPeers(t *testing.T) {
	var p Peers
	if _, ok := p.Find("edge-1"); ok || len(p.All()) > 0 {
		t.Error("there are peers before the first update")
	}
	one, two, three := node("edge-1", "a"), node("edge-2", "a"), node("edge-3", "a")
	again := node("edge-2", "b")
	for _, step := range []struct {
		all  []registry.Node
		gone []registry.NodeRef
	}{
		{all: []registry.Node{three, one}},
		{all: []registry.Node{one, two, three}},
		{all: []registry.Node{one, again, three}, gone: []registry.NodeRef{two.NodeRef}},
		{all: []registry.Node{again}, gone: []registry.NodeRef{one.NodeRef, three.NodeRef}},
		{all: nil, gone: []registry.NodeRef{again.NodeRef}},
	} {
		gone := p.Update(step.all)
		slices.SortFunc(gone, func(a, b registry.NodeRef) int { return strings.Compare(a.ID, b.ID) })
		if !slices.Equal(gone, step.gone) {
			t.Errorf("%v: gone %v, want %v", step.all, gone, step.gone)
		}
		byID := func(a, b registry.Node) int { return strings.Compare(a.ID, b.ID) }
		if all := p.All(); len(all) != len(step.all) || !slices.IsSortedFunc(all, byID) {
			t.Errorf("all: %v, want %v in the order of ids", all, step.all)
		}
		for _, n := range step.all {
			if got, ok := p.Find(n.ID); !ok || got != n {
				t.Errorf("find %s: %v %v", n.ID, got, ok)
			}
		}
	}
}

// Clients that were sent to a peer count there until a heartbeat of its own shows
// them.
func TestSentCountsUntilThePeerKnows(t *testing.T) {
	var p Peers
	p.Sent("edge-2", start) // nobody of that name
	p.Update([]registry.Node{loaded("edge-2", 7, 100)})
	for i := range 10 {
		p.Sent("edge-2", start.Add(time.Duration(i)*time.Second))
	}
	expect := func(want int) {
		t.Helper()
		if all := p.Expected(); len(all) != 1 || all[0].Clients != want {
			t.Errorf("expected %+v, want %d clients", all, want)
		}
		if all := p.All(); all[0].Clients >= want && want > 7 {
			t.Errorf("known: %+v", all)
		}
	}
	beat := func(clients int, after time.Duration, epoch string) {
		n := loaded("edge-2", clients, 100)
		n.At, n.Epoch = start.Add(after), epoch
		p.Update([]registry.Node{n})
	}
	expect(17)
	beat(7, 0, "e")
	expect(17)
	beat(10, 2500*time.Millisecond, "e") // the first three have come
	expect(17)
	beat(10, 3*time.Second+2*followTime, "e") // so has the fourth, or never will
	expect(16)
	beat(0, 4*time.Second, "f") // started anew
	expect(0)
	p.Sent("edge-2", start)
	p.Update([]registry.Node{node("edge-2", "f")}) // a registry that tells no times
	expect(0)
	for range maxSent + 5 {
		p.Sent("edge-2", start)
	}
	if all := p.Expected(); all[0].Clients > maxSent+1 {
		t.Errorf("remembers %d", all[0].Clients)
	}
}

// What the registry does not name any more is told with for how long that has been so.
func TestMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Peers
		began := time.Now()
		one, two := node("edge-1", "a"), node("edge-2", "a")
		one.At, two.At = start, start
		p.Update([]registry.Node{one, two})
		for i := range 3 {
			time.Sleep(time.Second)
			two.At = two.At.Add(time.Second)
			missing := p.Missing([]registry.Node{two})
			want := Missing{one, began, i + 1, began.Add(time.Second)}
			if len(missing) != 1 || missing[0] != want {
				t.Errorf("%+v, want %+v", missing, want)
			}
			p.Update([]registry.Node{one, two}) // it may live
		}
		one.At = start.Add(-time.Hour) // the registry's clock has stepped back
		if missing := p.Missing([]registry.Node{one, two}); len(missing) != 0 {
			t.Errorf("%+v", missing)
		}
		p.Update([]registry.Node{one, two})
		missing := p.Missing(nil)
		if len(missing) != 2 || missing[0].Times != 1 || missing[0].Heard != time.Now() || missing[1].Since != time.Now() {
			t.Errorf("%+v", missing)
		}
	})
}
