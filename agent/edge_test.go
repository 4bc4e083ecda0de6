package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/leak"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience bounds what ought to come at once.
const patience = 30 * time.Second

// edge speaks the edge's side of the protocol, as each test tells it to.
type edge struct {
	tb  testing.TB
	url string
	// answer, if set, may answer a handshake of a control socket itself.
	answer func(http.ResponseWriter, *http.Request) bool
	// transfer is the same for transfer sockets, and answered gets its answers.
	transfer func(http.ResponseWriter, *http.Request) bool
	answered chan struct{}
	// asked gets the requests of the first control sockets, tunnels those accepted, and
	// transfers each transfer socket.
	asked     chan *http.Request
	tunnels   chan *edgeTunnel
	transfers chan *edgeTransfer

	mu    sync.Mutex // guards what follows
	socks []*socket.Socket
}

type edgeTunnel struct {
	*socket.Socket
	tb     testing.TB
	hello  wire.Hello
	heard  chan string // texts of the agent
	frames chan edgeFrame
	bye    chan int // its close code; 0 for an end without one
}

// edgeFrame is a frame on a control socket.
type edgeFrame struct {
	kind    wire.FrameKind
	stream  uint32
	payload string
}

// read answers closes and pings, and passes on what it hears.
func (t *edgeTunnel) read() {
	for {
		op, b, err := t.ReadMessage(wire.FrameHeader + wire.MaxFrame)
		if err != nil {
			var closed *socket.CloseError
			errors.As(err, &closed)
			if closed != nil && closed.Code != socket.CloseAbnormal {
				t.bye <- closed.Code
			} else {
				t.bye <- 0
			}
			t.Close()
			return
		}
		if op == socket.Text {
			t.heard <- string(b)
			continue
		}
		kind, stream, payload, err := wire.ParseFrame(b)
		if err != nil {
			t.tb.Errorf("edge: %v", err)
		}
		t.frames <- edgeFrame{kind, stream, string(payload)}
	}
}

type edgeTransfer struct {
	*socket.Socket
	request *http.Request
}

func newEdge(tb testing.TB) *edge {
	return &edge{
		tb:        tb,
		answered:  make(chan struct{}, 100),
		asked:     make(chan *http.Request, 100),
		tunnels:   make(chan *edgeTunnel, 100),
		transfers: make(chan *edgeTransfer, 1000),
	}
}

// startEdge starts an edge on loopback, without TLS.
func startEdge(tb testing.TB) *edge {
	e := newEdge(tb)
	s := httptest.NewServer(e)
	tb.Cleanup(s.Close)
	tb.Cleanup(e.close)
	e.url = s.URL
	return e
}

// startTLSEdge starts one with TLS, and returns what a client needs to trust it.
func startTLSEdge(tb testing.TB) (*edge, *tls.Config) {
	e := newEdge(tb)
	s := httptest.NewTLSServer(e)
	tb.Cleanup(s.Close)
	tb.Cleanup(e.close)
	e.url = s.URL
	return e, &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
}

// memoryEdge starts an edge that a reaches in memory, for tests about time.
func memoryEdge(tb testing.TB, a *Agent) *edge {
	e := newEdge(tb)
	dial := e.inMemory()
	a.dialer.tcp = func(ctx context.Context, _ time.Duration, _ string) (net.Conn, error) { return dial(ctx) }
	return e
}

// inMemory serves e, and returns how to reach it.
func (e *edge) inMemory() func(context.Context) (net.Conn, error) {
	l, f := Listen(80, HTTP)
	s := &http.Server{Handler: e}
	go s.Serve(l) // ends with Close
	e.tb.Cleanup(func() { s.Close() })
	e.tb.Cleanup(e.close)
	return f.Dial
}

func (e *edge) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.socks {
		s.Close()
	}
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := r.URL.Path == wire.ControlPath
	if control {
		poke(e.asked, r.Clone(context.Background()))
		if e.answer != nil && e.answer(w, r) {
			return
		}
	}
	if !control && e.transfer != nil && e.transfer(w, r) {
		poke(e.answered, struct{}{})
		return
	}
	s, err := accept.Upgrade(w, r, wire.Subprotocol, socket.LargeBuffer, nil)
	if err != nil {
		if control { // an agent may leave while it dials a transfer socket
			e.tb.Errorf("edge: %v", err)
		}
		return
	}
	e.mu.Lock()
	e.socks = append(e.socks, s)
	e.mu.Unlock()
	if !control {
		e.transfers <- &edgeTransfer{s, r.Clone(context.Background())}
		return
	}
	hello, err := wire.ParseHello(r.URL.RawQuery)
	if err != nil {
		e.tb.Errorf("edge: %v", err)
	}
	t := &edgeTunnel{s, e.tb, hello, make(chan string, 100), make(chan edgeFrame, 10000), make(chan int, 1)}
	go t.read() // ends with the socket
	e.tunnels <- t
}

// refuseWith answers control sockets with a status.
func refuseWith(status int, body string, header ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	}
}

const (
	testTunnel = "0123456789abcdef0123456789abcdef"
	testID     = "aaaabbbbccccddddaaaabbbbccccdddd"
)

// greet tells the agent that the tunnel is up, in the basic profile, with a URL
// for each port.
func (t *edgeTunnel) greet(heartbeat string) {
	t.tb.Helper()
	t.greetWith("", heartbeat)
}

func readyText(caps, heartbeat string) string {
	early := ""
	if strings.Contains(caps, "early") {
		early = `"early":65536,"early_total":1048576,`
	}
	return `{"type":"ready","tunnel":"` + testTunnel + `","caps":"` + caps + `","heartbeat_s":` + heartbeat +
		`,"label":"l4bel","hostname":"l4bel.devices.example.net","lease_s":3600,"streams":256,"message_max":65536,` + early +
		`"transfer":"/.iottunnel/v1/transfer?node=n1&tunnel=` + testTunnel + `","secret":"s3cret"}`
}

// greetWith is greet with capabilities.
func (t *edgeTunnel) greetWith(caps, heartbeat string) {
	t.tb.Helper()
	t.say(readyText(caps, heartbeat))
	for _, p := range t.hello.Ports {
		where := `"url":"https://l4bel.devices.example.net/"`
		if p.Kind == wire.TCP {
			where = `"addr":"tcp.example.net:20022"`
		}
		number, _, _ := strings.Cut(p.String(), "/")
		t.say(`{"type":"port","port":` + number + `,"kind":"` + string(p.Kind) + `",` + where + `}`)
	}
}

func (t *edgeTunnel) say(text string) {
	t.tb.Helper()
	if err := t.WriteMessage(socket.Text, []byte(text)); err != nil {
		t.tb.Errorf("edge: %v", err)
	}
}

// open asks for a stream and returns it.
func (e *edge) open(t *edgeTunnel, port string) *stream.Stream {
	e.tb.Helper()
	t.say(`{"type":"open","stream":1,"id":"` + testID + `","port":` + port + `,"from":"203.0.113.9:51234"}`)
	var wg sync.WaitGroup
	wg.Add(1) // for as long as the stream is open
	c := stream.New(receive(e.tb, e.transfers).Socket, stream.Options{Owner: &wg, Closed: func(*stream.Stream) { wg.Done() }})
	e.tb.Cleanup(func() { c.Abort(); wg.Wait() })
	return c
}

func receive[T any](tb testing.TB, c <-chan T) T {
	tb.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		tb.Fatal("nothing came in time")
		panic("unreachable")
	}
}

// config is an agent's that needs no more than its forwards.
func config(e *edge, forwards ...Forward) Config {
	url := "ws://127.0.0.1"
	if e != nil {
		url = e.url
	}
	return Config{Servers: []string{url}, Device: "cam-17", Token: "t0ken", Forwards: forwards, Grace: -1}
}

func mustNew(tb testing.TB, c Config) *Agent {
	tb.Helper()
	a, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// start runs a until the test is over.
func start(tb testing.TB, a *Agent) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	tb.Cleanup(func() {
		if err := stop(); err != nil {
			tb.Errorf("Run: %v", err)
		}
	})
	return stop
}

// echo is a service that sends back what it gets until its end, and then ends.
func echo(tb testing.TB) Forward {
	l, f := Listen(7, TCP)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	tb.Cleanup(wg.Wait)
	tb.Cleanup(func() { l.Close() })
	return f
}

// idOf is the id that openEarly gives a stream.
func idOf(number uint32) string { return fmt.Sprintf("%032x", number) }

// openEarly tells of a visitor, with credit.
func (t *edgeTunnel) openEarly(number uint32, port, credit int) {
	t.tb.Helper()
	t.say(fmt.Sprintf(`{"type":"open","stream":%d,"id":"%s","port":%d,"from":"203.0.113.9:51234","early":%d}`, number, idOf(number), port, credit))
}

// send sends frames: a data frame for each payload.
func (t *edgeTunnel) send(number uint32, payloads ...string) {
	t.tb.Helper()
	for _, p := range payloads {
		t.frame(wire.FrameData, number, p)
	}
}

func (t *edgeTunnel) frame(kind wire.FrameKind, number uint32, payload string) {
	t.tb.Helper()
	if err := t.WriteMessage(socket.Binary, append(wire.AppendFrameHeader(nil, kind, number), payload...)); err != nil {
		t.tb.Errorf("edge: %v", err)
	}
}

// expect reads frames of one stream until its data is what is wanted.
func (t *edgeTunnel) expect(number uint32, data string) {
	t.tb.Helper()
	var got string
	for len(got) < len(data) {
		f := receive(t.tb, t.frames)
		if f.stream != number || f.kind != wire.FrameData {
			t.tb.Fatalf("after %q: frame of kind %d of stream %d, %q; want %q of %d", got, f.kind, f.stream, f.payload, data, number)
		}
		got += f.payload
	}
	if got != data {
		t.tb.Fatalf("stream %d: got %q, want %q", number, got, data)
	}
}

// expectFrame reads a frame without payload.
func (t *edgeTunnel) expectFrame(kind wire.FrameKind, number uint32) {
	t.tb.Helper()
	if f := receive(t.tb, t.frames); f != (edgeFrame{kind, number, ""}) {
		t.tb.Fatalf("got %+v, want kind %d of stream %d", f, kind, number)
	}
}

// expect reads a binary message.
func (t *edgeTransfer) expect(tb testing.TB, want string) {
	tb.Helper()
	op, b, err := t.ReadMessage(1 << 20)
	if err != nil || op != socket.Binary || string(b) != want {
		tb.Fatalf("on the transfer socket: %d %q, %v; want %q", op, b, err, want)
	}
}

func (t *edgeTransfer) send(tb testing.TB, payload string) {
	tb.Helper()
	if err := t.WriteMessage(socket.Binary, []byte(payload)); err != nil {
		tb.Errorf("edge: %v", err)
	}
}
