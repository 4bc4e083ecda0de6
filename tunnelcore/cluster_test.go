package tunnelcore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// view is a registry that nodes share, as one of them sees it.
type view struct {
	registry.Registry
	reads  atomic.Int64 // of routes
	down   atomic.Bool  // it does not answer about routes, nor is it told anything
	silent atomic.Bool  // it gives no hints
	hints  chan registry.Hint
	hold   atomic.Pointer[chan struct{}] // reads of routes wait until it is closed
}

func newView(reg registry.Registry) *view {
	return &view{Registry: reg, hints: make(chan registry.Hint)}
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

func (v *view) Hints(ctx context.Context) <-chan registry.Hint {
	if v.silent.Load() {
		return nil
	}
	return v.Registry.Hints(ctx)
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
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	return startNodesOver(t, reg, n, change)
}

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

func TestDeviceOfAnotherNode(t *testing.T) {
	nodes := startNodes(t, 3, nil)
	a := nodes[0].connect(hello("cam-17"))
	for _, n := range nodes[1:] {
		n.reg.reads.Store(0)
		for suffix, want := range map[string]Target{"": {Port: 80, Kind: wire.HTTP}, "--8080": {Port: 8080, Kind: wire.HTTP}} {
			got, err := n.hub.Lookup(t.Context(), a.ready.Label+suffix+"."+domain)
			if err != nil || !got.Online || got.Node != "edge-a" || got.Tunnel != a.ready.Tunnel || got.Device != "cam-17" ||
				got.Port != want.Port || got.Kind != want.Kind {
				t.Errorf("%q: %+v, %v", suffix, got, err)
			}
		}
		_, err := n.hub.Lookup(t.Context(), a.ready.Label+"--22."+domain)
		wantCode(t, err, wire.UnknownDevice)
		v, c := n.through(a, "cam-17")
		carries(t, v, c)

		// Half-close, then the other half.
		if err := v.(*stream.Stream).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the device reads %v, want EOF", err)
		}
		if _, err := io.WriteString(c, "after"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(v, got); err != nil || string(got) != "after" {
			t.Errorf("the visitor reads %q, %v", got, err)
		}
		c.Close()
		if _, err := v.Read(got); err != io.EOF {
			t.Errorf("the visitor reads %v, want EOF", err)
		}
		v.Close()
		if reads := n.reg.reads.Load(); reads != 1 {
			t.Errorf("%d reads of the registry for look-ups and a stream, want 1", reads)
		}
		if n.peers.of("ok") != 1 {
			t.Errorf("streams through peers: %v", n.peers.by)
		}
		_, err = n.hub.Dial(t.Context(), "cam-17", 23, visitor)
		wantCode(t, err, wire.UnknownDevice)
	}
}

func TestAbortsCrossNodes(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	v, c := nodes[1].through(a, "cam-17")
	carries(t, v, c)
	v.(*stream.Stream).Abort()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, stream.ErrAborted) {
		t.Errorf("the device reads %v, want an abort", err)
	}
	v, c = nodes[1].through(a, "cam-17")
	carries(t, v, c)
	c.(*stream.Stream).Abort()
	if _, err := io.Copy(io.Discard, v); !errors.Is(err, stream.ErrAborted) {
		t.Errorf("the visitor reads %v, want an abort", err)
	}
}

// What the agent says of its local service reaches visitors elsewhere.
func TestRefusalsCrossNodes(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	got := nodes[1].visit("cam-17", 80)
	o := a.receive().(*wire.Open)
	a.say(&wire.Refused{Stream: o.Stream, Reason: "refused"})
	v := <-got
	wantCode(t, v.err, wire.DeviceRefused)
	if nodes[1].peers.of(string(wire.DeviceRefused)) != 1 {
		t.Errorf("streams through peers: %v", nodes[1].peers.by)
	}
}

// A device that moves is found at its new node, whether or not the registry tells.
func TestDeviceMoves(t *testing.T) {
	for name, silent := range map[string]bool{"with hints": false, "without": true} {
		t.Run(name, func(t *testing.T) {
			reg, err := registry.OpenMemory(registry.MemoryOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { reg.Close() })
			var nodes []*node
			for _, id := range []string{"edge-a", "edge-b", "edge-c"} {
				v := newView(reg)
				v.silent.Store(silent)
				nodes = append(nodes, startNode(t, v, id, nil))
			}
			for _, n := range nodes {
				n.look()
			}
			h := hello("cam-17")
			first := nodes[0].connect(h)
			v, c := nodes[2].through(first, "cam-17")
			carries(t, v, c)
			if got, err := nodes[2].hub.Lookup(t.Context(), first.ready.Hostname); err != nil || got.Tunnel != first.ready.Tunnel {
				t.Fatalf("%+v, %v", got, err)
			}

			second := nodes[1].connect(h)
			if code := first.closed().Code; code != wire.CloseReplaced {
				t.Errorf("the loser is closed with %d", code)
			}
			nodes[0].over(first.ready.Tunnel)
			v, c = nodes[2].through(second, "cam-17")
			carries(t, v, c)
			nodes[2].over(first.ready.Tunnel)
			got, err := nodes[2].hub.Lookup(t.Context(), first.ready.Hostname)
			if err != nil || got.Tunnel != second.ready.Tunnel || got.Node != "edge-b" {
				t.Errorf("%+v, %v", got, err)
			}
			// The node that had it leads there as well.
			v, c = nodes[0].through(second, "cam-17")
			carries(t, v, c)
		})
	}
}

// The winner tells the loser, and streams of another instance end.
func TestRebootedDeviceComesToAnotherNode(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	dead := nodes[0].connect(hello("cam-17")) // answers no ping
	v, c := nodes[0].through(dead, "cam-17")
	carries(t, v, c)
	a := nodes[1].connect(hello("cam-17"))
	if a.ready.Label != dead.ready.Label {
		t.Errorf("label %q became %q", dead.ready.Label, a.ready.Label)
	}
	if c := dead.closed(); c.Code != wire.CloseReplaced {
		t.Errorf("loser: %v", c)
	}
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("stream of the instance before: %v", err)
	}
	v, c = nodes[0].through(a, "cam-17")
	carries(t, v, c)
}

// A process that comes back to another node does so at once, and its streams go on.
func TestSameInstanceTakesOverAcrossNodes(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	h := hello("cam-17")
	first := nodes[0].connect(h)
	v, c := nodes[0].through(first, "cam-17")
	nodes[1].cut.Store(true)
	second := nodes[1].connect(h) // nobody had to be asked
	if got := first.closed(); got.Code != wire.CloseReplaced {
		t.Errorf("first tunnel: %v", got)
	}
	nodes[1].cut.Store(false)
	carries(t, v, c)
	v, c = nodes[0].through(second, "cam-17")
	carries(t, v, c)
}

func TestLiveDeviceKeepsItsNode(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	go a.receiveAll()
	h := hello("cam-17")
	status, body, _ := nodes[1].refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-17")
	if status != 409 || body.Error != wire.DeviceConnected {
		t.Errorf("%d %+v, want 409", status, body)
	}
	nodes[0].event("cloned cam-17")
	nodes[1].event("cloned cam-17")
	if nodes[0].hub.Tunnels() != 1 || nodes[1].hub.Tunnels() != 0 {
		t.Error("the incumbent has lost its tunnel")
	}
}

// Nobody knows whether the incumbent lives: the newcomer is not told that it does.
func TestIncumbentAtUnreachableNode(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	go a.receiveAll()
	nodes[0].cutOff(nodes[1])
	h := hello("cam-17")
	status, body, header := nodes[1].refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-17")
	if status != 503 || body.Error != wire.Unavailable || header.Get("Retry-After") != "3" {
		t.Errorf("%d %+v, Retry-After %q", status, body, header.Get("Retry-After"))
	}
	// Its node is gone: the newcomer is let in.
	if err := nodes[0].reg.Registry.Leave(t.Context(), nodes[0].hub.node); err != nil {
		t.Fatal(err)
	}
	nodes[1].look()
	second := nodes[1].connect(h)
	if second.ready.Label != a.ready.Label {
		t.Error("another label")
	}
}

// The loser cannot be reached: it finds a notice.
func TestLoserCannotBeReached(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	h := hello("cam-17")
	first := nodes[0].connect(h)
	nodes[0].cutOff(nodes[1])
	second := nodes[1].connect(h)
	if got := first.closed(); got.Code != wire.CloseReplaced {
		t.Errorf("first tunnel: %v", got)
	}
	v, c := nodes[0].through(second, "cam-17")
	carries(t, v, c)
}

// A node that others took for dead, and that nobody could tell, finds out by itself
// which devices are not its own any more.
func TestNodeThatWasTakenForDead(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	first := nodes[0].connect(hello("cam-17"))
	rec, err := nodes[0].reg.ByDevice(t.Context(), "cam-17")
	if err != nil {
		t.Fatal(err)
	}
	_, err = nodes[1].reg.Claim(t.Context(), registry.Claim{
		Device: "cam-17", Instance: wire.NewID(), Tunnel: wire.NewID(), Node: nodes[1].hub.node,
		Label: rec.Label, Lease: time.Hour, Evict: rec.Online.Holder,
	})
	if err != nil {
		t.Fatal(err)
	}
	nodes[0].hub.beaten.Store(int64(time.Since(nodes[0].hub.started) - registry.NodeTTL))
	if err := nodes[0].hub.beat(); err != nil {
		t.Fatal(err)
	}
	if got := first.closed(); got.Code != wire.CloseReplaced {
		t.Errorf("the tunnel: %v", got)
	}
}

// Instances of a device that take it from each other at different nodes are two
// devices of one name.
func TestClonesAtTwoNodes(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	clones := []wire.Hello{hello("cam-17"), hello("cam-17")}
	for i := range 2 * (returnBurst + 1) {
		nodes[i%2].connect(clones[i%2]) // answers no ping, so that the next one evicts it
	}
	status, body, _ := nodes[0].refusal(wire.ControlPath+"?"+clones[0].Query(), "token-of-cam-17")
	if status != 409 || body.Error != wire.DeviceConnected {
		t.Errorf("%d %+v, want 409", status, body)
	}
	nodes[0].event("cloned cam-17")
}

// The agent dials where it came in, which the name may have become another node.
func TestTransferSocketsAtTheWrongNode(t *testing.T) {
	nodes := startNodes(t, 3, nil)
	a := nodes[0].connect(hello("cam-17"))
	at := func(n *node, o *wire.Open) net.Conn {
		t.Helper()
		s, err := n.dial(a.ready.Transfer+"&id="+o.ID, a.ready.Secret)
		if err != nil {
			t.Fatalf("transfer: %v", err)
		}
		c := stream.New(s, stream.Options{Owner: &a.owner})
		t.Cleanup(c.Abort)
		return c
	}
	for _, entry := range nodes {
		for _, n := range nodes[1:] {
			got := entry.visit("cam-17", 80)
			c := at(n, a.receive().(*wire.Open))
			v := <-got
			if v.err != nil {
				t.Fatal(v.err)
			}
			carries(t, v.Conn, c)
			if err := c.(*stream.Stream).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := v.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the visitor reads %v, want EOF", err)
			}
			v.Conn.Close()
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the device reads %v, want EOF", err)
			}
		}
	}
	// Refusals of its node reach the agent; and those of the node in between.
	if status, body, _ := nodes[1].refusal(a.ready.Transfer+"&id="+wire.NewID(), a.ready.Secret); status != 404 || body.Error != wire.UnknownStream {
		t.Errorf("unknown stream: %d %+v", status, body)
	}
	if status, body, _ := nodes[1].refusal(a.ready.Transfer+"&id="+wire.NewID(), "wrong"); status != 401 || body.Error != wire.Unauthorized {
		t.Errorf("wrong secret: %d %+v", status, body)
	}
	if status, body, _ := nodes[1].refusal(wire.TransferPath+"?node=edge-x&tunnel=1&id=2", "wrong"); status != 421 || body.Error != wire.NotHere {
		t.Errorf("unknown node: %d %+v", status, body)
	}
	nodes[0].cutOff(nodes[1:]...)
	if status, body, _ := nodes[1].refusal(a.ready.Transfer+"&id="+wire.NewID(), a.ready.Secret); status != 503 || body.Error != wire.Unavailable {
		t.Errorf("node that does not answer: %d %+v", status, body)
	}
}

// An agent that guesses secrets by way of another node is bounded there, too.
func TestGuessesAtTheWrongNode(t *testing.T) {
	nodes := startNodes(t, 2, func(s *Settings) { s.Limits.UnauthenticatedPerAddress = 4 })
	a := nodes[0].connect(hello("cam-17"))
	for range 4 {
		nodes[1].refusal(a.ready.Transfer+"&id="+wire.NewID(), "wrong")
	}
	if status, body, _ := nodes[1].refusal(a.ready.Transfer+"&id="+wire.NewID(), "wrong"); status != 429 || body.Error != wire.TooMany {
		t.Errorf("%d %+v, want 429", status, body)
	}
}

// Who knows the secret guesses nothing, whatever became of the stream: one that comes
// late at the wrong node does not count against its neighbours behind a NAT.
func TestLateAtTheWrongNode(t *testing.T) {
	nodes := startNodes(t, 2, func(s *Settings) { s.Limits.UnauthenticatedPerAddress = 4 })
	a := nodes[0].connect(hello("cam-17"))
	for range 6 {
		if status, body, _ := nodes[1].refusal(a.ready.Transfer+"&id="+wire.NewID(), a.ready.Secret); status != 404 {
			t.Errorf("%d %+v, want 404", status, body)
		}
	}
}

// The device's node dies while a visitor waits for its answer, and while one has a
// stream: the one waits for the device to come back, the other is told at once.
func TestNodeDies(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	h := hello("cam-17")
	a := nodes[0].connect(h)
	v, c := nodes[1].through(a, "cam-17")
	carries(t, v, c)
	waits := nodes[1].visit("cam-17", 80)
	a.receive() // the open
	nodes[0].die()
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("stream through a node that died: %v", err)
	}
	nodes[1].awaited("cam-17", 1)
	a = nodes[1].connect(h)
	c = a.transfer(a.receive().(*wire.Open))
	got := <-waits
	if got.err != nil {
		t.Fatal(got.err)
	}
	carries(t, got.Conn, c)
}

// die is what is seen of a node that is killed.
func (n *node) die() {
	n.reg.down.Store(true)
	n.cut.Store(true)
	n.server.Listener.Close()
	n.hub.link.Close()
	for _, t := range n.hub.live() {
		t.sock.Close()
	}
}

// A visitor who comes after the end of a device's tunnel, or its node, is served when it
// is back, wherever that is.
func TestAwaitAcrossNodes(t *testing.T) {
	for name, end := range map[string]func(n *node, a *fakeAgent){
		"unclean end":  func(n *node, a *fakeAgent) { a.sock.Close(); n.over(a.ready.Tunnel) },
		"node is gone": func(n *node, a *fakeAgent) { n.die() },
		"node is found gone": func(n *node, a *fakeAgent) {
			n.die()
			if err := n.reg.Registry.Leave(context.Background(), n.hub.node); err != nil {
				n.t.Fatal(err)
			}
		},
	} {
		for _, silent := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				reg, err := registry.OpenMemory(registry.MemoryOptions{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { reg.Close() })
				var nodes []*node
				for _, id := range []string{"edge-a", "edge-b", "edge-c"} {
					v := newView(reg)
					v.silent.Store(silent)
					nodes = append(nodes, startNode(t, v, id, nil))
				}
				for _, n := range nodes {
					n.look()
					n.hub.started = n.hub.started.Add(-time.Hour) // no grace for a start
				}
				h := hello("cam-17")
				a := nodes[0].connect(h)
				if _, err := nodes[2].hub.Lookup(t.Context(), a.ready.Hostname); err != nil {
					t.Fatal(err)
				}
				end(nodes[0], a)
				nodes[2].look()
				got := nodes[2].visit("cam-17", 80)
				nodes[2].awaited("cam-17", 1)
				back := nodes[1].connect(h)
				c := back.transfer(back.receive().(*wire.Open))
				v := <-got
				if v.err != nil {
					t.Fatal(v.err)
				}
				carries(t, v.Conn, c)
				nodes[2].over(a.ready.Tunnel)
			})
		}
	}
}

// A device that says goodbye elsewhere is not waited for.
func TestGoodbyeAtAnotherNode(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	if _, err := nodes[1].hub.Lookup(t.Context(), a.ready.Hostname); err != nil {
		t.Fatal(err)
	}
	if err := a.sock.WriteClose(wire.CloseGoingAway, "", time.Second); err != nil {
		t.Fatal(err)
	}
	nodes[0].event("offline cam-17")
	nodes[1].hub.started = nodes[1].hub.started.Add(-time.Hour)
	began := time.Now()
	nodes[1].hub.routes.stale("cam-17", "")
	_, err := nodes[1].hub.Await(t.Context(), a.ready.Hostname)
	wantCode(t, err, wire.DeviceOffline)
	var offline *answers.Error
	if errors.As(err, &offline); offline.LastSeen.IsZero() {
		t.Errorf("offline: %+v", offline)
	}
	if time.Since(began) > 2*time.Second {
		t.Error("waited for a device that said goodbye")
	}
}

// What a host keeps to a device goes with its tunnel, wherever that was, though nobody
// asks for the device any more.
func TestGoodbyeReachesOtherNodes(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	eventually(t, "the route is remembered", func() bool { // not while news of the device come in
		if _, err := nodes[1].hub.Lookup(t.Context(), a.ready.Hostname); err != nil {
			t.Fatal(err)
		}
		r := nodes[1].hub.routes
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.byDevice["cam-17"] != nil
	})
	if err := a.sock.WriteClose(wire.CloseGoingAway, "", time.Second); err != nil {
		t.Fatal(err)
	}
	nodes[1].over(a.ready.Tunnel)
}

// A node that is held up, or cut off, while the registry believes in it.
func TestNodeDoesNotAnswer(t *testing.T) {
	nodes := startNodes(t, 2, func(s *Settings) { s.Wait = 300 * time.Millisecond })
	a := nodes[0].connect(hello("cam-17"))
	nodes[0].cutOff(nodes[1])
	_, err := nodes[1].hub.Await(t.Context(), a.ready.Hostname)
	wantCode(t, err, wire.Unavailable)
	_, err = nodes[1].hub.Dial(t.Context(), "cam-17", 80, visitor)
	wantCode(t, err, wire.Unavailable)
	nodes[0].cut.Store(false)
	eventually(t, "it is reached again", func() bool {
		got, err := nodes[1].hub.Await(t.Context(), a.ready.Hostname)
		return err == nil && got.Online
	})
	v, c := nodes[1].through(a, "cam-17")
	carries(t, v, c)
}

// A visitor whose device is at a node that says nothing is not kept waiting: its agent
// does not know of it yet, so that the device is nowhere else.
func TestNodeSaysNothing(t *testing.T) {
	nodes := startNodes(t, 2, func(s *Settings) { s.Wait = time.Hour }) // until the device is not expected back
	a := nodes[0].connect(hello("cam-17"))
	other := nodes[0].connect(hello("cam-18"))
	if _, err := nodes[1].hub.Await(t.Context(), other.ready.Hostname); err != nil {
		t.Fatal(err)
	}
	nodes[1].hub.link.Forget(nodes[0].hub.node)
	eventually(t, "the socket of that question is gone", func() bool { return nodes[1].hub.link.Stats().Out == 0 })
	nodes[0].held.Store(true)
	for what, visit := range map[string]func() error{
		"before its ports are known": func() error {
			_, err := nodes[1].hub.Await(t.Context(), a.ready.Hostname)
			return err
		},
		"after that": func() error {
			_, err := nodes[1].hub.Dial(t.Context(), "cam-18", 80, visitor)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			began := time.Now()
			wantCode(t, visit(), wire.Unavailable)
			if took := time.Since(began); took > reconnectTime/2 {
				t.Errorf("it took %v", took)
			}
		})
	}
	nodes[0].held.Store(false)
	eventually(t, "it is reached again", func() bool {
		got, err := nodes[1].hub.Await(t.Context(), a.ready.Hostname)
		return err == nil && got.Online
	})
}

// Two nodes that believe they have the device: the registry knows which.
func TestTwoNodesBelieveTheyHaveTheDevice(t *testing.T) {
	nodes := startNodes(t, 3, nil)
	h := hello("cam-17")
	first := nodes[0].connect(h)
	nodes[0].reg.down.Store(true) // it is told nothing, and tells nothing
	nodes[0].cutOff(nodes[1:]...)
	second := nodes[1].connect(h)
	if nodes[0].hub.Tunnels() != 1 || nodes[1].hub.Tunnels() != 1 {
		t.Fatal("not two tunnels")
	}
	v, c := nodes[2].through(second, "cam-17")
	carries(t, v, c)
	v, c = nodes[0].through(first, "cam-17") // it does not know better
	carries(t, v, c)
	nodes[0].reg.down.Store(false)
	nodes[0].cut.Store(false)
	if got := first.closed(); got.Code != wire.CloseReplaced {
		t.Errorf("first tunnel: %v", got)
	}
	nodes[0].over(first.ready.Tunnel)
	v, c = nodes[0].through(second, "cam-17")
	carries(t, v, c)
}

func TestTunnelOf(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	rec, err := nodes[1].hub.reg.ByDevice(t.Context(), "cam-17")
	if err != nil {
		t.Fatal(err)
	}
	want, ok := nodes[0].hub.TunnelOf(t.Context(), rec)
	if !ok || want.Tunnel != a.ready.Tunnel || len(want.Ports) != 3 {
		t.Fatalf("at its node: %+v, %v", want, ok)
	}
	got, ok := nodes[1].hub.TunnelOf(t.Context(), rec)
	got.Since, want.Since, got.RTT, want.RTT = time.Time{}, time.Time{}, 0, 0
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("from another node: %+v, want %+v", got, want)
	}
	nodes[0].cutOff(nodes[1])
	if _, ok := nodes[1].hub.TunnelOf(t.Context(), rec); ok {
		t.Error("of a node that does not answer")
	}
	if _, ok := nodes[1].hub.TunnelOf(t.Context(), registry.Record{}); ok {
		t.Error("of a device that is offline")
	}
}

// Visitors who come all at once ask the registry once, and the device's node once.
func TestStampedeForADeviceOfAnotherNode(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	gate := make(chan struct{})
	nodes[1].reg.hold.Store(&gate)
	nodes[1].reg.reads.Store(0)
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			if got, err := nodes[1].hub.Lookup(t.Context(), a.ready.Hostname); err != nil || !got.Online {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	eventually(t, "the registry is asked", func() bool { return nodes[1].reg.reads.Load() > 0 })
	close(gate)
	wg.Wait()
	if n := nodes[1].reg.reads.Load(); n != 1 {
		t.Errorf("%d reads of the registry, want 1", n)
	}
	if s := nodes[1].hub.link.Stats(); s.Out != 1 {
		t.Errorf("%d sockets to the device's node, want 1", s.Out)
	}
}

// The registry is away: devices of other nodes that were found before are reached.
func TestOtherNodesWithoutRegistry(t *testing.T) {
	nodes := startNodes(t, 2, func(s *Settings) { s.Wait = -1 })
	a := nodes[0].connect(hello("cam-17"))
	unseen := nodes[0].connect(hello("cam-18"))
	v, c := nodes[1].through(a, "cam-17")
	carries(t, v, c)
	if _, err := nodes[1].hub.Lookup(t.Context(), a.ready.Hostname); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.reg.down.Store(true)
		n.hub.routes.allStale()
	}
	for range 3 {
		if got, err := nodes[1].hub.Await(t.Context(), a.ready.Hostname); err != nil || !got.Online {
			t.Errorf("%+v, %v", got, err)
		}
		v, c := nodes[1].through(a, "cam-17")
		carries(t, v, c)
	}
	_, err := nodes[1].hub.Await(t.Context(), unseen.ready.Hostname)
	wantCode(t, err, wire.Unavailable)
	if retryAfter(err) <= 0 {
		t.Error("no Retry-After")
	}
}

// With early the visitor has its stream before the agent has said anything, and hears
// through its reads how it went.
func TestEarlyStreamThroughAnotherNode(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(offering("cam-17", wire.Early))
	dial := func() net.Conn {
		t.Helper()
		c, err := nodes[1].hub.Dial(t.Context(), "cam-17", 80, visitor)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	v := dial()
	if _, err := io.WriteString(v, "ask"); err != nil {
		t.Fatal(err)
	}
	o := a.receive().(*wire.Open)
	a.frames(frame{wire.FrameData, o.Stream, "ask"})
	a.say(frame{wire.FrameData, o.Stream, "answer"}, frame{wire.FrameFin, o.Stream, ""})
	if got, err := io.ReadAll(v); err != nil || string(got) != "answer" {
		t.Errorf("%q, %v", got, err)
	}
	v = dial()
	o = a.receive().(*wire.Open)
	a.say(&wire.Refused{Stream: o.Stream, Reason: "refused"})
	_, err := v.Read(make([]byte, 1))
	wantCode(t, err, wire.DeviceRefused)
	a.frames(frame{wire.FrameReset, o.Stream, ""})
	v = dial()
	a.receive()
	a.sock.Close()
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("its tunnel has broken: %v", err)
	}
}

// Shutdown waits for streams of visitors through other nodes, as long as it may.
func TestShutdownWaitsForStreamsThroughOthers(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	v, c := nodes[1].through(a, "cam-17")
	done := make(chan error)
	go func() { done <- nodes[1].hub.Shutdown(context.Background()) }()
	eventually(t, "it stops", nodes[1].hub.isStopping)
	carries(t, v, c)
	// Who comes meanwhile is served as well.
	v2, c2 := nodes[1].through(a, "cam-17")
	carries(t, v2, c2)
	for _, one := range []net.Conn{v, v2, c, c2} {
		one.Close()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A node that stops and has nothing left to wait for reaches devices of others for as
// long as its sites bring visitors.
func TestShutdownWaitsForVisitors(t *testing.T) {
	nodes := startNodes(t, 1, nil)
	unserved := make(chan struct{})
	n := startNodeWith(t, newView(nodes[0].reg.Registry), "edge-b", nil, unserved)
	n.look()
	nodes[0].look()
	a := nodes[0].connect(hello("cam-17"))
	done := make(chan error, 1)
	go func() { done <- n.hub.Shutdown(context.Background()) }()
	select {
	case <-done:
		t.Fatal("it has ended while its sites serve")
	case <-time.After(100 * time.Millisecond):
	}
	v, c := n.through(a, "cam-17")
	carries(t, v, c)
	close(unserved)
	carries(t, v, c) // which it waits for
	v.Close()
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Visitors whose stream this or another node has ended are told so: it was not their
// device.
func TestStreamsThatNodesEnd(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	drop := func(device string) {
		nodes[0].hub.mu.Lock()
		d := nodes[0].hub.devices[device]
		nodes[0].hub.mu.Unlock()
		d.dropStreams()
	}
	for name, by := range map[string]struct {
		from *node
		end  func(device string)
	}{
		"the other node is dead":                 {nodes[1], func(string) { nodes[1].hub.link.Forget(nodes[0].hub.node) }},
		"the device has started anew":            {nodes[0], drop},
		"the device has started anew, elsewhere": {nodes[1], drop},
	} {
		t.Run(name, func(t *testing.T) {
			device := wire.NewID()
			a := nodes[0].connect(hello(device))
			got := by.from.visit(device, 80)
			c := a.transfer(a.receive().(*wire.Open))
			v := <-got
			if v.err != nil {
				t.Fatal(v.err)
			}
			defer v.Close()
			carries(t, v, c)
			read := make(chan error)
			go func() { _, err := v.Read(make([]byte, 1)); read <- err }()
			by.end(device)
			err := <-read
			_, later := v.Write([]byte("x"))
			for what, err := range map[string]error{"a read under way": err, "a later write": later} {
				if !errors.Is(err, ErrLost) {
					t.Errorf("%s: %v, want ErrLost", what, err)
				}
				wantCode(t, answers.From(err), wire.DeviceOffline)
			}
		})
	}
}

// Connections that are kept here for a next visitor make room for one who comes.
func TestCrowdedDeviceOfAnotherNode(t *testing.T) {
	var kept sync.Map // tunnel → connection
	nodes := startNodes(t, 2, func(s *Settings) {
		s.Limits.StreamsPerDevice = 1
		s.Crowded = func(tunnel string) {
			if c, ok := kept.LoadAndDelete(tunnel); ok {
				c.(net.Conn).Close()
			}
		}
	})
	a := nodes[0].connect(hello("cam-17"))
	v, c := nodes[1].through(a, "cam-17")
	carries(t, v, c)
	kept.Store(a.ready.Tunnel, v)
	got := nodes[1].visit("cam-17", 80)
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the first stream: %v, want its end", err)
	}
	c.Close()
	second := a.transfer(a.receive().(*wire.Open))
	next := <-got
	if next.err != nil {
		t.Fatal(next.err)
	}
	t.Cleanup(func() { next.Close() })
	carries(t, next.Conn, second)
}

// The registry is emptied, and knows of no other node for a moment: nothing breaks.
func TestRegistryForgetsNodes(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	a := nodes[0].connect(hello("cam-17"))
	v, c := nodes[1].through(a, "cam-17")
	if err := nodes[1].reg.Registry.Leave(t.Context(), nodes[0].hub.node); err != nil {
		t.Fatal(err)
	}
	nodes[1].look()
	carries(t, v, c)
	v, c = nodes[1].through(a, "cam-17")
	carries(t, v, c)
	// It was away for so long that its word about heartbeats is old.
	nodes[1].hub.unanswered.Store(true)
	nodes[1].hub.admission.clock.Store(&reading{registry: time.Now().Add(time.Hour), local: time.Now()})
	peers := nodes[1].hub.admission.peers.All()
	nodes[1].look()
	if got := nodes[1].hub.admission.peers.All(); len(got) != len(peers) {
		t.Errorf("%d of %d peers are left", len(got), len(peers))
	}
	carries(t, v, c)
}

// A visitor at the node that had the device does not wait until the old tunnel has ended.
func TestVisitorAtTheLoser(t *testing.T) {
	nodes := startNodes(t, 2, nil)
	h := hello("cam-17")
	nodes[0].connect(h) // its agent answers nothing, no close frame either
	second := nodes[1].connect(h)
	eventually(t, "the loser knows", func() bool {
		live, _ := nodes[0].hub.liveTunnel("cam-17")
		return live == nil
	})
	began := time.Now()
	v, c := nodes[0].through(second, "cam-17")
	carries(t, v, c)
	if took := time.Since(began); took > closeTime/2 {
		t.Errorf("the visitor waited %v", took)
	}
	if got, err := nodes[0].hub.Lookup(t.Context(), second.ready.Hostname); err != nil || got.Node != "edge-b" {
		t.Errorf("%+v, %v", got, err)
	}
}
