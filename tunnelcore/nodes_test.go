package tunnelcore

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// A tunnel that comes up holds up nobody while the routes are busy: a look-up, which
// takes the hub's lock inside that of the routes, would never end.
func TestNewTunnelWaitsForLookUpsWithoutTheHub(t *testing.T) {
	n := startNodes(t, 1, nil)[0]
	n.hub.routes.mu.Lock()
	sock, err := n.dial(wire.ControlPath+"?"+hello("cam-17").Query(), "token-of-cam-17")
	if err != nil {
		n.hub.routes.mu.Unlock()
		t.Fatal(err)
	}
	defer sock.Close()
	up := make(chan struct{})
	go func() {
		defer close(up)
		for end := time.Now().Add(20 * time.Second); n.hub.Tunnels() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
	}()
	select {
	case <-up:
	case <-time.After(10 * time.Second):
		t.Error("the hub is locked")
	}
	n.hub.routes.mu.Unlock()
	<-up
	if n.hub.Tunnels() != 1 {
		t.Error("the tunnel is not there")
	}
}

// slowClaims is a registry whose claims take until they are let through.
type slowClaims struct {
	registry.Registry
	begun, pass chan struct{}
}

func (s *slowClaims) Close() error { return nil }

func (s *slowClaims) Claim(ctx context.Context, c registry.Claim) (registry.Lease, error) {
	close(s.begun)
	<-s.pass
	return s.Registry.Claim(ctx, c)
}

// A claim that is under way when its node stops is given back: nobody waits for a device
// that is nowhere.
func TestClaimUnderWayWhenTheNodeStops(t *testing.T) {
	other := startNodes(t, 1, nil)[0]
	slow := &slowClaims{other.reg.Registry, make(chan struct{}), make(chan struct{})}
	n := startNode(t, newView(slow), "edge-b", nil)
	ended := make(chan error, 1)
	go func() {
		s, err := n.dial(wire.ControlPath+"?"+hello("cam-17").Query(), "token-of-cam-17")
		for err == nil {
			if _, _, err = s.ReadMessage(1 << 12); err != nil {
				s.Close()
			}
		}
		ended <- err
	}()
	<-slow.begun
	down := make(chan error, 1)
	go func() { down <- n.hub.Shutdown(context.Background()) }()
	eventually(t, "it is stopping", n.hub.isStopping)
	close(slow.pass)
	err := <-ended
	var refused *socket.StatusError
	var closed *socket.CloseError
	if errors.As(err, &refused) && refused.Status != 503 || errors.As(err, &closed) && closed.Code != wire.CloseRestart && closed.Code != socket.CloseAbnormal {
		t.Errorf("the agent is told %v", err)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
	rec, err := other.reg.ByDevice(t.Context(), "cam-17")
	if err != nil || rec.Online.Tunnel != "" {
		t.Errorf("the device is %+v, %v", rec, err)
	}
	a := other.connect(hello("cam-17")) // another start of its agent: nobody is asked
	if a.ready.Tunnel == "" {
		t.Error("it does not come up")
	}
}

// A node whose id a live node has does not start, and leaves that one alone.
func TestNodeIDOfALiveNode(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		began := time.Now()
		s := Defaults()
		s.Domain = domain
		s.Visitor = func(context.Context) netip.Addr { return netip.Addr{} }
		if _, err := New(Config{Node: "own", Registry: newView(reg.Registry), Settings: s}); !errors.Is(err, registry.ErrNodeLive) {
			t.Errorf("a second node of the same id: %v", err)
		}
		if took := time.Since(began); took < registry.NodeTTL || took > registry.NodeTTL+2*registry.NodeHeartbeat {
			t.Errorf("decided after %v", took)
		}
		all, err := reg.Registry.Nodes(t.Context())
		if err != nil || len(all) != 1 || all[0].NodeRef != r.hub.node {
			t.Errorf("%+v, %v", all, err)
		}
	})
}
