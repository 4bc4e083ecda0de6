package tunnelcore

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// shared is a registry that outlives the hubs on it.
type shared struct{ registry.Registry }

func (shared) Close() error { return nil }

// bySecret lets in devices with the secret that the registry knows.
func bySecret(reg registry.Registry) Authenticator {
	return AuthenticatorFunc(func(ctx context.Context, c Credential) error {
		cred, err := reg.Credential(ctx, c.Device)
		switch {
		case errors.Is(err, registry.ErrUnknown):
			return ErrNotMine
		case err != nil:
			return errors.Join(ErrUndecided, err)
		case cred.Revoked() || cred.Current != registry.HashSecret(c.Token):
			return errors.New("wrong secret")
		}
		return nil
	})
}

// startEnrolled starts an edge that lets in cam-17 and cam-18 by the registry.
func startEnrolled(t *testing.T, reg registry.Registry) *edge {
	t.Helper()
	for _, device := range []string{"cam-17", "cam-18"} {
		if _, err := registry.Enroll(t.Context(), reg, device, registry.HashSecret("token-of-"+device), registry.ReplaceAny); err != nil {
			t.Fatal(err)
		}
	}
	return startEdgeOver(t, reg, func(s *Settings) { s.Authenticators = []Authenticator{bySecret(reg)} })
}

// startPair starts two edges on one registry.
func startPair(t *testing.T) (*edge, *edge) {
	t.Helper()
	reg := newAway(t).Registry
	t.Cleanup(func() { reg.Close() })
	one := startEnrolled(t, shared{reg})
	two := &edge{t: t, hub: nil}
	hub, err := New(Config{Node: "edge-2", Registry: shared{reg}, Settings: *one.hub.settings.Load()})
	if err != nil {
		t.Fatal(err)
	}
	two.hub = hub
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := hub.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return one, two
}

func TestRevoke(t *testing.T) {
	e := startEnrolled(t, newAway(t).Registry)
	a, other := e.connect(hello("cam-17")), e.connect(hello("cam-18"))
	v, _ := a.open("cam-17")
	begin := time.Now()
	if err := e.hub.Revoke(t.Context(), "cam-17"); err != nil {
		t.Fatal(err)
	}
	if c := a.closed(); c.Code != wire.CloseRevoked {
		t.Errorf("close: %v", c)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("cut after %v", d)
	}
	if _, err := v.Read(make([]byte, 1)); err == nil {
		t.Error("its stream lives on")
	}
	e.event("offline cam-17")
	h := hello("cam-17")
	if status, body, _ := e.refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-17"); status != 401 || body.Error != wire.Unauthorized {
		t.Errorf("afterwards: %d %v", status, body)
	}
	if r, ok := e.hub.LastRefusal("cam-17"); !ok || r.Code != wire.Unauthorized || !r.Remote.IsLoopback() || time.Since(r.At) > time.Minute {
		t.Errorf("last refusal: %+v", r)
	}
	other.open("cam-18")
}

// A device that is connected to another node is cut within 5 s.
func TestOperatorsOnAnotherNode(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(context.Context, *Hub) error
		code  int
		why   string
		fresh bool
	}{
		"revoke":     {func(ctx context.Context, h *Hub) error { return h.Revoke(ctx, "cam-17") }, wire.CloseRevoked, "authorisation withdrawn", false},
		"forget":     {func(ctx context.Context, h *Hub) error { return h.Forget(ctx, "cam-17") }, wire.CloseRevoked, "authorisation withdrawn", true},
		"disconnect": {func(ctx context.Context, h *Hub) error { return h.Disconnect(ctx, "cam-17") }, wire.CloseRestart, "disconnected by an operator", false},
		"relabel":    {func(ctx context.Context, h *Hub) error { return h.Relabel(ctx, "cam-17") }, wire.CloseRestart, "ended by an operator", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one, two := startPair(t)
			a := one.connect(hello("cam-17"))
			witness := one.connect(hello("cam-18"))
			begin := time.Now()
			if err := c.do(t.Context(), two.hub); err != nil {
				t.Fatal(err)
			}
			closed := a.closed()
			if closed.Code != c.code || closed.Reason != c.why {
				t.Errorf("close: %v, want %d %q", closed, c.code, c.why)
			}
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("cut after %v", d)
			}
			one.event("offline cam-17")
			rec, err := two.hub.Registry().ByDevice(t.Context(), "cam-17")
			if gone := errors.Is(err, registry.ErrUnknown); gone != c.fresh {
				t.Errorf("lease afterwards: %+v, %v", rec, err)
			}
			witness.open("cam-18")
			if c.code == wire.CloseRevoked {
				return
			}
			// It may come back, and stays.
			again := one.connect(hello("cam-17"))
			if fresh := again.ready.Label != a.ready.Label; fresh != c.fresh {
				t.Errorf("label %s after %s", again.ready.Label, a.ready.Label)
			}
			one.hub.Recheck("cam-17")
			again.open("cam-17")
		})
	}
}

// A device that is revoked while its handshake is under way is not overlooked.
func TestRevokedDuringHandshake(t *testing.T) {
	reg := &slowClaim{newAway(t).Registry, "cam-17", make(chan struct{}), make(chan struct{})}
	e := startEnrolled(t, reg)
	agents := make(chan *socket.Socket, 1)
	h := hello("cam-17")
	go func() {
		s, err := e.dial(wire.ControlPath+"?"+h.Query(), "token-of-cam-17")
		if err != nil {
			t.Error(err)
		}
		agents <- s
	}()
	<-reg.arrived
	if err := e.hub.Revoke(t.Context(), "cam-17"); err != nil {
		t.Fatal(err)
	}
	close(reg.proceed)
	s := <-agents
	defer s.Close()
	if c := (&fakeAgent{e: e, sock: s}).closed(); c.Code != wire.CloseRevoked {
		t.Errorf("close: %v", c)
	}
}

// unsure is a registry that does not tell credentials while it is away.
type unsure struct{ *away }

func (u unsure) Credential(ctx context.Context, device string) (registry.Credential, error) {
	if u.down.Load() {
		return registry.Credential{}, errAway
	}
	return u.Registry.Credential(ctx, device)
}

// While the registry is away nobody loses a tunnel, and nobody is told that a secret
// is wrong; what was missed is made up for.
func TestUndecided(t *testing.T) {
	reg := unsure{newAway(t)}
	e := startEnrolled(t, reg)
	a, other := e.connect(hello("cam-17")), e.connect(hello("cam-18"))
	reg.down.Store(true)
	e.change(func(s *Settings) { s.Wait = time.Minute })
	h := hello("cam-17")
	if status, body, header := e.refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-17"); status != 503 || body.Error != wire.Unavailable || header.Get("Retry-After") == "" {
		t.Errorf("while the registry is away: %d %v %v", status, body, header)
	}
	eventually(t, "the tunnels are to be looked at again", func() bool { return e.hub.undecided.Load() })
	a.open("cam-17")
	// A change that no notice tells of.
	if _, err := registry.Enroll(t.Context(), reg.Registry, "cam-17", registry.HashSecret("another"), registry.ReplaceAny); err != nil {
		t.Fatal(err)
	}
	reg.down.Store(false)
	if c := a.closed(); c.Code != wire.CloseRevoked {
		t.Errorf("close: %v", c)
	}
	other.open("cam-18")
}

func TestManageOffline(t *testing.T) {
	e := startEnrolled(t, newAway(t).Registry)
	ctx := t.Context()
	for what, c := range map[string]struct{ err, want error }{
		"disconnect unknown": {e.hub.Disconnect(ctx, "nobody"), ErrOffline},
		"relabel unknown":    {e.hub.Relabel(ctx, "nobody"), registry.ErrUnknown},
		"forget unknown":     {e.hub.Forget(ctx, "nobody"), registry.ErrUnknown},
		"forget enrolled":    {e.hub.Forget(ctx, "cam-18"), nil},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	a := e.connect(hello("cam-17"))
	info, ok := e.hub.Tunnel("cam-17")
	if !ok || info.Label != a.ready.Label || info.Tunnel != a.ready.Tunnel || !info.Remote.IsLoopback() || len(info.Ports) != 3 ||
		info.Ports[0].URL == "" || info.Since.IsZero() {
		t.Errorf("tunnel: %+v", info)
	}
	_ = a.sock.WriteClose(wire.CloseNormal, "", time.Second)
	e.event("offline cam-17")
	if err := e.hub.Disconnect(ctx, "cam-17"); !errors.Is(err, ErrOffline) {
		t.Errorf("disconnect: %v", err)
	}
	if _, ok := e.hub.Tunnel("cam-17"); ok {
		t.Error("it still has a tunnel")
	}
}

func TestRefusalsAreBounded(t *testing.T) {
	e := startEdge(t, nil)
	e.from = netip.MustParseAddr("203.0.113.9")
	for _, device := range []string{"cam-17", "Not an id", strings.Repeat("x", 64)} {
		h := hello("cam-17")
		query := strings.Replace(h.Query(), "device=cam-17", "device="+strings.ReplaceAll(device, " ", "+"), 1)
		e.refusal(wire.ControlPath+"?"+query, "wrong")
	}
	e.refusal(wire.ControlPath+"?device=door-2&instance="+wire.NewID(), "") // what `iottunnel-agent check` asks first
	l := &e.hub.lastRefusals
	l.mu.Lock()
	if len(l.by) != 1 {
		t.Errorf("remembered: %v", l.by)
	}
	for i := range 2 * maxRefusals {
		if len(l.by) < maxRefusals {
			l.by[wire.NewID()[:16]+string(rune('a'+i%26))] = Refusal{}
		}
	}
	l.mu.Unlock()
	h := hello("door-1")
	e.refusal(wire.ControlPath+"?"+h.Query(), "wrong")
	if _, ok := e.hub.LastRefusal("door-1"); !ok || len(l.by) > maxRefusals {
		t.Errorf("%d remembered, door-1 among them: %v", len(l.by), ok)
	}
}
