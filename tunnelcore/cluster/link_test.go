package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

var visitor = netip.MustParseAddrPort("192.0.2.7:4711")

func open() Open { return Open{Device: "cam-17", Tunnel: "t1", Port: 80, From: visitor} }

// exchange sends what is a request and its end, and reads the answer to its end.
func exchange(t testing.TB, s *stream.Stream, request string) (answer string) {
	t.Helper()
	ends.Within(t, "exchange", func() {
		if _, err := io.WriteString(s, request); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Errorf("close: %v", err)
		}
		b, err := io.ReadAll(s)
		if err != nil {
			t.Errorf("read: %v", err)
		}
		answer = string(b)
		s.Close()
	})
	return answer
}

func TestDial(t *testing.T) {
	opened := make(chan Open, 100)
	serve := device(t, echo)
	a, b := two(t, &local{dial: func(ctx context.Context, o Open) (*stream.Stream, error) {
		opened <- o
		return serve(ctx, o)
	}})
	for i := range 20 {
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		if o := <-opened; o != open() {
			t.Errorf("asked for %+v", o)
		}
		if n, m := a.Streams(), b.Streams(); n != 1 || m != 0 {
			t.Errorf("%d and %d streams", n, m)
		}
		request := strings.Repeat("x", 1<<i)
		if got := exchange(t, s, request); got != request {
			t.Errorf("%d bytes of %d came back", len(got), len(request))
		}
		until(t, "the socket is parked", func() bool { return a.Stats().Idle == 1 })
	}
	until(t, "no stream is left", func() bool { return a.Streams() == 0 })
	// And one for signs of life, if it took so long.
	if s := a.Stats(); s.Out < 1 || s.Out > 2 || s.In != 0 {
		t.Errorf("20 streams one after the other have left %+v", s)
	}
	if s := b.Stats(); s.In < 1 || s.In > 2 || s.Out != 0 {
		t.Errorf("20 streams one after the other have left %+v", s)
	}
}

// Every refusal before `accepted` arrives as it is, and the socket is used again.
func TestRefusals(t *testing.T) {
	seen := time.UnixMilli(1_700_000_000_000)
	var err error
	a, b := two(t, &local{dial: func(context.Context, Open) (*stream.Stream, error) { return nil, err }})
	for _, err = range []error{
		ErrNotHere,
		&answers.Error{Code: wire.DeviceRefused, Message: "no <service> on \"80\" \u2028\xff"},
		&answers.Error{Code: wire.DeviceOffline, RetryAfter: 10 * time.Second, LastSeen: seen},
		&answers.Error{Code: wire.DeviceBusy, RetryAfter: 1500 * time.Millisecond, Message: strings.Repeat("<", 1000)},
		&answers.Error{Code: "code_of_tomorrow", Message: "what?"},
		io.ErrUnexpectedEOF,
		context.DeadlineExceeded,
	} {
		s, got := a.Dial(t.Context(), b.peer, open())
		if s != nil || got == nil {
			t.Fatalf("%v: %v, %v", err, s, got)
		}
		if errors.Is(err, ErrNotHere) {
			if !errors.Is(got, ErrNotHere) {
				t.Errorf("%v became %v", err, got)
			}
			continue
		}
		want := answers.From(err)
		var e *answers.Error
		if !errors.As(got, &e) || e.RetryAfter != want.RetryAfter || !e.LastSeen.Equal(want.LastSeen) ||
			e.Code != knownCode(want.Code) || e.Message != cutText(want.Message, answers.MessageMax) {
			t.Errorf("%#v became %#v", want, got)
		}
	}
	if s := a.Stats(); s.Out != 1 || s.Idle != 1 {
		t.Errorf("%+v", s)
	}
}

// What a device's stream fails with at its node, the visitor's fails with at another.
func TestFailures(t *testing.T) {
	refused := &answers.Error{Code: wire.DeviceRefused, Message: "the service on the device did not answer: connection refused"}
	offline := &answers.Error{Code: wire.DeviceOffline, RetryAfter: 10 * time.Second, Message: "the device's connection broke", Cause: stream.ErrLost}
	for name, c := range map[string]struct {
		fail         func(edge *stream.Stream, m *stream.Mux)
		want         *answers.Error
		lost, unsent bool
	}{
		"refused": {fail: func(s *stream.Stream, _ *stream.Mux) { s.Fail(refused) }, want: refused},
		"timeout": {fail: func(s *stream.Stream, _ *stream.Mux) { s.Fail(&answers.Error{Code: wire.DeviceTimeout}) }, want: &answers.Error{Code: wire.DeviceTimeout}},
		"tunnel lost, nothing was sent": {
			fail: func(_ *stream.Stream, m *stream.Mux) { m.End(offline) },
			want: offline, lost: true, unsent: true,
		},
		"tunnel lost": {
			fail: func(s *stream.Stream, m *stream.Mux) {
				if _, err := s.Write([]byte("sent")); err != nil {
					t.Error(err)
				}
				m.End(offline)
			},
			want: offline, lost: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var m *stream.Mux
			edges := make(chan *stream.Stream, 1)
			a, b := two(t, &local{dial: func(context.Context, Open) (*stream.Stream, error) {
				_, s := sockets(t)
				t.Cleanup(func() { s.Close() })
				m = stream.NewMux(s, stream.MuxOptions{})
				edge, err := m.Open(1, 1<<10, stream.Options{Open: []byte("open")})
				edges <- edge
				return edge, err
			}})
			s, err := a.Dial(t.Context(), b.peer, open())
			if err != nil {
				t.Fatal(err)
			}
			read := make(chan error, 1)
			go func() {
				_, err := s.Read(make([]byte, 1))
				read <- err
			}()
			c.fail(<-edges, m)
			ends.Within(t, "failure", func() {
				_, wrote := s.Write([]byte("late"))
				for wrote == nil { // until it has come
					_, wrote = s.Write([]byte("late"))
				}
				for what, err := range map[string]error{"read": <-read, "write": wrote} {
					e := answers.From(err)
					if e.Code != c.want.Code || e.Message != c.want.Message || e.RetryAfter != c.want.RetryAfter {
						t.Errorf("%s: %#v", what, err)
					}
					if errors.Is(err, stream.ErrLost) != c.lost || errors.Is(err, stream.ErrUnsent) != c.unsent {
						t.Errorf("%s: lost %v, unsent %v: %v", what, errors.Is(err, stream.ErrLost), errors.Is(err, stream.ErrUnsent), err)
					}
				}
				s.Close()
			})
			until(t, "both have let go", func() bool { return a.Stats().Out == 0 && b.Stats().In == 0 })
		})
	}
}

// An abort of the device is one for the visitor, and the other way round.
func TestAborts(t *testing.T) {
	devices := make(chan *stream.Stream, 1)
	a, b := two(t, &local{dial: device(t, func(s *stream.Stream) { devices <- s })})
	t.Run("by the device", func(t *testing.T) {
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		d := <-devices
		io.WriteString(d, "half")
		d.Abort()
		ends.Within(t, "read", func() {
			got, err := io.ReadAll(s)
			if !errors.Is(err, stream.ErrAborted) || errors.Is(err, stream.ErrLost) || !strings.HasPrefix("half", string(got)) {
				t.Errorf("%q, %v", got, err)
			}
		})
		s.Close()
	})
	t.Run("by the visitor", func(t *testing.T) {
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(s, "half")
		s.Abort()
		d := <-devices
		ends.Within(t, "read", func() {
			if got, err := io.ReadAll(d); !errors.Is(err, stream.ErrAborted) || !strings.HasPrefix("half", string(got)) {
				t.Errorf("%q, %v", got, err)
			}
		})
	})
	until(t, "both have let go", func() bool { return a.Stats().Out == 0 && b.Stats().In == 0 })
}

// A dead peer's streams fail at once, at both ends, and one may dial again.
func TestForget(t *testing.T) {
	devices := make(chan *stream.Stream, 100)
	a, b := two(t, &local{dial: device(t, func(s *stream.Stream) { devices <- s })})
	dial := func() (*stream.Stream, *stream.Stream) {
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		return s, <-devices
	}
	for _, forgets := range []func(){func() { a.Forget(b.peer.NodeRef) }, func() { b.Forget(a.peer.NodeRef) }} {
		idle, other := dial()
		other.Close()
		exchange(t, idle, "")
		s, d := dial()
		s2, d2 := dial()
		forgets()
		ends.Within(t, "reads", func() {
			for _, s := range []*stream.Stream{s, s2} {
				_, err := s.Read(make([]byte, 1))
				if !errors.Is(err, stream.ErrLost) && !errors.Is(err, net.ErrClosed) || errors.Is(err, stream.ErrUnsent) {
					t.Errorf("visitor: %v", err)
				}
				s.Close()
			}
			for _, d := range []*stream.Stream{d, d2} {
				if _, err := d.Read(make([]byte, 1)); !errors.Is(err, stream.ErrAborted) {
					t.Errorf("device: %v", err)
				}
			}
		})
		// What is parked at the other end is found out when it is used.
		until(t, "both have let go", func() bool { s := a.Stats(); return s.Out == s.Idle && b.Stats().In == 0 })
	}
	if s, _ := dial(); s == nil {
		t.Error("a peer that was forgotten is there no more")
	}
	a.Forget(registry.NodeRef{ID: "nobody", Epoch: "none"})
}

// Nobody gets a parked socket to a peer from the moment that it is forgotten.
func TestForgetParked(t *testing.T) {
	devices := make(chan *stream.Stream, 1)
	a, b := two(t, &local{dial: device(t, func(s *stream.Stream) { devices <- s })})
	s, err := a.Dial(t.Context(), b.peer, open())
	if err != nil {
		t.Fatal(err)
	}
	(<-devices).Close()
	exchange(t, s, "")
	until(t, "the socket is parked", func() bool { return a.Stats().Idle == 1 })
	a.Forget(b.peer.NodeRef)
	if n := a.Stats().Idle; n != 0 {
		t.Errorf("%d sockets wait for a stream still", n)
	}
	until(t, "both have let go", func() bool { return a.Stats().Out == 0 && b.Stats().In == 0 })
}

// Nothing is left when Close returns, whatever was under way.
func TestClose(t *testing.T) {
	for _, at := range []string{"dialler", "owner"} {
		t.Run(at, func(t *testing.T) {
			dialling := make(chan struct{}, 1)
			serve := device(t, echo)
			a, b := two(t, &local{
				dial: func(ctx context.Context, o Open) (*stream.Stream, error) {
					if o.Port == 81 {
						dialling <- struct{}{}
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return serve(ctx, o)
				},
				serve: func(ctx context.Context, c net.Conn, _ Agent) { io.Copy(io.Discard, c); c.Close() },
			})
			for range 3 {
				if _, err := a.Dial(t.Context(), b.peer, open()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := a.Pass(t.Context(), b.peer, Agent{}); err != nil {
				t.Fatal(err)
			}
			failed := make(chan error, 1)
			go func() {
				_, err := a.Dial(t.Context(), b.peer, Open{Device: "d", Tunnel: "t", Port: 81})
				failed <- err
			}()
			<-dialling
			n := map[string]*edgeNode{"dialler": a, "owner": b}[at]
			ends.Within(t, "Close", n.Close)
			ends.Within(t, "Dial", func() {
				if err := <-failed; !errors.Is(err, ErrAway) {
					t.Errorf("%v", err)
				}
			})
			ends.Within(t, "Close again", n.Close)
			if _, err := a.Dial(t.Context(), b.peer, open()); !errors.Is(err, ErrAway) {
				t.Errorf("after Close: %v", err)
			}
			if s := n.Stats(); s.In+s.Out != 0 {
				t.Errorf("left: %+v", s)
			}
		})
	}
}

func TestPass(t *testing.T) {
	agents := make(chan Agent, 1)
	a, b := two(t, &local{serve: func(_ context.Context, c net.Conn, g Agent) {
		agents <- g
		if c.RemoteAddr().(*net.TCPAddr).IP.String() != g.Remote.String() {
			t.Errorf("it comes from %v", c.RemoteAddr())
		}
		go func() { // handed on
			io.Copy(c, c)
			c.Close()
		}()
	}})
	for _, want := range []Agent{{netip.MustParseAddr("192.0.2.1"), true}, {netip.MustParseAddr("2001:db8::1"), false}} {
		c, err := a.Pass(t.Context(), b.peer, want)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-agents; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		sent := bytes.Repeat([]byte("GET /"), 50_000)
		if got := exchange(t, c.(*stream.Stream), string(sent)); got != string(sent) {
			t.Errorf("%d bytes of %d came back", len(got), len(sent))
		}
	}
}

func TestQuestions(t *testing.T) {
	var told registry.Holder
	a, b := two(t, &local{
		probe:    func(_ context.Context, device, tunnel string) bool { return device == "cam-17" && tunnel == "t1" },
		replaced: func(h registry.Holder) { told = h },
		info: func(device string) (any, bool) {
			switch device {
			case "cam-17":
				return map[string]any{"ports": []int{80, 22}, "html": "<&>\u2028"}, true
			case "long":
				return strings.Repeat("x", maxInfo-2), true
			case "longer":
				return strings.Repeat("x", maxInfo-1), true
			case "none":
				return func() {}, true
			}
			return nil, false
		},
	})
	ctx := t.Context()
	if alive, err := a.Probe(ctx, b.peer, "cam-17", "t1"); !alive || err != nil {
		t.Errorf("probe: %v, %v", alive, err)
	}
	if alive, err := a.Probe(ctx, b.peer, "cam-17", "t2"); alive || err != nil {
		t.Errorf("probe: %v, %v", alive, err)
	}
	h := registry.Holder{Device: "cam-17", Generation: 1 << 60, Tunnel: "t3"}
	if err := a.Replaced(ctx, b.peer, h); err != nil || told != h {
		t.Errorf("replaced: %+v, %v", told, err)
	}
	info, err := a.Info(ctx, b.peer, "cam-17")
	var got struct {
		Ports []int
		HTML  string
	}
	if err != nil || json.Unmarshal(info, &got) != nil || len(got.Ports) != 2 || got.HTML != "<&>\u2028" {
		t.Errorf("info: %s, %v", info, err)
	}
	if info, err := a.Info(ctx, b.peer, "long"); err != nil || len(info) != maxInfo {
		t.Errorf("long info: %d bytes, %v", len(info), err)
	}
	for _, device := range []string{"longer", "none"} {
		if _, err := a.Info(ctx, b.peer, device); answers.From(err).Code != wire.Unavailable || errors.Is(err, ErrAway) {
			t.Errorf("%s: %v", device, err)
		}
	}
	if _, err := a.Info(ctx, b.peer, "nobody"); !errors.Is(err, ErrNotHere) {
		t.Errorf("info: %v", err)
	}
	for _, device := range []string{"", strings.Repeat("x", registry.MaxName+1), "\xff"} { // our mistake
		if _, err := a.Info(ctx, b.peer, device); err == nil || errors.Is(err, ErrAway) || errors.Is(err, ErrNotHere) {
			t.Errorf("%.10q: %v", device, err)
		}
	}
	if s := a.Stats(); s.Out != 1 || s.Idle != 1 {
		t.Errorf("%+v", s)
	}
}

// Streams do not wait for each other, and no more sockets are kept than may be.
func TestManyAtOnce(t *testing.T) {
	const n = 2 * maxIdle
	edges := make(chan *stream.Stream, n)
	for range n {
		edge, device := pair(t, stream.Options{})
		edges <- edge
		go echo(device)
	}
	a, b := two(t, &local{dial: func(context.Context, Open) (*stream.Stream, error) { return <-edges, nil }})
	var wg sync.WaitGroup
	all := make(chan struct{})
	var ready sync.WaitGroup
	for range n {
		ready.Add(1)
		wg.Go(func() {
			s, err := a.Dial(t.Context(), b.peer, open())
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			<-all
			if got := exchange(t, s, "hello"); got != "hello" {
				t.Errorf("%q", got)
			}
		})
	}
	ready.Wait()
	close(all)
	wg.Wait()
	until(t, "they have ended", func() bool { s := a.Stats(); return s.Out == s.Idle })
	if s := a.Stats(); s.Idle > maxIdle {
		t.Errorf("%+v", s)
	}
}

// A socket from the pool that ends under a request costs nothing; a fresh one that does
// is a peer that is away.
func TestSocketEndsUnderARequest(t *testing.T) {
	var asked, ends atomic.Int64
	var owner *edgeNode
	a, b := two(t, &local{info: func(string) (any, bool) {
		n := asked.Add(1)
		if ends.Add(-1) >= 0 {
			owner.mu.Lock()
			all := owner.allLocked()
			owner.mu.Unlock()
			owner.end(all)
		}
		return n, true
	}})
	owner = b
	for _, c := range []struct {
		ends int64
		want string // "" for ErrAway
	}{{0, "1"}, {1, "3"}, {2, ""}, {0, "6"}} {
		ends.Store(c.ends)
		got, err := a.Info(t.Context(), b.peer, "d")
		if string(got) != c.want || (c.want == "") != errors.Is(err, ErrAway) {
			t.Errorf("%d sockets end: %s, %v; want %s", c.ends, got, err, c.want)
		}
	}
}

// A node that has as many sockets as it takes says so.
func TestInboundIsBounded(t *testing.T) {
	a, b := two(t, new(local))
	set := func(n int) { b.mu.Lock(); b.inbound += n; b.mu.Unlock() }
	set(maxInbound)
	if _, err := a.Info(t.Context(), b.peer, "d"); !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "503") {
		t.Errorf("%v", err)
	}
	set(-maxInbound)
	if _, err := a.Info(t.Context(), b.peer, "d"); !errors.Is(err, ErrNotHere) {
		t.Errorf("%v", err)
	}
}

// oneConn is a listener with one connection.
type oneConn struct{ conn chan net.Conn }

func (l oneConn) Close() error   { return nil }
func (l oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func (l oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conn; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

// What a node is passed is as good as a connection: an HTTP server takes a WebSocket
// from it, which carries a device's stream.
func TestPassCarriesAWebSocket(t *testing.T) {
	served := make(chan *socket.Socket, 1)
	a, b := two(t, &local{serve: func(_ context.Context, c net.Conn, _ Agent) {
		l := oneConn{make(chan net.Conn, 1)}
		l.conn <- c
		close(l.conn)
		h := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, err := accept.Upgrade(w, r, "test", socket.LargeBuffer, nil)
			if err != nil {
				t.Error(err)
			}
			served <- s
		})}
		h.Serve(l)
	}})
	// The agent's connection, and the node in between that relays it.
	agent, x := ends.Loopback(t)
	y, err := a.Pass(t.Context(), b.peer, Agent{Remote: netip.MustParseAddr("192.0.2.1")})
	if err != nil {
		t.Fatal(err)
	}
	relayed := make(chan error, 1)
	go func() {
		_, _, err := stream.Relay(t.Context(), x, y)
		relayed <- err
	}()
	ends.Within(t, "stream", func() {
		s, err := socket.Dial(t.Context(), agent, &url.URL{Scheme: "http", Host: "edge", Path: "/"}, nil, "test", socket.LargeBuffer)
		if err != nil {
			t.Error(err)
			return
		}
		device, edge := stream.New(s, stream.Options{}), stream.New(<-served, stream.Options{})
		go echo(device)
		sent := strings.Repeat("0123456789abcdef", 1<<16)
		if got := exchange(t, edge, sent); got != sent {
			t.Errorf("%d bytes of %d came back", len(got), len(sent))
		}
		if err := <-relayed; err != nil {
			t.Errorf("relay: %v", err)
		}
	})
	until(t, "both have let go", func() bool { s := a.Stats(); return s.Out == s.Idle && b.Stats().In == s.Idle && b.Streams() == 0 })
}
