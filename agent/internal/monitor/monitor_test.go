package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/internal/golden"
	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func up() agent.Status {
	return agent.Status{
		Heartbeat: 25 * time.Second, Traffic: agent.Traffic{Received: 123456, Sent: 234567, DayReceived: 23456, DaySent: 34567},
		State: agent.Connected, Since: noon.Add(-90 * time.Second), Tunnels: 2, Failures: 1, Streams: 3,
		Up: agent.Up{
			Server: "wss://edge.example.com", Label: "l4bel", Hostname: "l4bel.devices.example.net",
			Ports: []agent.Port{{Number: 80, Kind: agent.HTTP, URL: "https://l4bel.devices.example.net/"}, {Number: 22, Kind: agent.TCP}},
		},
	}
}

func down() agent.Status {
	s := up()
	s.State, s.Streams = agent.Waiting, 0
	s.Err, s.Next = errors.New(`edge.example.com: answered 401 "unauthorized" <script>`), noon.Add(5*time.Second)
	return s
}

func about(status agent.Status) About {
	return About{
		Device: "cam-17", Version: "v1.2.3", Started: noon.Add(-time.Hour), Status: func() agent.Status { return status },
		Forwards: []agent.Forward{{Port: 80, Kind: agent.HTTP, Target: "127.0.0.1:8080"}, {Port: 22, Kind: agent.TCP, Target: "127.0.0.1:22"}},
	}
}

// volatile is what differs from one machine, and one moment, to the next.
var volatile = regexp.MustCompile(`(?m)^(go_memory_used_bytes|go_goroutines|process_resident_memory_bytes) .*$|goversion="[^"]*",platform="[^"]*"`)

func TestGolden(t *testing.T) {
	for name, s := range map[string]agent.Status{"up": up(), "down": down(), "new": {State: agent.Stopped}} {
		a := about(s)
		golden.Check(t, name+".json", a.json(s, noon))
		golden.Check(t, name+".html", a.page(s, noon))
		text := volatile.ReplaceAllString(a.metrics(s, noon), "…")
		text = regexp.MustCompile(`(?m)^# (HELP|TYPE) process_resident_memory_bytes.*\n`).ReplaceAllString(text, "")
		golden.Check(t, name+".txt", strings.TrimRight(text, "…\n")+"\n")
		if !json.Valid([]byte(a.json(s, noon))) {
			t.Errorf("%s: not JSON", name)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(a.metrics(s, noon)), "\n") {
			if !regexp.MustCompile(`^(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+)$`).MatchString(line) {
				t.Errorf("%s: metrics have %q", name, line)
			}
		}
	}
	if got := labels("a", "b\"\\\n", "c", ""); got != `{a="b\"\\\n",c=""}` {
		t.Error(got)
	}
}

// serve runs a server for the length of the test.
func serve(t *testing.T, a About) *Server {
	t.Helper()
	s, err := Listen("127.0.0.1:0", a)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func get(t *testing.T, s *Server, method, path, host string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		r.Host = host
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, answer.Header, string(body)
}

func TestServer(t *testing.T) {
	good, bad := serve(t, about(up())), serve(t, about(down()))
	for _, c := range []struct {
		s                  *Server
		method, path, host string
		status             int
		kind, body         string
	}{
		{good, "GET", "/healthz", "", 200, "text/plain", "ok\n"},
		{bad, "GET", "/healthz", "", 200, "text/plain", "ok\n"},
		{good, "GET", "/ready", "", 200, "text/plain", "ok\n"},
		{bad, "GET", "/ready", "", 503, "text/plain", "waiting: edge.example.com: answered 401"},
		{good, "GET", "/status?pretty", "localhost", 200, "application/json", `"state": "up"`},
		{good, "GET", "/metrics", "a.localhost:80", 200, "text/plain; version=0.0.4", "iottunnel_agent_up 1\n"},
		{bad, "GET", "/metrics", "[::1]:1", 200, "text/plain; version=0.0.4", "iottunnel_agent_up 0\n"},
		{good, "GET", "/", "", 200, "text/html", "cam-17"},
		{good, "HEAD", "/", "", 200, "text/html", ""},
		{good, "POST", "/", "", 405, "text/plain", "only GET"},
		{good, "GET", "/token", "", 404, "text/plain", "there are /, /status"},
		{good, "GET", "/status", "evil.example.com", 421, "text/plain", "localhost"},
		{good, "GET", "/status", "127.0.0.1.evil.example.com:80", 421, "text/plain", "localhost"},
	} {
		status, header, body := get(t, c.s, c.method, c.path, c.host)
		if status != c.status || !strings.HasPrefix(header.Get("Content-Type"), c.kind) || !strings.Contains(body, c.body) ||
			!strings.Contains(header.Get("Content-Security-Policy"), "default-src 'none'") || header.Get("Cache-Control") != "no-store" ||
			c.method == "HEAD" && (body != "" || header.Get("Content-Length") == "0") {
			t.Errorf("%s %s for %s: %d %v %q", c.method, c.path, c.host, status, header, body)
		}
	}
}

// What is no HTTP is answered or left, and costs nothing.
func TestNonsense(t *testing.T) {
	s := serve(t, about(up()))
	for text, want := range map[string]string{
		"":                                   "",
		"\x16\x03\x01\r\n\r\n":               "HTTP/1.1 400 ",
		"GET /\r\n\r\n":                      "HTTP/1.1 400 ",
		"GET http://a/ HTTP/1.1\r\n\r\n":     "HTTP/1.1 400 ",
		"GET / HTTP/2.0\r\n\r\n":             "HTTP/1.1 400 ",
		"GET / HTTP/1.1\r\n\r\n":             "HTTP/1.1 400 ",
		"GET / HTTP/1.1\r\nHost\r\n\r\n":     "HTTP/1.1 400 ",
		"GET /ready HTTP/1.0\r\n\r\n":        "HTTP/1.1 200 ",
		"GET /ready HTTP/1.1\nHost: ::1\n\n": "HTTP/1.1 200 ",
		"GET /ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc": "HTTP/1.1 200 ",
		"GET / HTTP/1.1\r\nA: " + strings.Repeat("a", maxHead):                   "HTTP/1.1 400 ",
	} {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, text)
		conn.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%.40q: %q, %v", text, got, err)
		}
	}
}

// Clients who say nothing end with the server.
func TestServerEnds(t *testing.T) {
	s, err := Listen("127.0.0.1:0", about(up()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	for range maxClients + 3 {
		conn, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	cancel()
	<-done
	// Not by its port, which anybody may have by now.
	if err := s.listener.(*net.TCPListener).SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it still listens: %v", err)
	}
}

func TestListen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for addr, want := range map[string]string{
		"9180":                  `"9180" is not ADDRESS:PORT, such as 127.0.0.1:9180`,
		"127.0.0.1":             "is not ADDRESS:PORT",
		"127.0.0.1:http":        "is not ADDRESS:PORT",
		"status.example.com:80": "is not an IP address of this device",
		taken.Addr().String():   "listen at " + taken.Addr().String() + ": bind: ",
	} {
		if s, err := Listen(addr, About{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", addr, s, err)
		}
	}
	for addr, local := range map[string]bool{"127.0.0.1:0": true, "localhost:0": true, ":0": false, "0.0.0.0:0": false} {
		s, err := Listen(addr, About{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Local() != local {
			t.Errorf("%s: local is %v", addr, s.Local())
		}
		s.Close()
	}
}
