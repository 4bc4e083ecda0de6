package tunnelcore

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// What operators do to devices. Devices may be connected to any node: the registry
// is changed, and a notice there has the others look at their tunnels. This node
// looks at once.

// ErrOffline: the device is not connected.
var ErrOffline = errors.New("the device is not connected")

// Node is the id of this node.
func (h *Hub) Node() string { return h.node.ID }

// Registry is what the hub records in. It is closed with the hub.
func (h *Hub) Registry() registry.Registry { return h.reg }

// Revoke takes a device's secret away, for authenticators that go by the registry,
// and cuts its tunnel if nothing else lets it in.
func (h *Hub) Revoke(ctx context.Context, device string) error {
	if err := registry.Revoke(ctx, h.reg, device); err != nil {
		return err
	}
	h.Recheck(device)
	return nil
}

// Disconnect cuts the tunnel of a device, wherever it is; its agent comes back. It
// says ErrOffline if there is none.
func (h *Hub) Disconnect(ctx context.Context, device string) error {
	rec, err := h.reg.ByDevice(ctx, device)
	if err != nil && !errors.Is(err, registry.ErrUnknown) {
		return err
	}
	if rec.Online.Tunnel == "" {
		return ErrOffline
	}
	err = h.reg.Release(ctx, rec.Online.Holder, h.settings.Load().Lease, whyCut)
	if err != nil && !errors.Is(err, registry.ErrLost) { // lost: it has just ended
		return err
	}
	return h.notify(ctx, device)
}

// Relabel ends the lease of a device: it comes back under another hostname, and its
// public ports rest. It says registry.ErrUnknown without a lease.
func (h *Hub) Relabel(ctx context.Context, device string) error {
	if err := h.reg.Drop(ctx, device); err != nil {
		return err
	}
	return h.notify(ctx, device)
}

// Forget removes what is recorded of a device: its secret, its lease, and the grants of
// its ports. It says registry.ErrUnknown if it had neither a secret nor a lease.
func (h *Hub) Forget(ctx context.Context, device string) error {
	_, err := h.reg.Credential(ctx, device)
	enrolled := err == nil
	if err != nil && !errors.Is(err, registry.ErrUnknown) {
		return err
	}
	if err := h.reg.DropCredential(ctx, device); err != nil {
		return err
	}
	if err := h.revokeGrantsOf(ctx, device); err != nil {
		return err
	}
	err = h.reg.Drop(ctx, device)
	if err != nil && (!errors.Is(err, registry.ErrUnknown) || !enrolled) {
		return err
	}
	return h.notify(ctx, device)
}

func (h *Hub) notify(ctx context.Context, device string) error {
	err := h.reg.Notify(ctx, device)
	h.Recheck(device) // also when other nodes cannot be told
	return err
}

// TunnelInfo is what a node knows of a device that is connected to it. Its JSON is
// what nodes tell each other.
type TunnelInfo struct {
	Device     string        `json:"device"`
	Label      string        `json:"label"`
	Tunnel     string        `json:"tunnel"`
	Generation int64         `json:"generation"`
	Since      time.Time     `json:"since"`
	Remote     netip.Addr    `json:"remote"`
	Agent      string        `json:"agent,omitempty"`  // how it names itself; may be anything
	RTT        time.Duration `json:"rtt_ns,omitempty"` // of the last ping; 0: not known yet
	Streams    int           `json:"streams"`          // open now
	Received   int64         `json:"received_bytes"`   // of streams, while its node has known the device
	Sent       int64         `json:"sent_bytes"`
	Ports      []PortInfo    `json:"ports"`
}

// PortInfo is a port of a device, and where visitors reach it.
type PortInfo struct {
	Port uint16    `json:"port"`
	Kind wire.Kind `json:"kind"`
	URL  string    `json:"url,omitempty"`  // of http and https
	Addr string    `json:"addr,omitempty"` // HOST:PORT, of tcp with a public port
}

// Tunnel returns what this node knows of a device that is connected to it.
func (h *Hub) Tunnel(device string) (TunnelInfo, bool) {
	h.mu.Lock()
	d := h.devices[device]
	h.mu.Unlock()
	if d == nil {
		return TunnelInfo{}, false
	}
	t, _ := d.live()
	if t == nil {
		return TunnelInfo{}, false
	}
	b, s := t.inForce(), h.settings.Load()
	info := TunnelInfo{
		Device: device, Label: t.label, Tunnel: t.holder.Tunnel, Generation: t.holder.Generation,
		Since: t.since, Remote: t.credential.Remote, Agent: t.agent, RTT: t.sock.RTT(), Streams: d.streams(),
	}
	info.Received, info.Sent = d.transferred()
	for _, p := range t.hello.Ports {
		info.Ports = append(info.Ports, PortInfo{
			Port: p.Number, Kind: p.Kind, URL: s.url(t.label, p, t.hello.Ports), Addr: b.addresses[p.Number],
		})
	}
	return info, true
}

func (d *device) streams() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session == nil {
		return 0
	}
	return len(d.session.streams)
}

// Hostname is the full name of a label.
func (h *Hub) Hostname(label string) string { return label + "." + h.settings.Load().Domain }

// Address is where visitors reach a public port; empty when there are none.
func (h *Hub) Address(public uint16) string {
	s := h.settings.Load()
	if s.TCP == nil {
		return ""
	}
	return s.TCP.address(s, public)
}

// RandomLabels reports whether devices are given labels at random, so that another
// lease is another hostname.
func (h *Hub) RandomLabels() bool { return h.settings.Load().Hostname == HostnameRandom }

// CheckDevice says what is wrong with a device id.
func CheckDevice(id string) error { return names.CheckDevice(id) }

// ValidLabel reports whether a device may be leased the label.
func ValidLabel(label string) bool { return names.CheckDevice(label) == nil }

// NodeRef is this start of this node.
func (h *Hub) NodeRef() registry.NodeRef { return h.node }
