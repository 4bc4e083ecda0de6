package tunnelcore

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func wantCode(t *testing.T, err error, want wire.Code) {
	t.Helper()
	var e *answers.Error
	if !errors.As(err, &e) || e.Code != want {
		t.Fatalf("got %v, want %s", err, want)
	}
}

func TestReadySaysWhatIsInForce(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Lease = time.Hour })
	h := hello("cam-17")
	h.Streams, h.MessageMax, h.Heartbeat = 4, 1024, 60
	a := e.connect(h)
	r := a.ready
	if r.Streams != 4 || r.MessageMax != 1024 || r.Heartbeat != 60 || r.Lease != 3600 || r.Caps != "" || r.Early != 0 || r.EarlyTotal != 0 {
		t.Errorf("ready: %+v", r)
	}
	if r.Hostname != r.Label+"."+domain || len(r.Label) != 16 {
		t.Errorf("label %q, hostname %q", r.Label, r.Hostname)
	}
	if !strings.HasPrefix(r.Transfer, wire.TransferPath+"?node=edge-1&tunnel="+r.Tunnel) {
		t.Errorf("transfer %q", r.Transfer)
	}
	want := []string{"http://" + r.Hostname + ":8080/", "", "http://" + r.Label + "--8080." + domain + ":8080/"}
	for i, p := range a.ports {
		if p.Port != h.Ports[i].Number || p.Kind != h.Ports[i].Kind || p.URL != want[i] {
			t.Errorf("port %d: %+v, want URL %q", i, p, want[i])
		}
	}
	e.event("online cam-17")
}

func TestStreamBothWays(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	got := e.visit("cam-17", 8080)
	o := a.receive().(*wire.Open)
	if o.Port != 8080 || o.From != visitor.String() || o.Stream != 1 {
		t.Errorf("open: %+v", o)
	}
	c := a.transfer(o)
	v := <-got
	if v.err != nil {
		t.Fatal(v.err)
	}
	carries(t, v, c)
	// Half-close: the visitor ends, the device answers after that.
	if err := v.Conn.(*stream.Stream).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
		t.Fatalf("read %q, %v", rest, err)
	}
	if _, err := io.WriteString(c, "all of it"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(v); err != nil || string(all) != "all of it" {
		t.Fatalf("read %q, %v", all, err)
	}
	v.Close()
	c.Close()
	eventually(t, "no stream is left", func() bool { return !e.hub.devices["cam-17"].streaming() })
}

func TestDialFails(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.OpenTimeout, s.Wait = 50*time.Millisecond, -1 })
	_, err := e.hub.Dial(context.Background(), "cam-17", 80, visitor)
	wantCode(t, err, wire.DeviceOffline)

	a := e.connect(hello("cam-17"))
	_, err = e.hub.Dial(context.Background(), "cam-17", 81, visitor)
	wantCode(t, err, wire.UnknownDevice)

	got := e.visit("cam-17", 22)
	o := a.receive().(*wire.Open)
	if err := a.sock.WriteMessage(socket.Text, wire.Encode(&wire.Refused{Stream: o.Stream, Reason: "connection refused"})); err != nil {
		t.Fatal(err)
	}
	v := <-got
	wantCode(t, v.err, wire.DeviceRefused)
	if !strings.Contains(v.err.Error(), "connection refused") {
		t.Errorf("the agent's reason is lost: %v", v.err)
	}

	_, err = e.hub.Dial(context.Background(), "cam-17", 22, visitor) // nobody answers the open
	wantCode(t, err, wire.DeviceTimeout)
	late := a.receive().(*wire.Open)
	if status, body, _ := e.refusal(a.ready.Transfer+"&id="+late.ID, a.ready.Secret); status != 404 || body.Error != wire.UnknownStream {
		t.Errorf("late transfer: %d %+v", status, body)
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = e.hub.Dial(ctx, "cam-17", 22, visitor)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestTunnelEndsDuringOpen(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Wait = -1 })
	a := e.connect(hello("cam-17"))
	got := e.visit("cam-17", 80)
	a.receive()
	a.sock.Close()
	wantCode(t, (<-got).err, wire.DeviceOffline)
}

// The visitor is served by the next tunnel.
func TestTunnelBreaksDuringOpen(t *testing.T) {
	e := startEdge(t, nil)
	h := hello("cam-17")
	a := e.connect(h)
	got := e.visit("cam-17", 80)
	a.receive()
	a.sock.Close()
	e.event("offline cam-17")
	a = e.connect(h)
	c := a.transfer(a.receive().(*wire.Open))
	v := <-got
	if v.err != nil {
		t.Fatal(v.err)
	}
	carries(t, v, c)
	v.Close()
}

func TestTransferRefused(t *testing.T) {
	e := startEdge(t, nil)
	a, b := e.connect(hello("cam-17")), e.connect(hello("cam-18"))
	got := e.visit("cam-17", 80)
	o := a.receive().(*wire.Open)
	path := a.ready.Transfer + "&id=" + o.ID
	for _, c := range []struct {
		name, path, secret string
		status             int
		code               wire.Code
	}{
		{"no secret", path, "", 401, wire.Unauthorized},
		{"another tunnel's secret", path, b.ready.Secret, 401, wire.Unauthorized},
		{"the device's token", path, "token-of-cam-17", 401, wire.Unauthorized},
		{"another tunnel", b.ready.Transfer + "&id=" + o.ID, b.ready.Secret, 404, wire.UnknownStream},
		{"no tunnel", wire.TransferPath + "?node=edge-1&id=" + o.ID, a.ready.Secret, 401, wire.Unauthorized},
		{"another node", strings.Replace(path, "edge-1", "edge-2", 1), a.ready.Secret, 421, wire.NotHere},
		{"guessed id", a.ready.Transfer + "&id=" + wire.NewID(), a.ready.Secret, 404, wire.UnknownStream},
		{"no id", a.ready.Transfer, a.ready.Secret, 404, wire.UnknownStream},
	} {
		if status, body, _ := e.refusal(c.path, c.secret); status != c.status || body.Error != c.code {
			t.Errorf("%s: %d %+v, want %d %s", c.name, status, body, c.status, c.code)
		}
	}
	// None of them has used the id up.
	conn := a.transfer(o)
	v := <-got
	if v.err != nil {
		t.Fatal(v.err)
	}
	carries(t, v, conn)
	if status, body, _ := e.refusal(path, a.ready.Secret); status != 404 || body.Error != wire.UnknownStream {
		t.Errorf("id used twice: %d %+v", status, body)
	}
	v.Close()
}

func TestControlRefused(t *testing.T) {
	e := startEdge(t, nil)
	good := hello("cam-17")
	query := func(change func(*wire.Hello)) string {
		h := good
		change(&h)
		return wire.ControlPath + "?" + h.Query()
	}
	for _, c := range []struct {
		name, path, token string
		status            int
		code              wire.Code
		says              string
	}{
		{"no token", query(func(*wire.Hello) {}), "", 401, wire.Unauthorized, "wrong"},
		{"wrong token", query(func(*wire.Hello) {}), "token-of-cam-18", 401, wire.Unauthorized, "wrong"},
		{"upper case", query(func(h *wire.Hello) { h.Device = "CAM" }), "x", 400, wire.BadRequest, "device"},
		{"two hyphens", query(func(h *wire.Hello) { h.Device = "a--b" }), "x", 400, wire.BadRequest, "device"},
		{"no instance", query(func(h *wire.Hello) { h.Instance = "" }), "x", 400, wire.BadRequest, "instance"},
		{"no ports", query(func(h *wire.Hello) { h.Ports = nil }), "x", 400, wire.BadRequest, "ports"},
		{"no query", wire.ControlPath, "x", 400, wire.BadRequest, "device"},
		{"other version", "/.iottunnel/v2/control?" + good.Query(), "x", 426, wire.UpgradeRequired, "v1"},
		{"other path", "/.iottunnel/v1/other", "x", 400, wire.BadRequest, "path"},
	} {
		status, body, _ := e.refusal(c.path, c.token)
		if status != c.status || body.Error != c.code || !strings.Contains(body.Message, c.says) {
			t.Errorf("%s: %d %+v, want %d %s with %q", c.name, status, body, c.status, c.code, c.says)
		}
	}
	if strings.Contains(e.log.String(), "token-of") {
		t.Error("a token is in the log")
	}
	if n := e.hub.Tunnels(); n != 0 {
		t.Errorf("%d tunnels", n)
	}
}

func TestHandshakeOverPlainHTTP(t *testing.T) {
	e := startEdge(t, nil)
	h := hello("cam-17")
	target := e.server.URL + wire.ControlPath + "?" + h.Query()
	request := func(change func(*http.Request)) *http.Response {
		r, err := http.NewRequest("GET", target, nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
			"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": wire.Subprotocol,
			"Authorization": "Bearer token-of-cam-17",
		} {
			r.Header.Set(name, value)
		}
		change(r)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	defer http.DefaultClient.CloseIdleConnections()
	for _, c := range []struct {
		name   string
		change func(*http.Request)
		status int
	}{
		{"no upgrade", func(r *http.Request) { r.Header.Del("Upgrade") }, 426},
		{"post", func(r *http.Request) { r.Method = "POST" }, 400},
		{"web page", func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }, 403},
		{"sandboxed web page", func(r *http.Request) { r.Header.Set("Origin", "null") }, 403},
		{"other subprotocol", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Protocol", "mqtt") }, 400},
		{"other WebSocket version", func(r *http.Request) { r.Header.Set("Sec-WebSocket-Version", "8") }, 400},
		{"no key", func(r *http.Request) { r.Header.Del("Sec-WebSocket-Key") }, 400},
		{"large header", func(r *http.Request) { r.Header.Set("X-Large", strings.Repeat("x", 9000)) }, 400},
	} {
		resp := request(c.change)
		if resp.StatusCode != c.status || resp.Header.Get("Iottunnel-Error") == "" {
			t.Errorf("%s: %s, code %q, want %d", c.name, resp.Status, resp.Header.Get("Iottunnel-Error"), c.status)
		}
	}
	eventually(t, "what was claimed is given back", func() bool {
		rec, err := e.hub.reg.ByDevice(context.Background(), "cam-17")
		return errors.Is(err, registry.ErrUnknown) || err == nil && rec.Online.Tunnel == ""
	})
}

func TestPlaintext(t *testing.T) {
	e := startEdge(t, nil)
	e.from = netip.MustParseAddr("198.51.100.1")
	h := hello("cam-17")
	path := wire.ControlPath + "?" + h.Query()
	if status, body, _ := e.refusal(path, "token-of-cam-17"); status != 403 || body.Error != wire.Forbidden {
		t.Errorf("plain ws from afar: %d %+v", status, body)
	}
	s := *e.hub.settings.Load()
	s.AllowPlaintext = true
	e.hub.Update(s)
	e.connect(h)
}

func TestTooManyHandshakes(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.UnauthenticatedPerAddress = 4 })
	h := hello("cam-17")
	path := wire.ControlPath + "?" + h.Query()
	for range 4 {
		if status, _, _ := e.refusal(path, "wrong"); status != 401 {
			t.Fatalf("status %d, want 401", status)
		}
	}
	status, body, header := e.refusal(path, "token-of-cam-17")
	if status != 429 || body.Error != wire.TooMany || header.Get("Retry-After") == "" {
		t.Errorf("%d %+v, Retry-After %q", status, body, header.Get("Retry-After"))
	}
	e.from = netip.MustParseAddr("127.0.0.9")
	e.connect(h)
}

func TestTunnelLimits(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.Tunnels = 1 })
	e.connect(hello("cam-17"))
	h := hello("cam-18")
	if status, body, header := e.refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-18"); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("second tunnel: %d %+v", status, body)
	}
}

func TestSecondDeviceOfTheName(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	go a.receiveAll()
	h := hello("cam-17")
	status, body, _ := e.refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-17")
	if status != 409 || body.Error != wire.DeviceConnected {
		t.Fatalf("%d %+v, want 409", status, body)
	}
	if e.hub.Tunnels() != 1 {
		t.Error("the incumbent is gone")
	}
	e.event("cloned cam-17")
}

// receiveAll answers pings until the socket ends.
func (a *fakeAgent) receiveAll() {
	for {
		if _, _, err := a.sock.ReadMessage(wire.MaxText); err != nil {
			return
		}
	}
}

// A device that was cut off and starts anew takes over from its own dead tunnel,
// whose end answers nothing.
func TestDeadIncumbentIsReplaced(t *testing.T) {
	e := startEdge(t, nil)
	dead := e.connect(hello("cam-17")) // reads nothing from here on, so answers no ping
	visitorEnd, _ := dead.open("cam-17")
	a := e.connect(hello("cam-17"))
	if a.ready.Label != dead.ready.Label {
		t.Errorf("label %q became %q", dead.ready.Label, a.ready.Label)
	}
	if c := dead.closed(); c.Code != wire.CloseReplaced {
		t.Errorf("loser: %v", c)
	}
	if _, err := visitorEnd.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("stream of the instance before: %v", err)
	}
	v, c := a.open("cam-17")
	carries(t, v, c)
}

func TestSameInstanceTakesOver(t *testing.T) {
	e := startEdge(t, nil)
	h := hello("cam-17")
	first := e.connect(h)
	v, c := first.open("cam-17")
	second := e.connect(h)
	if got := first.closed(); got.Code != wire.CloseReplaced {
		t.Errorf("first tunnel: %v", got)
	}
	if second.ready.Label != first.ready.Label {
		t.Error("label changed")
	}
	carries(t, v, c) // streams of the instance are adopted
	eventually(t, "one tunnel is left", func() bool { return e.hub.Tunnels() == 1 })
	v2, c2 := second.open("cam-17")
	carries(t, v2, c2)
}

func TestLookupAndAwait(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Wait = 5 * time.Second })
	ctx := context.Background()
	if _, err := e.hub.Lookup(ctx, "example.com"); !errors.Is(err, ErrOtherHost) {
		t.Errorf("other host: %v", err)
	}
	_, err := e.hub.Await(ctx, "aaaa."+domain)
	wantCode(t, err, wire.UnknownDevice)

	h := hello("cam-17")
	a := e.connect(h)
	host := a.ready.Hostname + ":8080"
	for suffix, want := range map[string]uint16{"": 80, "--80": 80, "--8080": 8080} {
		got, err := e.hub.Await(ctx, a.ready.Label+suffix+"."+domain)
		if err != nil || got.Port != want || got.Device != "cam-17" || !got.Online {
			t.Errorf("%q: %+v, %v", suffix, got, err)
		}
	}
	for _, suffix := range []string{"--22", "--81"} {
		_, err := e.hub.Await(ctx, a.ready.Label+suffix+"."+domain)
		wantCode(t, err, wire.UnknownDevice)
	}

	// An unclean end: the visitor waits, and is served by the next tunnel.
	a.sock.Close()
	e.event("offline cam-17")
	found := make(chan error, 1)
	go func() {
		got, err := e.hub.Await(ctx, host)
		if err == nil && !got.Online {
			err = errors.New("not online")
		}
		found <- err
	}()
	e.awaited("cam-17", 1)
	a = e.connect(h)
	if err := <-found; err != nil {
		t.Errorf("the visitor who waited: %v", err)
	}

	// A goodbye: the visitor is told at once, with when the device was seen.
	if err := a.sock.WriteClose(wire.CloseGoingAway, "", time.Second); err != nil {
		t.Fatal(err)
	}
	e.event("offline cam-17")
	began := time.Now()
	_, err = e.hub.Await(ctx, host)
	wantCode(t, err, wire.DeviceOffline)
	var offline *answers.Error
	errors.As(err, &offline)
	if offline.LastSeen.IsZero() || offline.RetryAfter == 0 {
		t.Errorf("offline: %+v", offline)
	}
	if time.Since(began) > 2*time.Second {
		t.Error("waited for a device that said goodbye")
	}
}

func TestLabelIsKeptForTheLease(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Lease = 300 * time.Millisecond })
	a := e.connect(hello("cam-17"))
	label := a.ready.Label
	a.sock.Close()
	e.event("offline cam-17")
	a = e.connect(hello("cam-17"))
	if a.ready.Label != label {
		t.Errorf("label changed within the lease: %q, %q", label, a.ready.Label)
	}
	// The lease is refreshed while the tunnel lives.
	began := time.Now()
	eventually(t, "three leases pass", func() bool { return time.Since(began) > 900*time.Millisecond })
	if got, err := e.hub.Lookup(context.Background(), a.ready.Hostname); err != nil || !got.Online {
		t.Errorf("after three leases online: %+v, %v", got, err)
	}
	if rec, err := e.hub.reg.ByLabel(context.Background(), label); err != nil || rec.Online.Tunnel == "" {
		t.Errorf("record: %+v, %v", rec, err)
	}
	a.sock.Close()
	e.event("offline cam-17")
	eventually(t, "the label is gone", func() bool {
		_, err := e.hub.reg.ByLabel(context.Background(), label)
		return errors.Is(err, registry.ErrUnknown)
	})
	if a = e.connect(hello("cam-17")); a.ready.Label == label {
		t.Error("the label came back after its lease")
	}
}

func TestHostnameIsTheDevice(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Hostname = HostnameDevice })
	if a := e.connect(hello("cam-17")); a.ready.Label != "cam-17" {
		t.Errorf("label %q", a.ready.Label)
	}
}

func TestSilentDeviceIsGone(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Heartbeat = time.Second })
	e.connect(hello("cam-17")) // answers nothing
	live := e.connect(hello("cam-18"))
	go live.receiveAll()
	e.event("offline cam-17")
	if e.hub.Tunnels() != 1 {
		t.Errorf("%d tunnels, want the one that answers", e.hub.Tunnels())
	}
}

func TestAgentBreaksTheProtocol(t *testing.T) {
	e := startEdge(t, nil)
	for name, c := range map[string]struct {
		op   socket.Opcode
		data string
		code int
	}{
		"not JSON":     {socket.Text, "hello", wire.CloseMalformed},
		"no type":      {socket.Text, "{}", wire.CloseMalformed},
		"binary":       {socket.Binary, "\x00\x00\x00\x00\x01abc", wire.CloseMalformed},
		"long":         {socket.Text, `{"type":"x","y":"` + strings.Repeat("y", 5000) + `"}`, wire.CloseTooBig},
		"wrong fields": {socket.Text, `{"type":"refused","stream":"one"}`, wire.CloseMalformed},
	} {
		a := e.connect(hello("cam-17"))
		if err := a.sock.WriteMessage(c.op, []byte(c.data)); err != nil {
			t.Fatal(err)
		}
		if got := a.closed(); got.Code != c.code {
			t.Errorf("%s: %v, want code %d", name, got, c.code)
		}
		e.event("offline cam-17")
	}
	// What is unknown, or none of the edge's business, is ignored.
	a := e.connect(hello("cam-17"))
	for _, text := range []string{`{"type":"from_the_future","x":1}`, `{"type":"refused","stream":99,"reason":"?"}`, `{"type":"drain","within_s":1}`} {
		if err := a.sock.WriteMessage(socket.Text, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	v, c := a.open("cam-17")
	carries(t, v, c)
}

func TestStreamSlots(t *testing.T) {
	e := startEdge(t, nil)
	h := hello("cam-17")
	h.Streams = 2
	a := e.connect(h)
	v1, _ := a.open("cam-17")
	a.open("cam-17")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := e.hub.Dial(ctx, "cam-17", 80, visitor); err == nil {
		t.Fatal("a third stream")
	}
	got := e.visit("cam-17", 80) // waits for a slot
	v1.(*stream.Stream).Abort()
	c := a.transfer(a.receive().(*wire.Open))
	v := <-got
	if v.err != nil {
		t.Fatal(v.err)
	}
	carries(t, v, c)
	v.Close()
}

func TestCrowdedHostMakesRoom(t *testing.T) {
	var e *edge
	kept := make(chan net.Conn, 1) // an idle connection that the host keeps
	e = startEdge(t, func(s *Settings) {
		s.Crowded = func(string) { (<-kept).(*stream.Stream).Abort() }
	})
	h := hello("cam-17")
	h.Streams = 1
	a := e.connect(h)
	v, _ := a.open("cam-17")
	kept <- v
	v, c := a.open("cam-17")
	carries(t, v, c)
}

func TestChangedDomainMovesTheFleet(t *testing.T) {
	e := startEdge(t, nil)
	a, b := e.connect(hello("cam-17")), e.connect(hello("cam-18"))
	s := *e.hub.settings.Load()
	s.Domain = "other.test"
	e.hub.Update(s)
	for _, agent := range []*fakeAgent{a, b} {
		if c := agent.closed(); c.Code != wire.CloseRestart {
			t.Errorf("close: %v", c)
		}
	}
	e.event("offline cam-17")
	if got := e.connect(hello("cam-17")).ready.Hostname; got != a.ready.Label+".other.test" {
		t.Errorf("hostname %q", got)
	}
}

func TestShutdown(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	v, c := a.open("cam-17")
	ended := make(chan error, 1)
	go func() { ended <- e.hub.Shutdown(context.Background()) }()
	if got := a.closed(); got.Code != wire.CloseRestart {
		t.Errorf("agent was told %v", got)
	}
	carries(t, v, c) // the stream goes on
	h := hello("cam-18")
	if status, _, header := e.refusal(wire.ControlPath+"?"+h.Query(), "token-of-cam-18"); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("newcomer: %d", status)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with a stream open: %v", err)
	default:
	}
	c.Close()
	v.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Many agents come, serve and go at once; nothing is left.
func TestStorm(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.NewTunnels = 10000; s.Limits.UnauthenticatedPerAddress = 1000 })
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			device := "cam-" + string(rune('a'+i%10)) // three agents fight for each name
			h := hello(device)
			for range 5 {
				s, err := e.dial(wire.ControlPath+"?"+h.Query(), "token-of-"+device)
				if err != nil {
					var refused *socket.StatusError
					if !errors.As(err, &refused) || refused.Status != 409 && refused.Status != 503 {
						t.Errorf("%s: %v", device, err)
					}
					continue
				}
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
				if c, err := e.hub.Dial(ctx, device, 80, visitor); err == nil {
					c.Close()
				}
				cancel()
				s.Close()
			}
		})
	}
	wg.Wait()
	// An agent that has left may still have its handshake under way here.
	eventually(t, "no tunnel and no claim is left", func() bool {
		e.hub.mu.Lock()
		defer e.hub.mu.Unlock()
		return len(e.hub.tunnels) == 0 && len(e.hub.claiming) == 0
	})
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	for id, d := range e.hub.devices {
		if t, s := d.live(); t != nil || s != nil && !s.slots.idle() {
			e.t.Errorf("%s: tunnel %v, or slots are taken", id, t)
		}
	}
}
