package caddymodule

import (
	"net/netip"
	"reflect"
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
		{"short trust", func(a *App) { a.GrantTrust = caddy.Duration(9 * time.Second) }, "grant_trust: 9s is out of range: 10s to 90d"},
		{"long trust", func(a *App) { a.GrantTrust = caddy.Duration(91 * 24 * time.Hour) }, "grant_trust: 2184h0m0s is out of range"},
		{"trust", func(a *App) { a.GrantTrust = caddy.Duration(time.Minute) }, ""},
		{"negative wait", func(a *App) { a.Wait = duration(-1) }, "wait: -1ns is negative"},
		{"no wait", func(a *App) { a.Wait = duration(0) }, ""},
		{"negative answer timeout", func(a *App) { a.AnswerTimeout = -1 }, "answer_timeout: -1ns is negative"},
		{"odd mode", func(a *App) { a.Hostname = "mac" }, `hostname: "mac" is neither random nor device`},
		{"odd visitors", func(a *App) { a.Visitors = &Visitors{Scheme: "wss"} }, `visitors: "wss" is neither https nor http`},
		{"negative limit", func(a *App) { a.Limits = &Limits{HeaderBytes: -1} }, "limits: header_bytes: -1 is negative"},
		{"slow limit", func(a *App) { a.Limits = &Limits{BandwidthPerDevice: 16<<10 - 1} }, "limits: bandwidth_per_device: 16383 bytes per second"},
		{"webhook", func(a *App) {
			a.Webhooks = []*Webhook{{URL: "https://h.example/a", Secrets: []string{"0123456789abcdef"}, Events: []string{"online", "limited"}}}
		}, ""},
		{"webhook without TLS", func(a *App) { a.Webhooks = []*Webhook{{URL: "http://h.example/"}} }, "webhook: http://h.example is not encrypted: take https, or write `allow_plaintext`"},
		{"webhook to itself", func(a *App) {
			a.Webhooks = []*Webhook{{URL: "http://127.0.0.1:9/", Secrets: []string{"0123456789abcdef"}}}
		}, ""},
		{"webhook without a host", func(a *App) { a.Webhooks = []*Webhook{{URL: "h.example"}} }, "webhook: takes a URL such as"},
		{"webhook without a secret", func(a *App) { a.Webhooks = []*Webhook{{URL: "https://h.example"}} }, "webhook https://h.example: secret is missing"},
		{"webhook with a password", func(a *App) { a.Webhooks = []*Webhook{{URL: "https://a:b@h.example"}} }, "webhook https://h.example: secret is missing"},
		{"webhook with a short secret", func(a *App) { a.Webhooks = []*Webhook{{URL: "https://h.example", Secrets: []string{"short"}}} }, "secret: has 5 characters, at least 16 are needed"},
		{"webhook with secrets in its path", func(a *App) {
			a.Webhooks = []*Webhook{{URL: "http://hooks.example/services/hush?key=hush#hush"}}
		}, "webhook: http://hooks.example is not encrypted"},
		{"webhook of another event", func(a *App) {
			a.Webhooks = []*Webhook{{URL: "https://h.example", Secrets: []string{"0123456789abcdef"}, Events: []string{"gone"}}}
		}, `events: "gone" is not one of online, offline, cloned, flapping, limited and drained`},
		{"webhook twice", func(a *App) {
			w := &Webhook{URL: "https://h.example", Secrets: []string{"0123456789abcdef"}}
			a.Webhooks = []*Webhook{w, w}
		}, "webhook: a URL is given more than once"},
		{"node", func(a *App) {
			a.Node = &Node{ID: "edge-1.example_2", URL: "https://edge-1.example.com:8443/", Internal: "[fd00::1]:8080", Routers: []string{"10.0.0.0/28", "::1"}, Secrets: []string{"0123456789abcdef", "fedcba9876543210"}}
		}, ""},
		{"node id", func(a *App) { a.Node = &Node{ID: "edge 1"} }, `node: id: "edge 1" is not a name of 1 to 64 letters`},
		{"long node id", func(a *App) { a.Node = &Node{ID: strings.Repeat("a", 65)} }, `node: id: "aaa`},
		{"node url without a scheme", func(a *App) { a.Node = &Node{URL: "edge-1.example.com"} }, `node: url: "edge-1.example.com" is not a scheme and a host`},
		{"node url with a path", func(a *App) { a.Node = &Node{URL: "https://edge-1.example.com/a"} }, "is not a scheme and a host"},
		{"node url with a user", func(a *App) { a.Node = &Node{URL: "https://a@edge-1.example.com"} }, "is not a scheme and a host"},
		{"node url of ftp", func(a *App) { a.Node = &Node{URL: "ftp://edge-1.example.com"} }, "is neither https nor http"},
		{"plain node url", func(a *App) { a.Node = &Node{URL: "ws://edge-1.example.com"} }, "is without TLS, and agents are refused that come so"},
		{"plain node url, allowed", func(a *App) { a.Node = &Node{URL: "ws://edge-1.example.com"}; a.AllowPlaintext = true }, ""},
		{"plain node url of loopback", func(a *App) { a.Node = &Node{URL: "http://127.0.0.1:8080"} }, ""},
		{"node url below the domain", func(a *App) { a.Node = &Node{URL: "https://edge-1.devices.example.net"} }, "is below the domain of the devices"},
		{"node internal without a port", func(a *App) { a.Node = &Node{Internal: "10.0.0.1"} }, `node: internal: "10.0.0.1" is not an address and a port`},
		{"node internal on port 0", func(a *App) { a.Node = &Node{Internal: "10.0.0.1:0"} }, "is not an address and a port"},
		{"node internal without a host", func(a *App) { a.Node = &Node{Internal: ":8080"} }, "is not an address and a port"},
		{"node internal anywhere", func(a *App) { a.Node = &Node{Internal: "0.0.0.0:8080"} }, "stands for any address"},
		{"node internal below the domain", func(a *App) { a.Node = &Node{Internal: "a.devices.example.net:80"} }, "node: internal: \"a.devices.example.net:80\" is below the domain"},
		{"node routers", func(a *App) { a.Node = &Node{Routers: []string{"10.0.0.0/28", "edge-2"}} }, `node: routers: "edge-2" is neither an IP address nor a prefix`},
		{"short node secret", func(a *App) { a.Node = &Node{Secrets: []string{"0123456789abcdef", "0123456789abcde"}} }, "node: secret: value 2 is shorter than 16 characters: make one with `openssl"},
		{"three node secrets", func(a *App) { a.Node = &Node{Secrets: []string{"a", "b", "c"}} }, "node: secret: 3 values: at most two"},
		{"one node secret twice", func(a *App) { a.Node = &Node{Secrets: []string{"0123456789abcdef", "0123456789abcdef"}} }, "node: secret: both values are the same"},
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
			case err != nil && strings.Contains(err.Error(), "hush"):
				t.Errorf("the error tells a secret: %v", err)
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

func TestNodeExpands(t *testing.T) {
	t.Setenv("NODE_ID", "edge-1")
	t.Setenv("NODE_SECRET", "0123456789abcdef\n")
	n := &Node{ID: "{env.NODE_ID}", URL: "wss://{env.NODE_ID}.example.com/", Internal: "{env.NODE_ID}.lan:8080", Routers: []string{"10.0.0.1"}, Secrets: []string{"{env.NODE_SECRET}"}}
	if err := n.expand(caddy.NewReplacer()); err != nil {
		t.Fatal(err)
	}
	c, err := n.check("devices.example.net", false)
	want := tunnelcore.NodeSettings{URL: "https://edge-1.example.com", Internal: "edge-1.lan:8080", Secrets: []string{"0123456789abcdef"}}
	if err != nil || n.ID != "edge-1" || !reflect.DeepEqual(c.settings, want) {
		t.Errorf("%+v %+v %v", n, c, err)
	}
	for address, is := range map[string]bool{"10.0.0.1": true, "10.0.0.2": false, "::1": false, "::ffff:10.0.0.1": true} {
		if got := c.isRouter(netip.MustParseAddr(address).Unmap()); got != is {
			t.Errorf("%s is a router: %t", address, got)
		}
	}
	missing := &Node{Secrets: []string{"{env.IOTTUNNEL_NO_SUCH_VARIABLE}"}}
	if err := missing.expand(caddy.NewReplacer()); err == nil || !strings.Contains(err.Error(), "node: secret: ") {
		t.Errorf("a variable that is not set: %v", err)
	}
}

func TestListen(t *testing.T) {
	for word, want := range map[string]tunnelcore.Listen{"": tunnelcore.ListenAll, "all": tunnelcore.ListenAll, "owner": tunnelcore.ListenOwner} {
		if c, err := (&TCPPorts{Range: "1-2", Listen: word}).core(); err != nil || c.Listen != want {
			t.Errorf("listen %q: %+v %v", word, c, err)
		}
	}
}
