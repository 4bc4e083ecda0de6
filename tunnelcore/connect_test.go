package tunnelcore

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
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

// TestForgetRevokesGrants leaves nothing to whoever has the id next.
func TestForgetRevokesGrants(t *testing.T) {
	e := startEdge(t, nil)
	var ids []string
	for _, device := range []string{"cam-17", "cam-18", "cam-17"} {
		_, g, err := e.hub.NewGrant(t.Context(), registry.Grant{Kind: registry.GrantShare, Device: device, Port: 80, Until: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, g.ID)
	}
	if _, err := registry.Enroll(t.Context(), e.hub.Registry(), "cam-17", registry.HashSecret("x"), registry.ReplaceNone); err != nil {
		t.Fatal(err)
	}
	if err := e.hub.Forget(t.Context(), "cam-17"); err != nil {
		t.Fatal(err)
	}
	left, err := e.hub.Registry().FindGrants(t.Context(), ids)
	if err != nil || left[0].ID != "" || left[1].ID != ids[1] || left[2].ID != "" {
		t.Errorf("of grants %v are left: %+v, %v", ids, left, err)
	}
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

func (r *awayRegistry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asks
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
	e.hub.grants.known[id].at = time.Now().Add(-time.Minute)
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

// TestGrantsAreTrusted wants a node that has no answer for too long to let nobody in by
// what it knew, and nobody stay, until there is one.
func TestGrantsAreTrusted(t *testing.T) {
	reg := &awayRegistry{Registry: openMemory(t)}
	visits := make(chan Visit, 16)
	e := startEdgeOver(t, reg, func(s *Settings) {
		s.Connect, s.GrantTrust = true, time.Hour
		s.Audit = func(v Visit) { visits <- v }
	})
	a := e.connect(hello("cam-17"))
	token, id := e.grant(registry.GrantConnect, 24*time.Hour)
	client, device := e.technician(a, token)
	heard := func(ago time.Duration) {
		e.hub.grants.mu.Lock()
		defer e.hub.grants.mu.Unlock()
		e.hub.grants.known[id].at = time.Now().Add(-ago)
	}
	reg.set(true)
	heard(50 * time.Minute)
	e.hub.grants.watch()
	carries(t, client, device)
	asks := reg.count()
	e.technician(a, token)
	if n := reg.count(); n != asks {
		t.Errorf("%d times somebody waits for a registry that is known not to answer", n-asks)
	}
	heard(70 * time.Minute)
	e.hub.grants.watch()
	if _, err := io.ReadAll(client); err == nil {
		t.Error("a clean end")
	}
	for range 2 {
		if v := <-visits; !errors.Is(v.Err, ErrGrantUnconfirmed) {
			t.Errorf("visit %+v", v)
		}
	}
	if status, body, _ := e.refusal(connectCam, token); status != 503 || body.Error != wire.Unavailable {
		t.Errorf("%d %+v", status, body)
	}
	reg.set(false)
	e.hub.grants.watch()
	e.technician(a, token)
}

// TestGrantIgnoresClock wants a grant to last as long as it was made for, wherever the
// machine's clock is set to meanwhile.
func TestGrantIgnoresClock(t *testing.T) {
	e := startEdge(t, nil)
	token, id := e.grant(registry.GrantShare, time.Hour)
	check := func() error {
		_, err := e.hub.CheckGrant(t.Context(), token, registry.GrantShare, "", 0, visitor.Addr())
		return err
	}
	if err := check(); err != nil {
		t.Fatal(err)
	}
	// What the wall clock says of Until may be anything by now.
	e.hub.grants.mu.Lock()
	e.hub.grants.known[id].Until = time.Now().Add(-time.Hour)
	e.hub.grants.mu.Unlock()
	if err := check(); err != nil {
		t.Error(err)
	}
}

// slowRegistry tells of grants by a clock that is an hour behind that of the node.
type slowRegistry struct{ registry.Registry }

func (r slowRegistry) FindGrants(ctx context.Context, ids []string) ([]registry.Grant, error) {
	list, err := r.Registry.FindGrants(ctx, ids)
	for i := range list {
		if list[i].ID != "" {
			list[i].Until = list[i].Until.Add(-time.Hour)
		}
	}
	return list, err
}

func (r slowRegistry) Nodes(ctx context.Context) ([]registry.Node, error) {
	list, err := r.Registry.Nodes(ctx)
	for i := range list {
		list[i].At = list[i].At.Add(-time.Hour)
	}
	return list, err
}

// TestGrantByNodeAhead wants a grant to last as long as it was made for at a node whose
// clock is an hour ahead, too.
func TestGrantByNodeAhead(t *testing.T) {
	e := startEdgeOver(t, slowRegistry{openMemory(t)}, func(s *Settings) { s.Connect = true })
	token, _ := e.grant(registry.GrantConnect, 30*time.Minute)
	g, err := e.hub.CheckGrant(t.Context(), token, registry.GrantConnect, "cam-17", 22, visitor.Addr())
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(g.Until); left < 25*time.Minute || left > 35*time.Minute {
		t.Errorf("%v are left of half an hour", left)
	}
	client, device := e.technician(e.connect(hello("cam-17")), token)
	e.hub.grants.watch()
	carries(t, client, device)
}

// TestGrantEndsWhileOpening revokes a grant whose technician waits for the device.
func TestGrantEndsWhileOpening(t *testing.T) {
	e, _ := startConnecting(t, openMemory(t))
	a := e.connect(hello("cam-17"))
	token, id := e.grant(registry.GrantConnect, time.Hour)
	got := make(chan error, 1)
	go func() {
		s, err := e.dial(connectCam, token)
		if s != nil {
			s.Close()
		}
		got <- err
	}()
	a.receive() // open, which the device does not answer
	began := time.Now()
	if err := e.hub.RevokeGrant(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	var refused *socket.StatusError
	if err := <-got; !errors.As(err, &refused) || refused.Status != 401 {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestGrantIsDoubtedWhileOpening has a technician wait for the device for so long that
// the node, which has no answer from the registry, trusts the grant no more.
func TestGrantIsDoubtedWhileOpening(t *testing.T) {
	reg := &awayRegistry{Registry: openMemory(t)}
	e := startEdgeOver(t, reg, func(s *Settings) { s.Connect, s.GrantTrust = true, time.Hour })
	a := e.connect(hello("cam-17"))
	token, id := e.grant(registry.GrantConnect, 24*time.Hour)
	got := make(chan error, 1)
	go func() {
		s, err := e.dial(connectCam, token)
		if s != nil {
			s.Close()
		}
		got <- err
	}()
	a.receive() // open, which the device does not answer
	reg.set(true)
	e.hub.grants.mu.Lock()
	e.hub.grants.known[id].at = time.Now().Add(-2 * time.Hour)
	e.hub.grants.mu.Unlock()
	e.hub.grants.watch()
	var refused *socket.StatusError
	if err := <-got; !errors.As(err, &refused) || refused.Status != 503 || refused.Header.Get("Retry-After") == "" || !strings.Contains(string(refused.Body), "registry") {
		t.Errorf("%v: %+v", err, refused)
	}
}

// TestGrantEndsBeforeFirstBytes ends a grant whose technician's client takes nothing.
func TestGrantEndsBeforeFirstBytes(t *testing.T) {
	near, far := net.Pipe() // nobody reads
	device, service := net.Pipe()
	defer far.Close()
	defer service.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	c := &connection{client: stream.New(socket.New(near, socket.LargeBuffer), stream.Options{}), device: device, first: []byte("SSH-2.0-x\r\n")}
	went := make(chan error, 1)
	go func() { went <- c.greet(ctx) }()
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil { // the write is under way
		t.Fatal(err)
	}
	cancel(ErrGrantEnded)
	if err := <-went; !errors.Is(err, ErrGrantEnded) {
		t.Errorf("%v", err)
	}
}

// TestGrantLooksAreBounded wants unknown ids to cost the registry no more than so many
// look-ups, from however many addresses they come, and some addresses that try many to
// keep out no other.
func TestGrantLooksAreBounded(t *testing.T) {
	reg := &awayRegistry{Registry: openMemory(t)}
	e := startEdgeOver(t, reg, nil)
	token, _ := e.grant(registry.GrantShare, time.Hour)
	try := func(token string, from netip.Addr) error {
		_, err := e.hub.CheckGrant(t.Context(), token, registry.GrantShare, "", 0, from)
		return err
	}
	guess := func(from netip.Addr) error {
		t.Helper()
		err := try(wire.NewID()[:16]+token[16:], from)
		if err == nil {
			t.Fatal("let in")
		}
		return err
	}
	addr := visitor.Addr()
	for range 30 {
		addr = addr.Next()
		for range 30 {
			guess(addr)
		}
	}
	if err := try(token, addr.Next()); err != nil {
		t.Errorf("behind those who guess: %v", err)
	}

	asked, refused := reg.count(), 0
	for range 3 * allGrantLooks {
		addr = addr.Next()
		if err := guess(addr); !errors.Is(err, errNoGrant) {
			refused++
		}
	}
	if refused == 0 || reg.count()-asked > 3*allGrantLooks-refused {
		t.Errorf("%d look-ups, %d turned away", reg.count()-asked, refused)
	}
	e.hub.grants.watch()
}

// TestGrantLooksOfOneAddress wants the look-ups of one address to be bounded where it
// may guess as often as it likes, and those of others to have room beside it.
func TestGrantLooksOfOneAddress(t *testing.T) {
	reg := &awayRegistry{Registry: openMemory(t)}
	e := startEdgeOver(t, reg, func(s *Settings) { s.Limits.UnauthenticatedPerAddress = 100_000 })
	token, _ := e.grant(registry.GrantShare, time.Hour)
	began, one := time.Now(), visitor.Addr()
	for range 20 * grantLooks {
		if _, err := e.hub.CheckGrant(t.Context(), wire.NewID()[:16]+token[16:], registry.GrantShare, "", 0, one); err == nil {
			t.Fatal("let in")
		}
	}
	// However slowly it went, the bucket has been filled no faster.
	most := grantLooks + int(grantLookRate*time.Since(began).Seconds()) + 1
	if asked := reg.count(); asked < grantLooks || asked > min(most, 20*grantLooks) {
		t.Errorf("%d look-ups, want %d to %d", asked, grantLooks, most)
	}
	if _, err := e.hub.CheckGrant(t.Context(), token, registry.GrantShare, "", 0, one.Next()); err != nil {
		t.Errorf("beside it: %v", err)
	}
}

// FuzzGrantToken reads tokens, none of which is one that was given out.
func FuzzGrantToken(f *testing.F) {
	f.Add("0123456789abcdef.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ")
	f.Add("0123456789ABCDEF.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		id, secret, ok := splitToken(token)
		if ok && (id+"."+secret != token || len(id) != 16 || strings.ToLower(id) != id) || !ok && id+secret != "" {
			t.Errorf("%q is %q and %q, %v", token, id, secret, ok)
		}
	})
}
