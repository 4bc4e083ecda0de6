package tunnelcore

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// failTime is how long a tunnel of another node is let be that could not be
	// reached there.
	failTime = 500 * time.Millisecond
	// infoTimeout bounds a question to another node.
	infoTimeout = 3 * time.Second
	// crowdedTime is how long an open may take at another node before connections are
	// closed that are kept here for a next visitor: they may be what the device has no
	// room beside.
	crowdedTime = 250 * time.Millisecond
	// peerRetry is when visitors may try again whose device is at a node that does not
	// answer: by then it has been found dead, or answers.
	peerRetry = registry.NodeHeartbeat
)

// remote is a tunnel of another node. It lasts as long as the route to it.
type remote struct {
	holder registry.Holder
	node   registry.NodeRef
	used   atomic.Int64 // when somebody last asked for it, in seconds since 1970

	mu     sync.Mutex    // guards what follows
	ports  []wire.Port   // nil: not known yet
	asking chan struct{} // closed when it has been asked for ports; nil: nobody asks
	failed time.Time     // when it could last not be reached; zero when it could
	since  time.Time     // when that began
	why    error         // cluster.ErrNotHere or cluster.ErrAway is in the chain
}

// fail says that m cannot be reached.
func (m *remote) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed, m.why = time.Now(), err
	if m.since.IsZero() {
		m.since = m.failed
	}
}

// succeed says that m was reached.
func (m *remote) succeed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed, m.since, m.why = time.Time{}, time.Time{}, nil
}

// failure is why m could not be reached a moment ago, nil if it could, or it is time
// to try again.
func (m *remote) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.failed) < failTime {
		return m.why
	}
	return nil
}

// failing is since when m cannot be reached; zero when it can.
func (m *remote) failing() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.since
}

// unreached reports whether err means that a peer was not reached, or not the tunnel
// there, so that nothing was sent to the device.
func unreached(err error) bool {
	return errors.Is(err, cluster.ErrNotHere) || errors.Is(err, cluster.ErrAway)
}

// unreachable is what a visitor is told whose device is at another node: errNoTunnel is
// in the chain, since it may come back somewhere else.
func unreachable(err error) error {
	if errors.Is(err, cluster.ErrNotHere) {
		return noTunnel("")
	}
	return &answers.Error{
		Code: wire.Unavailable, RetryAfter: peerRetry, Cause: errors.Join(errNoTunnel, err),
		Message: "the node that the device is connected to does not answer",
	}
}

// portsOf returns what the device of m forwards. Its node is asked once for each
// tunnel. The error is that of ctx, or of the link.
func (h *Hub) portsOf(ctx context.Context, m *remote) ([]wire.Port, error) {
	for {
		ports, asked, err := m.portsKnown()
		switch {
		case ports != nil || err != nil:
			return ports, err
		case asked != nil: // by somebody else
		case !h.beginTransfer():
			return nil, stopping
		default:
			asked = h.askPorts(m)
		}
		select {
		case <-asked:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// portsKnown returns the ports of m, or why its node is not asked for them just now, or
// what is closed when it has been asked; nil for all three when it should be.
func (m *remote) portsKnown() (ports []wire.Port, asked <-chan struct{}, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ports == nil && time.Since(m.failed) < failTime {
		err = m.why
	}
	return m.ports, m.asking, err
}

// askPorts asks the node of m what its device forwards, unless somebody has just done
// so. What it returns is closed when that is known, or why not.
func (h *Hub) askPorts(m *remote) (asked <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asking != nil {
		h.wg.Done()
		return m.asking
	}
	m.asking = make(chan struct{})
	go h.learnPorts(m) // Shutdown waits for it
	return m.asking
}

func (h *Hub) learnPorts(m *remote) {
	defer h.wg.Done()
	ctx, cancel := context.WithTimeout(h.ctx, infoTimeout)
	defer cancel()
	info, err := h.askInfo(ctx, m.node, m.holder.Device)
	switch {
	case err == nil && info.Tunnel != m.holder.Tunnel:
		err = cluster.ErrNotHere
	case err != nil && !unreached(err):
		err = errors.Join(cluster.ErrAway, err)
	}
	if err == nil {
		m.succeed()
	} else {
		m.fail(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.ports = make([]wire.Port, 0, len(info.Ports))
		for _, p := range info.Ports {
			m.ports = append(m.ports, wire.Port{Number: p.Port, Kind: p.Kind})
		}
	}
	close(m.asking)
	m.asking = nil
}

// askInfo asks a node what it knows of a device.
func (h *Hub) askInfo(ctx context.Context, n registry.NodeRef, device string) (TunnelInfo, error) {
	var info TunnelInfo
	p, err := h.peer(ctx, n)
	if err != nil {
		return info, err
	}
	raw, err := h.link.Info(ctx, p, device)
	if err == nil {
		err = json.Unmarshal(raw, &info)
	}
	return info, err
}

// kind is the kind of a port of a device at another node, if it is known.
func (r *routes) kind(device string, port uint16) (wire.Kind, bool) {
	r.mu.Lock()
	rt := r.byDevice[device]
	r.mu.Unlock()
	if rt == nil || rt.remote == nil {
		return "", false
	}
	return rt.remote.kind(port)
}

// kind is the kind of a port, if it is known.
func (m *remote) kind(port uint16) (wire.Kind, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.ports {
		if p.Number == port {
			return p.Kind, true
		}
	}
	return "", false
}

// dialRemote opens a stream to a device that is at another node. When that node does
// not have it, or does not answer, the registry is asked again, once, where it is.
func (h *Hub) dialRemote(ctx context.Context, device string, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	var tried *remote
	for {
		began := time.Now()
		rt, err := h.routes.find(ctx, key{device: true, name: device})
		switch {
		case errors.Is(err, registry.ErrUnknown):
			return nil, noTunnel("")
		case err != nil:
			return nil, routeError(err)
		case rt.remote == nil:
			return nil, noTunnel("")
		case rt.remote == tried:
			return nil, unreachable(tried.reason())
		}
		if err := rt.remote.failure(); err != nil {
			return nil, unreachable(err)
		}
		c, err := h.dialPeer(ctx, rt.remote, port, from)
		if !unreached(err) {
			return c, err
		}
		if tried != nil {
			return nil, unreachable(err)
		}
		tried = rt.remote
		h.routes.refused(tried, began)
	}
}

// reason is why m could last not be reached.
func (m *remote) reason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why
}

// dialPeer opens a stream of a tunnel of another node.
func (h *Hub) dialPeer(ctx context.Context, m *remote, port uint16, from netip.AddrPort) (*stream.Stream, error) {
	p, err := h.peer(ctx, m.node)
	var c *stream.Stream
	if err == nil {
		crowded := time.AfterFunc(crowdedTime, func() { h.crowded(m.holder.Tunnel) })
		defer crowded.Stop()
		c, err = h.link.Dial(ctx, p, cluster.Open{Device: m.holder.Device, Tunnel: m.holder.Tunnel, Port: port, From: from})
	}
	switch {
	case unreached(err):
		m.fail(err)
	case err == nil:
		m.succeed()
	default:
		err = answers.From(err)
	}
	h.observer.PeerStream(peerResult(err))
	return c, err
}

// peerResult is `ok`, `away`, or a code.
func peerResult(err error) string {
	switch {
	case errors.Is(err, cluster.ErrAway):
		return "away"
	case errors.Is(err, cluster.ErrNotHere):
		return string(wire.NotHere)
	}
	return resultOf(err)
}
