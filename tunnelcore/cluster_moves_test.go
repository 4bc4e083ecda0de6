package tunnelcore

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// A device that moves is found at its new node, whether or not the registry tells.
func TestDeviceMoves(t *testing.T) {
	for name, silent := range map[string]bool{"with hints": false, "without": true} {
		t.Run(name, func(t *testing.T) {
			reg := sharedRegistry(t)
			if silent {
				reg = deaf{reg}
			}
			nodes := startNodesOver(t, reg, 3, nil)
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
