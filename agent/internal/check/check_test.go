package check

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/internal/golden"
	"github.com/iottunnel/iottunnel/internal/leak"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func TestMain(m *testing.M) { leak.Main(m) }

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// server makes a certificate that is valid in these years.
func (a authority) server(t *testing.T, name string, from, until int) tls.Certificate {
	t.Helper()
	return a.since(t, name, time.Date(from, 1, 1, 0, 0, 0, 0, time.UTC), until)
}

// since makes a certificate that is valid from a moment to a year.
func (a authority) since(t *testing.T, name string, from time.Time, until int) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var addrs []net.IP
	if name == "edge.test" {
		addrs = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: addrs, DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore: from, NotAfter: time.Date(until, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// edge answers as one, up to the credential; then as told.
type edge struct {
	status int    // 0: a tunnel
	code   string // of the error
	date   string // of its clock; empty: the right one
}

func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e.date != "" {
		w.Header().Set("Date", e.date)
	}
	say := func(status int, code, message string) {
		w.Header().Set("Iottunnel-Error", code)
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":%q,"message":%q}`, code, message)
	}
	_, err := wire.ParseHello(r.URL.RawQuery)
	switch {
	case !strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		say(426, "upgrade_required", "a WebSocket upgrade over HTTP/1.1 is needed here")
	case err != nil:
		if r.Header.Get("Authorization") != "" {
			panic("the question carries a credential")
		}
		say(400, "bad_request", err.Error())
	case e.status != 0:
		say(e.status, e.code, "so it is")
	case r.URL.Query().Get(wire.ProbeParameter) == "1":
		w.WriteHeader(204)
	default:
		s, err := accept.Upgrade(w, r, wire.Subprotocol, socket.SmallBuffer, nil)
		if err != nil {
			return
		}
		defer s.Close()
		for _, m := range []wire.Message{
			&wire.Ready{Tunnel: wire.NewID(), Heartbeat: 25, Label: "l4bel", Hostname: "l4bel.example.net", Lease: 1, Streams: 256, MessageMax: 65536, Transfer: "/.iottunnel/v1/transfer?x=y", Secret: "s"},
			&wire.PortInfo{Port: 80, Kind: wire.HTTP, URL: "https://l4bel.example.net/"},
			&wire.PortInfo{Port: 22, Kind: wire.TCP},
		} {
			_ = s.WriteMessage(socket.Text, wire.Encode(m))
		}
		_, _ = s.Next() // the goodbye
	}
}

// scene is where a check takes place.
type scene struct {
	config agent.Config
	now    time.Time // zero: now
	run    *Running
}

// at is a configuration for a server, with a forward that works.
func at(t *testing.T, server string) scene {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	t.Cleanup(s.Close)
	return scene{config: agent.Config{
		Servers: []string{server}, Device: "cam-17", Token: "t0ken",
		Proxy:    func(*url.URL) (*url.URL, error) { return nil, nil },
		Forwards: []agent.Forward{{Port: 80, Kind: agent.HTTP, Target: s.Listener.Addr().String()}, {Port: 22, Kind: agent.TCP, Target: s.Listener.Addr().String()}},
	}}
}

// atClock is a configuration for a device whose clock says now, and a server that says
// date and has a certificate of ca.
func atClock(t *testing.T, ca authority, now time.Time, date string, certificate tls.Certificate) scene {
	t.Helper()
	s := at(t, serve(t, &edge{date: date}, certificate))
	s.config.TLS, s.now = &tls.Config{RootCAs: ca.pool()}, now
	return s
}

func (s scene) check(t *testing.T) (Cause, string) {
	t.Helper()
	var b bytes.Buffer
	a, err := agent.New(s.config)
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{Subject: Subject{Config: s.config}, agent: a, tell: Writer(&b), now: time.Now}
	if s.run != nil {
		c.Running = func(context.Context) (Running, bool) { return *s.run, true }
	}
	if !s.now.IsZero() {
		c.now = func() time.Time { return s.now }
	}
	if err := c.all(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c.gravest, b.String()
}

// serve starts a web server; with a certificate it speaks TLS.
func serve(t *testing.T, h http.Handler, certificates ...tls.Certificate) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	if certificates == nil {
		s.Start()
		return "ws://" + s.Listener.Addr().String()
	}
	s.Config.ErrorLog = quiet
	s.TLS = &tls.Config{Certificates: certificates}
	s.StartTLS()
	return "wss://" + s.Listener.Addr().String()
}

// raw answers each connection, after its first bytes, with a text.
func raw(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, text)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// shut is an address at which nobody listens, nor can while the test runs: it is one
// end of a connection.
func shut(t *testing.T) string {
	t.Helper()
	end, other := ends.Loopback(t)
	t.Cleanup(func() { end.Close(); other.Close() })
	return end.LocalAddr().String()
}

// knowing is a resolver that knows one name, which is 127.0.0.1.
func knowing(t *testing.T, known string) *net.Resolver {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		wg.Go(func() { answerName(ours, known) })
		return theirs, nil
	}}
}

// answerName answers one question by the rules of DNS over TCP (RFC 1035 §4).
func answerName(conn net.Conn, known string) {
	defer conn.Close()
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return
	}
	q := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, q); err != nil {
		return
	}
	var name strings.Builder
	i := 12
	for ; q[i] != 0; i += int(q[i]) + 1 {
		name.Write(q[i+1 : i+1+int(q[i])])
		name.WriteByte('.')
	}
	question, kind := q[12:i+5], binary.BigEndian.Uint16(q[i+1:])
	head := []byte{q[0], q[1], 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0} // an answer: no such name
	var record []byte
	if name.String() == known+"." {
		head[3] = 0x80
		if kind == 1 {
			head[7] = 1
			record = []byte{0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1}
		}
	}
	answer := append(append(head, question...), record...)
	_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
}

var scenes = map[string]func(t *testing.T) scene{
	"well": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		s := at(t, strings.Replace(serve(t, new(edge), ca.server(t, "edge.test", 2000, 2100)), "127.0.0.1", "edge.test", 1))
		s.config.Resolver = knowing(t, "edge.test")
		s.config.TLS = &tls.Config{RootCAs: ca.pool()}
		return s
	},
	"plain and connected already": func(t *testing.T) scene { return at(t, serve(t, &edge{status: 409, code: "device_connected"})) },
	"held by the agent that runs": func(t *testing.T) scene {
		s := at(t, serve(t, &edge{status: 500}))
		s.run = &Running{Device: "cam-17", State: "up", Server: "wss://edge.example.com", Name: "l4bel.example.net"}
		return s
	},
	"wrong token": func(t *testing.T) scene { return at(t, serve(t, &edge{status: 401, code: "unauthorized"})) },
	"no token": func(t *testing.T) scene {
		s := at(t, serve(t, &edge{status: 401, code: "unauthorized"}))
		s.config.Token = ""
		return s
	},
	"edge is busy": func(t *testing.T) scene { return at(t, serve(t, &edge{status: 503, code: "unavailable"})) },
	"clock is off": func(t *testing.T) scene {
		return at(t, serve(t, &edge{date: "Sun, 01 Mar 2026 12:00:00 GMT", status: 403, code: "forbidden"}))
	},
	"clock was never set": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		return atClock(t, ca, time.Date(1970, 1, 1, 0, 1, 0, 0, time.UTC), "Sun, 01 Mar 2026 12:00:00 GMT", ca.server(t, "edge.test", 2020, 2100))
	},
	"clock was never set, certificate is younger": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		return atClock(t, ca, time.Date(1970, 1, 1, 0, 1, 0, 0, time.UTC), "Sun, 01 Mar 2026 12:00:00 GMT", ca.since(t, "edge.test", sane.AddDate(0, 1, 0), 2100))
	},
	"clock was never set, certificate expired": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		return atClock(t, ca, time.Date(1970, 1, 1, 0, 1, 0, 0, time.UTC), "Sun, 01 Mar 2026 12:00:00 GMT", ca.server(t, "edge.test", 2019, 2020))
	},
	"clock was never set, and the edge's neither": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		return atClock(t, ca, time.Date(1970, 1, 1, 0, 1, 0, 0, time.UTC), "Thu, 01 Jan 2015 00:00:00 GMT", ca.since(t, "edge.test", sane.AddDate(0, 1, 0), 2100))
	},
	"clock is years ahead": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		return atClock(t, ca, time.Date(2101, 1, 1, 0, 0, 0, 0, time.UTC), "Sun, 01 Mar 2026 12:00:00 GMT", ca.server(t, "edge.test", 2020, 2100))
	},
	"certificate expired": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		s := at(t, serve(t, new(edge), ca.server(t, "edge.test", 2019, 2020)))
		s.config.TLS = &tls.Config{RootCAs: ca.pool()}
		return s
	},
	"TLS is inspected": func(t *testing.T) scene {
		return at(t, serve(t, new(edge), newAuthority(t, "Inspector").server(t, "edge.test", 2000, 2100)))
	},
	"not by our authority": func(t *testing.T) scene {
		s := at(t, serve(t, new(edge), newAuthority(t, "Inspector").server(t, "edge.test", 2000, 2100)))
		s.config.TLS = &tls.Config{RootCAs: newAuthority(t, "Our CA").pool()}
		return s
	},
	"certificate of somebody else": func(t *testing.T) scene {
		ca := newAuthority(t, "Our CA")
		s := at(t, serve(t, new(edge), ca.server(t, "login.example.org", 2000, 2100)))
		s.config.TLS = &tls.Config{RootCAs: ca.pool()}
		return s
	},
	"nothing is verified": func(t *testing.T) scene {
		s := at(t, serve(t, new(edge), newAuthority(t, "Inspector").server(t, "edge.test", 2000, 2100)))
		s.config.TLS = &tls.Config{InsecureSkipVerify: true}
		return s
	},
	"no TLS there": func(t *testing.T) scene { return at(t, strings.Replace(serve(t, new(edge)), "ws:", "wss:", 1)) },
	"TLS there": func(t *testing.T) scene {
		return at(t, strings.Replace(serve(t, new(edge), newAuthority(t, "Our CA").server(t, "edge.test", 2000, 2100)), "wss:", "ws:", 1))
	},
	"no such host": func(t *testing.T) scene { s := at(t, "wss://edge.test"); s.config.Resolver = knowing(t, ""); return s },
	"no name server": func(t *testing.T) scene {
		s := at(t, "wss://edge.test")
		s.config.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, os.ErrDeadlineExceeded }}
		return s
	},
	"nobody listens": func(t *testing.T) scene { return at(t, "wss://"+shut(t)) },
	"upgrade is taken away": func(t *testing.T) scene {
		return at(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Upgrade")
			new(edge).ServeHTTP(w, r)
		})))
	},
	"cut":             func(t *testing.T) scene { return at(t, "ws://"+raw(t, "")) },
	"not HTTP":        func(t *testing.T) scene { return at(t, "ws://"+raw(t, "SSH-2.0-x\x1b[31m\r\n")) },
	"some web server": func(t *testing.T) scene { return at(t, serve(t, http.NotFoundHandler())) },
	"login page": func(t *testing.T) scene {
		return at(t, serve(t, http.RedirectHandler("http://login.example.org/?a", http.StatusFound)))
	},
	"redirect to TLS": func(t *testing.T) scene {
		return at(t, serve(t, http.RedirectHandler("https://edge.example.com/", http.StatusPermanentRedirect)))
	},
	"no edge behind": func(t *testing.T) scene { return at(t, "ws://"+raw(t, "HTTP/1.1 502 Bad Gateway\r\n\r\n")) },
	"another version": func(t *testing.T) scene {
		return at(t, "ws://"+raw(t, "HTTP/1.1 426 Upgrade Required\r\nIottunnel-Error: upgrade_required\r\nIottunnel-Versions: v2, v3\r\n\r\n"))
	},
	"proxy of its own": func(t *testing.T) scene { return behind(t, "HTTP/1.1 200 Yes\r\n\r\n", nil) },
	"proxy wants a password": func(t *testing.T) scene {
		return behind(t, "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=\"a\"\r\n\r\n", nil)
	},
	"proxy takes another": func(t *testing.T) scene {
		return behind(t, "HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\n\r\n", url.UserPassword("u", "pa55"))
	},
	"proxy forbids": func(t *testing.T) scene { return behind(t, "HTTP/1.1 403 Forbidden\r\n\r\n", nil) },
	"proxy is none": func(t *testing.T) scene { return behind(t, "nonsense\r\n", nil) },
	"one of two servers": func(t *testing.T) scene {
		s := at(t, "ws://"+shut(t))
		s.config.Servers = append(s.config.Servers, serve(t, new(edge)))
		return s
	},
	"services of all sorts": func(t *testing.T) scene {
		s := at(t, serve(t, &edge{status: 409, code: "device_connected"}))
		plain := strings.TrimPrefix(serve(t, http.NotFoundHandler()), "ws://")
		secure := strings.TrimPrefix(serve(t, http.NotFoundHandler(), newAuthority(t, "Device").server(t, "cam", 2019, 2020)), "wss://")
		s.config.Resolver = knowing(t, "")
		s.config.Forwards = []agent.Forward{
			{Port: 80, Target: plain},
			{Port: 81, Kind: agent.HTTP, Target: secure},
			{Port: 82, Kind: agent.HTTP, Target: shut(t)},
			{Port: 443, Target: secure},
			{Port: 444, Kind: agent.HTTPS, Target: plain},
			{Port: 22, Target: "nowhere.test:22"},
			{Port: 23, Target: raw(t, ""), ProxyProtocol: true},
		}
		return s
	},
}

// behind is a scene with a proxy that answers so.
func behind(t *testing.T, text string, user *url.Userinfo) scene {
	t.Helper()
	s := at(t, "wss://edge.example.com")
	proxy := &url.URL{Scheme: "http", Host: raw(t, text), User: user}
	s.config.Proxy = func(*url.URL) (*url.URL, error) { return proxy, nil }
	return s
}

// What differs from one run, or system, to the next.
var (
	ports     = regexp.MustCompile(`(127\.0\.0\.1|edge\.test):\d\d\d+`)
	durations = regexp.MustCompile(`\d+ ms`)
	moments   = regexp.MustCompile(`clock says [-0-9: ]{19}|warn  clock +[-0-9: ]{19}|[-0-9]{10} [0-9:]{8} UTC, as`)
)

func normal(text string) string {
	text = ports.ReplaceAllString(text, "$1:PORT")
	text = durations.ReplaceAllString(text, "N ms")
	return moments.ReplaceAllStringFunc(text, func(s string) string { return regexp.MustCompile(`[-0-9:]+ [-0-9:]+`).ReplaceAllString(s, "NOW") })
}

func TestScenes(t *testing.T) {
	for name, make := range scenes {
		t.Run(name, func(t *testing.T) {
			cause, text := make(t).check(t)
			got := fmt.Sprintf("%s\ncause: %d\n", normal(text), cause)
			if strings.Contains(got, "pa55") || strings.Contains(got, "t0ken") {
				t.Errorf("a secret is in it: %s", got)
			}
			golden.Check(t, strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(name)+".txt", got)
		})
	}
}
