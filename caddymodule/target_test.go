package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// raw sends bytes as they are and reads one answer, informational ones left out.
func (f *fixture) raw(text string) reply {
	f.t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
	if err != nil {
		f.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(testWait))
	io.WriteString(c, text)
	method, _, _ := strings.Cut(text, " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		f.t.Fatalf("%q: %v", text, err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols || method == "CONNECT" && res.StatusCode == 200 {
		return reply{res, ""}
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatalf("%q: %v after %q", text, err, b)
	}
	return reply{res, string(b)}
}

// TestTargets writes request targets in all their forms: none may reach the
// device with a path that rules in front have not seen.
func TestTargets(t *testing.T) {
	f := start(t, config{site: `
		@admin path /admin /admin/*
		@root path / /index.html
		route {
			respond @admin "closed" 403
			respond @root "closed" 403
			iottunnel
			respond "next" 200
		}`})
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "device: %s", r.RequestURI)
	}))
	host := d.up.Hostname
	for _, c := range []struct {
		request string
		status  int
		body    string // its beginning
	}{
		{"GET /a HTTP/1.1\r\nHost: " + host, 200, "device: /a"},
		{"GET http://" + host + "/a HTTP/1.1\r\nHost: " + host, 200, "device: /a"},
		{"GET http://" + host + "/a HTTP/1.1\r\nHost: localhost", 200, "device: /a"}, // RFC 9112 §3.2.2
		{"GET http://localhost/a HTTP/1.1\r\nHost: " + host, 200, "next"},
		{"GET /admin HTTP/1.1\r\nHost: " + host, 403, "closed"},
		{"GET http://" + host + "/admin HTTP/1.1\r\nHost: " + host, 403, "closed"},
		{"GET http://" + host + "/admin HTTP/1.1\r\nHost: localhost", 403, "closed"},
		{"GET x:http://" + host + "/admin HTTP/1.1\r\nHost: " + host, 400, "bad_request"},
		{"GET x:/admin HTTP/1.1\r\nHost: " + host, 403, "closed"},
		{"GET http:/admin HTTP/1.1\r\nHost: " + host, 403, "closed"},
		{"GET http://" + host + " HTTP/1.1\r\nHost: " + host, 400, "bad_request"},
		{"GET http://" + host + "?a=b HTTP/1.1\r\nHost: " + host, 400, "bad_request"},
		{"GET * HTTP/1.1\r\nHost: " + host, 400, "bad_request"},
		{"OPTIONS * HTTP/1.1\r\nHost: " + host, 200, ""}, // the server's own answer
		{"CONNECT " + host + ":80 HTTP/1.1\r\nHost: " + host, 400, "bad_request"},
		{"CONNECT /a HTTP/1.1\r\nHost: " + host, 400, "bad_request"},
		{"CONNECT /.iottunnel/v1/control HTTP/1.1\r\nHost: localhost", 400, `{"error":"bad_request"`},
		{"GET x:http://localhost/y HTTP/1.1\r\nHost: localhost", 200, "next"},
	} {
		r := f.raw(c.request + "\r\nConnection: close\r\n\r\n")
		if r.StatusCode != c.status || !strings.HasPrefix(r.body, c.body) {
			t.Errorf("%q: %d %q, want %d %q", c.request, r.StatusCode, r.body, c.status, c.body)
		}
	}
}

// TestExtendedConnect lets WebSockets pass that come by CONNECT, and no other
// protocol.
func TestExtendedConnect(t *testing.T) {
	for _, c := range []struct {
		major    int
		protocol string
		ok       bool
	}{
		{2, "websocket", true}, {2, "connect-udp", false}, {2, "", false},
		{3, "websocket", true}, {3, "connect-udp", false}, {3, "HTTP/3.0", false},
		{1, "websocket", false}, {1, "HTTP/1.1", false},
	} {
		r := httptest.NewRequest("CONNECT", "/ws", nil)
		r.ProtoMajor = c.major
		if c.major == 3 {
			r.Proto = c.protocol // as quic-go has it
		} else if c.protocol != "" {
			r.Header[":protocol"] = []string{c.protocol} // as net/http does
		}
		if err := checkTarget(r); (err == nil) != c.ok {
			t.Errorf("HTTP/%d, %q: %v", c.major, c.protocol, err)
		}
	}
}
