package tunnelcore

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// ErrOtherHost is Lookup's answer to a host that is not directly under the
// domain of the devices.
var ErrOtherHost = errors.New("tunnelcore: not a device hostname")

// Target is a port of a device that a hostname names.
type Target struct {
	Device string
	Label  string
	Node   string
	Tunnel string // of the live tunnel; changes with each reconnect
	Port   uint16
	Kind   wire.Kind
	Online bool

	seen time.Time
}

// Lookup resolves a visitor's Host. It returns ErrOtherHost, or an
// *answers.Error (unknown_device; unavailable when the registry cannot tell). The
// device may be offline; then port and kind are not known. A connected device that
// offers no such page is unknown_device, too, and named in the Target.
func (h *Hub) Lookup(ctx context.Context, host string) (Target, error) {
	name, ok := names.ParseHost(host, h.settings.Load().Domain)
	if !ok {
		return Target{}, ErrOtherHost
	}
	if t, ok := h.labels.Load(name.Label); ok {
		return t.(*tunnel).target(name.Port)
	}
	ctx, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	rec, err := h.reg.ByLabel(ctx, name.Label)
	switch {
	case errors.Is(err, registry.ErrUnknown):
		return Target{}, &answers.Error{Code: wire.UnknownDevice}
	case err != nil:
		return Target{}, &answers.Error{Code: wire.Unavailable, RetryAfter: time.Second, Cause: err}
	}
	return Target{Device: rec.Device, Label: rec.Label, Port: name.Port, seen: rec.Seen}, nil
}

// Await is Lookup for a visitor who wants to be served: for a device whose
// tunnel has just ended uncleanly it waits, up to Settings.Wait, for the next
// one. A device that stays offline is an *answers.Error (device_offline).
func (h *Hub) Await(ctx context.Context, host string) (Target, error) {
	target, err := h.Lookup(ctx, host)
	if err != nil || target.Online {
		return target, err
	}
	if h.await(ctx, target.Device) {
		if target, err = h.Lookup(ctx, host); err != nil || target.Online {
			return target, err
		}
	}
	return target, &answers.Error{Code: wire.DeviceOffline, RetryAfter: 10 * time.Second, LastSeen: target.seen}
}

// await waits for a device that is expected back: one whose tunnel has just
// ended uncleanly, or any that has a lease when the edge has just started.
func (h *Hub) await(ctx context.Context, id string) bool {
	wait := h.settings.Load().Wait
	if wait <= 0 {
		return false
	}
	h.mu.Lock()
	d := h.devices[id]
	if d == nil && time.Since(h.started) < reconnectTime && !h.stopping {
		d = h.deviceLocked(id)
		d.gone, d.unclean = h.started, true
	}
	h.mu.Unlock()
	return d != nil && d.await(ctx, wait)
}

// target is the port of t's device that a hostname with the given port (0: the
// bare hostname) names.
func (t *tunnel) target(port uint16) (Target, error) {
	found := Target{Device: t.holder.Device, Label: t.label, Node: t.hub.node.ID, Tunnel: t.holder.Tunnel, Online: true}
	p, ok := webPort(t.hello.Ports, port)
	if !ok {
		return found, &answers.Error{Code: wire.UnknownDevice, Message: "the device offers no web page on this port"}
	}
	found.Port, found.Kind = p.Number, p.Kind
	return found, nil
}

// webPort picks the port that a hostname names: the given one, or for the bare
// hostname 80, else 443, else the first that speaks HTTP.
func webPort(ports []wire.Port, number uint16) (found wire.Port, ok bool) {
	for _, p := range ports {
		web := p.Kind != wire.TCP
		switch {
		case !web:
		case number != 0:
			if p.Number == number {
				return p, true
			}
		case p.Number == 80:
			return p, true
		case !ok || p.Number == 443:
			found, ok = p, true
		}
	}
	return found, ok
}

// url is where visitors reach a port of the device with that label; empty for a
// port that does not speak HTTP.
func (s *Settings) url(label string, p wire.Port, all []wire.Port) string {
	if p.Kind == wire.TCP {
		return ""
	}
	host := label
	if bare, _ := webPort(all, 0); bare.Number != p.Number {
		host += "--" + strconv.Itoa(int(p.Number))
	}
	host += "." + s.Domain
	if s.Port != "" {
		host += ":" + s.Port
	}
	return s.Scheme + "://" + host + "/"
}
