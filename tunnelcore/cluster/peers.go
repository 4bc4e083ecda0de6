package cluster

import (
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// Peers are the other live nodes, as the registry last told of them. The zero value
// has none. It is safe for concurrent use; reading it takes no lock.
type Peers struct {
	now atomic.Pointer[map[string]registry.Node] // by id; never changed in place
}

// Update puts those that are live now in the place of those that were, all but
// this node itself, and returns the starts of nodes that are over: gone, or
// followed by another epoch. Calls come one after the other.
func (p *Peers) Update(all []registry.Node) (gone []registry.NodeRef) {
	now := make(map[string]registry.Node, len(all))
	for _, n := range all {
		now[n.ID] = n
	}
	for id, was := range p.load() {
		if now[id].Epoch != was.Epoch {
			gone = append(gone, was.NodeRef)
		}
	}
	p.now.Store(&now)
	return gone
}

// Find returns the peer of that id.
func (p *Peers) Find(id string) (registry.Node, bool) {
	n, ok := p.load()[id]
	return n, ok
}

// All returns the peers in the order of their ids.
func (p *Peers) All() []registry.Node {
	return slices.SortedFunc(maps.Values(p.load()), func(a, b registry.Node) int {
		return strings.Compare(a.ID, b.ID)
	})
}

func (p *Peers) load() map[string]registry.Node {
	if now := p.now.Load(); now != nil {
		return *now
	}
	return nil
}
