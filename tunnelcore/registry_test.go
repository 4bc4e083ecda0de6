package tunnelcore

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// away is a registry that can be out of reach.
type away struct {
	registry.Registry
	down atomic.Bool
}

var errAway = errors.New("registry is out of reach")

func newAway(t *testing.T) *away {
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &away{Registry: reg}
}

func (a *away) Claim(ctx context.Context, c registry.Claim) (registry.Lease, error) {
	if a.down.Load() {
		return registry.Lease{}, errAway
	}
	return a.Registry.Claim(ctx, c)
}

func (a *away) Release(ctx context.Context, h registry.Holder, lease time.Duration, why string) error {
	if a.down.Load() {
		return errAway
	}
	return a.Registry.Release(ctx, h, lease, why)
}

func (a *away) ByLabel(ctx context.Context, label string) (registry.Record, error) {
	if a.down.Load() {
		return registry.Record{}, errAway
	}
	return a.Registry.ByLabel(ctx, label)
}

func (a *away) Beat(ctx context.Context, n registry.Node) error {
	if a.down.Load() {
		return errAway
	}
	return a.Registry.Beat(ctx, n)
}

func TestRegistryIsAway(t *testing.T) {
	reg := newAway(t)
	e := startEdgeOver(t, reg, func(s *Settings) { s.Wait = -1 })
	h := hello("cam-17")
	a := e.connect(h)
	reg.down.Store(true)

	// What is connected is served.
	if got, err := e.hub.Await(t.Context(), a.ready.Hostname); err != nil || !got.Online {
		t.Errorf("connected device: %+v, %v", got, err)
	}
	v, c := a.open("cam-17")
	carries(t, v, c)

	// Nothing else is known, and nobody new is let in.
	_, err := e.hub.Await(t.Context(), "aaaa."+domain)
	wantCode(t, err, wire.Unavailable)
	other := hello("cam-18")
	status, body, header := e.refusal(wire.ControlPath+"?"+other.Query(), "token-of-cam-18")
	if status != 503 || body.Error != wire.Unavailable || header.Get("Retry-After") == "" {
		t.Errorf("newcomer: %d %+v", status, body)
	}

	// A tunnel ends unheard: the registry believes in it still, but a new instance
	// of the device is not kept out.
	a.sock.Close()
	e.event("offline cam-17")
	reg.down.Store(false)
	if b := e.connect(hello("cam-17")); b.ready.Label != a.ready.Label {
		t.Errorf("label %q became %q", a.ready.Label, b.ready.Label)
	}
}

func TestRegistryIsAwayAtStart(t *testing.T) {
	reg := newAway(t)
	reg.down.Store(true)
	e := startEdgeOver(t, reg, nil)
	h := hello("cam-17")
	path := wire.ControlPath + "?" + h.Query()
	if status, body, header := e.refusal(path, "token-of-cam-17"); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("%d %+v", status, body)
	}
	reg.down.Store(false)
	eventually(t, "the node has joined", e.hub.joined.Load)
	e.connect(h)
}

func TestNodeIDIsTaken(t *testing.T) {
	reg := newAway(t)
	live := registry.NodeRef{ID: "edge-1", Epoch: wire.NewID()}
	beat := func() error { return reg.Beat(t.Context(), registry.Node{NodeRef: live}) }
	if err := beat(); err != nil {
		t.Fatal(err)
	}
	// The other process leaves while this one waits for its id.
	left := make(chan error, 1)
	time.AfterFunc(joinTime/2, func() { left <- reg.Leave(context.Background(), live) })
	e := startEdgeOver(t, reg, nil)
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	e.connect(hello("cam-17"))
}
