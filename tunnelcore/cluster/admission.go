package cluster

import (
	"math"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	// atEase is how many clients a node has at least before it looks around.
	atEase = 50
	// slackShare is what a node may have over its share of all clients, besides the
	// square root of it that chance brings.
	slackShare = 0.05
	// clearly is how much less loaded a peer is that a client is sent to.
	clearly = 0.05
	// movedShare and movedLeast are how far a node's number has moved when the others
	// should hear of it before the next heartbeat is due.
	movedShare, movedLeast = 0.02, 10
)

// SilentAfter is how much older than this node's last heartbeat that of a peer is that
// has missed one.
const SilentAfter = registry.NodeHeartbeat * 3 / 2

// Verdict is what becomes of a client that has come to a node.
type Verdict int

// The verdicts of Place.
const (
	Here  Verdict = iota // it is taken
	There                // it is sent to a peer
	Full                 // neither this node nor a peer that it knows can take it
)

// Place decides where a client goes that has come to own and may be sent
// elsewhere. own.Clients are those that it has now, and peers' those that they are
// known or expected to have, as of this node's last heartbeat, own.At. draw returns a random
// number below n.
//
// A node takes clients until it has a twentieth and the square root more than its
// share: of all clients, as much as its capacity is of that of all nodes that stay.
// Then it draws two peers, and sends the client to the less loaded one if that is
// clearly less loaded than itself. One that is full, or is being drained, sends it to
// whoever can take it.
func Place(own registry.Node, peers []registry.Node, draw func(n int) int) (registry.Node, Verdict) {
	full := own.Clients >= own.Capacity
	if !full && !own.Draining && float64(own.Clients) <= enough(share(own, peers)) {
		return registry.Node{}, Here
	}
	to, ok := lesser(targets(own, peers), draw)
	switch {
	case ok && (full || own.Draining || load(to) < (1-clearly)*load(own)):
		return to, There
	case full:
		return registry.Node{}, Full
	}
	return registry.Node{}, Here
}

// share is the clients that own would have if all were where they belong. Those of
// nodes that go, or seem to have gone, belong to the others.
func share(own registry.Node, peers []registry.Node) float64 {
	clients, capacity := own.Clients, own.Capacity
	for _, p := range peers {
		clients += p.Clients
		if !p.Draining && !silent(own, p) {
			capacity += p.Capacity
		}
	}
	return float64(clients) * float64(own.Capacity) / float64(max(1, capacity))
}

// enough is the most clients with which a node takes another one without looking
// around, if its share is m.
func enough(m float64) float64 { return max(atEase, (1+slackShare)*m+math.Sqrt(m)) }

// load is relative to what the node can take.
func load(n registry.Node) float64 { return float64(n.Clients) / float64(max(1, n.Capacity)) }

// silent reports whether p has missed a heartbeat: it may have died, though the
// registry still counts it as live. Of one whose heartbeats have no time it does not
// know.
func silent(own, p registry.Node) bool {
	return !own.At.IsZero() && !p.At.IsZero() && own.At.Sub(p.At) > SilentAfter
}

// targets are the peers that a client can be sent to.
func targets(own registry.Node, peers []registry.Node) []registry.Node {
	var t []registry.Node
	for _, p := range peers {
		if p.URL != "" && !p.Draining && p.Clients < p.Capacity && !silent(own, p) {
			t = append(t, p)
		}
	}
	return t
}

// lesser draws two of t and returns the less loaded one: nearly as good as the least
// loaded of all, and nodes that look at the same numbers do not all choose the same.
func lesser(t []registry.Node, draw func(n int) int) (registry.Node, bool) {
	if len(t) < 2 {
		return append(t, registry.Node{})[0], len(t) == 1
	}
	i, j := draw(len(t)), draw(len(t)-1)
	if j >= i {
		j++
	}
	if load(t[j]) < load(t[i]) {
		i = j
	}
	return t[i], true
}

// Moved reports whether a node that has told the others of that many clients should
// tell them anew, before its next heartbeat is due.
func Moved(told, now int) bool {
	return math.Abs(float64(now-told)) >= max(movedLeast, movedShare*float64(told))
}

// BeatLeast is the least time between two heartbeats of a node.
const BeatLeast = registry.NodeHeartbeat / 6
