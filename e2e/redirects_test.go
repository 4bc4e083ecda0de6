package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// place is a server that an agent may come to, under any name: it notes who was
// there, and with which credential.
type place struct {
	port  int
	conns atomic.Int64

	mu    sync.Mutex
	asked []*http.Request // guarded by mu
}

// startPlace starts one. With an authority it speaks TLS, as every name.
func startPlace(t *testing.T, a *harness.Authority, answer http.HandlerFunc) *place {
	t.Helper()
	p := new(place)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r)
		p.mu.Unlock()
		answer(w, r)
	}))
	server.Listener.Close()
	l, err := net.Listen("tcp4", ":0") // at whatever loopback address an edge is
	if err != nil {
		t.Fatal(err)
	}
	p.port = l.Addr().(*net.TCPAddr).Port
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			p.conns.Add(1)
		}
	}
	if a != nil { // not by StartTLS, which has a certificate of its own for who names no host
		l = tls.NewListener(l, &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			name := hello.ServerName
			if name == "" {
				name, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String()) // it has both
			}
			return a.Certify(name)
		}})
	}
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	return p
}

// requests returns what it was asked for.
func (p *place) requests() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*http.Request(nil), p.asked...)
}

// isFull answers as an edge without room.
func isFull(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprint(w, `{"error":"unavailable","message":"no room"}`)
}

// offersRedirect says whether an agent's handshake would follow a redirect.
func offersRedirect(r *http.Request) bool {
	return strings.Contains(","+r.URL.Query().Get("caps")+",", ",redirect,")
}

// TestRedirectIsFollowed sends agents on to the edge with each status that says so:
// they are up there, with their streams, and say where.
func TestRedirectIsFollowed(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		edge, err := url.Parse(f.Servers()[0])
		if err != nil {
			t.Fatal(err)
		}
		edge.Scheme = strings.Replace(edge.Scheme, "ws", "http", 1)
		var authority *harness.Authority
		flags := []string(nil)
		if f.CAFile() != "" {
			authority = harness.NewAuthority(t)
			flags = []string{"--ca", bundle(t, f.CAFile(), authority.File)}
		}
		for _, status := range []int{301, 302, 307, 308} {
			t.Run(fmt.Sprint(status), func(t *testing.T) {
				way := startPlace(t, authority, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Location", edge.String()+r.RequestURI)
					w.WriteHeader(status)
				})
				o := harness.StartOrigin(t)
				a := harness.StartAgent(t, f, harness.AgentSetup{
					Servers: []string{fmt.Sprintf("%s://%s:%d", edge.Scheme, edge.Hostname(), way.port)}, Forwards: []string{"80=" + o.Addr}, Flags: flags,
				})
				s := &site{face: f, origin: o, agent: a, host: a.Up(t).Hostname(t, 80), client: harness.Visitor(t, f, false)}
				s.mustServe(t)
				if err := echoes(s.openSocket(t), 1, "by another way"); err != nil {
					t.Error(err)
				}
				asked := way.requests()
				if len(asked) != 1 || !offersRedirect(asked[0]) || asked[0].Header.Get("Authorization") != "Bearer "+a.Device.Token {
					t.Errorf("the redirecting edge was asked %d times: %v", len(asked), asked)
				}
			})
		}
	})
}

// bundle is a file with the certificates of several.
func bundle(t *testing.T, files ...string) string {
	t.Helper()
	var all strings.Builder
	for _, name := range files {
		all.WriteString(readFile(t, name))
	}
	return writeFile(t, t.TempDir()+"/bundle.pem", all.String())
}

// TestRedirectElsewhere sends agents away from an edge. Where that is not beside it,
// nobody ever hears from them, and above all not their credential: they ask the edge
// that redirected them once more, without offering to be redirected.
func TestRedirectElsewhere(t *testing.T) {
	const server = "edge.fleet.localhost"
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		dns := harness.LocalDNS(t)
		scheme, other := "http", "https"
		var authority *harness.Authority
		if f.CAFile() != "" {
			scheme, other = other, scheme
			authority = harness.NewAuthority(t)
		}
		const control = harness.ControlPath
		for _, c := range []struct {
			name, location string // HERE, THERE: the ports
			status         int    // 302
			followed       bool
			flags          []string
		}{
			{"the same host", scheme + "://" + server + ":THERE" + control, 0, true, nil},
			{"beside", scheme + "://edge-2.fleet.localhost:THERE" + control, 0, true, nil},
			{"the parent domain", scheme + "://fleet.localhost:THERE" + control, 0, true, nil},
			{"below the parent", scheme + "://a.b.fleet.localhost:THERE" + control, 0, true, nil},
			{"allowed in words", scheme + "://n1.partner.localhost:THERE" + control, 0, true, []string{"--redirect-to", "partner.localhost"}},
			{"ws scheme", strings.Replace(scheme, "http", "ws", 1) + "://edge-2.fleet.localhost:THERE" + control, 0, true, nil},
			{"another domain", scheme + "://n1.partner.localhost:THERE" + control, 0, false, nil},
			{"another domain, 301", scheme + "://n1.partner.localhost:THERE" + control, 301, false, nil},
			{"another domain, 307", scheme + "://n1.partner.localhost:THERE" + control, 307, false, nil},
			{"another domain, 308", scheme + "://n1.partner.localhost:THERE" + control, 308, false, nil},
			{"303", scheme + "://" + server + ":THERE" + control, 303, false, nil},
			{"not quite the same", scheme + "://evilfleet.localhost:THERE" + control, 0, false, nil},
			{"the name inside another", scheme + "://edge.fleet.localhost.evil.localhost:THERE" + control, 0, false, nil},
			{"an allowed name inside another", scheme + "://evilpartner.localhost:THERE" + control, 0, false, []string{"--redirect-to", "partner.localhost"}},
			{"an address", scheme + "://127.0.0.1:THERE" + control, 0, false, nil},
			{"another scheme", other + "://" + server + ":THERE" + control, 0, scheme == "http", nil},
			{"another path", scheme + "://" + server + ":THERE/collect?x=" + control, 0, false, nil},
			{"a user", scheme + "://user:pw@" + server + ":THERE" + control, 0, false, nil},
			{"userinfo that looks like the host", scheme + "://" + server + ":x@evil.localhost:THERE" + control, 0, false, nil},
			{"a network path", "//evil.localhost:THERE" + control, 0, false, nil},
			{"a backslash", scheme + "://evil.localhost:THERE\\@" + server + control, 0, false, nil},
			{"no Location", "", 0, false, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				there := startPlace(t, authority, isFull)
				status := c.status
				if status == 0 {
					status = 302
				}
				here := startPlace(t, authority, func(w http.ResponseWriter, r *http.Request) {
					if !offersRedirect(r) {
						isFull(w, r)
						return
					}
					if c.location != "" {
						w.Header().Set("Location", strings.ReplaceAll(c.location, "THERE", fmt.Sprint(there.port)))
					}
					w.WriteHeader(status)
				})
				flags := append([]string{"--once", "--dns", dns}, c.flags...)
				if authority != nil {
					flags = append(flags, "--ca", authority.File)
				}
				d := harness.Device{ID: "redirected", Token: "the-credential"}
				exit, out, errs := harness.AgentToEnd(t, f, 30*time.Second, harness.AgentSetup{
					Device: d, Servers: []string{fmt.Sprintf("%s://%s:%d", scheme, server, here.port)}, Forwards: []string{"80=127.0.0.1:1"}, Flags: flags,
				})
				if exit != 3 && exit != 4 || out != "" {
					t.Errorf("exit status %d, standard output %q:\n%s", exit, out, errs)
				}
				asked := here.requests()
				if want := 2; len(asked) == 0 || len(asked) > want || len(asked) < want && status != 303 {
					t.Fatalf("the edge was asked %d times", len(asked))
				}
				if !offersRedirect(asked[0]) || len(asked) == 2 && offersRedirect(asked[1]) {
					t.Errorf("the edge was asked for %v", asked)
				}
				reached := there.requests()
				switch {
				case c.followed && scheme == "http" && strings.HasPrefix(c.location, "https:"):
					if there.conns.Load() != 1 { // it speaks no TLS
						t.Errorf("%d connections", there.conns.Load())
					}
				case c.followed:
					if len(reached) != 1 || reached[0].URL.Path != control || reached[0].Header.Get("Authorization") != "Bearer "+d.Token {
						t.Errorf("the other edge was asked for %v\n%s", reached, errs)
					}
				case there.conns.Load() != 0:
					t.Errorf("the agent went there: %d connections, %v\n%s", there.conns.Load(), reached, errs)
				}
				if strings.Contains(errs, d.Token) {
					t.Errorf("the credential is in the log:\n%s", errs)
				}
			})
		}
	})
}

// TestRedirectTwice has the place that an agent was sent to send it on, and the edge
// redirect what does not offer it: neither is followed.
func TestRedirectTwice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		scheme, host := "http", "127.0.0.1"
		var authority *harness.Authority
		flags := []string{"--once"}
		if f.CAFile() != "" {
			scheme, host, authority = "https", "localhost", harness.NewAuthority(t)
			flags = append(flags, "--ca", authority.File)
		}
		to := func(p **place) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", fmt.Sprintf("%s://%s:%d%s", scheme, host, (*p).port, r.RequestURI))
				w.WriteHeader(http.StatusFound)
			}
		}
		third := startPlace(t, authority, isFull)
		second := startPlace(t, authority, to(&third))
		first := startPlace(t, authority, to(&second))
		status, _, errs := harness.AgentToEnd(t, f, 30*time.Second, harness.AgentSetup{
			Servers: []string{fmt.Sprintf("%s://%s:%d", scheme, host, first.port)}, Forwards: []string{"80=127.0.0.1:1"}, Flags: flags,
		})
		if status != 3 && status != 4 {
			t.Errorf("exit status %d:\n%s", status, errs)
		}
		if n := [3]int{len(first.requests()), len(second.requests()), len(third.requests())}; n != [3]int{2, 1, 0} {
			t.Errorf("they were asked %v times", n)
		}
	})
}

// TestRedirectOfTransfer has an edge redirect a transfer socket: the agent gives that
// stream up and says so, and its credentials, of either kind, go nowhere.
func TestRedirectOfTransfer(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		scheme, host := "http", "127.0.0.1"
		var authority *harness.Authority
		var flags []string
		if f.CAFile() != "" {
			scheme, host, authority = "https", "localhost", harness.NewAuthority(t)
			flags = []string{"--ca", authority.File}
		}
		stranger := startPlace(t, authority, isFull)
		refused := make(chan string, 1)
		fake := startPlace(t, authority, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != harness.ControlPath {
				w.Header().Set("Location", fmt.Sprintf("%s://%s:%d%s", scheme, host, stranger.port, r.RequestURI))
				w.WriteHeader(http.StatusFound)
				return
			}
			up := websocket.Upgrader{Subprotocols: []string{harness.Subprotocol}}
			ws, err := up.Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer ws.Close()
			for _, text := range []string{
				`{"type":"ready","tunnel":"00112233445566778899aabbccddeeff","caps":"","heartbeat_s":25,"label":"abc","hostname":"abc.localhost","lease_s":60,` +
					`"streams":8,"message_max":65536,"transfer":"/.iottunnel/v1/transfer?node=a","secret":"transfer-secret"}`,
				`{"type":"port","port":80,"kind":"http","url":"http://abc.localhost/"}`,
				`{"type":"open","stream":1,"id":"ffeeddccbbaa99887766554433221100","port":80,"from":"127.0.0.1:5"}`,
			} {
				if ws.WriteMessage(websocket.TextMessage, []byte(text)) != nil {
					return
				}
			}
			for {
				_, text, err := ws.ReadMessage()
				if err != nil {
					return
				}
				var m struct {
					Type, Reason string
					Stream       int
				}
				if json.Unmarshal(text, &m) == nil && m.Type == "refused" && m.Stream == 1 {
					refused <- m.Reason
				}
			}
		})
		o := harness.StartOrigin(t)
		a := harness.StartAgent(t, f, harness.AgentSetup{
			Servers: []string{fmt.Sprintf("%s://%s:%d", scheme, host, fake.port)}, Forwards: []string{"80=" + o.Addr}, Flags: flags,
		})
		a.Up(t)
		select {
		case reason := <-refused:
			t.Logf("refused: %s", reason)
		case <-time.After(harness.VisitorTimeout):
			t.Error("the agent does not give the stream up")
		}
		if n := stranger.conns.Load(); n != 0 {
			t.Errorf("the agent went there: %v", stranger.requests())
		}
	})
}

// TestPlaintext has a device and an edge on different hosts without TLS: both must
// allow it in words.
func TestPlaintext(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{Strict: true}, 0)
		o := f.device.StartOrigin(t)
		once := func(flags ...string) (int, string) {
			t.Helper()
			status, out, errs := harness.AgentToEnd(t, f.face, 30*time.Second, harness.AgentSetup{
				Forwards: []string{"80=" + o.Addr}, Flags: append([]string{"--once"}, flags...), Command: f.device.Args(harness.Binary(t, "iottunnel-agent")),
			})
			if out != "" {
				t.Errorf("standard output %q", out)
			}
			return status, errs
		}
		if status, errs := once(); status != 2 || !strings.Contains(errs, "allow-plaintext") {
			t.Errorf("neither allows it: status %d:\n%s", status, errs)
		}
		if status, errs := once("--allow-plaintext"); status != 3 || !strings.Contains(errs, "403") && !strings.Contains(errs, "forbidden") {
			t.Errorf("the edge does not allow it: status %d:\n%s", status, errs)
		}
		f.face.Reload(t, harness.Setup{Host: f.edge})
		if status, errs := once(); status != 2 {
			t.Errorf("the agent does not allow it: status %d:\n%s", status, errs)
		}
		f.newSite(t, harness.AgentSetup{}).mustServe(t)
	})
}
