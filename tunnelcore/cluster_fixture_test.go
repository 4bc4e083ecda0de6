package tunnelcore

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// view is a registry that nodes share, as one of them sees it.
type view struct {
	registry.Registry
	reads atomic.Int64                  // of routes
	down  atomic.Bool                   // it does not answer about routes, nor is it told anything
	hold  atomic.Pointer[chan struct{}] // reads of routes wait until it is closed
}

func newView(reg registry.Registry) *view {
	return &view{Registry: reg}
}

func (v *view) Close() error { return nil }

func (v *view) read(ctx context.Context) error {
	v.reads.Add(1)
	if c := v.hold.Load(); c != nil {
		select {
		case <-*c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if v.down.Load() {
		return errAway
	}
	return nil
}

func (v *view) ByLabel(ctx context.Context, label string) (registry.Record, error) {
	if err := v.read(ctx); err != nil {
		return registry.Record{}, err
	}
	return v.Registry.ByLabel(ctx, label)
}

func (v *view) ByDevice(ctx context.Context, device string) (registry.Record, error) {
	if err := v.read(ctx); err != nil {
		return registry.Record{}, err
	}
	return v.Registry.ByDevice(ctx, device)
}

func (v *view) Claim(ctx context.Context, c registry.Claim) (registry.Lease, error) {
	if v.down.Load() {
		return registry.Lease{}, errAway
	}
	return v.Registry.Claim(ctx, c)
}

func (v *view) Release(ctx context.Context, h registry.Holder, lease time.Duration, why string) error {
	if v.down.Load() {
		return errAway
	}
	return v.Registry.Release(ctx, h, lease, why)
}

func (v *view) Refresh(ctx context.Context, lease time.Duration, holders []registry.Holder) ([]registry.Holder, error) {
	if v.down.Load() {
		return nil, errAway
	}
	return v.Registry.Refresh(ctx, lease, holders)
}

func (v *view) Beat(ctx context.Context, n registry.Node) error {
	if v.down.Load() {
		return errAway
	}
	return v.Registry.Beat(ctx, n)
}

func (v *view) Nodes(ctx context.Context) ([]registry.Node, error) {
	if v.down.Load() {
		return nil, errAway
	}
	return v.Registry.Nodes(ctx)
}

// node is an edge that is one of several.
type node struct {
	*edge
	reg   *view
	ended chan string // ids of tunnels that the host was told are over
	peers peerCount
	cut   atomic.Bool // its peers do not reach it
	held  atomic.Bool // its peers hear nothing of it
}

// peerCount counts what hubs tell of streams through others.
type peerCount struct {
	unobserved
	mu sync.Mutex
	by map[string]int
}

func (p *peerCount) PeerStream(result string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by == nil {
		p.by = make(map[string]int)
	}
	p.by[result]++
}

func (p *peerCount) of(result string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.by[result]
}

const secret = "a secret that all nodes of the tests share"

// startNodes starts that many nodes over one registry; change may alter the settings of
// each. They know each other.
func startNodes(t *testing.T, n int, change func(*Settings)) []*node {
	t.Helper()
	return startNodesOver(t, sharedRegistry(t), n, change)
}

// sharedRegistry is one in memory.
func sharedRegistry(t *testing.T) registry.Registry {
	t.Helper()
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	return reg
}

// deaf is a registry that gives no hints, which have nodes read a route once more at any
// moment.
type deaf struct{ registry.Registry }

func (deaf) Hints(context.Context) <-chan registry.Hint { return nil }

func startNodesOver(t *testing.T, reg registry.Registry, n int, change func(*Settings)) []*node {
	t.Helper()
	var all []*node
	for i := range n {
		all = append(all, startNode(t, newView(reg), "edge-"+string(rune('a'+i)), change))
	}
	for _, one := range all {
		one.look()
	}
	return all
}

// look has the node know of those that there are now.
func (n *node) look() {
	if err := n.hub.beat(); err != nil {
		n.t.Fatal(err)
	}
}

func startNode(t *testing.T, reg *view, id string, change func(*Settings)) *node {
	t.Helper()
	return startNodeWith(t, reg, id, change, nil)
}

func startNodeWith(t *testing.T, reg *view, id string, change func(*Settings), unserved <-chan struct{}) *node {
	t.Helper()
	n := &node{
		edge: &edge{t: t, log: new(lockedBuffer), events: make(chan string, 1000)},
		reg:  reg, ended: make(chan string, 1000),
	}
	n.server = httptest.NewUnstartedServer(http.HandlerFunc(n.serve))
	s := Defaults()
	s.Domain, s.Scheme, s.Port = domain, "http", "8080"
	s.Authenticators = []Authenticator{tokens}
	s.Logger = slog.New(slog.NewTextHandler(n.log, nil))
	s.Events = func(name string, data map[string]any) {
		device, _ := data["device"].(string)
		n.events <- name + " " + device
	}
	s.TunnelEnded = func(tunnel string) { n.ended <- tunnel }
	s.Node = NodeSettings{Internal: n.server.Listener.Addr().String(), Secrets: []string{secret}}
	if change != nil {
		change(&s)
	}
	hub, err := New(Config{Node: id, Registry: reg, Settings: s, Observer: &n.peers, Unserved: unserved})
	if err != nil {
		t.Fatal(err)
	}
	n.hub = hub
	n.server.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no patience with streams
		if err := hub.Shutdown(ctx); err != nil && !reg.down.Load() {
			t.Errorf("shutdown of %s: %v", id, err)
		}
		n.server.Close()
		if t.Failed() {
			t.Logf("log of %s:\n%s", id, n.log)
		}
	})
	return n
}

func (n *node) serve(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != cluster.Path:
		from := netip.MustParseAddrPort(r.RemoteAddr).Addr()
		n.hub.ServeAgent(w, r, Arrival{From: from, Secure: r.TLS != nil})
	case n.cut.Load():
		w.WriteHeader(http.StatusBadGateway)
	case n.held.Load():
		<-r.Context().Done() // until they leave
	default:
		n.hub.ServePeer(w, r)
	}
}

// cutOff has no peer reach the node any more; what they have open breaks.
func (n *node) cutOff(peers ...*node) {
	n.cut.Store(true)
	for _, p := range peers {
		p.hub.link.Forget(n.hub.node)
	}
}

// through opens a stream to port 80 of the agent's device from another node.
func (n *node) through(a *fakeAgent, device string) (visitor, agent net.Conn) {
	n.t.Helper()
	got := n.visit(device, 80)
	c := a.transfer(a.receive().(*wire.Open))
	v := <-got
	if v.err != nil {
		n.t.Fatal(v.err)
	}
	n.t.Cleanup(func() { v.Close() })
	return v.Conn, c
}

// over waits until the host of n was told that a tunnel is over.
func (n *node) over(tunnel string) {
	n.t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case got := <-n.ended:
			if got == tunnel {
				return
			}
		case <-timeout:
			n.t.Fatalf("nobody said that tunnel %s is over", tunnel)
		}
	}
}
