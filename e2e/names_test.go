package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestNameIsKept ends agent and edge in every way: the device has the same name, and
// its page, each time after.
func TestNameIsKept(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		o := harness.StartOrigin(t)
		d := f.NewDevice(t)
		setup := harness.AgentSetup{Device: d, Forwards: []string{"80=" + o.Addr}}
		agent := harness.StartAgent(t, f, setup)
		s := &site{face: f, origin: o, agent: agent, host: agent.Up(t).Hostname(t, 80), client: harness.Visitor(t, f, false)}
		if want := "." + f.Domain(); !strings.HasSuffix(s.host, want) || len(s.host) < len(want)+16 {
			t.Fatalf("hostname %q: want 16 random characters before %s", s.host, want)
		}
		s.mustServe(t)
		same := func(t *testing.T, up harness.Up) {
			t.Helper()
			if host := up.Hostname(t, 80); host != s.host {
				t.Fatalf("name %s became %s", s.host, host)
			}
			s.mustServe(t)
		}
		// The steps build on one another: subtests only name them.
		t.Run("agent stopped", func(t *testing.T) {
			if status := agent.Stop(t, 10*time.Second); status != 0 {
				t.Errorf("status %d after SIGTERM", status)
			}
		})
		agent = harness.StartAgent(t, f, setup)
		same(t, agent.Up(t))
		agent.Kill()
		agent = harness.StartAgent(t, f, setup) // another instance, the old one dead
		same(t, agent.Up(t))

		f.Stop(t)
		agent.Forget()
		f.Start(t)
		same(t, agent.Up(t))
		f.Kill(t)
		f.Start(t)
		same(t, agent.Up(t))

		f.Kill(t) // both at once
		agent.Kill()
		f.Start(t)
		agent = harness.StartAgent(t, f, setup)
		same(t, agent.Up(t))
	})
}

// TestLeaseEnds wants a name to be gone after its lease, and the device to get
// another one then.
func TestLeaseEnds(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		const lease = 2 * time.Second
		f := harness.Own(t, k, harness.Setup{Tunnel: []string{"lease 2s", "wait 100ms"}})
		o := harness.StartOrigin(t)
		setup := harness.AgentSetup{Device: f.NewDevice(t), Forwards: []string{"80=" + o.Addr}}
		agent := harness.StartAgent(t, f, setup)
		s := &site{face: f, origin: o, agent: agent, host: agent.Up(t).Hostname(t, 80), client: harness.Visitor(t, f, false)}

		// While connected the lease is refreshed.
		for end := time.Now().Add(2*lease + lease/2); time.Now().Before(end); {
			s.mustServe(t)
		}
		left := time.Now() // its end takes a moment, after which the lease begins
		agent.Stop(t, 10*time.Second)
		r := s.get(t, "/page")
		if r.code() != "device_offline" {
			t.Errorf("right after the device left: %v", r)
		}
		harness.Eventually(t, lease+8*time.Second, "the name is gone", func() error {
			if r := s.get(t, "/page"); r.code() != "unknown_device" || r.StatusCode != 404 {
				return errors.New(r.String())
			}
			return nil
		})
		if kept := time.Since(left); kept < lease-200*time.Millisecond {
			t.Errorf("the name was gone after %v, with a lease of %v", kept, lease)
		}
		agent = harness.StartAgent(t, f, setup)
		if again := agent.Up(t).Hostname(t, 80); again == s.host {
			t.Errorf("the name %s came back after its lease", again)
		} else {
			s.host = again
		}
		s.mustServe(t)
	})
}

// TestPausedEdge pauses the edge for longer than the lease: its devices are not taken
// for replaced ones, which stay away for minutes, but are back at once.
func TestPausedEdge(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Tunnel: []string{"lease 2s"}})
		s := newSite(t, f)
		s.mustServe(t)
		f.Pause(t, 5*time.Second)
		// The edge looks at its leases within this time, and may keep the tunnel.
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		down := func(line string) bool { return strings.Contains(line, "tunnel down") }
		if _, _, err := s.agent.Stderr.Wait(ctx, 0, down); err == nil {
			s.host = s.agent.UpWithin(t, 5*time.Second).Hostname(t, 80) // another name: the lease was over
		}
		s.mustServe(t)
	})
}

// TestOfflinePage reads the answers for a device that is known and away, and for a
// name that nobody has, as browsers and programs do.
func TestOfflinePage(t *testing.T) {
	for _, log := range []bool{false, true} {
		t.Run(fmt.Sprintf("access log %t", log), func(t *testing.T) {
			onFaces(t, func(t *testing.T, k harness.Kind) {
				f := harness.Own(t, k, harness.Setup{AccessLog: log, Tunnel: []string{"wait 200ms"}})
				s := newSite(t, f)
				s.mustServe(t)
				s.openFeed(t) // and hijacked connections
				if err := echoes(s.openSocket(t), 1, "hello"); err != nil {
					t.Error(err)
				}
				s.agent.Stop(t, 10*time.Second)

				r := s.get(t, "/page", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
				wantPage(t, r, 503, "device_offline")
				if after, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || after < 1 {
					t.Errorf("Retry-After %q", r.Header.Get("Retry-After"))
				}
				wantJSON(t, s.get(t, "/page", "Accept", "application/json"), 503, "device_offline")
				r = do(t, s.client, request(t, "POST", s.url("/sum"), strings.NewReader("body"), "Accept", "application/json"))
				wantJSON(t, r, 503, "device_offline")
				r = do(t, s.client, request(t, "HEAD", s.url("/page"), nil))
				if r.StatusCode != 503 || r.code() != "device_offline" || r.body != "" {
					t.Errorf("HEAD: %v", r)
				}

				nobody := f.URL("aaaabbbbccccdddd."+f.Domain(), "/page")
				wantPage(t, do(t, s.client, request(t, "GET", nobody, nil, "Accept", "text/html")), 404, "unknown_device")
				wantJSON(t, do(t, s.client, request(t, "GET", nobody, nil, "Accept", "application/json")), 404, "unknown_device")
				for _, odd := range []string{"x", "a--b", "a--0", "xn--nxasmq6b"} {
					r := do(t, s.client, request(t, "GET", f.URL(odd+"."+f.Domain(), "/"), nil, "Accept", "application/json"))
					wantJSON(t, r, 404, "unknown_device")
				}
			})
		})
	}
}

func wantPage(t *testing.T, r reply, status int, code string) {
	t.Helper()
	h := r.Header
	if r.StatusCode != status || r.code() != code {
		t.Errorf("want %d %s, got %v", status, code, r)
	}
	if !strings.HasPrefix(h.Get("Content-Type"), "text/html") || !strings.Contains(strings.ToLower(r.body), "<!doctype html>") {
		t.Errorf("not a page: Content-Type %q, %.100q", h.Get("Content-Type"), r.body)
	}
	if !strings.Contains(h.Get("X-Robots-Tag")+r.body, "noindex") {
		t.Error("the page may be indexed")
	}
	if !strings.Contains(h.Get("Cache-Control"), "no-store") {
		t.Errorf("Cache-Control %q", h.Get("Cache-Control"))
	}
}

func wantJSON(t *testing.T, r reply, status int, code string) {
	t.Helper()
	var body struct{ Error, Message string }
	err := json.Unmarshal([]byte(r.body), &body)
	if r.StatusCode != status || r.code() != code || err != nil || body.Error != code || body.Message == "" {
		t.Errorf("want JSON of %d %s, got %v", status, code, r)
	}
}

// TestRefusedByService has an agent whose local service is not there.
func TestRefusedByService(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{fmt.Sprintf("80=127.0.0.1:%d", harness.FreePort(t, 1))}})
		c := harness.Visitor(t, f, false)
		url := f.URL(a.Up(t).Hostname(t, 80), "/")
		r := do(t, c, request(t, "GET", url, nil, "Accept", "text/html"))
		wantPage(t, r, 502, "device_refused")
		inTime(t, "a service that refuses", r.took, 3*time.Second)
		wantJSON(t, do(t, c, request(t, "GET", url, nil, "Accept", "application/json")), 502, "device_refused")
	})
}

// TestOperatorsErrorPage has `handle_errors` replace the edge's own page.
func TestOperatorsErrorPage(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{
			Tunnel: []string{"wait 100ms"},
			Errors: []string{`	respond "operator's page: {err.status_code} for {http.iottunnel.label}" {err.status_code}`},
		})
		s := newSite(t, f)
		s.agent.Stop(t, 10*time.Second)
		label, _, _ := strings.Cut(s.host, ".")
		r := s.get(t, "/page", "Accept", "text/html")
		if r.StatusCode != 503 || r.body != "operator's page: 503 for "+label {
			t.Errorf("offline: %v", r)
		}
		nobody := "aaaabbbbccccdddd"
		r = do(t, s.client, request(t, "GET", f.URL(nobody+"."+f.Domain(), "/"), nil))
		if r.StatusCode != 404 || !strings.HasPrefix(r.body, "operator's page: 404") {
			t.Errorf("unknown: %v", r)
		}
	})
}

// TestNextHandler has the operator's own site beside bare `iottunnel`.
func TestNextHandler(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		c := harness.Visitor(t, f, false)
		for _, host := range []string{"localhost", "127.0.0.1", "www.example.com", "a.b.localhost"} {
			r := do(t, c, request(t, "GET", f.URL(host, "/"), nil))
			if r.StatusCode != 200 || r.body != "the operator's own site" || r.code() != "" {
				t.Errorf("%s: %v", host, r)
			}
		}
	})
}

// TestVisitorWaits has visitors come while the device is reconnecting: they wait and
// get its page. One that comes before the edge knows of it is sent to the dead
// tunnel, and again to the new one, as its request may be sent twice.
func TestVisitorWaits(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Tunnel: []string{"wait 10s"}})
		s := newSite(t, f)
		s.mustServe(t)
		mark := f.Log().Mark()
		s.agent.Kill() // an unclean end
		var wg sync.WaitGroup
		visit := func(method, body string) {
			wg.Go(func() {
				r, err := try(s.client, request(t, method, s.url("/echo"), strings.NewReader(body)))
				if want := fmt.Sprintf(`"Bytes":%d`, len(body)); err != nil || r.StatusCode != 200 || !strings.Contains(r.body, want) {
					t.Errorf("%s of %d bytes during the reconnect: %v %v", method, len(body), r, err)
				}
			})
		}
		visit("GET", "")
		visit("GET", "")
		edgeSays(t, f, mark, "tunnel down")
		visit("GET", "body")
		visit("POST", "body")
		visit("GET", "")
		harness.StartAgent(t, f, harness.AgentSetup{Device: s.agent.Device, Forwards: []string{"80=" + s.origin.Addr}}).Up(t)
		wg.Wait()
	})
}

// TestBackWithinASecond looks at a device's page without a break: while the device
// is away the visitor sees the offline page, and within a second of the reconnect
// the real one.
func TestBackWithinASecond(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Tunnel: []string{"wait 100ms"}})
		s := newSite(t, f)
		s.agent.Stop(t, 10*time.Second)
		if r := s.get(t, "/page"); r.code() != "device_offline" {
			t.Fatalf("away: %v", r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		served := make(chan time.Time, 1)
		go func() { // ends with the page, or with ctx
			for ctx.Err() == nil {
				r, err := try(s.client, request(t, "GET", s.url("/page"), nil).WithContext(ctx))
				if err == nil && r.StatusCode == 200 {
					served <- time.Now()
					return
				}
			}
		}()
		again := harness.StartAgent(t, f, harness.AgentSetup{Device: s.agent.Device, Forwards: []string{"80=" + s.origin.Addr}})
		again.Up(t)
		up := time.Now()
		select {
		case at := <-served:
			inTime(t, "a page is back after the reconnect", at.Sub(up), time.Second)
		case <-time.After(harness.Patience):
			t.Errorf("the page is not back %v after the reconnect", harness.Patience)
		}
	})
}

// TestSecondDevice starts a second agent with the id and token of one that lives:
// it is refused with 409 and says so, and the first one loses nothing.
func TestSecondDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		s := newSite(t, f)
		feed := s.openFeed(t)
		other := harness.StartOrigin(t)
		setup := harness.AgentSetup{Device: s.agent.Device, Forwards: []string{"80=" + other.Addr}}

		onceSetup := setup
		onceSetup.Flags = []string{"--once"}
		status, out, errs := harness.AgentToEnd(t, f, harness.UpTime, onceSetup)
		if status != 3 || out != "" || !strings.Contains(errs, "409") && !strings.Contains(errs, "device_connected") {
			t.Errorf("with --once: status %d, standard output %q, standard error:\n%s", status, out, errs)
		}
		second := harness.StartAgent(t, f, setup)
		second.WaitStderr(t, 0, harness.UpTime, "device_connected")
		_, resp, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(setup.Device.ID), harness.Bearer(setup.Device.Token))
		if err == nil {
			t.Fatal("a second control socket was accepted")
		}
		if a := harness.Refusal(resp); a.Status != http.StatusConflict || a.Code != "device_connected" || a.Message == "" {
			t.Errorf("by hand: %v", a)
		}
		if err := feed.want(20); err != nil {
			t.Errorf("the first device lost something: %v", err)
		}
		s.mustServe(t)

		// When the first one is gone, the second takes the name over by itself.
		s.agent.Stop(t, 10*time.Second)
		if host := second.UpWithin(t, 60*time.Second).Hostname(t, 80); host != s.host {
			t.Errorf("the name became %s", host)
		}
	})
}

// TestSameInstance reconnects with the same instance while the old socket lives:
// the new one takes over at once and the old one is told so.
func TestSameInstance(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		d := f.NewDevice(t)
		query := harness.ControlPath + "?" + harness.Query(d.ID)
		first, resp, err := harness.DialSocket(t.Context(), f, query, harness.Bearer(d.Token))
		if err != nil {
			t.Fatalf("first: %v %v", err, harness.Refusal(resp))
		}
		defer first.Close()
		second, resp, err := harness.DialSocket(t.Context(), f, query, harness.Bearer(d.Token))
		if err != nil {
			t.Fatalf("second: %v %v", err, harness.Refusal(resp))
		}
		defer second.Close()
		if code := harness.CloseCode(t, first, 10*time.Second); code != 4001 {
			t.Errorf("the old socket was closed with %d", code)
		}
		h := &harness.Hand{Conn: second}
		h.Next(t, "ready", nil)
	})
}

// TestFrozenDevice stops an agent in its tracks, its connection open: a restarted
// device gets its name although the old connection never said goodbye.
func TestFrozenDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		s := newSite(t, f)
		s.agent.Signal(syscall.SIGSTOP)
		again := harness.StartAgent(t, f, harness.AgentSetup{Device: s.agent.Device, Forwards: []string{"80=" + s.origin.Addr}})
		began := time.Now()
		if host := again.UpWithin(t, 15*time.Second).Hostname(t, 80); host != s.host {
			t.Errorf("the name became %s", host)
		}
		t.Logf("back after %v", time.Since(began))
		s.mustServe(t)
	})
}
