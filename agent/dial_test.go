package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// proxy is an HTTP proxy that asks for a password, if one is set.
type proxy struct {
	password string // of user "u"
	status   string // answer with this instead
	asked    chan string
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	poke(p.asked, r.Method+" "+r.RequestURI+" "+r.Host)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
	if p.status != "" {
		io.WriteString(conn, p.status)
		return
	}
	if p.password != "" && (user != "u" || password != p.password) {
		io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"office\"\r\nContent-Length: 0\r\n\r\n")
		return
	}
	up, err := net.Dial("tcp", r.RequestURI)
	if err != nil {
		io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer up.Close()
	io.WriteString(conn, "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
	done := make(chan struct{})
	go func() { // ends with up
		defer close(done)
		io.Copy(conn, up)
		conn.Close()
	}()
	io.Copy(up, conn)
	up.Close()
	<-done
}

func startProxy(t *testing.T, p *proxy, secure bool) *url.URL {
	p.asked = make(chan string, 10)
	s := httptest.NewUnstartedServer(p)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestProxy(t *testing.T) {
	for _, proxySecure := range []bool{false, true} {
		e, trust := startTLSEdge(t) // httptest's certificate is the same for all
		p := &proxy{password: "s3cret"}
		u := startProxy(t, p, proxySecure)
		u.User = url.UserPassword("u", "s3cret")
		c := config(e, echo(t))
		c.TLS = trust
		c.Proxy = func(to *url.URL) (*url.URL, error) {
			if to.Scheme != "https" {
				t.Errorf("asked for a proxy to %s", to)
			}
			return u, nil
		}
		start(t, mustNew(t, c))
		tunnel := receive(t, e.tunnels)
		tunnel.greet("25")
		host := strings.TrimPrefix(e.url, "https://")
		if got := receive(t, p.asked); got != "CONNECT "+host+" "+host {
			t.Errorf("the proxy was asked to %s", got)
		}
		s := e.open(tunnel, "7")
		if got := receive(t, p.asked); got != "CONNECT "+host+" "+host {
			t.Errorf("for a stream, the proxy was asked to %s", got)
		}
		io.WriteString(s, "hello")
		s.CloseWrite()
		if b, err := io.ReadAll(s); string(b) != "hello" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
	}
}

func TestProxyRefuses(t *testing.T) {
	e, trust := startTLSEdge(t)
	for _, test := range []struct {
		proxy proxy
		user  *url.Userinfo
		want  string
	}{
		{proxy{password: "s3cret"}, nil, `answered 407: the proxy's URL needs user:password@ (it asks for Basic realm="office")`},
		{proxy{password: "s3cret"}, url.UserPassword("u", "wr0ng"), `answered 407: user and password are not accepted`},
		{proxy{status: "HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!"}, nil, "answered 403 Forbidden"},
		{proxy{status: "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101"}, nil, "answered with more than a header"},
		{proxy{status: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", socket.MaxAnswer) + "\r\n\r\n"}, nil, "is longer than"},
		{proxy{status: "SSH-2.0\r\n"}, nil, "malformed HTTP"},
	} {
		u := startProxy(t, &test.proxy, false)
		u.User = test.user
		c := config(e, echo(t))
		c.TLS, c.Once = trust, true
		c.Proxy = func(*url.URL) (*url.URL, error) { return u, nil }
		err := mustNew(t, c).Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "proxy: "+u.Host+": CONNECT 127.0.0.1:") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Run: %v, want %s", err, test.want)
		}
		if strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("the password is in %v", err)
		}
	}
}

func TestProxyIsNotTrustedWithPlaintext(t *testing.T) {
	c := config(nil, echo(t))
	c.Once = true
	for _, test := range []struct{ proxy, want string }{
		{"http://proxy.example.com:3128", "would see the token unencrypted"},
		{"socks5://127.0.0.1:1080", "is not http://HOST:PORT"},
		{"http:////u:secret@proxy.example.com:3128", "is not http://HOST:PORT"}, // what the environment's "//u:…" becomes
		{"socks5:u:secret@proxy.example.com", "is not http://HOST:PORT"},
	} {
		u, _ := url.Parse(test.proxy)
		c.Proxy = func(*url.URL) (*url.URL, error) { return u, nil }
		if err := mustNew(t, c).Run(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("Run: %v, want %s, and no password", err, test.want)
		}
	}
}

// What the environment says of proxies may hold a password, also where it makes no
// sense.
func TestProxyOfTheEnvironmentIsNotRepeated(t *testing.T) {
	cgi := readEnvironment(func(name string) string { return "http://u:secret@proxy" })
	if _, err := cgi.proxy(&url.URL{Scheme: "http", Host: "edge.example.com"}); err == nil || strings.Contains(err.Error(), "secret") || !strings.HasPrefix(err.Error(), "HTTP_PROXY") {
		t.Error(err)
	}
	for value, ok := range map[string]bool{
		"": true, "http://proxy:3128": true, "proxy:3128": true, "u:secret@proxy:3128": true, "http://u:secret@[::1]:3128": true,
		"http://u:secret%zz@proxy": false, " http://u:secret@proxy": false, "http://u:secret@proxy:port": false, "//u:secret@proxy": false,
	} {
		var log bytes.Buffer
		warnOfProxies(slog.New(slog.NewTextHandler(&log, nil)), func(name string) string {
			if name == "https_proxy" {
				return value
			}
			return ""
		})
		if ok != (log.Len() == 0) || strings.Contains(log.String(), "secret") || !ok && !strings.Contains(log.String(), "https_proxy") {
			t.Errorf("%q: log %q", value, log.String())
		}
	}
}

func TestTLS(t *testing.T) {
	e, trust := startTLSEdge(t)
	states := make(chan *tls.ConnectionState, 10)
	e.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		states <- r.TLS
		return false
	}
	c := config(e, echo(t))
	c.TLS = trust
	start(t, mustNew(t, c))
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	if s := receive(t, states); s.NegotiatedProtocol != "http/1.1" || s.DidResume {
		t.Errorf("control socket: %q, resumed %v", s.NegotiatedProtocol, s.DidResume)
	}
	tunnel.say(`{"type":"open","stream":1,"id":"` + testID + `","port":7,"from":""}`)
	if s := receive(t, e.transfers).request.TLS; s != nil && !s.DidResume {
		t.Error("the transfer socket made a full handshake")
	}
	if trust.NextProtos != nil || trust.ClientSessionCache != nil {
		t.Error("the caller's configuration was changed")
	}
}

func TestTLSFails(t *testing.T) {
	e, _ := startTLSEdge(t)
	c := config(e, echo(t))
	c.Once = true
	err := mustNew(t, c).Run(t.Context())
	var hop *HopError
	if !errors.As(err, &hop) || hop.Hop != "tls" {
		t.Errorf("Run: %v", err)
	}
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Errorf("Run: %v", err)
	}
}

func TestTLSTellsTheClock(t *testing.T) {
	e, trust := startTLSEdge(t)
	trust.Time = func() time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }
	c := config(e, echo(t))
	c.Once, c.TLS = true, trust
	if err := mustNew(t, c).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "this device's clock says") {
		t.Errorf("Run: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	c := Config{Servers: []string{"ws://127.0.0.1:1"}, Device: "cam-17", Forwards: []Forward{echo(t)}, Once: true}
	err := mustNew(t, c).Run(t.Context())
	var hop *HopError
	if !errors.As(err, &hop) || hop.Hop != "tcp" || !strings.HasPrefix(err.Error(), "127.0.0.1:1: tcp: dial tcp 127.0.0.1:1:") {
		t.Errorf("Run: %v", err)
	}
}

func TestProxyUnreachable(t *testing.T) {
	c := Config{Servers: []string{"wss://edge.example.com"}, Device: "cam-17", Forwards: []Forward{echo(t)}, Once: true}
	c.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse("http://127.0.0.1:1") }
	err := mustNew(t, c).Run(t.Context())
	var hop *HopError
	if !errors.As(err, &hop) || hop.Hop != "proxy" || !strings.HasPrefix(err.Error(), "edge.example.com: proxy: dial tcp 127.0.0.1:1:") {
		t.Errorf("Run: %v", err)
	}
}

// A name that is loopback by its looks may lead elsewhere.
func TestPlaintextStaysOnLoopback(t *testing.T) {
	c := config(nil, echo(t))
	c.Servers, c.Once = []string{"ws://edge.localhost"}, true
	a := mustNew(t, c)
	wrote := make(chan []byte, 1)
	a.dialer.tcp = func(context.Context, time.Duration, string) (net.Conn, error) {
		ours, theirs := newPipe(nil, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80})
		go func() { // ends with ours
			b, _ := bufio.NewReader(theirs).Peek(1)
			wrote <- b
		}()
		return ours, nil
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is not on loopback") {
		t.Errorf("Run: %v", err)
	}
	if b := <-wrote; len(b) != 0 {
		t.Errorf("wrote %q", b)
	}
}

func TestTokenSource(t *testing.T) {
	e := startEdge(t)
	c := config(e, echo(t))
	c.TokenSource = func(context.Context) (string, error) { return "renewed", nil }
	start(t, mustNew(t, c))
	if r := receive(t, e.asked); r.Header.Get("Authorization") != "Bearer renewed" {
		t.Errorf("header %v", r.Header)
	}
	for _, test := range []struct {
		token string
		err   error
		want  string
	}{
		{"", errors.New("no such file"), "token: no such file"},
		{"a\r\nX-Evil: b", nil, "token: character 2 is a space"},
	} {
		c.TokenSource = func(context.Context) (string, error) { return test.token, test.err }
		c.Once = true
		if err := mustNew(t, c).Run(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Run: %v, want %s", err, test.want)
		}
	}
}
