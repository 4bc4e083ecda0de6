package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestReload reloads the edge again and again under a download, events, a visitor's
// WebSocket, a login by ssh and the requests of many: nothing breaks, and the agent
// does not notice.
func TestReload(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		reloads, n := 5, int64(64<<20)
		if heavy {
			reloads, n = 20, 1<<30
		}
		f := harness.Own(t, k, harness.Setup{TCPPorts: 4})
		o, server := harness.StartOrigin(t), startSSH(t)
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr, "22=" + server.addr}})
		up := a.Up(t)
		s := &site{face: f, origin: o, agent: a, host: up.Hostname(t, 80), client: harness.Visitor(t, f, false)}
		port := publicPort(t, up, 22)

		downloader := harness.Visitor(t, f, false)
		downloader.Timeout = 10 * time.Minute
		resp, err := downloader.Do(request(t, "GET", s.url(fmt.Sprintf("/bytes?n=%d", n)), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		hash, got := sha256.New(), int64(0)
		feed, ws, login := s.openFeed(t), s.openSocket(t), openLogin(t, server, port)
		load := startLoad(t, s)
		outMark, errMark := a.Stdout.Mark(), a.Stderr.Mark()

		for i := range reloads {
			piece := make(chan error, 1)
			go func() { // a part of the download for each reload, more than buffers hold
				n, err := io.CopyN(hash, resp.Body, n/int64(reloads+1))
				got += n
				piece <- err
			}()
			f.Reload(t, harness.Setup{TCPPorts: 4, AccessLog: i%2 == 0, Tunnel: []string{fmt.Sprintf("wait %ds", i+1)}})
			if err := <-piece; err != nil {
				t.Fatalf("reload %d: download, after %d bytes: %v", i+1, got, err)
			}
			if err := feed.want(3); err != nil {
				t.Fatalf("reload %d: %v", i+1, err)
			}
			if err := echoes(ws, 1, fmt.Sprintf("after reload %d", i+1)); err != nil {
				t.Fatalf("reload %d: visitor's WebSocket: %v", i+1, err)
			}
			login.says(t, fmt.Sprintf("typed after reload %d", i+1))
			load.more(t, 400)
			s.client.CloseIdleConnections()
			if r := s.get(t, "/page"); r.StatusCode != 200 {
				t.Fatalf("reload %d: %v", i+1, r)
			}
		}
		last, err := io.Copy(hash, resp.Body)
		if sum := hex.EncodeToString(hash.Sum(nil)); err != nil || got+last != n || sum != harness.PatternSum(n) {
			t.Errorf("download: %d of %d bytes, %v", got+last, n, err)
		}
		load.end(t, func(asked int64) int64 { return asked / 100 })
		openLogin(t, server, port).says(t, "a login after all")
		if lines := a.Stdout.Since(outMark); len(lines) > 0 {
			t.Errorf("the agent came up again: %q", lines)
		}
		if lines := a.Stderr.Since(errMark); len(lines) > 0 {
			t.Logf("the agent said meanwhile: %q", lines)
		}
	})
}

// login is a command on a device by ssh, that says what it is told.
type login struct {
	typed *os.File
	proc  *harness.Proc
}

func openLogin(t *testing.T, server *sshServer, port string) *login {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := harness.Run(t, harness.Command{Name: "ssh", Args: append(server.ssh(port, "127.0.0.1"), "cat"), Stdin: r})
	r.Close() // ssh has its own
	t.Cleanup(func() { w.Close() })
	return &login{w, p}
}

// says types a line and wants it back.
func (l *login) says(t *testing.T, line string) {
	t.Helper()
	mark := l.proc.Stdout.Mark()
	if _, err := fmt.Fprintln(l.typed, line); err != nil {
		t.Fatal(err)
	}
	l.proc.WaitStdout(t, mark, harness.VisitorTimeout, line)
}

// load is visitors who ask the device without a break, on kept and on fresh
// connections. Only a connection that was refused, reset or closed before the request
// reached the device is tried again: Caddy does that to connections that come just
// when it changes listeners, whatever the site. A visitor asks one thing at a time,
// so that a change of listeners costs each of them about one connection at most.
type load struct {
	asked, again atomic.Int64
	stop         context.CancelFunc
	wg           sync.WaitGroup
}

// loadClients is how many visitors a load is.
const loadClients = 4

func startLoad(t *testing.T, s *site) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel}
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	kept, fresh := harness.Visitor(t, s.face, false), harness.Visitor(t, s.face, true)
	fresh.Transport.(*http.Transport).DisableKeepAlives = true
	for _, c := range [loadClients]*http.Client{kept, kept, fresh, fresh} {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				path := fmt.Sprintf("/echo?load=%d", l.asked.Add(1))
				r, err := try(c, request(t, "GET", s.url(path), nil))
				broken := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF)
				reached := func(seen harness.Seen) bool { return seen.URI == path }
				switch {
				case broken && r.Response == nil && !slices.ContainsFunc(s.origin.Seen("/echo"), reached):
					l.again.Add(1)
				case err != nil:
					t.Errorf("%s: %v", path, err)
					return
				case r.StatusCode != 200:
					t.Errorf("%s: %v", path, r)
					return
				}
				rest(ctx, 5*time.Millisecond)
			}
		})
	}
	return l
}

// more waits until n more requests are through: nobody reloads without a pause.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	goal := l.asked.Load() + n
	harness.Eventually(t, 60*time.Second, "requests go on", func() error {
		if asked := l.asked.Load(); asked < goal && !t.Failed() {
			return fmt.Errorf("%d of %d", asked, goal)
		}
		return nil
	})
}

// end ends the visitors, and wants no more broken connections than most says for so
// many requests.
func (l *load) end(t *testing.T, most func(asked int64) int64) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	asked, again := l.asked.Load(), l.again.Load()
	t.Logf("%d requests, %d on connections that broke before them", asked, again)
	if bound := most(asked); asked < 50 || again > bound {
		t.Errorf("of %d requests %d were on connections that broke before them, want %d at most", asked, again, bound)
	}
}

// TestReloadFails has reloads fail in the edge's own modules, in its start and in the
// start of another app: nothing that is open breaks, and settings stay.
func TestReloadFails(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		good := harness.Setup{TCPPorts: 4, Tunnel: []string{"heartbeat 20s"}}
		f := harness.Own(t, k, good)
		h := newHeld(t, f)
		feed, ws := h.openFeed(t), h.openSocket(t)
		hand := harness.DialHand(t, f, f.NewDevice(t))
		load, mark := startLoad(t, h.site), h.agent.Stderr.Mark()
		taken, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		bad := func(site string, tunnel ...string) harness.Setup {
			return harness.Setup{
				TCPPorts: 4, Limits: []string{"streams_per_device 7"}, Sites: site, Tunnel: append([]string{"heartbeat 17s", "lease 1h"}, tunnel...),
			}
		}
		// Apps start in no order: twice sees both.
		other := fmt.Sprintf("http://:%s {\n\tbind 127.0.0.1\n\trespond hello\n}\n\n", taken.Addr().String()[len("127.0.0.1:"):])
		failures := []struct {
			setup harness.Setup
			says  string
		}{
			{bad("", "auth jwt_of_nobody"), "jwt_of_nobody"},
			{bad("", "auth static {", "\tfile /nowhere/devices.txt", "}"), "/nowhere/devices.txt"},
			{bad("", "registry memory {", "\tpath /proc/nowhere/leases.db", "}"), "/proc/nowhere"},
			{bad(other), "address already in use"},
			{bad(other), "address already in use"},
			{bad(other), "address already in use"},
		}
		for i, c := range failures {
			if said := f.ReloadFails(t, c.setup); !strings.Contains(said, c.says) {
				t.Errorf("failure %d does not say %q: %s", i+1, c.says, said)
			}
			if err := errors.Join(feed.want(3), echoes(ws, 1, "still here")); err != nil {
				t.Fatalf("failure %d: %v", i+1, err)
			}
			load.more(t, 100)
			if err := h.echoes(); err != nil {
				t.Errorf("failure %d: public port: %v", i+1, err)
			}
		}
		// A new device and the old one have the settings from before.
		if r := handReady(t, f, f.NewDevice(t)); r.Heartbeat != 20 || r.Lease != 720*3600 || r.Streams != 256 {
			t.Errorf("a new device is told %+v", r)
		}
		f.Reload(t, harness.Setup{TCPPorts: 4, Tunnel: []string{"heartbeat 21s"}})
		for r := (bounds{}); r.Heartbeat != 21; {
			hand.Next(t, "ready", &r)
		}
		// A start that fails has had its listeners, too.
		load.end(t, func(int64) int64 { return int64(len(failures)+1) * loadClients })
		for _, line := range h.agent.Stderr.Since(mark) {
			if strings.Contains(line, "tunnel down") {
				t.Errorf("the agent's tunnel broke: %s", line)
			}
		}
	})
}

// bounds is what is in force for a tunnel, of the message `ready`.
type bounds struct {
	Heartbeat int    `json:"heartbeat_s"`
	Lease     int64  `json:"lease_s"`
	Streams   int    `json:"streams"`
	Hostname  string `json:"hostname"`
}

// handReady opens a tunnel by hand and returns what it is told first.
func handReady(t *testing.T, f harness.Face, d harness.Device) (b bounds) {
	t.Helper()
	ws, resp, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(d.ID), harness.Bearer(d.Token))
	if err != nil {
		t.Fatalf("%v (%v)", err, harness.Refusal(resp))
	}
	t.Cleanup(func() { ws.Close() })
	(&harness.Hand{Conn: ws}).Next(t, "ready", &b)
	return b
}

// TestReloadSettings changes limits, lease and heartbeat: connected agents are told
// at once, and the lease and the limits count.
func TestReloadSettings(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		hand := harness.DialHand(t, f, f.NewDevice(t))
		mark := s.agent.Stderr.Mark()
		f.Reload(t, harness.Setup{
			Limits: []string{"streams_per_device 7", "tunnels 3"},
			Tunnel: []string{"heartbeat 3s", "lease 2s", "wait 100ms"},
		})
		reloaded := time.Now()
		var b bounds
		hand.Next(t, "ready", &b)
		if took := time.Since(reloaded); b.Heartbeat != 3 || b.Lease != 2 || b.Streams != 7 {
			t.Errorf("after %v the agent is told %+v", took, b)
		}
		inTime(t, "agents are told of new settings", time.Since(reloaded), 5*time.Second)
		third := harness.DialHand(t, f, f.NewDevice(t))
		d := f.NewDevice(t)
		_, resp, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(d.ID), harness.Bearer(d.Token))
		if a := harness.Refusal(resp); err == nil || a.Status != 503 || a.Code != "unavailable" {
			t.Errorf("a fourth tunnel where 3 are allowed: %v %v", err, a)
		}
		third.Close()
		hand.Close()
		s.mustServe(t)
		for _, line := range s.agent.Stderr.Since(mark) {
			if strings.Contains(line, "tunnel down") {
				t.Errorf("the agent's tunnel broke: %s", line)
			}
		}
		s.agent.Stop(t, 10*time.Second)
		harness.Eventually(t, 12*time.Second, "the name is gone with the new lease", func() error {
			if r := s.get(t, "/page"); r.code() != "unknown_device" {
				return errors.New(r.String())
			}
			return nil
		})
	})
}

// TestReloadClosesPorts takes the public ports away, and gives them back.
func TestReloadClosesPorts(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 4})
		h := newHeld(t, f)
		mark := h.agent.Stderr.Mark()
		f.Reload(t, harness.Setup{})
		harness.Eventually(t, 5*time.Second, "the port is closed", func() error {
			if err := h.echoes(); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("connecting to it gives: %v", err)
			}
			return nil
		})
		h.mustServe(t)
		f.Reload(t, harness.Setup{TCPPorts: 4})
		harness.Eventually(t, 10*time.Second, "there is a port again", func() error {
			first, last := f.TCPPorts()
			for port := first; port <= last; port++ {
				if tryTCP(fmt.Sprintf("127.0.0.1:%d", port), "are you there") == nil {
					t.Logf("port %s, then %d", h.port, port)
					return nil
				}
			}
			return errors.New("none answers")
		})
		for _, line := range h.agent.Stderr.Since(mark) {
			if strings.Contains(line, "tunnel down") {
				t.Errorf("the agent's tunnel broke: %s", line)
			}
		}
	})
}

// TestReloadMovesDomain changes the domain: every agent is told to come back, and
// has its label under the new one.
func TestReloadMovesDomain(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		a, b := newSite(t, f), newSite(t, f)
		hand := harness.DialHand(t, f, f.NewDevice(t))
		f.Reload(t, harness.Setup{Domain: "moved.localhost"})
		if code := harness.CloseCode(t, hand.Conn, 10*time.Second); code != 1012 {
			t.Errorf("a tunnel was closed with %d", code)
		}
		for _, s := range []*site{a, b} {
			label, domain, _ := strings.Cut(s.host, ".")
			was := s.host
			s.host = s.agent.UpWithin(t, 60*time.Second).Hostname(t, 80)
			if s.host == was && k.Name() == "nginx" { // it came to a node that is reloaded next
				s.host = s.agent.UpWithin(t, 60*time.Second).Hostname(t, 80)
			}
			if s.host != label+".moved.localhost" {
				t.Errorf("%s of %s became %s", label, domain, s.host)
			}
			s.mustServe(t)
		}
	})
}

// TestReloadRevokes takes a device's token away and reloads: its tunnel is cut
// within 5 s with 4003, and others stay.
func TestReloadRevokes(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		mark := s.agent.Stdout.Mark()
		d := f.NewDevice(t)
		h := harness.DialHand(t, f, d)
		f.Reload(t, harness.Setup{Without: []string{d.ID}})
		if code := harness.CloseCode(t, h.Conn, 5*time.Second); code != 4003 {
			t.Errorf("the tunnel was closed with %d", code)
		}
		_, resp, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(d.ID), harness.Bearer(d.Token))
		if a := harness.Refusal(resp); err == nil || a.Status != 401 && a.Status != 403 {
			t.Errorf("after that: %v %v", err, a)
		}
		s.mustServe(t)
		if lines := s.agent.Stdout.Since(mark); len(lines) > 0 {
			t.Errorf("the other agent came up again: %q", lines)
		}
	})
}
