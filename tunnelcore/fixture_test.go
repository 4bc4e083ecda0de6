package tunnelcore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const domain = "devices.test"

// edge is a hub behind a real listener on loopback.
type edge struct {
	t      *testing.T
	hub    *Hub
	server *httptest.Server
	log    *lockedBuffer
	events chan string
	from   netip.Addr // what the host says of agents' addresses; zero: the truth
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tokens lets in each device whose token is "token-of-" and its id.
var tokens = AuthenticatorFunc(func(_ context.Context, c Credential) error {
	if c.Token != "token-of-"+c.Device {
		return errors.New("wrong token")
	}
	return nil
})

// startEdge starts a hub over a registry that keeps nothing; change may alter its
// settings. It ends with the test.
func startEdge(t *testing.T, change func(*Settings)) *edge {
	t.Helper()
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return startEdgeOver(t, reg, change)
}

func startEdgeOver(t *testing.T, reg registry.Registry, change func(*Settings)) *edge {
	t.Helper()
	e := &edge{t: t, log: new(lockedBuffer), events: make(chan string, 1000)}
	s := Defaults()
	s.Domain, s.Scheme, s.Port = domain, "http", "8080"
	s.Authenticators = []Authenticator{tokens}
	s.Logger = slog.New(slog.NewTextHandler(e.log, nil))
	s.Events = func(name string, data map[string]any) {
		device, _ := data["device"].(string) // none: it is about the node
		e.events <- name + " " + device
	}
	if change != nil {
		change(&s)
	}
	hub, err := New(Config{Node: "edge-1", Registry: reg, Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	e.hub = hub
	e.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := netip.MustParseAddrPort(r.RemoteAddr).Addr()
		if e.from.IsValid() {
			from = e.from
		}
		hub.ServeAgent(w, r, Arrival{From: from, Secure: r.TLS != nil})
	}))
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no patience with streams
		if err := hub.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		e.server.Close()
		if t.Failed() {
			t.Logf("log of the edge:\n%s", e.log)
		}
	})
	return e
}

// event waits for an event of the hub.
func (e *edge) event(want string) {
	e.t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case got := <-e.events:
			if got == want {
				return
			}
		case <-timeout:
			e.t.Fatalf("no event %q", want)
		}
	}
}

// dial makes a handshake for path as an agent does.
func (e *edge) dial(path, bearer string) (*socket.Socket, error) {
	u, err := url.Parse(e.server.URL + path)
	if err != nil {
		e.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		e.t.Fatal(err)
	}
	h := http.Header{}
	if bearer != "" {
		h.Set("Authorization", "Bearer "+bearer)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return socket.Dial(ctx, conn, u, h, wire.Subprotocol, socket.LargeBuffer)
}

// refusal is the answer to a handshake that must fail.
func (e *edge) refusal(path, bearer string) (int, wire.ErrorBody, http.Header) {
	e.t.Helper()
	s, err := e.dial(path, bearer)
	var refused *socket.StatusError
	if !errors.As(err, &refused) {
		if s != nil {
			s.Close()
		}
		e.t.Fatalf("handshake for %s: got %v, want an answer other than 101", path, err)
	}
	var body wire.ErrorBody
	if err := json.Unmarshal(refused.Body, &body); err != nil {
		e.t.Fatalf("body %q: %v", refused.Body, err)
	}
	return refused.Status, body, http.Header(refused.Header)
}

func hello(device string) wire.Hello {
	return wire.Hello{
		Device: device, Instance: wire.NewID(),
		Ports: []wire.Port{{Number: 80, Kind: wire.HTTP}, {Number: 22, Kind: wire.TCP}, {Number: 8080, Kind: wire.HTTP}},
	}
}

// fakeAgent plays the device's end by hand.
type fakeAgent struct {
	e     *edge
	sock  *socket.Socket
	ready *wire.Ready
	ports []*wire.PortInfo
	owner sync.WaitGroup
}

func (e *edge) connect(h wire.Hello) *fakeAgent {
	e.t.Helper()
	s, err := e.dial(wire.ControlPath+"?"+h.Query(), "token-of-"+h.Device)
	if err != nil {
		e.t.Fatal(err)
	}
	a := &fakeAgent{e: e, sock: s}
	a.ready = a.receive().(*wire.Ready)
	for range h.Ports {
		a.ports = append(a.ports, a.receive().(*wire.PortInfo))
	}
	e.t.Cleanup(func() { s.Close(); a.owner.Wait() })
	return a
}

func (a *fakeAgent) receive() wire.Message {
	a.e.t.Helper()
	m, f := a.next(a.sock)
	if m == nil {
		a.e.t.Fatalf("a frame %+v, want a message", f)
	}
	return m
}

// next reads a message, or a frame, from one of the agent's sockets.
func (a *fakeAgent) next(s *socket.Socket) (wire.Message, frame) {
	a.e.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	op, b, err := s.ReadMessage(wire.FrameHeader + wire.MaxFrame)
	if err != nil {
		a.e.t.Fatalf("socket: %v", err)
	}
	if op == socket.Binary {
		k, stream, payload, err := wire.ParseFrame(b)
		if err != nil {
			a.e.t.Fatalf("frame %x: %v", b, err)
		}
		return nil, frame{k, stream, string(payload)}
	}
	m, err := wire.Decode(b)
	if err != nil {
		a.e.t.Fatalf("message %q: %v", b, err)
	}
	return m, frame{}
}

// frame is a binary message of the control socket.
type frame struct {
	kind    wire.FrameKind
	stream  uint32
	payload string
}

// frames expects these on the control socket, and nothing else before them.
func (a *fakeAgent) frames(want ...frame) {
	a.e.t.Helper()
	for _, f := range want {
		if m, got := a.next(a.sock); m != nil || got != f {
			a.e.t.Fatalf("got %+v %+v, want %+v", m, got, f)
		}
	}
}

// say sends frames and messages on the control socket.
func (a *fakeAgent) say(all ...any) {
	a.e.t.Helper()
	for _, one := range all {
		var err error
		switch one := one.(type) {
		case frame:
			b := append(wire.AppendFrameHeader(nil, one.kind, one.stream), one.payload...)
			err = a.sock.WriteMessage(socket.Binary, b)
		case wire.Message:
			err = a.sock.WriteMessage(socket.Text, wire.Encode(one))
		}
		if err != nil {
			a.e.t.Fatal(err)
		}
	}
}

// closed waits for the edge to close the control socket.
func (a *fakeAgent) closed() *socket.CloseError {
	a.e.t.Helper()
	_ = a.sock.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		_, _, err := a.sock.ReadMessage(wire.MaxText)
		var c *socket.CloseError
		if errors.As(err, &c) {
			return c
		}
		if err != nil {
			a.e.t.Fatalf("control socket: %v", err)
		}
	}
}

// fetch dials the transfer socket of an open.
func (a *fakeAgent) fetch(o *wire.Open) *socket.Socket {
	a.e.t.Helper()
	s, err := a.e.dial(a.ready.Transfer+"&id="+o.ID, a.ready.Secret)
	if err != nil {
		a.e.t.Fatalf("transfer: %v", err)
	}
	a.e.t.Cleanup(func() { s.Close() })
	return s
}

// transfer answers an open with a transfer socket.
func (a *fakeAgent) transfer(o *wire.Open) *stream.Stream {
	a.e.t.Helper()
	c := stream.New(a.fetch(o), stream.Options{Owner: &a.owner})
	a.e.t.Cleanup(c.Abort)
	return c
}

type dialled struct {
	net.Conn
	err error
}

var visitor = netip.MustParseAddrPort("203.0.113.7:51234")

// visit dials a device as a visitor does, while the test plays the agent.
func (e *edge) visit(device string, port uint16) <-chan dialled {
	got := make(chan dialled, 1)
	go func() {
		c, err := e.hub.Dial(context.Background(), device, port, visitor)
		got <- dialled{c, err}
	}()
	return got
}

// open opens a stream to port 80, both ends of it.
func (a *fakeAgent) open(device string) (visitor, agent net.Conn) {
	a.e.t.Helper()
	got := a.e.visit(device, 80)
	c := a.transfer(a.receive().(*wire.Open))
	v := <-got
	if v.err != nil {
		a.e.t.Fatal(v.err)
	}
	a.e.t.Cleanup(func() { v.Close() })
	return v.Conn, c
}

// carries makes sure that a and b are the two ends of a working stream.
func carries(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, ends := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := io.WriteString(ends[0], "hello"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(ends[1], got); err != nil || string(got) != "hello" {
			t.Fatalf("read %q, %v", got, err)
		}
	}
}

// eventually waits until ok, which it asks again and again.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("never: %s", what)
		}
	}
}

// awaited waits until so many visitors wait for a device to come back.
func (e *edge) awaited(device string, visitors int) {
	e.t.Helper()
	eventually(e.t, "visitors wait", func() bool {
		r := e.hub.routes
		r.mu.Lock()
		defer r.mu.Unlock()
		w := r.waiting[device]
		return w != nil && w.guests == visitors
	})
}

// retryAfter is what an answer says about the next attempt.
func retryAfter(err error) time.Duration {
	var answer *answers.Error
	if !errors.As(err, &answer) {
		return 0
	}
	return answer.RetryAfter
}
