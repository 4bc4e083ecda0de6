package tunnelcore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// change updates the settings of e.
func (e *edge) change(f func(*Settings)) {
	s := *e.hub.settings.Load()
	f(&s)
	e.hub.Update(s)
}

func nobody(s *Settings) {
	s.Authenticators = []Authenticator{AuthenticatorFunc(func(context.Context, Credential) error { return ErrNotMine })}
}

func TestAuthorisationWithdrawn(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	v, _ := a.open("cam-17")
	late := e.visit("cam-17", 80)
	o := a.receive().(*wire.Open)
	e.change(nobody)
	// The socket reads on, but nothing is opened any more.
	eventually(t, "streams are refused", func() bool {
		a.e.hub.devices["cam-17"].mu.Lock()
		defer a.e.hub.devices["cam-17"].mu.Unlock()
		return a.e.hub.devices["cam-17"].session.ended
	})
	if s, err := e.dial(a.ready.Transfer+"&id="+o.ID, a.ready.Secret); err == nil {
		if _, err := s.Next(); err == nil {
			t.Error("a stream was opened after the authorisation was withdrawn")
		}
		s.Close()
	}
	if c := a.closed(); c.Code != wire.CloseRevoked {
		t.Errorf("close: %v", c)
	}
	if _, err := v.Read(make([]byte, 1)); err == nil {
		t.Error("its stream lives on")
	}
	if got := <-late; got.err == nil {
		t.Error("the visitor who waited got a stream")
	}
}

// slowClaim is a registry in which the claims of one device wait.
type slowClaim struct {
	registry.Registry
	device           string
	arrived, proceed chan struct{}
}

func (s *slowClaim) Claim(ctx context.Context, c registry.Claim) (registry.Lease, error) {
	if c.Device == s.device {
		s.arrived <- struct{}{}
		<-s.proceed
	}
	return s.Registry.Claim(ctx, c)
}

// An agent whose handshake is under way while it loses its authorisation is not
// overlooked.
func TestAuthorisationWithdrawnDuringHandshake(t *testing.T) {
	reg := &slowClaim{newAway(t).Registry, "cam-17", make(chan struct{}), make(chan struct{})}
	e := startEdgeOver(t, reg, nil)
	witness := e.connect(hello("cam-18"))
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
	e.change(nobody)
	if c := witness.closed(); c.Code != wire.CloseRevoked { // all that are connected were looked at
		t.Fatalf("close: %v", c)
	}
	close(reg.proceed)
	s := <-agents
	defer s.Close()
	a := &fakeAgent{e: e, sock: s}
	if c := a.closed(); c.Code != wire.CloseRevoked {
		t.Errorf("close: %v", c)
	}
}

// lateClaim is a registry that grants claims, but tells the first one late.
type lateClaim struct {
	registry.Registry
	told          atomic.Bool
	granted, goOn chan struct{}
}

func (l *lateClaim) Claim(ctx context.Context, c registry.Claim) (registry.Lease, error) {
	lease, err := l.Registry.Claim(ctx, c)
	if l.told.CompareAndSwap(false, true) {
		l.granted <- struct{}{}
		<-l.goOn
	}
	return lease, err
}

// A tunnel that was replaced before it was up is told so, and does not come back
// to fight for the device.
func TestReplacedDuringHandshake(t *testing.T) {
	reg := &lateClaim{Registry: newAway(t).Registry, granted: make(chan struct{}), goOn: make(chan struct{})}
	e := startEdgeOver(t, reg, nil)
	h := hello("cam-17")
	agents := make(chan *socket.Socket, 1)
	go func() {
		s, err := e.dial(wire.ControlPath+"?"+h.Query(), "token-of-cam-17")
		if err != nil {
			t.Error(err)
		}
		agents <- s
	}()
	<-reg.granted
	newer := e.connect(h)
	close(reg.goOn)
	s := <-agents
	defer s.Close()
	if c := (&fakeAgent{e: e, sock: s}).closed(); c.Code != wire.CloseReplaced {
		t.Errorf("close: %v", c)
	}
	v, c := newer.open("cam-17")
	carries(t, v, c)
}

func TestPublicPortsSwitchedOff(t *testing.T) {
	e := startPorts(t, 1, func(s *Settings) {
		s.TCP.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	a := e.connect(hello("cam-17"))
	address := a.public()
	e.change(func(s *Settings) { s.TCP = nil })
	a.receive() // ready, again
	for range a.ports {
		if p := a.receive().(*wire.PortInfo); p.Addr != "" {
			t.Errorf("the agent is still told of %s", p.Addr)
		}
	}
	c, err := net.Dial("tcp", address)
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a visitor got %v, want a refusal", err)
	}
}

func TestPublicPortsSwitchedOn(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	if a.public() != "" {
		t.Fatal("a public port without tcp_ports")
	}
	first, last := freePorts(t, 1)
	e.change(func(s *Settings) {
		s.TCP = &TCPPorts{First: first, Last: last, Bind: []string{"127.0.0.1"}, Host: "127.0.0.1"}
	})
	a.receive() // ready, again
	for i := range a.ports {
		a.ports[i] = a.receive().(*wire.PortInfo)
	}
	v, c := a.knock()
	carries(t, v, c)
}

func TestBoundsChange(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	a.open("cam-17")
	a.open("cam-17")
	e.change(func(s *Settings) { s.Limits.StreamsPerDevice, s.Lease, s.Heartbeat = 2, time.Hour, time.Minute })
	r := a.receive().(*wire.Ready)
	if r.Streams != 2 || r.Lease != 3600 || r.Heartbeat != 60 || r.Tunnel != a.ready.Tunnel || r.Secret != a.ready.Secret {
		t.Errorf("ready: %+v", r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.hub.Dial(ctx, "cam-17", 80, visitor); err == nil {
		t.Error("a third stream")
	}
}

// The bounds of an agent are those of its last handshake.
func TestReconnectWithOtherBounds(t *testing.T) {
	e := startEdge(t, nil)
	h := hello("cam-17")
	h.Streams = 4
	e.connect(h)
	h.Streams = 1
	a := e.connect(h)
	a.open("cam-17")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.hub.Dial(ctx, "cam-17", 80, visitor); err == nil {
		t.Error("a second stream")
	}
}

func TestHostnameModeChanges(t *testing.T) {
	e := startEdge(t, nil)
	h := hello("cam-17")
	a := e.connect(h)
	for _, mode := range []HostnameMode{HostnameDevice, HostnameRandom} {
		e.change(func(s *Settings) { s.Hostname = mode })
		if c := a.closed(); c.Code != wire.CloseRestart {
			t.Fatalf("close: %v", c)
		}
		a = e.connect(h)
		if got := a.ready.Label == "cam-17"; got != (mode == HostnameDevice) {
			t.Errorf("%s: label %q", mode, a.ready.Label)
		}
		v, c := a.open("cam-17")
		carries(t, v, c)
	}
}

// One device that comes again and again keeps no other out.
func TestOneDeviceComesTooOften(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.NewTunnels = arrivalBurst + 5 })
	h := hello("cam-17")
	refused := 0
	for range arrivalBurst + 20 {
		s, err := e.dial(wire.ControlPath+"?"+h.Query(), "token-of-cam-17")
		var status *socket.StatusError
		switch {
		case err == nil:
			s.Close()
		case errors.As(err, &status) && status.Status == 503 && status.Header.Get("Retry-After") != "":
			refused++
		default:
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("never refused")
	}
	e.connect(hello("cam-18"))
}

// Wrong secrets for one device keep no other device of the same address out.
func TestStrangersBehindTheSameNAT(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.UnauthenticatedPerAddress = 2 })
	h := hello("cam-17")
	for _, want := range []int{401, 401, 429} {
		if status, _, _ := e.refusal(wire.ControlPath+"?"+h.Query(), "wrong"); status != want {
			t.Errorf("status %d, want %d", status, want)
		}
	}
	e.connect(hello("cam-18"))
}

// Two devices of one name on networks that break take it from each other, but not
// for ever.
func TestClonedDevices(t *testing.T) {
	e := startEdge(t, nil)
	one, other := hello("cam-17"), hello("cam-17")
	for i := range 2 + returnBurst {
		e.connect([]wire.Hello{one, other}[i%2]) // answers no ping
	}
	h := []wire.Hello{one, other}[returnBurst%2]
	if status, body, _ := e.refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-17"); status != 409 {
		t.Errorf("%d %+v", status, body)
	}
	e.event("cloned cam-17")
}

// A device that starts anew again and again is always let in.
func TestDeviceThatKeepsRebooting(t *testing.T) {
	e := startEdge(t, nil)
	for range 2 * returnBurst {
		e.connect(hello("cam-17")) // answers no ping
	}
}

func TestEnter(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.StreamsPerAddress = 2 })
	ctx := t.Context()
	addr := netip.MustParseAddr("2001:db8::1")
	neighbour := netip.MustParseAddr("2001:db8::2") // of the same /64
	leave, err := e.hub.Enter(ctx, "cam-17", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.hub.Enter(ctx, "cam-17", neighbour); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := e.hub.Enter(short, "cam-17", addr); err == nil {
		t.Error("a third request")
	}
	for _, other := range []struct{ device, addr string }{{"cam-18", "2001:db8::1"}, {"cam-17", "2001:db8:1::1"}} {
		if _, err := e.hub.Enter(ctx, other.device, netip.MustParseAddr(other.addr)); err != nil {
			t.Errorf("%+v: %v", other, err)
		}
	}
	turn := make(chan error, 1)
	go func() {
		_, err := e.hub.Enter(ctx, "cam-17", addr)
		turn <- err
	}()
	leave()
	if err := <-turn; err != nil {
		t.Errorf("after one has left: %v", err)
	}
}

func TestVisitorsAreForgotten(t *testing.T) {
	v := newVisitors()
	s := source{"cam-17", visitor.Addr()}
	leave, err := v.enter(t.Context(), s, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.enter(t.Context(), s, 1, 0)
	wantCode(t, err, wire.TooMany)
	leave()
	if by := v.shard(s).by; len(by) != 0 {
		t.Errorf("%d addresses are remembered", len(by))
	}
}

func TestStreamAfterShutdownLostPatience(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	v, c := a.open("cam-17")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.hub.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("visitor: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, stream.ErrAborted) {
		t.Errorf("agent: %v, want an abort", err)
	}
}

// closings reads the control sockets of agents and says when each was closed.
func closings(agents []*fakeAgent) <-chan *socket.CloseError {
	closed := make(chan *socket.CloseError, len(agents))
	for _, a := range agents {
		go func() {
			_ = a.sock.SetReadDeadline(time.Time{})
			for {
				_, _, err := a.sock.ReadMessage(wire.MaxText)
				if err == nil {
					continue
				}
				c := new(socket.CloseError)
				_ = errors.As(err, &c)
				closed <- c
				return
			}
		}()
	}
	return closed
}

// A node that goes on as another one lets its tunnels go one after the other, and
// the rest at once when the process ends.
func TestRetireSpreads(t *testing.T) {
	e := startEdge(t, nil)
	var agents []*fakeAgent
	for _, device := range []string{"cam-1", "cam-2", "cam-3"} {
		agents = append(agents, e.connect(hello(device)))
	}
	closed := closings(agents)
	retired := make(chan error, 1)
	go func() { retired <- e.hub.Retire(context.Background(), time.Hour) }() // a second between two
	begun := time.Now()
	for i := range agents[:2] {
		if c := <-closed; c.Code != wire.CloseRestart {
			t.Errorf("close: %v", c)
		}
		if i == 1 && time.Since(begun) < 900*time.Millisecond {
			t.Errorf("the second one was let go after %v", time.Since(begun))
		}
	}
	begun = time.Now()
	if err := e.hub.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if time.Since(begun) > 900*time.Millisecond {
		t.Errorf("Shutdown took %v", time.Since(begun))
	}
	if c := <-closed; c.Code != wire.CloseRestart {
		t.Errorf("close: %v", c)
	}
	if err := <-retired; err != nil {
		t.Error(err)
	}
}

// Streams live as long as Retire, and as a Shutdown during it, has patience.
func TestShutdownDuringRetire(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	v, c := a.open("cam-17")
	retired := make(chan error, 1)
	go func() { retired <- e.hub.Retire(context.Background(), time.Minute) }()
	if c := a.closed(); c.Code != wire.CloseRestart {
		t.Errorf("close: %v", c)
	}
	carries(t, v, c)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.hub.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-retired; err != nil {
		t.Error(err)
	}
	if _, err := v.Read(make([]byte, 1)); err == nil {
		t.Error("the stream lives on")
	}
}

// Agents that read nothing, and have all that the system takes for them waiting, do
// not keep from others what has changed.
func TestUpdateWaitsForNobody(t *testing.T) {
	e := startEdge(t, nil)
	for i := range 8 {
		deaf := hello(fmt.Sprintf("deaf-%d", i))
		e.connect(deaf)
		e.hub.mu.Lock()
		tunnel, _ := e.hub.devices[deaf.Device].live()
		e.hub.mu.Unlock()
		var sent atomic.Int64
		go func() { // ends with the tunnel
			for tunnel.sock.WriteMessage(socket.Binary, make([]byte, 64<<10)) == nil {
				sent.Add(1)
			}
		}()
		for before := int64(-1); before != sent.Load(); {
			before = sent.Load()
			<-time.After(100 * time.Millisecond)
		}
	}
	good := e.connect(hello("cam-17"))
	s := *e.hub.settings.Load()
	s.Heartbeat = 77 * time.Second
	e.hub.Update(s)
	_ = good.sock.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		_, b, err := good.sock.ReadMessage(wire.MaxText)
		if err != nil {
			t.Fatalf("not told: %v", err)
		}
		if m, err := wire.Decode(b); err != nil {
			t.Fatal(err)
		} else if r, ok := m.(*wire.Ready); ok && r.Heartbeat == 77 {
			return
		}
	}
}
