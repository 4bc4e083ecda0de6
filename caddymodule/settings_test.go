package caddymodule

import (
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

func TestValidate(t *testing.T) {
	duration := func(d time.Duration) *caddy.Duration { c := caddy.Duration(d); return &c }
	for _, c := range []struct {
		name   string
		change func(*App)
		want   string // in the error; empty: none
	}{
		{"fine", func(*App) {}, ""},
		{"no domain", func(a *App) { a.Domain = "" }, "domain is missing: write `domain devices.example.net`"},
		{"star", func(a *App) { a.Domain = "*.example.net" }, `domain: "*.example.net" begins with *.`},
		{"port", func(a *App) { a.Domain = "example.net:80" }, `domain: "example.net:80" holds a port`},
		{"address", func(a *App) { a.Domain = "192.0.2.1" }, `domain: "192.0.2.1" is an address`},
		{"underscore", func(a *App) { a.Domain = "a_b.net" }, `domain: "a_b.net" is not a domain name`},
		{"empty label", func(a *App) { a.Domain = "a..net" }, `domain: "a..net" is not a domain name`},
		{"long", func(a *App) { a.Domain = strings.Repeat("a.", 94) + "ne" }, "is longer than 189 characters"},
		{"just short enough", func(a *App) { a.Domain = strings.Repeat("a.", 94) + "n" }, ""},
		{"one label", func(a *App) { a.Domain = "localhost" }, ""},
		{"no auth", func(a *App) { a.authenticators = nil }, "auth is missing: say which devices may connect"},
		{"none beside others", func(a *App) {
			a.authenticators = []tunnelcore.Authenticator{new(StaticAuth), new(NoAuth)}
		}, "auth none: stands beside other authenticators"},
		{"short lease", func(a *App) { a.Lease = caddy.Duration(999 * time.Millisecond) }, "lease: 999ms is too short: at least 1s"},
		{"shortest lease", func(a *App) { a.Lease = caddy.Duration(time.Second) }, ""},
		{"fast heartbeat", func(a *App) { a.Heartbeat = caddy.Duration(999 * time.Millisecond) }, "heartbeat: 999ms is out of range: 1s to 15m"},
		{"slow heartbeat", func(a *App) { a.Heartbeat = caddy.Duration(15*time.Minute + 1) }, "heartbeat: 15m0.000000001s is out of range"},
		{"heartbeat", func(a *App) { a.Heartbeat = caddy.Duration(15 * time.Minute) }, ""},
		{"negative wait", func(a *App) { a.Wait = duration(-1) }, "wait: -1ns is negative"},
		{"no wait", func(a *App) { a.Wait = duration(0) }, ""},
		{"negative answer timeout", func(a *App) { a.AnswerTimeout = -1 }, "answer_timeout: -1ns is negative"},
		{"odd mode", func(a *App) { a.Hostname = "mac" }, `hostname: "mac" is neither random nor device`},
		{"odd visitors", func(a *App) { a.Visitors = &Visitors{Scheme: "wss"} }, `visitors: "wss" is neither https nor http`},
		{"negative limit", func(a *App) { a.Limits = &Limits{HeaderBytes: -1} }, "limits: header_bytes: -1 is negative"},
		{"node url", func(a *App) { a.Node = &Node{URL: "https://x"} }, "node url: not supported by this build yet: remove it"},
		{"node internal", func(a *App) { a.Node = &Node{Internal: "x:1"} }, "node internal: not supported"},
		{"node routers", func(a *App) { a.Node = &Node{Routers: []string{"x"}} }, "node routers: not supported"},
		{"node secret", func(a *App) { a.Node = &Node{Secret: "x"} }, "node secret: not supported"},
		{"ports", func(a *App) {
			a.TCPPorts = &TCPPorts{Range: "1-65535", Bind: []string{"::1"}, Allow: []string{"192.0.2.0/24", "::1"}, Listen: "owner"}
		}, ""},
		{"no range", func(a *App) { a.TCPPorts = &TCPPorts{} }, `tcp_ports: "" is not a range of ports`},
		{"port 0", func(a *App) { a.TCPPorts = &TCPPorts{Range: "0-1"} }, `tcp_ports: "0-1" is not a range of ports`},
		{"odd bind", func(a *App) { a.TCPPorts = &TCPPorts{Range: "1-2", Bind: []string{"eth0"}} }, `tcp_ports: bind: "eth0"`},
		{"odd allow", func(a *App) { a.TCPPorts = &TCPPorts{Range: "1-2", Allow: []string{"all"}} }, `tcp_ports: allow: "all"`},
		{"odd listen", func(a *App) { a.TCPPorts = &TCPPorts{Range: "1-2", Listen: "x"} }, `tcp_ports: listen: "x"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &App{Domain: "devices.example.net", authenticators: []tunnelcore.Authenticator{new(StaticAuth)}}
			c.change(a)
			err := a.Validate()
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestBetter(t *testing.T) {
	// From the best to the worst.
	order := []struct {
		scheme string
		port   int
	}{{"https", 443}, {"https", 8443}, {"https", 8444}, {"http", 80}, {"http", 79}, {"http", 8080}}
	for i, a := range order {
		for j, b := range order {
			if got := better(a.scheme, a.port, b.scheme, b.port); got != (i < j) {
				t.Errorf("%v better than %v: %t", a, b, got)
			}
		}
	}
}

func TestUnder(t *testing.T) {
	for host, want := range map[string][2]bool{ // under, directly
		"a.example.net":        {true, true},
		"A.Example.NET.:80":    {true, true},
		"a--b.example.net":     {true, true},
		"a.b.example.net":      {true, false},
		"example.net":          {false, false},
		".example.net":         {true, false},
		"example.net.evil.org": {false, false},
		"aexample.net":         {false, false},
		"":                     {false, false},
	} {
		if got := [2]bool{under(host, "example.net"), directlyUnder(host, "example.net")}; got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}
