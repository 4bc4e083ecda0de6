package tunnelcore

import (
	"context"
	"errors"
	"io"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func TestDeviceOfAnotherNode(t *testing.T) {
	nodes := startNodesOver(t, deaf{sharedRegistry(t)}, 3, nil) // reads are counted
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
				reg := sharedRegistry(t)
				if silent {
					reg = deaf{reg}
				}
				nodes := startNodesOver(t, reg, 3, nil)
				for _, n := range nodes {
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
	nodes := startNodesOver(t, deaf{sharedRegistry(t)}, 2, nil) // reads are counted
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
