package cluster

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// followTime is how long a client takes to get to the peer that it was sent to.
const followTime = 100 * time.Millisecond

// Peers are the other live nodes, as the registry last told of them. The zero value
// has none. It is safe for concurrent use.
type Peers struct {
	mu   sync.Mutex // guards what follows
	byID map[string]*peer
}

// peer is another node, and the clients that were sent there and that its number
// does not show yet.
type peer struct {
	registry.Node
	sent  []time.Time // on the registry's clock, the oldest first
	heard time.Time   // on this node's clock, when a heartbeat of it was last new

	missing int       // how often in a row the registry has not named it
	since   time.Time // when that began
}

// Missing is a peer that the registry does not name any more.
type Missing struct {
	registry.Node
	Heard time.Time // when a heartbeat of it was last new
	Times int       // how often in a row the registry has not named it
	Since time.Time // when that began
}

// Update puts those that are live now in the place of those that were, all but
// this node itself, and returns the starts of nodes that are over: gone, or
// followed by another epoch.
func (p *Peers) Update(all []registry.Node) (gone []registry.NodeRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.byID
	p.byID = make(map[string]*peer, len(all))
	for _, n := range all {
		now := &peer{Node: n, heard: time.Now()}
		if was := before[n.ID]; was != nil && was.Epoch == n.Epoch {
			now.missing, now.since = was.missing, was.since
			if was.At.Equal(n.At) {
				now.heard = was.heard
			}
			now.sent = slices.DeleteFunc(was.sent, func(at time.Time) bool {
				return n.At.IsZero() || at.Before(n.At.Add(-followTime))
			})
		}
		p.byID[n.ID] = now
	}
	for id, was := range before {
		if now := p.byID[id]; now == nil || now.Epoch != was.Epoch {
			gone = append(gone, was.NodeRef)
		}
	}
	return gone
}

// Missing returns the peers that are not among those that the registry names live, which
// it has been asked for just now.
func (p *Peers) Missing(live []registry.Node) (all []Missing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, n := range p.byID {
		if slices.ContainsFunc(live, func(l registry.Node) bool { return l.ID == id }) {
			n.missing = 0
			continue
		}
		if n.missing == 0 {
			n.since = time.Now()
		}
		n.missing++
		all = append(all, Missing{n.Node, n.heard, n.missing, n.since})
	}
	return all
}

// maxSent bounds what is remembered of clients that were sent to one peer: no node
// takes more between two heartbeats.
const maxSent = 1 << 14

// Sent says that a client was sent to the peer of that id at a moment, on the
// registry's clock.
func (p *Peers) Sent(id string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if to := p.byID[id]; to != nil && len(to.sent) < maxSent {
		to.sent = append(to.sent, at)
	}
}

// Find returns the peer of that id.
func (p *Peers) Find(id string) (registry.Node, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.byID[id]
	if n == nil {
		return registry.Node{}, false
	}
	return n.Node, true
}

// All returns the peers in the order of their ids.
func (p *Peers) All() []registry.Node {
	return p.all(func(n *peer) registry.Node { return n.Node })
}

// Expected is All with the clients that were sent there and that a peer's number
// does not show yet.
func (p *Peers) Expected() []registry.Node {
	return p.all(func(n *peer) registry.Node {
		node := n.Node
		node.Clients += len(n.sent)
		return node
	})
}

func (p *Peers) all(as func(*peer) registry.Node) []registry.Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	nodes := make([]registry.Node, 0, len(p.byID))
	for n := range maps.Values(p.byID) {
		nodes = append(nodes, as(n))
	}
	slices.SortFunc(nodes, func(a, b registry.Node) int { return strings.Compare(a.ID, b.ID) })
	return nodes
}
