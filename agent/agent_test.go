package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func nowhere(context.Context) (net.Conn, error) { return nil, errors.New("nobody is home") }

func TestUp(t *testing.T) {
	e := startEdge(t)
	ups := make(chan Up, 10)
	c := config(e, Forward{Port: 80, Dial: nowhere}, Forward{Port: 2222, Dial: nowhere})
	c.OnUp = func(u Up) { ups <- u }
	a := mustNew(t, c)
	if s := a.Status(); s.State != Stopped {
		t.Errorf("before Run: %+v", s)
	}
	stop := start(t, a)
	r := receive(t, e.asked)
	if r.Header.Get("Authorization") != "Bearer t0ken" || r.Header.Get("Origin") != "" {
		t.Errorf("header: %v", r.Header)
	}
	tunnel := receive(t, e.tunnels)
	h := tunnel.hello
	want := []wire.Port{{Number: 80, Kind: wire.HTTP}, {Number: 2222, Kind: wire.TCP}}
	if h.Device != "cam-17" || !slices.Equal(h.Ports, want) || !wire.ValidID(h.Instance) || h.Caps != wire.Redirect|wire.Early|wire.Reuse ||
		h.Early != 65536 || h.EarlyTotal != 1048576 ||
		h.Streams != 256 || h.MessageMax != 262144 || h.Heartbeat != 0 {
		t.Errorf("hello: %+v", h)
	}
	tunnel.greet("25")
	up := receive(t, ups)
	ports := []Port{
		{80, HTTP, "https://l4bel.devices.example.net/"},
		{2222, TCP, "tcp://tcp.example.net:20022"},
	}
	if !slices.Equal(up.Ports, ports) || up.Label != "l4bel" || up.Hostname != "l4bel.devices.example.net" ||
		up.Server != strings.Replace(e.url, "http", "ws", 1) {
		t.Errorf("up: %+v", up)
	}
	if s := a.Status(); s.State != Connected || s.Tunnels != 1 || s.Err != nil || !slices.Equal(s.Up.Ports, ports) {
		t.Errorf("status: %+v", s)
	}
	// The same again is no news; another address is, and so is its absence.
	tunnel.say(`{"type":"port","port":80,"kind":"http","url":"https://l4bel.devices.example.net/"}`)
	tunnel.say(`{"type":"nonsense","of":"a later version"}`)
	tunnel.say(`{"type":"port","port":2222,"kind":"tcp"}`)
	if up = receive(t, ups); up.Ports[1].URL != "" {
		t.Errorf("a port that is gone: %+v", up)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if code := receive(t, tunnel.bye); code != wire.CloseNormal {
		t.Errorf("goodbye with %d", code)
	}
	if s := a.Status(); s.State != Stopped {
		t.Errorf("after Run: %+v", s)
	}
}

// withStream runs test with a stream to each kind of target.
func withStream(t *testing.T, test func(t *testing.T, edge *stream.Stream, service net.Conn)) {
	services := map[string]func(*testing.T) (net.Listener, Forward){
		"address": func(t *testing.T) (net.Listener, Forward) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			return l, Forward{Port: 22, Target: l.Addr().String()}
		},
		"listener": func(*testing.T) (net.Listener, Forward) { return Listen(22, TCP) },
	}
	for name, service := range services {
		for _, secure := range []bool{false, true} {
			t.Run(name+map[bool]string{false: "/ws", true: "/wss"}[secure], func(t *testing.T) {
				l, f := service(t)
				defer l.Close()
				e, c := startEdge(t), Config{}
				if secure {
					e, c.TLS = startTLSEdge(t)
				}
				tls := c.TLS
				c = config(e, f)
				c.TLS = tls
				start(t, mustNew(t, c))
				tunnel := receive(t, e.tunnels)
				tunnel.greet("25")
				accepted := make(chan net.Conn, 1)
				go func() { // ends with the listener
					if c, err := l.Accept(); err == nil {
						accepted <- c
					}
				}()
				s := e.open(tunnel, "22")
				conn := receive(t, accepted)
				defer conn.Close()
				limit := time.Now().Add(patience)
				s.SetDeadline(limit)
				conn.SetDeadline(limit)
				test(t, s, conn)
			})
		}
	}
}

func TestStreamCarriesBothWays(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
	withStream(t, func(t *testing.T, edge *stream.Stream, service net.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() { // the service echoes
			if _, err := io.Copy(service, service); err != nil {
				t.Errorf("service: %v", err)
			}
			service.Close()
		})
		wg.Go(func() {
			if _, err := edge.Write(big); err != nil {
				t.Errorf("edge: %v", err)
			}
			edge.CloseWrite()
		})
		got, err := io.ReadAll(edge)
		if err != nil || !bytes.Equal(got, big) {
			t.Errorf("got %d bytes of %d back, %v", len(got), len(big), err)
		}
		wg.Wait()
	})
}

func TestVisitorEndsFirst(t *testing.T) {
	withStream(t, func(t *testing.T, edge *stream.Stream, service net.Conn) {
		io.WriteString(edge, "question")
		edge.CloseWrite()
		if b, err := io.ReadAll(service); string(b) != "question" || err != nil {
			t.Errorf("service read %q, %v", b, err)
		}
		io.WriteString(service, "answer")
		service.Close()
		if b, err := io.ReadAll(edge); string(b) != "answer" || err != nil {
			t.Errorf("edge read %q, %v", b, err)
		}
	})
}

func TestServiceEndsFirst(t *testing.T) {
	withStream(t, func(t *testing.T, edge *stream.Stream, service net.Conn) {
		io.WriteString(service, "banner")
		service.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(edge); string(b) != "banner" || err != nil {
			t.Errorf("edge read %q, %v", b, err)
		}
		io.WriteString(edge, "last words")
		edge.CloseWrite()
		if b, err := io.ReadAll(service); string(b) != "last words" || err != nil {
			t.Errorf("service read %q, %v", b, err)
		}
	})
}

func TestVisitorAborts(t *testing.T) {
	withStream(t, func(t *testing.T, edge *stream.Stream, service net.Conn) {
		io.WriteString(edge, "half")
		if _, err := io.ReadFull(service, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		edge.Abort()
		if b, err := io.ReadAll(service); err == nil {
			t.Errorf("service read %q and a clean end", b)
		}
	})
}

func TestServiceAborts(t *testing.T) {
	withStream(t, func(t *testing.T, edge *stream.Stream, service net.Conn) {
		io.WriteString(service, "half")
		if _, err := io.ReadFull(edge, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		switch c := service.(type) {
		case *net.TCPConn:
			c.SetLinger(0)
			c.Close()
		case interface{ Abort() }:
			c.Abort()
		}
		if b, err := io.ReadAll(edge); !errors.Is(err, stream.ErrAborted) {
			t.Errorf("edge read %q, %v", b, err)
		}
	})
}

func TestTransferRequest(t *testing.T) {
	e := startEdge(t)
	start(t, mustNew(t, config(e, echo(t))))
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	tunnel.say(`{"type":"open","stream":9,"id":"` + testID + `","port":7,"from":""}`)
	r := receive(t, e.transfers).request
	if want := "/.iottunnel/v1/transfer?node=n1&tunnel=" + testTunnel + "&id=" + testID; r.RequestURI != want {
		t.Errorf("asked for %s, want %s", r.RequestURI, want)
	}
	if "http://"+r.Host != e.url || r.Header.Get("Authorization") != "Bearer s3cret" {
		t.Errorf("host %s, header %v", r.Host, r.Header)
	}
}

func TestRefused(t *testing.T) {
	dead, other := ends.Loopback(t) // at its address nobody listens, nor can
	defer dead.Close()
	defer other.Close()
	e := startEdge(t)
	var log bytes.Buffer
	c := config(e, Forward{Port: 80, Target: dead.LocalAddr().String()}, Forward{Port: 81, Dial: nowhere})
	c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	stop := start(t, mustNew(t, c))
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	for _, test := range []struct{ open, want string }{
		{`"stream":1,"port":80`, `{"type":"refused","stream":1,"reason":"connection refused"}`},
		{`"stream":2,"port":80`, `{"type":"refused","stream":2,"reason":"connection refused"}`},
		{`"stream":3,"port":81`, `{"type":"refused","stream":3,"reason":"nobody is home"}`},
		{`"stream":4,"port":82`, `{"type":"refused","stream":4,"reason":"port 82 is not forwarded"}`},
	} {
		tunnel.say(`{"type":"open",` + test.open + `,"id":"` + testID + `","from":"203.0.113.9:51234"}`)
		if got := receive(t, tunnel.heard); got != test.want {
			t.Errorf("%s: got %s, want %s", test.open, got, test.want)
		}
	}
	if len(e.transfers) != 0 {
		t.Error("a transfer socket was made for nothing")
	}
	stop()
	if n := strings.Count(log.String(), "visitor refused"); n != 2 { // one for each port
		t.Errorf("%d lines about refused visitors:\n%s", n, log.String())
	}
}

func TestBusy(t *testing.T) {
	e := startEdge(t)
	c := config(e, Forward{Port: 7, Dial: func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}})
	c.Streams = 1
	a := mustNew(t, c)
	start(t, a)
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	room := 1 + slack(1)
	for i := range room + 1 {
		tunnel.say(`{"type":"open","stream":` + string(rune('1'+i/10)) + string(rune('0'+i%10)) + `,"id":"` + testID + `","port":7,"from":""}`)
	}
	if got := receive(t, tunnel.heard); !strings.Contains(got, "busy") {
		t.Errorf("got %s", got)
	}
	if n := a.Status().Streams; n != room {
		t.Errorf("%d streams", n)
	}
}

func TestTransferFails(t *testing.T) {
	e := startEdge(t)
	a := mustNew(t, config(e, echo(t)))
	tcp := a.dialer.tcp
	a.dialer.tcp = func(ctx context.Context, keepAlive time.Duration, addr string) (net.Conn, error) {
		if keepAlive != -1 { // a transfer socket's
			return nil, errors.New("no route")
		}
		return tcp(ctx, keepAlive, addr)
	}
	start(t, a)
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	tunnel.say(`{"type":"open","stream":1,"id":"` + testID + `","port":7,"from":""}`)
	want := `{"type":"refused","stream":1,"reason":"transfer socket: tcp: no route"}`
	if got := receive(t, tunnel.heard); got != want {
		t.Errorf("got %s", got)
	}
}

func TestTransferIsAnswered(t *testing.T) {
	for _, test := range []struct {
		status int
		want   string // empty: nothing
	}{
		{401, `{"type":"refused","stream":1,"reason":"transfer socket: handshake: answered 401 unauthorized"}`},
		{404, ""}, // the visitor has left
	} {
		e := startEdge(t)
		e.transfer = refuseWith(test.status, `{"error":"unauthorized"}`)
		a := mustNew(t, config(e, echo(t)))
		start(t, a)
		tunnel := receive(t, e.tunnels)
		tunnel.greet("25")
		tunnel.say(`{"type":"open","stream":1,"id":"` + testID + `","port":7,"from":""}`)
		if test.want == "" {
			receive(t, e.answered)
			// The stream is over once what it may say of that has been said.
			for limit := time.Now().Add(patience); a.Status().Streams > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(limit) {
					t.Fatal("the stream is not over in time")
				}
			}
			tunnel.say(`{"type":"open","stream":2,"id":"` + testID + `","port":8,"from":""}`)
			test.want = `{"type":"refused","stream":2,"reason":"port 8 is not forwarded"}`
		}
		if got := receive(t, tunnel.heard); got != test.want {
			t.Errorf("after %d: %s", test.status, got)
		}
	}
}

func TestStreamsOutliveTheTunnel(t *testing.T) {
	e := startEdge(t)
	start(t, mustNew(t, config(e, echo(t))))
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	s := e.open(tunnel, "7")
	tunnel.Close()
	next := receive(t, e.tunnels)
	if next.hello.Instance != tunnel.hello.Instance {
		t.Error("another instance")
	}
	next.greet("25")
	io.WriteString(s, "still there")
	s.CloseWrite()
	if b, err := io.ReadAll(s); string(b) != "still there" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestGrace(t *testing.T) {
	for _, test := range []struct {
		grace   time.Duration
		aborted bool
	}{{-1, true}, {patience, false}} {
		e := startEdge(t)
		c := config(e, echo(t))
		c.Grace = test.grace
		stop := start(t, mustNew(t, c))
		tunnel := receive(t, e.tunnels)
		tunnel.greet("25")
		s := e.open(tunnel, "7")
		io.WriteString(s, "before")
		if _, err := io.ReadFull(s, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		stopped := make(chan struct{})
		go func() { stop(); close(stopped) }()
		if code := receive(t, tunnel.bye); code != wire.CloseNormal {
			t.Errorf("closed with %d", code)
		}
		if test.aborted {
			receive(t, stopped)
		}
		io.WriteString(s, "after") // may find the stream gone
		s.CloseWrite()
		b, err := io.ReadAll(s)
		if test.aborted != errors.Is(err, stream.ErrAborted) || !test.aborted && string(b) != "after" {
			t.Errorf("grace %v: read %q, %v", test.grace, b, err)
		}
		s.Close()
		<-stopped
	}
}

func TestMalformed(t *testing.T) {
	for name, text := range map[string]string{
		"no ready first": `{"type":"port","port":80,"kind":"http"}`,
		"no JSON":        `ready`,
		"other host":     `{"type":"ready","tunnel":"` + testTunnel + `","heartbeat_s":25,"streams":1,"message_max":512,"transfer":"//evil.example/?a","secret":"s"}`,
		"too long":       strings.Repeat(" ", wire.MaxText+1),
	} {
		t.Run(name, func(t *testing.T) {
			e := startEdge(t)
			start(t, mustNew(t, config(e, Forward{Port: 80, Dial: nowhere})))
			tunnel := receive(t, e.tunnels)
			tunnel.say(text)
			if code := receive(t, tunnel.bye); code != wire.CloseMalformed {
				t.Errorf("closed with %d", code)
			}
		})
	}
}

func TestOnce(t *testing.T) {
	e := startEdge(t)
	for _, test := range []struct {
		answer func(http.ResponseWriter, *http.Request) bool
		final  bool
		want   string
	}{
		{refuseWith(401, `{"error":"unauthorized","message":"device or token is wrong"}`), true,
			": handshake: answered 401 unauthorized: device or token is wrong"},
		{refuseWith(409, `{"error":"device_connected","message":"taken\u001b[2J"}`), true,
			": handshake: answered 409 device_connected: taken?[2J (another live device uses this id)"},
		{refuseWith(503, `{"error":"unavailable","message":"later"}`), false, ": handshake: answered 503 unavailable: later"},
		{refuseWith(404, `<html>`), true, ": handshake: answered 404 Not Found, not by an iottunnel edge"},
	} {
		e.answer = test.answer
		c := config(e, Forward{Port: 80, Dial: nowhere})
		c.Once = true
		err := mustNew(t, c).Run(t.Context())
		var final interface{ Final() bool }
		if !errors.As(err, &final) || final.Final() != test.final || err.Error() != strings.TrimPrefix(e.url, "http://")+test.want {
			t.Errorf("Run: %v (%v)", err, final)
		}
	}
}
