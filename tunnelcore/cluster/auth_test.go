package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Two nodes need a secret in common, in whatever places it stands.
func TestSecrets(t *testing.T) {
	for _, c := range []struct {
		name       string
		ours, that []string
		away       bool
	}{
		{name: "one", ours: []string{"x"}, that: []string{"x"}},
		{name: "new first here", ours: []string{"new", "old"}, that: []string{"old"}},
		{name: "new first there", ours: []string{"old"}, that: []string{"new", "old"}},
		{name: "new last there", ours: []string{"new"}, that: []string{"old", "new"}},
		{name: "crossed", ours: []string{"1", "2"}, that: []string{"2", "1"}},
		{name: "another", ours: []string{"x"}, that: []string{"y"}, away: true},
		{name: "a longer one", ours: []string{"x"}, that: []string{"x\x00"}, away: true},
		{name: "none here", that: []string{"y"}, away: true},
		{name: "none there", ours: []string{"x"}, away: true},
		{name: "none", away: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := newNode(t, "a", new(local), c.ours...), newNode(t, "b", new(local), c.that...)
			_, err := a.Info(t.Context(), b.peer, "d")
			if away := errors.Is(err, ErrAway); away != c.away || !away && !errors.Is(err, ErrNotHere) {
				t.Errorf("%v", err)
			}
			if !c.away || len(c.ours) == 0 {
				return
			}
			until(t, "b has let go", func() bool { return b.Stats().In == 0 })
			if len(c.that) > 0 && b.Stats().Unproved != 1 {
				t.Errorf("counted %d", b.Stats().Unproved)
			}
			for _, n := range []*edgeNode{a, b} {
				until(t, n.peer.ID+" has logged it", func() bool { return strings.Contains(n.log.String(), "level=WARN") })
			}
			for range 20 { // only so often
				a.Info(t.Context(), b.peer, "d")
			}
			if lines := strings.Count(a.log.String(), "\n"); lines > 3 {
				t.Errorf("%d lines", lines)
			}
		})
	}
}

// Secrets change while sockets live: streams go on, requests need one in force.
func TestSecretsChange(t *testing.T) {
	a, b := two(t, &local{dial: device(t, echo)})
	s, err := a.Dial(t.Context(), b.peer, open())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Info(t.Context(), b.peer, "d"); !errors.Is(err, ErrNotHere) { // one that is parked
		t.Fatal(err)
	}
	b.SetSecrets([]string{"next"})
	if _, err := a.Info(t.Context(), b.peer, "d"); !errors.Is(err, ErrAway) {
		t.Errorf("with a secret that is not in force: %v", err)
	}
	a.SetSecrets([]string{"next"})
	if _, err := a.Info(t.Context(), b.peer, "d"); !errors.Is(err, ErrNotHere) {
		t.Errorf("with the next one: %v", err)
	}
	if got := exchange(t, s, "hello"); got != "hello" {
		t.Errorf("a stream from before: %q", got)
	}
	s, err = a.Dial(t.Context(), b.peer, open())
	if err != nil {
		t.Fatal(err)
	}
	b.SetSecrets(nil)
	ends.Within(t, "read", func() {
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, stream.ErrLost) {
			t.Errorf("without a link: %v", err)
		}
	})
	s.Close()
	until(t, "both have let go", func() bool { return a.Stats().Out == a.Stats().Idle && b.Stats().In == 0 })
}

// Another node, or another start of it, is not here.
func TestWrongNode(t *testing.T) {
	a, b := two(t, &local{info: func(string) (any, bool) { t.Error("asked"); return nil, false }})
	for what, ref := range map[string]registry.NodeRef{
		"another node":  {ID: "c", Epoch: b.peer.Epoch},
		"another epoch": {ID: b.peer.ID, Epoch: "before"},
		"this node":     a.peer.NodeRef,
	} {
		p := b.peer
		p.NodeRef = ref
		if _, err := a.Info(t.Context(), p, "d"); !errors.Is(err, ErrNotHere) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if s := a.Stats(); s.Out != 0 || b.Stats().Unproved != 0 {
		t.Errorf("%+v", s)
	}
	own := a.peer
	if _, err := a.Info(t.Context(), own, "d"); !errors.Is(err, ErrAway) {
		t.Errorf("itself: %v", err)
	}
}

// tap passes connections on to a node, and lets a test see and change what is sent.
type tap struct {
	address string
	up      func(sent []byte) []byte // what goes to the node instead; nil: as it is

	mu       sync.Mutex
	recorded []byte // what went to the node, as it came
}

func newTap(t *testing.T, to string, up func([]byte) []byte) *tap {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{address: l.Addr().String(), up: up}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			wg.Go(func() { io.Copy(c, d); c.Close() })
			wg.Go(func() {
				defer d.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					p.mu.Lock()
					p.recorded = append(p.recorded, buf[:n]...)
					p.mu.Unlock()
					b := buf[:n]
					if p.up != nil {
						b = p.up(b)
					}
					if _, err := d.Write(b); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return p
}

// What was recorded of a session is worth nothing in another one.
func TestReplay(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	a, b := two(t, &local{info: func(string) (any, bool) { mu.Lock(); defer mu.Unlock(); asked++; return "known", true }})
	p := newTap(t, b.peer.Internal, nil)
	if _, err := a.Info(t.Context(), Peer{b.peer.NodeRef, p.address}, "d"); err != nil {
		t.Fatal(err)
	}
	a.Forget(b.peer.NodeRef)
	p.mu.Lock()
	defer p.mu.Unlock()
	c, err := net.Dial("tcp", b.peer.Internal)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	request, messages, _ := bytes.Cut(p.recorded, []byte("\r\n\r\n"))
	ends.Within(t, "replay", func() {
		io.WriteString(c, string(request)+"\r\n\r\n")
		if _, err := c.Read(make([]byte, 4<<10)); err != nil { // 101
			t.Error(err)
		}
		c.Write(messages)
		io.Copy(io.Discard, c)
	})
	if b.Stats().Unproved != 1 || asked != 1 {
		t.Errorf("refused %d, asked %d times", b.Stats().Unproved, asked)
	}
}

// What a node has sent comes back to it: as if it were somebody else's request, or
// the answer.
func TestReflection(t *testing.T) {
	a, b := two(t, new(local))
	t.Run("to its own listener", func(t *testing.T) {
		if _, err := a.Info(t.Context(), Peer{b.peer.NodeRef, a.peer.Internal}, "d"); !errors.Is(err, ErrNotHere) {
			t.Errorf("%v", err)
		}
	})
	t.Run("as the answer", func(t *testing.T) {
		fake := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The challenge is b's own, so that a takes it for b.
			c, err := net.Dial("tcp", b.peer.Internal)
			if err != nil {
				t.Error(err)
				return
			}
			u := &url.URL{Scheme: "http", Host: b.peer.Internal, Path: Path, RawQuery: r.URL.RawQuery}
			real, err := socket.Dial(r.Context(), c, u, nil, subprotocol, socket.LargeBuffer)
			if err != nil {
				t.Error(err)
				return
			}
			defer real.Close()
			s, err := accept.Upgrade(w, r, subprotocol, socket.LargeBuffer, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			_, challenge, err := real.ReadMessage(maxText)
			if err != nil {
				t.Error(err)
			}
			s.WriteMessage(socket.Text, challenge)
			_, own, err := s.ReadMessage(maxText)
			if err != nil {
				t.Error(err)
			}
			s.WriteMessage(socket.Text, own)
			var end *socket.CloseError
			if _, _, err = s.ReadMessage(maxText); !errors.As(err, &end) || end.Code != closeUnproved {
				t.Errorf("its own message: %v", err)
			}
		})}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go fake.Serve(l)
		defer fake.Close()
		if _, err := a.Info(t.Context(), Peer{b.peer.NodeRef, l.Addr().String()}, "d"); !errors.Is(err, ErrAway) {
			t.Errorf("%v", err)
		}
	})
	t.Run("seals", func(t *testing.T) {
		g := greeting{a.peer.NodeRef, b.peer.NodeRef, wire.NewID()}
		x := newSeals("secret", g, "challenge", peerLabel, edgeLabel)
		if _, err := x.open(x.seal([]byte("{}"))); !errors.Is(err, errUnproved) {
			t.Errorf("%v", err)
		}
	})
}

// Each part of what two ends have said is in each MAC, and so is a message's place.
func TestSealsBindEverything(t *testing.T) {
	g := greeting{registry.NodeRef{ID: "a", Epoch: "1"}, registry.NodeRef{ID: "b", Epoch: "2"}, "nonce"}
	text := newSeals("secret", g, "challenge", peerLabel, edgeLabel).seal([]byte("message"))
	for what, change := range map[string]func(g *greeting, secret, challenge *string){
		"nothing":            func(*greeting, *string, *string) {},
		"secret":             func(_ *greeting, s, _ *string) { *s = "Secret" },
		"challenge":          func(_ *greeting, _, c *string) { *c = "Challenge" },
		"nonce":              func(g *greeting, _, _ *string) { g.nonce = "Nonce" },
		"from":               func(g *greeting, _, _ *string) { g.from.ID = "A" },
		"from epoch":         func(g *greeting, _, _ *string) { g.from.Epoch = "3" },
		"to":                 func(g *greeting, _, _ *string) { g.to.ID = "B" },
		"to epoch":           func(g *greeting, _, _ *string) { g.to.Epoch = "3" },
		"where names end":    func(g *greeting, _, _ *string) { g.from.ID, g.from.Epoch = "a1", "" },
		"who opened it":      func(g *greeting, _, _ *string) { g.from, g.to = g.to, g.from },
		"nonce or challenge": func(g *greeting, _, c *string) { g.nonce, *c = *c, g.nonce },
	} {
		h, secret, challenge := g, "secret", "challenge"
		change(&h, &secret, &challenge)
		s := newSeals(secret, h, challenge, edgeLabel, peerLabel)
		message, err := s.open(text)
		if what == "nothing" {
			if string(message) != "message" || err != nil {
				t.Errorf("%q, %v", message, err)
			}
			if _, err := s.open(text); !errors.Is(err, errUnproved) {
				t.Errorf("twice: %v", err)
			}
			continue
		}
		if !errors.Is(err, errUnproved) {
			t.Errorf("%s is not bound: %v", what, err)
		}
	}
	for i := range text {
		s := newSeals("secret", g, "challenge", edgeLabel, peerLabel)
		changed := bytes.Clone(text)
		changed[i] ^= 1
		if _, err := s.open(changed); !errors.Is(err, errUnproved) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := s.open(text[:i]); !errors.Is(err, errUnproved) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
}

// dialRaw opens a link socket by hand, and reads the challenge.
func dialRaw(t testing.TB, from registry.NodeRef, p Peer, secret string) (*socket.Socket, *seals) {
	t.Helper()
	c, err := net.Dial("tcp", p.Internal)
	if err != nil {
		t.Fatal(err)
	}
	g := greeting{from, p.NodeRef, wire.NewID()}
	u := &url.URL{Scheme: "http", Host: p.Internal, Path: Path, RawQuery: g.query()}
	s, err := socket.Dial(t.Context(), c, u, nil, subprotocol, socket.LargeBuffer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	_, text, err := s.ReadMessage(maxText)
	if err != nil {
		t.Fatal(err)
	}
	said, err := decodeChallenge(text)
	if err != nil {
		t.Fatal(err)
	}
	return s, newSeals(secret, g, said.Nonce, peerLabel, edgeLabel)
}

const probe = `{"kind":"probe","device":"d","tunnel":"t"}`

// What must not be said ends the socket, whoever says it, and reaches nobody.
func TestHostileMessages(t *testing.T) {
	_, b := two(t, &local{dial: func(context.Context, Open) (*stream.Stream, error) { t.Error("dialled"); return nil, ErrNotHere }})
	stranger := registry.NodeRef{ID: "x", Epoch: "1"}
	for _, c := range []struct {
		name string
		op   socket.Opcode
		text string // {MAC} becomes that of what follows it and a space
		code int
	}{
		{"no MAC", socket.Text, probe, closeUnproved},
		{"a MAC of zeros", socket.Text, strings.Repeat("0", macSize) + " " + probe, closeUnproved},
		{"half a MAC", socket.Text, strings.Repeat("0", macSize/2), closeUnproved},
		{"nothing", socket.Text, "", closeUnproved},
		{"not hex", socket.Text, strings.Repeat("g", macSize) + " " + probe, closeUnproved},
		{"binary", socket.Binary, probe, wire.CloseMalformed},
		{"too long", socket.Text, strings.Repeat("0", maxText+1), wire.CloseTooBig},
		{"sealed: empty", socket.Text, "{MAC}", wire.CloseMalformed},
		{"sealed: cut", socket.Text, "{MAC}" + probe[:len(probe)-1], wire.CloseMalformed},
		{"sealed: two", socket.Text, "{MAC}" + probe + probe, wire.CloseMalformed},
		{"sealed: unknown kind", socket.Text, `{MAC}{"kind":"shutdown"}`, wire.CloseMalformed},
		{"sealed: an answer", socket.Text, `{MAC}{"kind":"accepted"}`, wire.CloseMalformed},
		{"sealed: deep", socket.Text, "{MAC}" + strings.Repeat("[", 4000), wire.CloseMalformed},
		{"sealed: too long", socket.Text, "{MAC}" + probe + strings.Repeat(" ", maxText), wire.CloseTooBig},
		{"sealed: port 0", socket.Text, `{MAC}{"kind":"open","device":"d","tunnel":"t"}`, wire.CloseMalformed},
	} {
		for _, first := range []bool{true, false} {
			t.Run(c.name+map[bool]string{true: " at first", false: " later"}[first], func(t *testing.T) {
				s, seals := dialRaw(t, stranger, b.peer, "secret")
				if !first {
					s.WriteMessage(socket.Text, seals.seal([]byte(probe)))
					if _, text, err := s.ReadMessage(maxText); err != nil || !strings.HasSuffix(string(text), `{"kind":"silent"}`) {
						t.Fatalf("%s, %v", text, err)
					}
				}
				text := []byte(c.text)
				if message, ok := strings.CutPrefix(c.text, "{MAC}"); ok {
					text = seals.seal([]byte(message))
				}
				s.WriteMessage(c.op, text)
				ends.Within(t, "end", func() {
					var end *socket.CloseError
					if _, answer, err := s.ReadMessage(maxText); !errors.As(err, &end) || end.Code != c.code {
						t.Errorf("%s, %v", answer, err)
					}
				})
			})
		}
	}
	t.Run("requests one behind the other", func(t *testing.T) {
		s, seals := dialRaw(t, stranger, b.peer, "secret")
		for range 100 {
			s.WriteMessage(socket.Text, seals.seal([]byte(probe)))
		}
		for i := range 100 {
			if _, _, err := s.ReadMessage(maxText); err != nil {
				t.Fatalf("answer %d: %v", i, err)
			}
		}
	})
	until(t, "b has let go", func() bool { return b.Stats().In <= 1 })
}

// What a request must not be is answered before the upgrade.
func TestHostileRequests(t *testing.T) {
	_, b := two(t, new(local))
	g := greeting{registry.NodeRef{ID: "x", Epoch: "1"}, b.peer.NodeRef, wire.NewID()}
	good := g.query()
	for _, c := range []struct {
		name, query string
		header      string
		status      int
	}{
		{"no query", "", "", http.StatusBadRequest},
		{"twice", good + "&from=y", "", http.StatusBadRequest},
		{"unknown parameter", good + "&x=1", "", http.StatusBadRequest},
		{"malformed", good + "&%zz", "", http.StatusBadRequest},
		{"semicolon", good + ";x=1", "", http.StatusBadRequest},
		{"short nonce", strings.Replace(good, g.nonce, g.nonce[1:], 1), "", http.StatusBadRequest},
		{"long name", strings.Replace(good, "from=x", "from="+strings.Repeat("x", registry.MaxName+1), 1), "", http.StatusBadRequest},
		{"long query", good + strings.Repeat("&", maxQuery), "", http.StatusBadRequest},
		{"its own name", greeting{b.peer.NodeRef, b.peer.NodeRef, g.nonce}.query(), "", http.StatusBadRequest},
		{"a browser", good, "Origin: https://example.com\r\n", http.StatusForbidden},
		{"no upgrade", good, "", http.StatusBadRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", b.peer.Internal)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, "GET "+Path+"?"+c.query+" HTTP/1.1\r\nHost: b\r\nConnection: close\r\n"+c.header+"\r\n")
			answer, _ := io.ReadAll(conn)
			if want := "HTTP/1.1 " + http.StatusText(c.status); !strings.Contains(string(answer), http.StatusText(c.status)) {
				t.Errorf("%s, want %s", answer, want)
			}
		})
	}
	if s := b.Stats(); s.In != 0 {
		t.Errorf("%+v", s)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inbound != 0 {
		t.Errorf("%d are counted", b.inbound)
	}
}

// A peer that we have dialled may say as little that it must not.
func TestHostileAnswers(t *testing.T) {
	for _, c := range []struct{ name, answer string }{
		{"unproved", strings.Repeat("0", macSize) + ` {"kind":"accepted"}`},
		{"unknown", `{MAC}{"kind":"perhaps"}`},
		{"another question's", `{MAC}{"kind":"alive"}`},
		{"too long", "{MAC}" + strings.Repeat("x", maxText)},
		{"nothing", "{MAC}"},
		{"a request", "{MAC}" + probe},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newNode(t, "a", new(local), "secret")
			p := Peer{NodeRef: registry.NodeRef{ID: "b", Epoch: "1"}}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			p.Internal = l.Addr().String()
			h := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				g, err := parseGreeting(r.URL.RawQuery)
				if err != nil {
					t.Error(err)
				}
				s, err := accept.Upgrade(w, r, subprotocol, socket.LargeBuffer, nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				said, all := newChallenge([]string{"secret"}, g)
				b, _ := encode(said)
				s.WriteMessage(socket.Text, b)
				_, text, err := s.ReadMessage(maxText)
				if _, err2 := all[0].open(text); err != nil || err2 != nil {
					t.Error(err, err2)
				}
				answer := []byte(c.answer)
				if message, ok := strings.CutPrefix(c.answer, "{MAC}"); ok {
					answer = all[0].seal([]byte(message))
				}
				s.WriteMessage(socket.Text, answer)
				s.Next()
			})}
			go h.Serve(l)
			defer h.Close()
			if _, err := a.Dial(t.Context(), p, open()); !errors.Is(err, ErrAway) {
				t.Errorf("%v", err)
			}
			if s := a.Stats(); s.Out != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}
