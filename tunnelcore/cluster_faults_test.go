package tunnelcore

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

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

// A node that stops before it has heard of any other reaches their devices as well.
func TestStopsAsNewcomer(t *testing.T) {
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	unserved := make(chan struct{})
	n := startNodeWith(t, newView(reg), "edge-b", nil, unserved)
	other := startNode(t, newView(reg), "edge-a", nil)
	a := other.connect(hello("cam-17"))
	done := make(chan error, 1)
	go func() { done <- n.hub.Shutdown(context.Background()) }()
	eventually(t, "it stops", n.hub.isStopping)
	if !n.hub.alone() {
		t.Fatal("it knows the other node already")
	}
	v, c := n.through(a, "cam-17")
	carries(t, v, c)
	v.Close()
	c.Close()
	close(unserved)
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
