package tunnelcore

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"

	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// ServePeer answers the request of another node, at cluster.Path. It returns as soon
// as the connection is handed over.
func (h *Hub) ServePeer(w http.ResponseWriter, r *http.Request) { h.link.Serve(w, r) }

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
	t.closeSoon(wire.CloseReplaced, "replaced by a newer tunnel")
}

// Info implements cluster.Local.
func (s served) Info(device string) (any, bool) {
	info, ok := s.hub.Tunnel(device)
	return info, ok
}

// ServeConn implements cluster.Local.
func (s served) ServeConn(ctx context.Context, c net.Conn, a cluster.Agent) { c.Close() }

var _ cluster.Local = served{}

// peersGone drops what was known of starts of nodes that are over.
func (h *Hub) peersGone(gone []registry.NodeRef) {
	for _, n := range gone {
		h.log().Info("a node is gone", "node", n.ID, "epoch", n.Epoch)
		h.link.Forget(n)
	}
}

// peer finds where the peers of this node reach that start of a node.
func (h *Hub) peer(n registry.NodeRef) (cluster.Peer, bool) {
	found, ok := h.admission.peers.Find(n.ID)
	return cluster.Peer{NodeRef: found.NodeRef, Internal: found.Internal}, ok && found.Epoch == n.Epoch && found.Internal != ""
}

// TunnelOf returns what the node knows that a device is connected to, by its
// record: this node, or another one, which is asked. It says false if there is none,
// or it does not answer.
func (h *Hub) TunnelOf(ctx context.Context, rec registry.Record) (TunnelInfo, bool) {
	switch n := rec.Online.Node; n.ID {
	case "":
		return TunnelInfo{}, false
	case h.node.ID:
		return h.Tunnel(rec.Device)
	default:
		p, ok := h.peer(n)
		if !ok {
			return TunnelInfo{}, false
		}
		info, err := h.askInfo(ctx, p, rec.Device)
		return info, err == nil
	}
}

// askInfo asks a peer what it knows of a device.
func (h *Hub) askInfo(ctx context.Context, p cluster.Peer, device string) (TunnelInfo, error) {
	var info TunnelInfo
	raw, err := h.link.Info(ctx, p, device)
	if err == nil {
		err = json.Unmarshal(raw, &info)
	}
	return info, err
}
