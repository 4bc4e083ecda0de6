package caddymodule

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/internal/freeport"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
)

const testSecret = "a-secret-between-nodes"

// internalPort is a port for `iottunnel internal`.
func internalPort(t *testing.T) int { return int(freeport.One(t).Port()) }

// withInternal is a configuration with a site for routers of the given addresses.
func withInternal(port int, routers string) config {
	return config{
		app: fmt.Sprintf("wait 0s\nnode {\nid one\ninternal 127.0.0.1:%d\nrouters %s\nsecret %s\n}", port, routers, testSecret),
		more: fmt.Sprintf("http://:%d {\nbind 127.0.0.1\nroute {\niottunnel internal\nrespond \"not for the edge\" 200\n}\n}",
			port),
	}
}

// TestInternalSiteOfItsOwn warns of a site that routers cannot use, since it answers to
// its own address alone.
func TestInternalSiteOfItsOwn(t *testing.T) {
	port := internalPort(t)
	for _, c := range []struct {
		name, site, routers string
		warned              bool
	}{
		{"a host", fmt.Sprintf("http://127.0.0.1:%d {\niottunnel internal\n}", port), "127.0.0.1", true},
		{"a host, and no router", fmt.Sprintf("http://127.0.0.1:%d {\niottunnel internal\n}", port), "", false},
		{"no host", fmt.Sprintf("http://:%d {\nbind 127.0.0.1\niottunnel internal\n}", port), "127.0.0.1", false},
		{"the devices' hosts", fmt.Sprintf("http://*.%s:%d {\nbind 127.0.0.1\nroute {\niottunnel internal\n}\n}", testDomain, port), "127.0.0.1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			cfg := withInternal(port, c.routers)
			if c.routers == "" {
				cfg.app = strings.Replace(cfg.app, "\nrouters ", "", 1)
			}
			cfg.global = fmt.Sprintf("log edge {\noutput file %s {\nroll_disabled\n}\ninclude iottunnel\n}", log)
			cfg.more = c.site
			start(t, cfg)
			text, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			if warned := strings.Contains(string(text), "hostnames of devices"); warned != c.warned || warned && !strings.Contains(string(text), `["127.0.0.1"]`) {
				t.Errorf("warned: %v\n%s", warned, text)
			}
		})
	}
}

// ask sends a request to a port of this machine, under any Host.
func (f *fixture) ask(port int, target, host string, headers ...string) routerReply {
	f.t.Helper()
	r, err := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d%s", port, target), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	early := false
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		early = true
		return nil
	}}))
	r.Host = host
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testWait}
	res, err := client.Do(r)
	for i := 0; i < 3 && isReload(err); i++ {
		res, err = client.Do(r)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return routerReply{reply{res, string(b)}, early}
}

// routerReply is a reply, and whether an informational one came before it.
type routerReply struct {
	reply
	early bool
}

func TestInternal(t *testing.T) {
	port := internalPort(t)
	f := start(t, withInternal(port, "127.0.0.0/8"))
	d := f.connect("cam-1", testSite())
	host := d.up.Hostname

	// What a router says of its visitor reaches the device, and nothing of the router.
	r := f.ask(port, "/headers", host, "X-Forwarded-For", "192.0.2.7", "X-Forwarded-Proto", "https", "X-Forwarded-Host", host,
		"Remote-User", "alice", "Iottunnel-Owner", "forged", "Iottunnel-X", "forged")
	for _, line := range []string{"X-Forwarded-For: 192.0.2.7\r\n", "X-Forwarded-Proto: https\r\n", "X-Forwarded-Host: " + host + "\r\n", "Remote-User: alice\r\n", "Host: " + host + "\n"} {
		if !strings.Contains(r.body, line) {
			t.Errorf("no %q in\n%s", line, r.body)
		}
	}
	if r.StatusCode != 200 || strings.Contains(r.body, "127.0.0.1") || strings.Contains(r.body, "forged") || r.Header.Get(ownerHeader) != "" {
		t.Errorf("%d %v\n%s", r.StatusCode, r.Header, r.body)
	}
	// Those before the last address are what the router was told.
	r = f.ask(port, "/headers", host, "X-Forwarded-For", "198.51.100.1", "X-Forwarded-For", "10.1.1.1, 192.0.2.7", "X-Real-IP", "6.6.6.6")
	if !strings.Contains(r.body, "X-Forwarded-For: 198.51.100.1,10.1.1.1, 192.0.2.7\r\n") || !strings.Contains(r.body, "X-Forwarded-Proto: http\r\n") {
		t.Errorf("a chain of proxies:\n%s", r.body)
	}
	if r = f.ask(port, "/headers", host, "X-Real-IP", "2001:db8::1"); !strings.Contains(r.body, "X-Forwarded-For: 2001:db8::1\r\n") {
		t.Errorf("X-Real-IP:\n%s", r.body)
	}
	if r = f.ask(port, "/headers", host); !strings.Contains(r.body, "X-Forwarded-For: 127.0.0.1\r\n") {
		t.Errorf("a router that says nothing:\n%s", r.body)
	}
	if r = f.ask(port, "/", host, "X-Forwarded-For", "unknown", "Accept", "text/plain"); r.StatusCode != 400 || !strings.Contains(r.body, "X-Forwarded-For") {
		t.Errorf("no address: %d %s", r.StatusCode, r.body)
	}

	// A device forges nothing, and routers get no answer before the final one.
	r = f.ask(port, "/forge", host)
	if r.StatusCode != 200 || r.early {
		t.Errorf("%d, early hints %t", r.StatusCode, r.early)
	}
	for name := range r.Header {
		if ours(name) {
			t.Errorf("the device forged %s", name)
		}
	}

	// Paths of the edge are the device's on its hostname.
	for _, path := range []string{cluster.Path, "/.iottunnel/v1/control"} {
		if r = f.ask(port, path, host); r.body != "GET "+path+` ""` {
			t.Errorf("%s: %d %s", path, r.StatusCode, r.body)
		}
	}
	if r = f.ask(port, "/", "nobody."+testDomain); r.StatusCode != 404 || r.Header.Get("Iottunnel-Error") != "unknown_device" {
		t.Errorf("unknown: %d %v", r.StatusCode, r.Header)
	}
	if r = f.ask(port, "/.iottunnel/v1/control", "edge.example.com"); r.StatusCode != 426 {
		t.Errorf("agents' path: %d %s", r.StatusCode, r.body)
	}
	if r = f.ask(port, "/", "edge.example.com"); r.body != "not for the edge" {
		t.Errorf("neither: %d %s", r.StatusCode, r.body)
	}
	d.stop()
	f.await("the device is offline", func() bool { return f.ask(port, "/", host).StatusCode != 200 })
	if r = f.ask(port, "/", host); r.StatusCode != 421 || r.Header.Get("Iottunnel-Error") != "not_here" {
		t.Errorf("offline: %d %v", r.StatusCode, r.Header)
	}
}

func TestInternalStrangers(t *testing.T) {
	port := internalPort(t)
	f := start(t, withInternal(port, "192.0.2.0/24"))
	d := f.connect("cam-1", testSite())
	for _, c := range []struct{ path, host string }{
		{"/", d.up.Hostname}, {cluster.Path, d.up.Hostname}, {"/.iottunnel/v1/control", "edge.example.com"}, {"/", "edge.example.com"},
	} {
		// The address of the connection counts, and no header's.
		r := f.ask(port, c.path, c.host, "X-Forwarded-For", "192.0.2.1", "X-Real-IP", "192.0.2.1")
		if r.StatusCode != 403 || !strings.Contains(r.body, "`routers`") {
			t.Errorf("%s of %s: %d %s", c.path, c.host, r.StatusCode, r.body)
		}
	}
	// Peers are served on no other site.
	if r := f.get(f.url("localhost") + strings.TrimPrefix(cluster.Path, "/")); r.StatusCode != 426 {
		t.Errorf("a peer on the site of agents: %d %s", r.StatusCode, r.body)
	}
	// Routers change on reload, with devices connected.
	f.mustLoad(withInternal(port, "127.0.0.1"))
	if r := f.ask(port, "/", d.up.Hostname); r.StatusCode != 200 {
		t.Errorf("after a reload: %d %s", r.StatusCode, r.body)
	}
	if n := len(d.ups); n != 0 {
		t.Errorf("the device has come back %d times", n)
	}
}

func TestInternalWebSocket(t *testing.T) {
	port := internalPort(t)
	f := start(t, withInternal(port, "127.0.0.1"))
	d := f.connect("cam-1", testSite())
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(testWait))
	fmt.Fprintf(c, "GET /echo HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n", d.up.Hostname)
	u := &upgraded{c, bufio.NewReader(c)}
	res, err := http.ReadResponse(u.r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Iottunnel-Error") != "" {
		t.Fatalf("%v %v", res, err)
	}
	u.mustEcho(t, "through a router")
}

// TestAgentThroughRouter connects an agent through the internal site: the edge
// sees the agent where the router says that it is, and wants TLS on that way.
func TestAgentThroughRouter(t *testing.T) {
	port := internalPort(t)
	start(t, withInternal(port, "127.0.0.1"))
	o := newOperator(t)
	router := func(proto string) *device {
		proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", fmt.Sprintf("127.0.0.1:%d", port)
			r.Out.Header.Set("X-Forwarded-For", "192.0.2.7")
			r.Out.Header.Set("X-Forwarded-Proto", proto)
		}})
		t.Cleanup(proxy.Close)
		l, forward := agent.Listen(80, agent.HTTP)
		t.Cleanup(func() { l.Close() })
		d := &device{ups: make(chan agent.Up, 1), downs: make(chan error, 100)}
		a, err := agent.New(agent.Config{
			Servers: []string{"ws" + strings.TrimPrefix(proxy.URL, "http")}, Device: "cam-1", Token: testToken, Forwards: []agent.Forward{forward}, Once: true,
			OnUp: func(up agent.Up) { d.ups <- up },
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			defer close(done)
			d.downs <- a.Run(ctx)
		}()
		t.Cleanup(func() { cancel(); <-done })
		return d
	}
	plain := router("http")
	select {
	case err := <-plain.downs:
		if !strings.Contains(err.Error(), "TLS is needed") {
			t.Errorf("plain to the router: %v", err)
		}
	case <-plain.ups:
		t.Error("the credential was sent without TLS to the router, and taken")
	case <-time.After(testWait):
		t.Fatal("neither in nor refused")
	}
	d := router("https")
	d.waitUp(t)
	if v := o.device("cam-1"); v.Remote != "192.0.2.7" {
		t.Errorf("the agent is at %s", v.Remote)
	}
}

func TestForwardedAddr(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.7": "192.0.2.7:0", "192.0.2.7:80": "192.0.2.7:80", "2001:db8::1": "[2001:db8::1]:0", "[2001:db8::1]": "[2001:db8::1]:0",
		"[2001:db8::1]:80": "[2001:db8::1]:80", "::ffff:192.0.2.7": "192.0.2.7:0", "fe80::1%eth0": "[fe80::1]:0",
		"": "", "unknown": "", "_hidden": "", "192.0.2.7:99999": "", "a.example.com": "",
	} {
		got, err := forwardedAddr(text)
		if (err == nil) != (want != "") || err == nil && got != netip.MustParseAddrPort(want) {
			t.Errorf("%q: %v %v, want %q", text, got, err, want)
		}
	}
}

func TestInternalNeedsSomebody(t *testing.T) {
	f := start(t, config{})
	err := f.load(config{more: fmt.Sprintf("http://:%d {\niottunnel internal\n}", f.port+1)})
	if err == nil || !strings.Contains(err.Error(), "iottunnel internal: would serve nobody: write `node { secret … }`") {
		t.Error(err)
	}
}

func TestHealth(t *testing.T) {
	port := internalPort(t)
	f := start(t, withInternal(port, "192.0.2.1"))
	for name, r := range map[string]reply{
		"where agents are": f.get(f.url("localhost") + ".iottunnel/health"),
		"inside":           f.ask(port, healthPath, "10.0.0.1").reply,
	} {
		if r.StatusCode != 200 || r.body != "ok\n" || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %q", name, r.StatusCode, r.body)
		}
	}
	d := f.connect("cam-1", testSite())
	if r := f.get(d.up.Ports[0].URL + ".iottunnel/health"); r.body != `GET /.iottunnel/health ""` {
		t.Errorf("on a device's hostname: %d %q", r.StatusCode, r.body)
	}
	edges.Range(func(_, e any) bool {
		e.(*edge).beginShutdown(time.Second)
		return true
	})
	if r := f.get(f.url("localhost") + ".iottunnel/health"); r.StatusCode != 503 || r.body != "stopping\n" {
		t.Errorf("while it stops: %d %q", r.StatusCode, r.body)
	}
}
