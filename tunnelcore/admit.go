package tunnelcore

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// drainingRetry is when an agent may try its luck again that a draining node can
// neither send elsewhere nor has to take, because it has a tunnel.
const drainingRetry = 5 * time.Second

// admission is what a node knows of itself and its peers to decide where agents go.
// The zero value is that of a node on its own.
type admission struct {
	peers cluster.Peers
	told  atomic.Int64 // clients, in the last heartbeat
	clock atomic.Pointer[reading]
	// moved has a token when the others should hear of this node before its next
	// heartbeat is due.
	moved  chan struct{}
	warned atomic.Bool // that this node has no url
}

// reading is what the registry's clock showed at a moment.
type reading struct{ registry, local time.Time }

// now is the time on the registry's clock, as of which this node's clock need not be
// right; zero before the first heartbeat.
func (a *admission) now() time.Time {
	r := a.clock.Load()
	if r == nil {
		return time.Time{}
	}
	return r.registry.Add(time.Since(r.local))
}

// lastBeat is when this node last told the others of itself, on the registry's clock:
// what it knows of them is as old. A peer that is well may have done so a heartbeat
// before. Once this node has missed one itself it is now, so that no peer seems well.
func (a *admission) lastBeat() time.Time {
	r := a.clock.Load()
	if r == nil {
		return time.Time{}
	}
	if since := time.Since(r.local); since > cluster.SilentAfter {
		return r.registry.Add(since)
	}
	return r.registry
}

// count asks for a heartbeat when the number of clients has moved enough for the
// others to know.
func (a *admission) count(clients int) {
	if !cluster.Moved(int(a.told.Load()), clients) {
		return
	}
	select {
	case a.moved <- struct{}{}:
	default: // asked for already
	}
}

// self is this node as its peers should see it.
func (h *Hub) self() registry.Node {
	s := h.settings.Load()
	h.mu.Lock()
	defer h.mu.Unlock()
	return registry.Node{
		NodeRef: h.node, URL: s.Node.URL, Internal: s.Node.Internal,
		Clients: len(h.tunnels), Capacity: s.Limits.Tunnels, Draining: h.draining.on || h.stopping,
	}
}

// elsewhere sends an agent to another node.
type elsewhere struct {
	to       registry.Node
	location string
}

func (e *elsewhere) Error() string { return "sent to node " + e.to.ID }

// admit decides whether there is room for a tunnel of a device that has proved
// itself. No device can use up what is there for all.
//
// Until its tunnel is up, or arrived is called, it counts among those that come: else
// a crowd would be let in for as long as its first ones take.
func (h *Hub) admit(t *tunnel, r *http.Request, a Arrival) error {
	h.mu.Lock()
	d := h.deviceLocked(t.holder.Device)
	h.coming[t] = struct{}{}
	h.mu.Unlock()
	switch {
	case !h.joined.Load():
		return &answers.Error{Code: wire.Unavailable, RetryAfter: registry.NodeHeartbeat, Message: "the registry does not know this node"}
	case !d.arrives.take():
		return &answers.Error{Code: wire.Unavailable, RetryAfter: 5 * time.Second, Message: "this device comes too often"}
	}
	return h.place(d, t, r, a)
}

// arrived says that t has come, or will not. It may be called again.
func (h *Hub) arrived(t *tunnel) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.coming, t)
}

// place decides whether an agent stays at this node. One that had a tunnel here a
// moment ago does, if it can: its streams are here.
func (h *Hub) place(d *device, t *tunnel, r *http.Request, a Arrival) error {
	old, was := d.live()
	own := h.self()
	own.At = h.admission.lastBeat()
	h.mu.Lock()
	own.Clients += len(h.coming) - 1 // without this one
	h.mu.Unlock()
	if old != nil {
		own.Clients-- // in whose place it comes
	}
	full := own.Clients >= own.Capacity
	to, verdict := cluster.Place(own, h.admission.peers.Expected(), rand.IntN)
	switch {
	case verdict == cluster.Here, was != nil && !own.Draining && !full:
		return nil
	case verdict == cluster.There && h.movable(t, r, a):
		return h.sendTo(to, t, r)
	case full:
		return &answers.Error{Code: wire.Unavailable, RetryAfter: 30 * time.Second, Message: "this node has as many tunnels as it may"}
	case own.Draining && old != nil: // and a peer could take it, to which chance may lead it
		return &answers.Error{Code: wire.Unavailable, RetryAfter: drainingRetry, Message: "this node is about to go"}
	}
	return nil
}

// movable says whether an agent can be sent to another node: it follows, nobody leads
// it here again, and no node has sent it here.
func (h *Hub) movable(t *tunnel, r *http.Request, a Arrival) bool {
	s := h.settings.Load().Node
	if a.Routed || s.URL == "" || len(s.Secrets) == 0 || !t.hello.Caps.Has(wire.Redirect) {
		return false
	}
	token := r.URL.Query().Get(cluster.RedirectParam)
	if token == "" {
		return true
	}
	err := cluster.CheckRedirect(s.Secrets, token, t.holder.Device, h.node.ID, h.admission.now())
	if errors.Is(err, cluster.ErrRedirectForged) && h.refusals.take() {
		t.log().Warn("redirect to this node with a signature that is not valid: do all nodes have the same secret?", "remote", a.From)
	}
	return err != nil // then it has come like any other
}

// sendTo is the answer that leads an agent to another node, which takes it, or
// refuses it: it sends it on to nobody.
func (h *Hub) sendTo(to registry.Node, t *tunnel, r *http.Request) error {
	now := h.admission.now()
	token := cluster.SignRedirect(h.settings.Load().Node.Secrets[0], t.holder.Device, to.ID, now)
	location, err := cluster.RedirectURL(to.URL, wire.ControlPath, r.URL.RawQuery, token)
	if err != nil {
		t.log().Error("the url of a node leads nowhere", "node", to.ID, "error", err)
		return nil // it stays
	}
	h.admission.peers.Sent(to.ID, now)
	return &elsewhere{to, location}
}
