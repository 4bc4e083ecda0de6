package tunnelcore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// ServePeer answers the request of another node, at cluster.Path. It returns as soon
// as the connection is handed over.
func (h *Hub) ServePeer(w http.ResponseWriter, r *http.Request) { h.link.Serve(w, r) }

// restoreTime is how long after a registry has lost data, or was away, it may not know yet
// what lives.
const restoreTime = 15 * time.Second

// restoreBeats is how many heartbeats that is.
const restoreBeats = int(restoreTime / registry.NodeHeartbeat)

// lookBurst and lookRate, per second, bound the questions which nodes there are besides
// those of the heartbeat.
const lookBurst, lookRate = 5, 2.0

// served is what the hub does for other nodes: what concerns its own tunnels, and
// no more. Nothing that came from another node goes on to a third.
type served struct{ hub *Hub }

// DialTunnel implements cluster.Local.
func (s served) DialTunnel(ctx context.Context, o cluster.Open) (*stream.Stream, error) {
	h := s.hub
	h.mu.Lock()
	t, stop := h.tunnels[o.Tunnel], h.stopping
	h.mu.Unlock()
	if t == nil || stop || t.holder.Device != o.Device {
		return nil, cluster.ErrNotHere
	}
	live, session := t.device.live()
	if live != t {
		return nil, cluster.ErrNotHere
	}
	c, err := h.dialTunnel(ctx, t, session, o.Port, o.From)
	if errors.Is(err, errNoTunnel) || errors.Is(err, stopping) {
		return nil, cluster.ErrNotHere // any more
	}
	return c, err
}

// Probe implements cluster.Local.
func (s served) Probe(ctx context.Context, device, tunnel string) (alive bool) {
	return s.hub.tunnelLives(ctx, tunnel)
}

// Replaced implements cluster.Local.
func (s served) Replaced(won registry.Holder) {
	h := s.hub
	h.notices.Add(1) // a handshake that is under way looks again
	h.mu.Lock()
	d := h.devices[won.Device]
	h.mu.Unlock()
	if d == nil {
		return
	}
	t, _ := d.live()
	if t == nil || t.holder.Tunnel == won.Tunnel || t.holder.Generation >= won.Generation {
		return
	}
	h.disown(t)
	t.leave(whyReplaced)
	if h.beginTransfer() {
		go func() { // Shutdown waits for it
			defer h.wg.Done()
			h.dropReplaced(d, t, won)
		}()
	}
}

// disown has visitors not come to t any more, which does not hold its device and is about
// to end: that takes its time, and the device may be elsewhere by now.
func (h *Hub) disown(t *tunnel) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.device.leave(t, true) {
		h.gone[t.device] = struct{}{}
	}
	h.labels.CompareAndDelete(t.label, t)
}

// dropReplaced aborts the streams of a tunnel that was replaced at another node, if that
// was by another instance of the device.
func (h *Hub) dropReplaced(d *device, t *tunnel, won registry.Holder) {
	ctx, cancel := context.WithTimeout(h.ctx, registryTimeout)
	defer cancel()
	rec, err := h.reg.ByDevice(ctx, won.Device)
	if err != nil || rec.Online.Holder != won || rec.Online.Instance == t.hello.Instance {
		return
	}
	d.replaced(t.hello.Instance)
	d.dropStreamsOf(t.hello.Instance)
}

// Info implements cluster.Local.
func (s served) Info(device string) (any, bool) {
	info, ok := s.hub.Tunnel(device)
	return info, ok
}

var _ cluster.Local = served{}

// peersGone drops what was known of starts of nodes that are over. Visitors' streams
// through them end.
func (h *Hub) peersGone(gone []registry.NodeRef) {
	h.bereaved.Store(int64(time.Since(h.started)))
	for _, n := range gone {
		h.log().Info("a node is gone", "node", n.ID, "epoch", n.Epoch)
		h.routes.forgetNode(n)
		h.link.Forget(n)
	}
}

// stillThere returns those of the peers that are not among the live nodes of the registry,
// but may live all the same: it has forgotten them, or nobody could tell it for a while.
// Their age is by this node's clock: the registry's may be another one after a failover.
func (h *Hub) stillThere(live []registry.Node) []registry.Node {
	var there []registry.Node
	for _, p := range h.admission.peers.Missing(live) {
		// A registry that comes and goes has answered them as often as this node.
		waited := p.Times > restoreBeats && time.Since(p.Since) >= restoreTime
		if time.Since(p.Heard) < registry.NodeTTL-tickTime || h.restored() < restoreTime && !waited {
			there = append(there, p.Node)
		}
	}
	return there
}

// restored is how long ago the registry began to answer again; nearly for ever if it
// always has.
func (h *Hub) restored() time.Duration {
	since := h.answered.Load()
	if since == 0 {
		return math.MaxInt64
	}
	return time.Since(h.started.Add(time.Duration(since)))
}

// alone says whether no other node is known.
func (h *Hub) alone() bool { return len(h.admission.peers.All()) == 0 }

// peer returns where that start of a node is reached. The error is cluster.ErrAway.
func (h *Hub) peer(ctx context.Context, n registry.NodeRef) (cluster.Peer, error) {
	found, ok := h.admission.peers.Find(n.ID)
	if !ok || found.Epoch != n.Epoch {
		found, ok = h.newcomer(ctx, n)
	}
	switch {
	case !ok:
		return cluster.Peer{}, fmt.Errorf("%w: node %s is not known", cluster.ErrAway, n.ID)
	case found.Internal == "":
		return cluster.Peer{}, fmt.Errorf("%w: node %s does not say where it is: write `internal HOST:PORT` in its `node` block", cluster.ErrAway, n.ID)
	}
	return cluster.Peer{NodeRef: found.NodeRef, Internal: found.Internal}, nil
}

// newcomer looks for a node that may have come since the last heartbeat.
func (h *Hub) newcomer(ctx context.Context, n registry.NodeRef) (registry.Node, bool) {
	is := func(one registry.Node) bool { return one.NodeRef == n }
	all := h.newcomers.Load()
	if all == nil || !slices.ContainsFunc(*all, is) {
		if !h.looks.take() {
			return registry.Node{}, false
		}
		read, err := h.reg.Nodes(ctx)
		if err != nil {
			return registry.Node{}, false
		}
		all = &read
		h.newcomers.Store(all)
	}
	i := slices.IndexFunc(*all, is)
	if i < 0 {
		return registry.Node{}, false
	}
	return (*all)[i], true
}

// TunnelOf returns what the node knows that a device is connected to, by its
// record: this node, or another one, which is asked. It says false if there is none,
// or it does not answer.
func (h *Hub) TunnelOf(ctx context.Context, rec registry.Record) (TunnelInfo, bool) {
	switch rec.Online.Node.ID {
	case "":
		return TunnelInfo{}, false
	case h.node.ID:
		return h.Tunnel(rec.Device)
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	info, err := h.askInfo(ctx, rec.Online.Node, rec.Device)
	return info, err == nil && info.Tunnel == rec.Online.Tunnel
}
