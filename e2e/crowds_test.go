package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/net/http2"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// atRest measures an edge when nothing of it changes any more.
func atRest(t *testing.T, s *site) (now harness.Footprint) {
	t.Helper()
	harness.Eventually(t, 60*time.Second, "the edge is at rest", func() error {
		before := now
		s.client.CloseIdleConnections()
		now = s.face.Footprint(t)
		if now.Goroutines != before.Goroutines || now.Descriptors != before.Descriptors || now.Heap > before.Heap+64<<10 {
			time.Sleep(300 * time.Millisecond) // between two looks
			return fmt.Errorf("%v, then %v", before, now)
		}
		return nil
	})
	return now
}

// backTo waits until an edge is as small as it was: stacks are kept for later.
func backTo(t *testing.T, s *site, base harness.Footprint, within time.Duration) {
	t.Helper()
	var now harness.Footprint
	harness.Eventually(t, within, "the edge is as small as before", func() error {
		s.client.CloseIdleConnections()
		now = s.face.Footprint(t)
		if now.Goroutines > base.Goroutines+4*base.Edges || now.Descriptors > base.Descriptors+4*base.Edges || now.Heap > base.Heap+3<<20 {
			time.Sleep(200 * time.Millisecond) // between two looks
			return fmt.Errorf("now %v, before %v", now, base)
		}
		return nil
	})
	t.Logf("before %v; after %v", base, now)
}

// TestHalfOpenHandshakes has many addresses begin handshakes and not go on, some
// of them byte by byte: while they are there visitors are served and devices come
// in, what each costs is bounded, and after their time they are gone.
func TestHalfOpenHandshakes(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		crowd, patience := 1500, 6*time.Second
		if heavy {
			crowd, patience = 10_000, 25*time.Second
			oneCrowd.Lock() // a process has fewer than 20,000 descriptors
			defer oneCrowd.Unlock()
		}
		f := harness.Own(t, k, harness.Setup{Servers: []string{"timeouts {", "\tread_header " + patience.String(), "}"}})
		s := newSite(t, f)
		s.mustServe(t)
		base := atRest(t, s)
		half := "GET " + harness.ControlPath + "?" + harness.Query("dev-001") + " HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
		if f.CAFile() != "" {
			half = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // of a TLS record of 512 bytes
		}
		var conns []net.Conn
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		began := time.Now()
		for i := range crowd {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%100))}, Timeout: 10 * time.Second}
			c, err := d.DialContext(t.Context(), "tcp", f.AgentAddr())
			if err != nil {
				t.Fatalf("connection %d: %v", i+1, err)
			}
			conns = append(conns, c)
			if _, err := io.WriteString(c, half); err != nil && !gone(err) {
				t.Fatalf("connection %d: %v", i+1, err)
			}
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		wg.Go(func() { // a tenth goes on, as slowly as one may imagine
			for ctx.Err() == nil {
				for i := 0; i < len(conns); i += 10 {
					io.WriteString(conns[i], "a") // it may be closed by now
				}
				rest(ctx, 500*time.Millisecond)
			}
		})
		during := f.Footprint(t)
		s.promptly(t, "a page beside half-open handshakes", 5*time.Second)
		wantOpen(t, f, harness.DialHand(t, f, f.NewDevice(t)))
		held := max(during.Descriptors-base.Descriptors, 1)
		each := (during.Heap + during.Stack - base.Heap - base.Stack) / int64(held)
		t.Logf("%d came in %v, %d of them are held: %d KiB each; %v", crowd, time.Since(began).Round(time.Millisecond), held, each>>10, during)
		if held > crowd/2 && each > 40<<10 {
			t.Errorf("a half-open handshake costs %d bytes", each)
		}
		base.Heap += int64(crowd) << 10 // tables that have grown
		backTo(t, s, base, patience+30*time.Second)
		s.mustServe(t)
	})
}

// oneCrowd is held by the one large crowd that a test process has room for.
var oneCrowd sync.Mutex

// gone says that the other side has closed the connection.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// TestStalledStreams has a device open as many streams as it may and stall them all
// in the middle of an answer. Others do not notice, one more visitor is told that the
// device is busy, and when the device is gone nothing of it is left.
func TestStalledStreams(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		const streams = 256
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		s.mustServe(t)
		base := atRest(t, s)
		h := harness.DialHand(t, f, f.NewDevice(t))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var answered atomic.Int64
		var visitors sync.WaitGroup
		var sockets []*websocket.Conn
		for range streams {
			visitors.Go(func() {
				c := harness.Visitor(t, f, true)
				c.Timeout = time.Minute
				c.Transport.(*http.Transport).DisableKeepAlives = true
				r, err := try(c, request(t, "GET", f.URL(h.Ready.Hostname, "/"), nil, "Accept", "application/json").WithContext(ctx))
				if err == nil && r.StatusCode == 200 {
					t.Errorf("a visitor got %v", r)
				}
				answered.Add(1)
			})
		}
		for range streams {
			var open harness.Open
			h.Next(t, "open", &open)
			ws, resp, err := h.DialTransfer(t.Context(), open.ID)
			if err != nil {
				t.Fatalf("%v %v", err, harness.Refusal(resp))
			}
			defer ws.Close()
			sockets = append(sockets, ws)
			harness.ReadRequest(t, ws)
			if err := ws.WriteMessage(websocket.BinaryMessage, []byte("HTTP/1.1 200 OK\r\nX-Filler: "+strings.Repeat("f", 8000))); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			s.promptly(t, "a page beside stalled streams", 3*time.Second)
		}
		during := f.Footprint(t)
		each := (during.Heap + during.Stack - base.Heap - base.Stack) / streams
		t.Logf("%d stalled streams, %d KiB each; %v", streams, each>>10, during)
		if each > 128<<10 {
			t.Errorf("a stalled stream costs %d bytes", each)
		}
		one := harness.Visitor(t, f, true)
		wantJSON(t, do(t, one, request(t, "GET", f.URL(h.Ready.Hostname, "/"), nil, "Accept", "application/json")), 503, "device_busy")
		h.Close()
		for _, ws := range sockets {
			ws.Close()
		}
		harness.Eventually(t, 30*time.Second, "the visitors are answered", func() error {
			if n := answered.Load(); n < streams {
				return fmt.Errorf("%d of %d", n, streams)
			}
			return nil
		})
		visitors.Wait()
		backTo(t, s, base, 30*time.Second)
	})
}

// TestVisitorsWhoNeverRead has visitors ask for a lot and read nothing, and others
// send a lot to a service that reads nothing: the edge holds no more for the device
// than it says, and lets go of it with them.
func TestVisitorsWhoNeverRead(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		const visitors, most = 4, 2 << 20 // bytes for them, of each edge
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2})
		o := harness.StartOrigin(t)
		flood := harness.ServeTCP(t, func(c *net.TCPConn) { io.Copy(c, harness.NewPattern(1<<30)) })
		deafen, hear := context.WithCancel(t.Context())
		deaf := harness.ServeTCP(t, func(*net.TCPConn) { <-deafen.Done() })
		defer hear()
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr, "7=" + flood, "8080/http=" + deaf}})
		up := a.Up(t)
		s := &site{face: f, origin: o, agent: a, host: up.Hostname(t, 80), client: harness.Visitor(t, f, false)}
		s.mustServe(t)
		for _, c := range []struct {
			name string
			dial func() (net.Conn, error)
			send func(c net.Conn)
			end  func()
		}{
			{"downloads", func() (net.Conn, error) { return f.DialVisitor(t.Context(), s.host) }, func(c net.Conn) {
				fmt.Fprintf(c, "GET /bytes?n=%d HTTP/1.1\r\nHost: %s\r\n\r\n", 1<<30, s.hostPort())
			}, func() {}},
			{"uploads", func() (net.Conn, error) { return f.DialVisitor(t.Context(), up.Hostname(t, 8080)) }, func(c net.Conn) {
				fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", up.Hostname(t, 8080), 1<<30)
				io.Copy(c, harness.NewPattern(1<<30)) // until it is closed
			}, hear}, // an edge that holds back the visitor does not see him leave
			{"a public port", func() (net.Conn, error) {
				return net.Dial("tcp", "127.0.0.1:"+publicPort(t, up, 7))
			}, func(net.Conn) {}, func() {}},
		} {
			base := atRest(t, s)
			var wg sync.WaitGroup
			var conns []net.Conn
			for range visitors {
				conn, err := c.dial()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conns = append(conns, conn)
				wg.Go(func() { c.send(conn) })
			}
			// Full is full: the footprint does not change any more.
			during := atRest(t, s)
			grown := during.Heap + during.Stack - base.Heap - base.Stack
			t.Logf("%s: %d who do not read: %d KiB more; %v", c.name, visitors, grown>>10, during)
			if grown > int64(base.Edges)*most {
				t.Errorf("%s: the edge grew by %d bytes", c.name, grown)
			}
			s.promptly(t, "a page beside "+c.name+" that nobody reads", 3*time.Second)
			for _, conn := range conns {
				conn.Close()
			}
			wg.Wait()
			c.end()
			backTo(t, s, base, 30*time.Second)
		}
	})
}

// TestFloods sends an edge more than it can want, of each kind that has no end of its
// own: it cuts it off, or passes it on piece by piece, and does not grow.
func TestFloods(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		s.mustServe(t)
		base := atRest(t, s)
		const most = 4 << 20
		small := func(what string) { // more than one look: what is garbage while it works is none of it
			t.Helper()
			harness.Eventually(t, 20*time.Second, what+": the edge is small", func() error {
				now := f.Footprint(t)
				if grown := now.Heap + now.Stack - base.Heap - base.Stack; grown > most {
					return fmt.Errorf("it grew by %d bytes: %v", grown, now)
				}
				return nil
			})
		}

		t.Run("a visitor's header", func(t *testing.T) {
			if lacks(k, "cutting a long header") {
				return
			}
			filler := strings.Repeat("X-Filler: "+strings.Repeat("f", 1000)+"\r\n", 4000)
			if r := s.raw(t, "GET /page HTTP/1.1\r\nHost: "+s.hostPort()+"\r\n"+filler+"\r\n"); r.StatusCode != 431 {
				t.Errorf("4 MB of header: %v", r)
			}
			small("header")
		})
		t.Run("a visitor's header in HTTP/2", func(t *testing.T) {
			if lacks(k, "cutting a long header") {
				return
			}
			fr := dialFrames(t, s)
			var err error
			sent := 0
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true})
			for err == nil && sent < 64<<20 { // literal fields without an index
				block := bytes.Repeat(append([]byte{0x00, 0x01, 'x', 0x7f, 0x81, 0x06}, bytes.Repeat([]byte("f"), 256)...), 30)
				err = fr.WriteContinuation(1, false, block)
				sent += len(block)
			}
			t.Logf("cut after %d KiB: %v", sent>>10, err)
			if err == nil {
				t.Errorf("the edge took %d bytes of one header", sent)
			}
			small("HTTP/2 header")
		})
		t.Run("one message on a transfer socket", func(t *testing.T) {
			const n = 64 << 20
			ws, got := answering(t, f, harness.DialHand(t, f, f.NewDevice(t)))
			head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n)
			conn := ws.NetConn()
			conn.Write(frame(0x82, len(head)+n, []byte(head)))
			pattern := harness.NewPattern(n)
			io.CopyN(conn, pattern, n/2)
			small("half of a message of 64 MiB")
			if _, err := io.Copy(conn, pattern); err != nil {
				t.Error(err)
			}
			ws.WriteMessage(websocket.BinaryMessage, nil)
			o := <-got
			if size, sum, err := harness.Sum(strings.NewReader(o.r.body)); o.err != nil || err != nil || size != n || sum != harness.PatternSum(n) {
				t.Errorf("the visitor got %d of %d bytes, %v", size, n, o.err)
			}
		})
		for _, c := range []struct {
			name string
			send []byte
			n    int
		}{
			{"pings whose pongs nobody reads", frame(0x89, 125, bytes.Repeat([]byte("p"), 125)), 200_000},
			{"pongs", frame(0x8a, 125, bytes.Repeat([]byte("p"), 125)), 200_000},
			{"empty fragments", frame(0x01, 0, nil), 1},
			{"messages to ignore", frame(0x81, 43, []byte(`{"type":"refused","stream":9,"reason":"no"}`)), 100_000},
			{"messages of no known type", frame(0x81, 17, []byte(`{"type":"gossip"}`)), 100_000},
		} {
			t.Run(c.name, func(t *testing.T) {
				h := harness.DialHand(t, f, f.NewDevice(t))
				conn := h.NetConn()
				conn.SetWriteDeadline(time.Now().Add(5 * time.Second)) // an edge that stops reading is fine
				batch := bytes.Repeat(c.send, min(c.n, 1000))
				if c.name == "empty fragments" {
					batch = append(batch, bytes.Repeat(frame(0x00, 0, nil), 100_000)...)
				}
				var err error
				sent := 0
				for sent < c.n && err == nil {
					_, err = conn.Write(batch)
					sent += 1000
				}
				small(c.name)
				t.Logf("%d: %v", sent, err)
				h.Close()
			})
		}
		backTo(t, s, base, 30*time.Second)
		s.mustServe(t)
		if lines := s.agent.Stdout.Since(0); len(lines) != 1 {
			t.Errorf("another agent came up again: %q", lines)
		}
	})
}

// TestPortsRunOut has devices ask for more public ports than there are: the edge says
// so and what to do, who has ports keeps them, a device without one is up all the
// same, and ports come back after their lease and their rest.
func TestPortsRunOut(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		setup := harness.Setup{TCPPorts: 3, Tunnel: []string{"lease 2s"}}
		f := harness.Own(t, k, setup)
		echo := harness.ServeTCP(t, harness.Echo)
		start := func(d harness.Device, forwards int) (*harness.Agent, harness.Up) {
			t.Helper()
			s := harness.AgentSetup{Device: d}
			for i := range forwards {
				s.Forwards = append(s.Forwards, fmt.Sprintf("%d=%s", 5000+i, echo))
			}
			a := harness.StartAgent(t, f, s)
			return a, a.Up(t)
		}
		all := func(name string, up harness.Up) (ports []string) {
			t.Helper()
			for port := range up.URLs {
				public := publicPort(t, up, port)
				if err := tryTCP("127.0.0.1:"+public, "are you there"); err != nil {
					t.Errorf("%s: port %d at %s: %v", name, port, public, err)
				}
				ports = append(ports, public)
			}
			return ports
		}
		first, up := start(f.NewDevice(t), 2)
		all("first", up)

		d, mark := f.NewDevice(t), f.Log().Mark()
		o := harness.StartOrigin(t)
		late := harness.AgentSetup{Device: d, Forwards: []string{"80=" + o.Addr, "5000=" + echo, "5001=" + echo}}
		second := harness.StartAgent(t, f, late)
		line := edgeSays(t, f, mark, "no public ports for the device")
		if !strings.Contains(line, d.ID) || !strings.Contains(line, "widen tcp_ports") {
			t.Errorf("the edge does not say which device, or what to do: %s", line)
		}
		url := second.WaitStdout(t, 0, harness.UpTime, "80/http ")[len("80/http "):]
		if r := do(t, harness.Visitor(t, f, false), request(t, "GET", url+"page", nil)); r.StatusCode != 200 {
			t.Errorf("the device without public ports: %v", r)
		}
		all("first, after the refusal", up)
		third, upThird := start(f.NewDevice(t), 1) // one is left
		all("third", upThird)
		second.Stop(t, 10*time.Second)

		// A device that comes back within the rest has its ports again.
		first.Stop(t, 10*time.Second)
		third.Stop(t, 10*time.Second)
		again, upAgain := start(first.Device, 2)
		if fmt.Sprint(upAgain.URLs) != fmt.Sprint(up.URLs) {
			t.Errorf("ports moved: %v, then %v", up.URLs, upAgain.URLs)
		}
		all("first, again", upAgain)
		if !heavy {
			return
		}
		again.Stop(t, 10*time.Second)
		harness.Eventually(t, 90*time.Second, "ports are free after the lease of 2 s and the rest of 60 s", func() error {
			s := late
			s.Forwards = s.Forwards[1:]
			a := harness.StartAgent(t, f, s)
			defer a.Kill()
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, _, err := a.Stdout.Wait(ctx, 0, func(line string) bool { return strings.Contains(line, "tcp://") })
			return err
		})
	})
}
