package tunnelcore

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// startConnecting starts an edge with connect, and returns what ended visits say.
func startConnecting(t *testing.T, reg registry.Registry) (*edge, <-chan Visit) {
	t.Helper()
	visits := make(chan Visit, 16)
	e := startEdgeOver(t, reg, func(s *Settings) {
		s.Connect, s.Wait = true, 100*time.Millisecond
		s.Audit = func(v Visit) { visits <- v }
	})
	return e, visits
}

func openMemory(t *testing.T) *registry.Memory {
	t.Helper()
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

// grant makes a grant of cam-17's port 22.
func (e *edge) grant(kind registry.GrantKind, ttl time.Duration) (token, id string) {
	e.t.Helper()
	token, g, err := e.hub.NewGrant(e.t.Context(), registry.Grant{Kind: kind, Device: "cam-17", Port: 22, By: "bob", Until: time.Now().Add(ttl)})
	if err != nil {
		e.t.Fatal(err)
	}
	return token, g.ID
}

const connectCam = ConnectPath + "?device=cam-17&port=22"

// technician connects while the test plays the agent.
func (e *edge) technician(a *fakeAgent, token string) (client, device *stream.Stream) {
	e.t.Helper()
	type result struct {
		s   *stream.Stream
		err error
	}
	got := make(chan result, 1)
	go func() {
		s, err := e.dial(connectCam, token)
		if err != nil {
			got <- result{err: err}
			return
		}
		got <- result{s: stream.New(s, stream.Options{})}
	}()
	open := a.receive().(*wire.Open)
	if open.Port != 22 {
		e.t.Errorf("open of port %d", open.Port)
	}
	device = a.transfer(open)
	if _, err := io.WriteString(device, "SSH-2.0-x\r\n"); err != nil {
		e.t.Fatal(err)
	}
	r := <-got
	if r.err != nil {
		e.t.Fatal(r.err)
	}
	e.t.Cleanup(r.s.Abort)
	banner := make([]byte, 11)
	if _, err := io.ReadFull(r.s, banner); err != nil || string(banner) != "SSH-2.0-x\r\n" {
		e.t.Fatalf("banner %q, %v", banner, err)
	}
	return r.s, device
}

func TestConnect(t *testing.T) {
	e, visits := startConnecting(t, openMemory(t))
	a := e.connect(hello("cam-17"))
	token, id := e.grant(registry.GrantConnect, time.Hour)
	client, device := e.technician(a, token)
	carries(t, client, device)
	// Each direction ends on its own.
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := device.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("the device reads %d, %v", n, err)
	}
	if _, err := io.WriteString(device, "bye"); err != nil {
		t.Fatal(err)
	}
	if err := device.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(client); err != nil || string(rest) != "bye" {
		t.Fatalf("the client reads %q, %v", rest, err)
	}
	v := <-visits
	if v.Kind != VisitConnect || v.Device != "cam-17" || v.Port != 22 || v.Grant != id || v.By != "bob" ||
		v.In != 5 || v.Out != 11+5+3 || v.Err != nil || v.Began.IsZero() || !v.From.IsValid() || v.From.Port() == 0 {
		t.Errorf("visit %+v", v)
	}
	if strings.Contains(e.log.String(), token) {
		t.Error("the token is in the log")
	}
}

func TestConnectRefuses(t *testing.T) {
	e, _ := startConnecting(t, openMemory(t))
	e.connect(hello("cam-17"))
	token, id := e.grant(registry.GrantConnect, time.Hour)
	share, _ := e.grant(registry.GrantShare, time.Hour)
	revoked, revokedID := e.grant(registry.GrantConnect, time.Hour)
	if err := e.hub.RevokeGrant(t.Context(), revokedID); err != nil {
		t.Fatal(err)
	}
	offline, _, err := e.hub.NewGrant(t.Context(), registry.Grant{Kind: registry.GrantConnect, Device: "gone", Port: 22, Until: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	noPort, _, err := e.hub.NewGrant(t.Context(), registry.Grant{Kind: registry.GrantConnect, Device: "cam-17", Port: 23, Until: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	messages := map[string]bool{}
	for _, tt := range []struct {
		what, path, token string
		status            int
		code              wire.Code
	}{
		{"no token", connectCam, "", 401, wire.Unauthorized},
		{"a device's token", connectCam, "token-of-cam-17", 401, wire.Unauthorized},
		{"wrong secret", connectCam, token[:len(token)-1] + "!", 401, wire.Unauthorized},
		{"only the id", connectCam, id + ".", 401, wire.Unauthorized},
		{"unknown id", connectCam, "0000000000000000" + token[16:], 401, wire.Unauthorized},
		{"id in capitals", connectCam, strings.ToUpper(id) + "A" + token[17:], 401, wire.Unauthorized},
		{"another kind", connectCam, share, 401, wire.Unauthorized},
		{"revoked", connectCam, revoked, 401, wire.Unauthorized},
		{"another port", ConnectPath + "?device=cam-17&port=80", token, 401, wire.Unauthorized},
		{"another device", ConnectPath + "?device=cam-18&port=22", token, 401, wire.Unauthorized},
		{"no such port", ConnectPath + "?device=cam-17&port=23", noPort, 404, wire.UnknownDevice},
		{"offline", ConnectPath + "?device=gone&port=22", offline, 503, wire.DeviceOffline},
		{"port 0", ConnectPath + "?device=cam-17&port=0", token, 400, wire.BadRequest},
		{"odd device", ConnectPath + "?device=../x&port=22", token, 400, wire.BadRequest},
	} {
		status, body, _ := e.refusal(tt.path, tt.token)
		if status != tt.status || body.Error != tt.code {
			t.Errorf("%s: %d %+v, want %d %s", tt.what, status, body, tt.status, tt.code)
		}
		if status == 401 {
			messages[body.Message] = true
		}
	}
	if len(messages) != 1 {
		t.Errorf("refusals can be told apart: %v", messages)
	}
}

func TestConnectIsOff(t *testing.T) {
	e := startEdge(t, nil)
	token, _ := e.grant(registry.GrantConnect, time.Hour)
	if status, body, _ := e.refusal(connectCam, token); status != 400 || body.Error != wire.BadRequest {
		t.Errorf("%d %+v", status, body)
	}
}

func TestConnectRefusedByDevice(t *testing.T) {
	e, _ := startConnecting(t, openMemory(t))
	for _, early := range []bool{false, true} {
		h := hello("cam-17")
		h.Instance = "0123456789abcdef0123456789abcdef"
		if early {
			h.Caps, h.Early, h.EarlyTotal = wire.Early, 16<<10, 64<<10
		}
		a := e.connect(h)
		token, _ := e.grant(registry.GrantConnect, time.Hour)
		go func() {
			o := a.receive().(*wire.Open)
			a.say(&wire.Refused{Stream: o.Stream, Reason: "connection refused"})
		}()
		if status, body, _ := e.refusal(connectCam, token); status != 502 || body.Error != wire.DeviceRefused {
			t.Errorf("early %v: %d %+v", early, status, body)
		}
	}
}

// TestGuessing wants one address to be told to stop, while who has a grant comes in.
func TestGuessing(t *testing.T) {
	e, _ := startConnecting(t, openMemory(t))
	a := e.connect(hello("cam-17"))
	token, _ := e.grant(registry.GrantConnect, time.Hour)
	e.technician(a, token)
	var tooMany bool
	for i := 0; i < 100 && !tooMany; i++ {
		status, _, _ := e.refusal(connectCam, wire.NewID()[:16]+token[16:])
		tooMany = status == 429
	}
	if !tooMany {
		t.Error("nobody was told to stop")
	}
	e.technician(a, token)
}

// TestGrantEnds revokes a grant here, at another node, and lets one expire.
func TestGrantEnds(t *testing.T) {
	for name, end := range map[string]func(*edge, string){
		"revoked here": func(e *edge, id string) {
			if err := e.hub.RevokeGrant(e.t.Context(), id); err != nil {
				e.t.Error(err)
			}
		},
		"revoked elsewhere": func(e *edge, id string) {
			if err := e.hub.Registry().DropGrant(e.t.Context(), id); err != nil {
				e.t.Error(err)
			}
		},
		"expired": func(*edge, string) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, visits := startConnecting(t, openMemory(t))
			a := e.connect(hello("cam-17"))
			ttl := time.Hour
			if name == "expired" {
				ttl = 2 * time.Second
			}
			token, id := e.grant(registry.GrantConnect, ttl)
			client, _ := e.technician(a, token)
			began := time.Now()
			end(e, id)
			if _, err := io.ReadAll(client); err == nil {
				t.Error("a clean end")
			}
			if took := time.Since(began); took > ttl+5*time.Second && name == "expired" || took > 5*time.Second && name != "expired" {
				t.Errorf("it took %v", took)
			}
			if v := <-visits; !errors.Is(v.Err, ErrGrantEnded) {
				t.Errorf("visit %+v", v)
			}
		})
	}
}

// awayRegistry answers nothing about grants while away.
type awayRegistry struct {
	registry.Registry
	mu   sync.Mutex
	away bool
	asks int
}

func (r *awayRegistry) set(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

func (r *awayRegistry) FindGrants(ctx context.Context, ids []string) ([]registry.Grant, error) {
	r.mu.Lock()
	away := r.away
	r.asks++
	r.mu.Unlock()
	if away {
		return nil, errors.New("away")
	}
	return r.Registry.FindGrants(ctx, ids)
}

// TestGrantsWithoutRegistry wants grants that are known to go on, and others to be
// told to come again.
func TestGrantsWithoutRegistry(t *testing.T) {
	reg := &awayRegistry{Registry: openMemory(t)}
	e, _ := startConnecting(t, reg)
	a := e.connect(hello("cam-17"))
	known, id := e.grant(registry.GrantConnect, time.Hour)
	unknown, _ := e.grant(registry.GrantConnect, time.Hour)
	client, device := e.technician(a, known)
	reg.set(true)
	e.hub.grants.mu.Lock()
	e.hub.grants.known[id].at = time.Now().Add(-time.Hour) // long ago
	e.hub.grants.mu.Unlock()
	e.hub.grants.watch()
	carries(t, client, device)
	e.technician(a, known)
	if status, body, h := e.refusal(connectCam, unknown); status != 503 || body.Error != wire.Unavailable || h.Get("Retry-After") == "" {
		t.Errorf("%d %+v", status, body)
	}
	reg.set(false)
	e.technician(a, unknown)
}

// TestGrantLooksAreBounded wants unknown ids to cost the registry no more than so many
// look-ups, from however many addresses they come.
func TestGrantLooksAreBounded(t *testing.T) {
	reg := &awayRegistry{Registry: openMemory(t)}
	e := startEdgeOver(t, reg, nil)
	token, _ := e.grant(registry.GrantShare, time.Hour)
	addr := visitor.Addr()
	refused := 0
	for range 5 * grantLooks {
		addr = addr.Next()
		_, err := e.hub.CheckGrant(t.Context(), wire.NewID()[:16]+token[16:], registry.GrantShare, "", 0, addr)
		if err == nil {
			t.Fatal("let in")
		}
		if !errors.Is(err, errNoGrant) {
			refused++
		}
	}
	if refused == 0 || reg.asks > 3*grantLooks {
		t.Errorf("%d look-ups, %d turned away", reg.asks, refused)
	}
	e.hub.grants.watch()
}
