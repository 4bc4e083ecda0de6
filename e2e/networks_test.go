package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// far is an edge, a visitor and a device on hosts of their own around a router.
type far struct {
	net                   *harness.Network
	edge, visitor, device *harness.Host
	face                  harness.Face
}

// newFar starts an edge. The device's packets take delay in each direction.
func newFar(t *testing.T, k harness.Kind, s harness.Setup, delay time.Duration) *far {
	t.Helper()
	f := &far{net: harness.NewNetwork(t)}
	f.edge, f.visitor = f.net.Host(t, "edge"), f.net.Host(t, "visitor")
	if delay > 0 {
		f.device = f.net.FarHost(t, "device", delay)
	} else {
		f.device = f.net.Host(t, "device")
	}
	s.Host = f.edge
	f.face = harness.Own(t, k, s)
	return f
}

// newSite brings the device up whose port 80 is a fresh origin.
func (f *far) newSite(t *testing.T, setup harness.AgentSetup) *site {
	t.Helper()
	o := f.device.StartOrigin(t)
	setup.Forwards = []string{"80=" + o.Addr}
	a := f.device.StartAgent(t, f.face, setup)
	up := a.UpWithin(t, 60*time.Second)
	return &site{face: f.face, origin: o, agent: a, host: up.Hostname(t, 80), client: f.visitor.Visitor(t, f.face, false)}
}

// useSite does what visitors do, over whatever is between.
func useSite(t *testing.T, s *site, n int64) {
	t.Helper()
	s.mustServe(t)
	s.client.Timeout = 2 * time.Minute
	resp, err := s.client.Do(request(t, "GET", s.url(fmt.Sprintf("/bytes?n=%d", n)), nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, sum, err := harness.Sum(resp.Body); err != nil || got != n || sum != harness.PatternSum(n) {
		t.Errorf("down: %d of %d bytes, %v", got, n, err)
	}
	req := request(t, "POST", s.url("/sum"), harness.NewPattern(n))
	req.ContentLength = n
	if seen := echo(t, do(t, s.client, req)); seen.Bytes != n || seen.SHA256 != harness.PatternSum(n) {
		t.Errorf("up: %d of %d bytes", seen.Bytes, n)
	}
	ws := s.openSocket(t)
	for i := range 3 {
		if err := echoes(ws, websocket.TextMessage, fmt.Sprintf("message %d", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConnectProxy has a device on a network that lets nothing out but what goes
// through an HTTP proxy, with and without a password.
func TestConnectProxy(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 0)
		way := f.net.Host(t, "proxy")
		f.net.Router.Nft(t, fmt.Sprintf(`table ip company {
	chain forward { type filter hook forward priority 0; ip saddr %s ip daddr %s reject with icmp admin-prohibited; }
}`, f.device.Addr, f.edge.Addr))
		once := func(flags ...string) (int, string) {
			t.Helper()
			status, out, errs := f.device.AgentToEnd(t, f.face, 60*time.Second, harness.AgentSetup{
				Forwards: []string{"80=127.0.0.1:1"}, Flags: append([]string{"--once"}, flags...),
			})
			if out != "" {
				t.Errorf("standard output: %q", out)
			}
			return status, errs
		}
		if status, errs := once(); status != 4 || !strings.Contains(errs, "tcp") {
			t.Errorf("without the proxy: status %d:\n%s", status, errs)
		}
		if status, errs := once("--proxy", "http://"+way.Addr+":3128"); status != 4 || !strings.Contains(errs, "proxy") || !strings.Contains(errs, "refused") {
			t.Errorf("nobody is at the proxy's port: status %d:\n%s", status, errs)
		}
		t.Run("open", func(t *testing.T) {
			p := harness.StartProxy(t, way, "", "")
			s := f.newSite(t, harness.AgentSetup{Flags: []string{"--proxy", "http://" + p.Addr}})
			useSite(t, s, 1<<20)
			if p.Tunnels.Load() < 2 {
				t.Error("the proxy saw no transfer socket")
			}
		})
		t.Run("password", func(t *testing.T) {
			p := harness.StartProxy(t, way, "device", "s3cret&more")
			// What proxy is to be used, and with what, is told in the message; a password never.
			for _, c := range []struct{ name, user, says string }{
				{"none given", "", "user:password@"},
				{"wrong", "device:wr0ng@", "not accepted"},
			} {
				status, errs := once("--proxy", "http://"+c.user+p.Addr)
				if status != 4 || !strings.Contains(errs, "407") || !strings.Contains(errs, c.says) || !strings.Contains(errs, p.Addr) || strings.Contains(errs, "wr0ng") {
					t.Errorf("password %s: status %d:\n%s", c.name, status, errs)
				}
			}
			s := f.newSite(t, harness.AgentSetup{Flags: []string{"--proxy", "http://device:s3cret%26more@" + p.Addr}})
			useSite(t, s, 1<<20)
			for _, line := range s.agent.Stderr.Since(0) {
				if strings.Contains(line, "s3cret") {
					t.Errorf("the password is in the log: %s", line)
				}
			}
		})
		t.Run("by the environment", func(t *testing.T) {
			p := harness.StartProxy(t, way, "device", "s3cret")
			variable := "HTTPS_PROXY"
			if f.face.CAFile() == "" {
				variable = "HTTP_PROXY"
			}
			o := f.device.StartOrigin(t)
			a := harness.StartAgent(t, f.face, harness.AgentSetup{
				Forwards: []string{"80=" + o.Addr},
				Flags:    []string{"--allow-plaintext"}, // of no meaning to wss
				Command:  f.device.Args("env", variable+"=http://device:s3cret@"+p.Addr, harness.Binary(t, "iottunnel-agent")),
			})
			a.Up(t)
			if p.Tunnels.Load() == 0 {
				t.Error("the proxy saw no tunnel")
			}
		})
	})
}

// TestInspectingProxy has a box on the way that reads what is inside TLS, with
// certificates of the company's own.
func TestInspectingProxy(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 0)
		authority := harness.NewAuthority(t)
		box := &harness.Middlebox{Addr: f.face.AgentAddr(), Authority: authority, Trust: f.face.AgentTLS()}
		box.Start(t, f.net)
		f.visitor = f.edge // visitors do not pass the box
		status, _, errs := f.device.AgentToEnd(t, f.face, 60*time.Second, harness.AgentSetup{
			Forwards: []string{"80=127.0.0.1:1"}, Flags: []string{"--once"},
		})
		if status != 4 || !strings.Contains(errs, "tls") || !strings.Contains(errs, "unknown authority") {
			t.Errorf("without the company's authority: status %d:\n%s", status, errs)
		}
		s := f.newSite(t, harness.AgentSetup{Flags: []string{"--ca", authority.File}})
		useSite(t, s, 1<<20)
		if box.Conns.Load() < 3 {
			t.Errorf("the box saw %d connections", box.Conns.Load())
		}
	})
}

// TestNoUpgrade has a box on the way that does not let WebSocket through: the agent
// says what it got instead, in words that lead to the box.
func TestNoUpgrade(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 0)
		passes := func(head []byte) (forward, answer []byte) { return head, nil }
		portal := func([]byte) (forward, answer []byte) {
			const page = "<h1>Welcome to the hotel</h1>"
			return nil, fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(page), page)
		}
		login := func([]byte) (forward, answer []byte) {
			return nil, []byte("HTTP/1.1 302 Found\r\nLocation: https://login.hotel.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
		var mu sync.Mutex
		does := passes // guarded by mu
		box := &harness.Middlebox{Addr: f.face.AgentAddr(), Head: func(head []byte) (forward, answer []byte) {
			mu.Lock()
			defer mu.Unlock()
			return does(head)
		}}
		var flags []string
		if f.face.CAFile() != "" {
			box.Authority, box.Trust = harness.NewAuthority(t), f.face.AgentTLS()
			flags = []string{"--ca", box.Authority.File}
		}
		box.Start(t, f.net)
		f.visitor = f.edge
		for _, c := range []struct {
			name string
			head func([]byte) (forward, answer []byte)
			says []string
		}{
			{"strips Upgrade", harness.WithoutUpgrade, []string{"426", "WebSocket upgrade"}},
			{"answers a page", portal, []string{"200", "not by an iottunnel edge"}},
			{"sends to a login", login, []string{"login.hotel.example"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				mu.Lock()
				does = c.head
				mu.Unlock()
				status, out, errs := f.device.AgentToEnd(t, f.face, 60*time.Second, harness.AgentSetup{
					Forwards: []string{"80=127.0.0.1:1"}, Flags: append([]string{"--once"}, flags...),
				})
				if status != 3 && status != 4 || out != "" {
					t.Errorf("status %d, standard output %q", status, out)
				}
				for _, say := range c.says {
					if !strings.Contains(errs, say) {
						t.Errorf("standard error does not speak of %q:\n%s", say, errs)
					}
				}
			})
		}
		mu.Lock()
		does = passes
		mu.Unlock()
		useSite(t, f.newSite(t, harness.AgentSetup{Flags: flags}), 1<<20)
	})
}

// TestIdleConnectionsAreCut has a router between that forgets connections on which
// nothing moves, as NATs do: an idle tunnel stays up, and so does a visitor's
// connection that says nothing.
func TestIdleConnectionsAreCut(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		cut, flags := 18*time.Second, []string{"--heartbeat", "10s"}
		if heavy {
			cut, flags = 30*time.Second, nil // the default is made for this
		}
		f := newFar(t, k, harness.Setup{}, 0)
		nat(t, f, cut)
		f.visitor = f.edge // only the device is behind it
		s := f.newSite(t, harness.AgentSetup{Flags: flags})
		ws := s.openSocket(t)
		if err := echoes(ws, websocket.TextMessage, "before"); err != nil {
			t.Fatal(err)
		}
		mark := s.agent.Stderr.Mark()
		began := time.Now()

		// The control: a connection without any heartbeat does not live through it.
		l := f.edge.Listen(t, 7)
		bare, err := f.device.Dial(t.Context(), f.edge.Addr+":7")
		if err != nil {
			t.Fatal(err)
		}
		defer bare.Close()
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		for _, c := range []net.Conn{bare, peer} {
			if err := c.(*net.TCPConn).SetKeepAlive(false); err != nil {
				t.Fatal(err)
			}
		}

		time.Sleep(2*cut + cut/4) // the silence is the subject
		bare.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = io.WriteString(bare, "anybody there?")
		if err == nil {
			_, err = bare.Read(make([]byte, 1))
		}
		var timeout net.Error
		if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatalf("the router cuts nothing: %v", err)
		}
		if err := echoes(ws, websocket.TextMessage, "after"); err != nil {
			t.Errorf("the visitor's WebSocket, after %v: %v", time.Since(began).Round(time.Second), err)
		}
		s.mustServe(t)
		for _, line := range s.agent.Stderr.Since(mark) {
			if strings.Contains(line, "tunnel down") {
				t.Errorf("the tunnel did not stay: %s", line)
			}
		}
	})
}

// nat puts the device behind an address of the router that forgets connections
// which are idle for cut, and answers what it does not know with a reset.
func nat(t *testing.T, f *far, cut time.Duration) {
	t.Helper()
	f.net.Router.Nft(t, fmt.Sprintf(`table ip nat {
	chain forward {
		type filter hook forward priority 0
		ct state invalid counter reject with tcp reset
		ip saddr %s tcp flags & (syn | ack) != syn ct state new reject with tcp reset
	}
	chain postrouting { type nat hook postrouting priority 100; oifname %q ip saddr %s masquerade; }
}`, f.device.Addr, f.edge.Interface(), f.device.Addr))
	f.net.Router.Sysctl(t, "net/netfilter/nf_conntrack_tcp_loose", "0")
	f.net.Router.Sysctl(t, "net/netfilter/nf_conntrack_tcp_timeout_established", fmt.Sprint(int(cut/time.Second)))
}

// TestLossyLink has a device at the far end of a link with 300 ms there and back
// that loses 3 % of the packets each way.
func TestLossyLink(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 150*time.Millisecond)
		f.device.Lossy(t, 30)
		size := int64(128 << 10)
		if heavy {
			size = 1 << 20
		}
		s := f.newSite(t, harness.AgentSetup{Flags: []string{"--heartbeat", "10s"}})
		mark := s.agent.Stderr.Mark()
		began := time.Now()
		useSite(t, s, size)
		t.Logf("%d KiB down and up, and some messages: %v", size>>10, time.Since(began).Round(time.Millisecond))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				c := f.visitor.Visitor(t, f.face, true)
				for range 3 {
					r, err := try(c, request(t, "GET", s.url("/page"), nil))
					if err != nil || r.StatusCode != 200 {
						t.Errorf("beside seven others: %v %v", r, err)
					}
				}
			})
		}
		wg.Wait()
		if r := s.get(t, "/page"); r.took < 300*time.Millisecond {
			t.Errorf("the link is not that long: a page took %v", r.took)
		}
		if f.device.Lost(t) == 0 {
			t.Error("the link lost no packet")
		}
		for _, line := range s.agent.Stderr.Since(mark) {
			if strings.Contains(line, "tunnel down") {
				t.Errorf("the tunnel did not stay: %s", line)
			}
		}
	})
}

// TestFirstAddressDead has a name for the edge with several addresses of which
// only the last one leads there: the rest say nothing, or lie in a network that
// cannot be reached.
func TestFirstAddressDead(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 0)
		silent := f.net.Host(t, "silent")
		silent.Block(t, 0)
		harness.ServeDNS(t, f.edge, harness.HostedName,
			netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr(silent.Addr), netip.MustParseAddr(f.edge.Addr))
		_, port, err := net.SplitHostPort(f.face.AgentAddr())
		if err != nil {
			t.Fatal(err)
		}
		scheme := "wss"
		if f.face.CAFile() == "" {
			scheme = "ws"
		}
		began := time.Now()
		s := f.newSite(t, harness.AgentSetup{
			Servers: []string{fmt.Sprintf("%s://%s:%s", scheme, harness.HostedName, port)},
			Flags:   []string{"--dns", f.edge.Addr},
		})
		t.Logf("up after %v", time.Since(began).Round(time.Millisecond))
		for range 3 { // each by a connection of its own
			req := request(t, "POST", s.url("/echo"), strings.NewReader("x"))
			r := do(t, s.client, req)
			if r.StatusCode != http.StatusOK {
				t.Errorf("a visitor waited %v: %v", r.took, r)
			}
			inTime(t, "a visitor of a device that knows dead addresses", r.took, 4*time.Second)
		}
	})
}
