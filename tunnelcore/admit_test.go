package tunnelcore

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// reachable has agents sent to a node.
func reachable(s *Settings) { s.Node.URL = "http://" + s.Node.Internal }

// A crowd that comes at once and does as it is told is let in as fast as it may be.
func TestGateSpreadsACrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		g.set(200, 200)
		const crowd = 5000
		start, tries := time.Now(), 0
		var due []time.Duration
		for range crowd {
			due = append(due, rand.N(500*time.Millisecond))
		}
		var last time.Duration
		for in := 0; in < crowd; {
			slices.Sort(due)
			last = due[0]
			time.Sleep(last - time.Since(start))
			tries++
			if retry, ok := g.enter(); ok {
				in++
				due = due[1:]
			} else {
				told := (retry + time.Second - 1).Truncate(time.Second) // as the header says it
				due[0] = last + told + rand.N(told/5+1)
			}
		}
		t.Logf("%d were let in after %v and %d tries", crowd, last, tries)
		if last > 29*time.Second || tries > 3*crowd {
			t.Errorf("%d were let in after %v and %d tries; 24 s and 2 each are possible", crowd, last, tries)
		}
	})
}

// location is where a node sends an agent.
func (n *node) location(h wire.Hello) *url.URL {
	n.t.Helper()
	status, body, header := n.refusal(wire.ControlPath+"?"+h.Query(), "token-of-"+h.Device)
	if status != http.StatusFound || body.Error != wire.Redirected {
		n.t.Fatalf("%d %+v, want a redirect", status, body)
	}
	u, err := url.Parse(header.Get("Location"))
	if err != nil {
		n.t.Fatal(err)
	}
	return u
}

func redirectable(device string) wire.Hello {
	h := hello(device)
	h.Caps = wire.Redirect
	return h
}

func TestRedirectIsSignedForOneDeviceAndNode(t *testing.T) {
	nodes := startNodes(t, 3, reachable)
	a, b, c := nodes[0], nodes[1], nodes[2]
	drained := func(n *node) {
		if err := n.hub.Drain(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		for _, o := range nodes {
			o.look()
		}
	}
	drained(a)
	drained(c)
	to := a.location(redirectable("cam-17"))
	if "http://"+to.Host != b.server.URL || to.Path != wire.ControlPath {
		t.Fatalf("sent to %s, want %s", to, b.server.URL)
	}
	// The target is about to go by now, and sends others away. It takes whom a node has
	// sent, and nobody who shows another one's signature.
	if err := c.hub.Undrain(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.look()
	b.look()
	drained(b)
	h := redirectable("door-1")
	stolen, _ := url.Parse(to.String())
	query, _ := url.ParseQuery(h.Query())
	query.Set(cluster.RedirectParam, to.Query().Get(cluster.RedirectParam))
	stolen.RawQuery = query.Encode()
	if status, body, _ := b.refusal(stolen.RequestURI(), "token-of-door-1"); status != http.StatusFound {
		t.Errorf("with the signature for another device: %d %+v", status, body)
	}
	if status, body, _ := a.refusal(to.RequestURI(), "token-of-cam-17"); status != http.StatusFound {
		t.Errorf("with the signature for another node: %d %+v", status, body)
	}
	s, err := b.dial(to.RequestURI(), "token-of-cam-17")
	if err != nil {
		t.Fatalf("with the signature: %v", err)
	}
	s.Close()
}

func TestWhoIsNotRedirected(t *testing.T) {
	nodes := startNodes(t, 2, reachable)
	a := nodes[0]
	if err := a.hub.Drain(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	a.connect(hello("cam-17")) // it would not follow
	nodes[1].look()
	if err := nodes[1].hub.Drain(t.Context(), 0); !errors.Is(err, ErrNobodyElse) {
		t.Errorf("the last node drains: %v", err)
	}
	if err := a.hub.Drain(t.Context(), -time.Second); err == nil {
		t.Error("drains within less than no time")
	}
}

// A peer that is well may have told of itself a heartbeat before this node, and this
// node a heartbeat ago. One that has missed a heartbeat is sent nobody, nor is any by a
// node that has missed its own.
func TestWhichPeersAreWell(t *testing.T) {
	const almost, missed = registry.NodeHeartbeat - 100*time.Millisecond, cluster.SilentAfter + time.Second
	for _, c := range []struct {
		name      string
		own, peer time.Duration // since the own heartbeat, and from the peer's to that
		want      cluster.Verdict
	}{
		{"both have just told", 0, 0, cluster.There},
		{"both are about to", almost, almost, cluster.There},
		{"the peer has missed one", 0, missed, cluster.Here},
		{"the node has missed one", missed, 0, cluster.Here},
	} {
		synctest.Test(t, func(t *testing.T) {
			var a admission
			now := time.Now()
			a.clock.Store(&reading{registry: now, local: now})
			a.peers.Update([]registry.Node{{NodeRef: registry.NodeRef{ID: "b"}, URL: "http://b", Capacity: 1, At: now.Add(-c.peer)}})
			time.Sleep(c.own)
			own := registry.Node{Capacity: 1, Draining: true, At: a.lastBeat()}
			if _, got := cluster.Place(own, a.peers.Expected(), rand.IntN); got != c.want {
				t.Errorf("%s: verdict %d, want %d", c.name, got, c.want)
			}
		})
	}
	nodes := startNodes(t, 2, reachable)
	from := nodes[0]
	if err := from.hub.Drain(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	peer, beaten := nodes[1].hub.self(), time.Now()
	peer.At = beaten.Add(-almost)
	from.hub.admission.peers.Update([]registry.Node{peer})
	from.hub.admission.clock.Store(&reading{registry: beaten, local: beaten.Add(-almost)})
	from.location(redirectable("cam-17"))
}

// runAgent runs a real agent that forwards port 80 to an echo, until the test ends.
func runAgent(t *testing.T, device string, servers ...string) {
	t.Helper()
	l, f := agent.Listen(80, agent.HTTP)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // until the visitor leaves
			})
		}
	})
	a, err := agent.New(agent.Config{
		Servers: servers, Device: device, Token: "token-of-" + device, Forwards: []agent.Forward{f}, AllowPlaintext: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = a.Run(ctx) }) // nil: it was stopped
	t.Cleanup(func() { cancel(); running.Wait(); l.Close(); serving.Wait() })
}

// A real agent goes where it is sent, and asks for a tunnel right there when that
// leads nowhere.
func TestAgentGoesWhereItIsSent(t *testing.T) {
	for _, dead := range []bool{false, true} {
		nodes := startNodes(t, 2, reachable)
		if err := nodes[0].hub.Drain(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		want := nodes[1]
		if dead {
			nodes[1].server.Close()
			want = nodes[0]
		}
		runAgent(t, "cam-17", nodes[0].server.URL)
		want.event("online cam-17")
	}
}

// Drained under a stream of requests, no request fails.
func TestDrainLosesNoRequest(t *testing.T) {
	nodes := startNodes(t, 2, reachable)
	a, b := nodes[0], nodes[1]
	devices := []string{"cam-1", "cam-2", "cam-3"}
	for _, d := range devices {
		runAgent(t, d, a.server.URL)
		a.event("online " + d)
	}
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for _, d := range devices {
		for _, n := range nodes {
			asking.Go(func() {
				for ctx.Err() == nil {
					if err := n.ask(d); err != nil {
						t.Errorf("%s by %s: %v", d, n.hub.Node(), err)
						return
					}
				}
			})
		}
	}
	if err := a.hub.Drain(t.Context(), 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if s := a.hub.Stats(); !s.Draining {
		t.Errorf("%+v", s)
	}
	a.event("drained ")
	stop()
	asking.Wait()
	if n := b.hub.Stats().Tunnels; n != len(devices) {
		t.Errorf("%d tunnels at the other node", n)
	}
	if err := a.hub.Undrain(t.Context()); err != nil || a.hub.Stats().Draining {
		t.Errorf("undrain: %v", err)
	}
}

// A node that is about to stop gives its devices to the others first.
// A node that stops before it has heard of any other, as it has just started, asks.
func TestVacateOfANewNode(t *testing.T) {
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	a := startNode(t, newView(reg), "edge-a", reachable)
	runAgent(t, "cam-1", a.server.URL)
	a.event("online cam-1")
	b := startNode(t, newView(reg), "edge-b", reachable)
	b.look()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a.hub.Vacate(ctx)
	if here, there := a.hub.Tunnels(), b.hub.Tunnels(); here != 0 || there != 1 {
		t.Errorf("%d tunnels are left, %d are at the other node", here, there)
	}
}

// A device whose streams live on its tunnel does not wait, to leave, for connections
// that the host keeps for a next visitor.
func TestDrainClosesKeptConnections(t *testing.T) {
	var kept sync.Map // tunnel → connection
	nodes := startNodes(t, 2, func(s *Settings) {
		reachable(s)
		ended := s.TunnelEnded
		s.TunnelEnded = func(tunnel string) {
			if c, ok := kept.LoadAndDelete(tunnel); ok {
				c.(net.Conn).Close()
			}
			ended(tunnel)
		}
	})
	a, b := nodes[0], nodes[1]
	h := offering("cam-17", wire.Early|wire.Inline)
	old := a.connect(h)
	c, o := old.begin("one")
	kept.Store(old.ready.Tunnel, c)
	if err := a.hub.Drain(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, is := old.receive().(*wire.Drain); !is {
		t.Fatal("not drained")
	}
	b.connect(h)
	old.frames(frame{wire.FrameFin, o.Stream, ""})
	old.say(frame{wire.FrameFin, o.Stream, ""})
	if got := old.closed(); got.Code != wire.CloseReplaced {
		t.Errorf("old tunnel: %v", got)
	}
}

func TestVacate(t *testing.T) {
	nodes := startNodes(t, 2, reachable)
	a, b := nodes[0], nodes[1]
	devices := []string{"cam-1", "cam-2"}
	for _, d := range devices {
		runAgent(t, d, a.server.URL)
		a.event("online " + d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a.hub.Vacate(ctx)
	if here, there := a.hub.Tunnels(), b.hub.Tunnels(); here != 0 || there != len(devices) || ctx.Err() != nil {
		t.Errorf("%d tunnels are left, %d are at the other node: %v", here, there, ctx.Err())
	}
	for _, d := range devices {
		if err := a.ask(d); err != nil {
			t.Errorf("%s by the node that stops: %v", d, err)
		}
	}
	b.look()
	b.hub.Vacate(t.Context()) // nobody else could take them
	if n := b.hub.Tunnels(); n != len(devices) {
		t.Errorf("the last node has %d tunnels", n)
	}
}

// ask makes one request, and again if nothing was lost by the first.
func (n *node) ask(device string) error {
	for {
		c, err := n.hub.Dial(context.Background(), device, 80, visitor)
		if err != nil {
			return err
		}
		_, err = io.WriteString(c, "hello")
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
		c.Close()
		if !errors.Is(err, ErrLost) { // a page that can be asked for again
			return err
		}
	}
}
