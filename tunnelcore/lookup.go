package tunnelcore

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
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

	seen        time.Time
	unreachable error // its node does not answer, or says that it does not have it
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
	return h.lookup(ctx, name, webPort)
}

// LookupTCP is Lookup for LABEL--PORT.domain where PORT is one of kind tcp: a name that
// no web page has, by which TLS clients reach other services.
func (h *Hub) LookupTCP(ctx context.Context, host string) (Target, error) {
	name, ok := names.ParseHost(host, h.settings.Load().Domain)
	if !ok || name.Port == 0 {
		return Target{}, ErrOtherHost
	}
	return h.lookup(ctx, name, tcpPort)
}

// picker finds the port of a device that a hostname with the given port (0: the bare
// hostname) names.
type picker func(ports []wire.Port, number uint16) (found wire.Port, ok bool)

func (h *Hub) lookup(ctx context.Context, name names.Host, pick picker) (Target, error) {
	if t, ok := h.labels.Load(name.Label); ok {
		return t.(*tunnel).target(name.Port, pick)
	}
	return h.lookupRoute(ctx, name, pick)
}

// lookupRoute is Lookup for a device that is not connected to this node, but perhaps to
// another one.
func (h *Hub) lookupRoute(ctx context.Context, name names.Host, pick picker) (Target, error) {
	var tried *remote
	for {
		began := time.Now()
		rt, err := h.routes.find(ctx, key{name: name.Label})
		if err != nil {
			return Target{}, routeError(err)
		}
		found := Target{Device: rt.rec.Device, Label: rt.rec.Label, Port: name.Port, seen: rt.rec.Seen}
		m := rt.remote
		if m == nil {
			return found, nil
		}
		ports, err := h.portsOf(ctx, m)
		switch {
		case err == nil:
			found.Node, found.Tunnel, found.Online = m.node.ID, m.holder.Tunnel, true
			return found.on(ports, name.Port, pick)
		case !unreached(err):
			return found, answers.From(err)
		case tried != nil:
			found.unreachable = unreachable(err)
			return found, nil
		}
		tried = m
		h.routes.refused(m, began)
	}
}

// Await is Lookup for a visitor who wants to be served: for a device whose
// tunnel has just ended uncleanly it waits, up to Settings.Wait, for the next
// one, here or at another node. A device that stays offline is an *answers.Error
// (device_offline; unavailable when it is its node that does not answer).
func (h *Hub) Await(ctx context.Context, host string) (Target, error) {
	target, err := h.Lookup(ctx, host)
	if err != nil || target.Online {
		return target, err
	}
	// The error of retry is also that of target, or err.
	_ = h.retry(ctx, target.Device, target.offline(), func() error {
		if target, err = h.Lookup(ctx, host); err != nil || target.Online {
			return err
		}
		return target.offline()
	})
	switch {
	case err != nil || target.Online:
		return target, err
	}
	return target, target.offline()
}

// offline is what a visitor is told whose device has no tunnel, or whose node does not
// answer.
func (t Target) offline() error {
	if t.unreachable != nil {
		return t.unreachable
	}
	return &answers.Error{Code: wire.DeviceOffline, RetryAfter: 10 * time.Second, LastSeen: t.seen, Cause: errNoTunnel}
}

// target is the port of t's device that pick finds.
func (t *tunnel) target(port uint16, pick picker) (Target, error) {
	found := Target{Device: t.holder.Device, Label: t.label, Node: t.hub.node.ID, Tunnel: t.holder.Tunnel, Online: true}
	return found.on(t.hello.Ports, port, pick)
}

// on is t with that of the device's ports that pick finds.
func (t Target) on(ports []wire.Port, number uint16, pick picker) (Target, error) {
	p, ok := pick(ports, number)
	if !ok {
		return t, &answers.Error{Code: wire.UnknownDevice, Message: "the device offers no web page on this port"}
	}
	t.Port, t.Kind = p.Number, p.Kind
	return t, nil
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

// tcpPort picks a port of kind tcp.
func tcpPort(ports []wire.Port, number uint16) (found wire.Port, ok bool) {
	for _, p := range ports {
		if p.Number == number && p.Kind == wire.TCP {
			return p, true
		}
	}
	return wire.Port{}, false
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
