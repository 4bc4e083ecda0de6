package cluster

import (
	"slices"
	"strings"
	"testing"

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
