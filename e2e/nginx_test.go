package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// These cases put the Lua router before nodes that are played here, which note
// what reaches them; the face `nginx` runs everything else with real ones.

// playedNode is a node in Redis whose internal address is served by a function.
type playedNode struct {
	ID, Epoch, Addr string
	redis           *harness.Redis
	server          *httptest.Server
	handler         atomic.Pointer[http.HandlerFunc]
	hits            atomic.Int64
}

// playNode starts a node that answers with its id.
func playNode(t *testing.T, r *harness.Redis, id string) *playedNode {
	t.Helper()
	n := &playedNode{ID: id, Epoch: id + "-epoch", redis: r}
	n.Serve(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, id) })
	n.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.hits.Add(1)
		(*n.handler.Load())(w, r)
	}))
	t.Cleanup(func() {
		n.server.CloseClientConnections()
		n.server.Close()
	})
	n.Addr = n.server.Listener.Addr().String()
	n.Beat(t, 0, 0)
	return n
}

func (n *playedNode) Serve(f http.HandlerFunc) { n.handler.Store(&f) }

// Beat writes the node's key, as a heartbeat does.
func (n *playedNode) Beat(t *testing.T, clients int, draining int) {
	t.Helper()
	n.redis.Do(t, "HSET", "iottunnel:node:{"+n.ID+"}", "epoch", n.Epoch, "url", "", "internal", n.Addr,
		"clients", strconv.Itoa(clients), "capacity", "20000", "draining", strconv.Itoa(draining))
	n.redis.Do(t, "ZADD", "iottunnel:nodes", "1760000000000", n.ID)
}

// Die takes the node's key away.
func (n *playedNode) Die(t *testing.T) {
	t.Helper()
	n.redis.Do(t, "DEL", "iottunnel:node:{"+n.ID+"}")
}

// Hold leases a label to a device that the node holds.
func (n *playedNode) Hold(t *testing.T, label, device string) {
	t.Helper()
	n.redis.Do(t, "HSET", "iottunnel:lease:{"+label+"}", "device", device, "gen", "1", "hold", "x",
		"node", n.ID, "epoch", n.Epoch, "http", n.Addr)
	n.redis.Do(t, "HSET", "iottunnel:device:{"+device+"}", "label", label, "until_ms", "9999999999999")
}

// leave has a device be offline, as a node does on a goodbye.
func leave(t *testing.T, r *harness.Redis, label, device, why string) {
	t.Helper()
	now := strconv.FormatInt(time.Now().UnixMilli(), 10)
	r.Do(t, "HSET", "iottunnel:lease:{"+label+"}", "device", device)
	r.Do(t, "HDEL", "iottunnel:lease:{"+label+"}", "node", "epoch", "http")
	r.Do(t, "HSET", "iottunnel:device:{"+device+"}", "label", label, "until_ms", "9999999999999", "seen_ms", now, "why", why)
}

// commands is how often Redis has carried out a command.
func commands(t *testing.T, r *harness.Redis, name string) int {
	t.Helper()
	for _, line := range strings.Split(r.Do(t, "INFO", "commandstats"), "\n") {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+name+":calls="); ok {
			n, _, _ := strings.Cut(rest, ",")
			calls, _ := strconv.Atoi(n) // digits
			return calls
		}
	}
	return 0
}

// got is what a visitor has got.
type got struct {
	status int
	header http.Header
	body   string
}

func (g got) String() string { return fmt.Sprintf("%d %v %.200q", g.status, g.header, g.body) }

// fetch sends a request to a host name.
func fetch(t *testing.T, c *http.Client, method, host, path string, body io.Reader, header ...string) got {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return got{resp.StatusCode, resp.Header, string(b)}
}

// redisSetting is the setting of the router for a Redis.
func redisSetting(r *harness.Redis) string { return `redis = "` + r.URL("") + `",` }

// golden is the answer that the edge gives, from its own tests.
func golden(t *testing.T, name string) got {
	t.Helper()
	all, err := os.ReadFile(filepath.Join("..", "tunnelcore", "answers", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(all)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return got{resp.StatusCode, resp.Header, string(b)}
}

// sameAnswer fails unless an answer of nginx is the edge's, but for what every
// answer of nginx has and what extra names.
func sameAnswer(t *testing.T, what string, have, want got, extra ...string) {
	t.Helper()
	h := have.header.Clone()
	for _, name := range append([]string{"Server", "Date", "Connection"}, extra...) {
		h.Del(name)
		want.header.Del(name)
	}
	if have.status != want.status || have.body != want.body || fmt.Sprint(h) != fmt.Sprint(want.header) {
		t.Errorf("%s:\ngot  %v\nwant %v", what, got{have.status, h, have.body}, want)
	}
}

func TestNginxRoutes(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a, b := playNode(t, r, "edge-a"), playNode(t, r, "edge-b")
	a.Hold(t, "lamp", "lamp-1")
	b.Hold(t, "door", "door-1")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r), Workers: 2})
	c := n.Client(t)

	for _, host := range []string{"lamp.devices.test", "LAMP.Devices.Test", "lamp--8080.devices.test:99"} {
		if g := fetch(t, c, "GET", host, "/", nil); g.body != "edge-a" {
			t.Errorf("%s: %v", host, g)
		}
	}
	if g := fetch(t, c, "POST", "door.devices.test", "/", strings.NewReader("x")); g.body != "edge-b" {
		t.Errorf("door: %v", g)
	}
	page := "text/html"
	sameAnswer(t, "unknown", fetch(t, c, "GET", "nobody.devices.test", "/", nil, "Accept", page), golden(t, "unknown_device.html"))
	sameAnswer(t, "unknown, POST", fetch(t, c, "POST", "nobody.devices.test", "/", strings.NewReader("x"), "Accept", "application/json"), golden(t, "unknown_device.json"))
	sameAnswer(t, "never leased", fetch(t, c, "GET", "a--b.devices.test", "/", nil), golden(t, "unknown_device.txt"))
	want := golden(t, "unknown_device.html")
	want.body = ""
	sameAnswer(t, "HEAD", fetch(t, c, "HEAD", "nobody.devices.test", "/", nil, "Accept", page), want)

	leave(t, r, "bell", "bell-1", "agent said goodbye")
	g := fetch(t, c, "GET", "bell.devices.test", "/", nil, "Accept", page)
	if g.status != 503 || g.header.Get("Iottunnel-Error") != "device_offline" || g.header.Get("Retry-After") != "10" || !strings.Contains(g.body, "Last seen") {
		t.Errorf("offline: %v", g)
	}
	// Its lease has ended, and the route has not.
	r.Do(t, "HSET", "iottunnel:device:{bell-1}", "until_ms", strconv.FormatInt(time.Now().UnixMilli()-1, 10))
	harness.Eventually(t, 3*time.Second, "the lease has ended", func() error {
		if g := fetch(t, c, "GET", "bell.devices.test", "/", nil); g.header.Get("Iottunnel-Error") != "unknown_device" {
			return errors.New(g.String())
		}
		return nil
	})
	// Its node has died, or started anew.
	b.Hold(t, "tree", "tree-1")
	r.Do(t, "HSET", "iottunnel:lease:{tree}", "epoch", "former")
	n2 := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + " wait_s = 0,"})
	if g := fetch(t, n2.Client(t), "GET", "tree.devices.test", "/", nil); g.status != 503 || g.header.Get("Iottunnel-Error") != "device_offline" {
		t.Errorf("epoch of a former start: %v", g)
	}
	// A key that is not as it should be reaches nobody.
	r.Do(t, "HSET", "iottunnel:lease:{odd}", "device", "x", "node", "edge-a", "epoch", a.Epoch, "http", "nowhere")
	if g := fetch(t, n2.Client(t), "GET", "odd.devices.test", "/", nil); g.status != 503 {
		t.Errorf("route without an address: %v", g)
	}
}

func TestNginxHeaders(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + ` keep_headers = { "Remote-Name" }, drop_headers = { "X-Drop" },`, HTTP: "underscores_in_headers on;"})
	seen := make(chan *http.Request, 1)
	a.Serve(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		h := w.Header()
		h.Set("X-Accel-Redirect", "/etc/passwd")
		h.Set("X-Accel-Limit-Rate", "1")
		h.Set("Server", "the device")
		h.Add("Set-Cookie", "a=b")
		h.Set("Iottunnel-Owner", "edge-b")
		fmt.Fprint(w, "hello")
	})
	g := fetch(t, n.Client(t), "GET", "lamp.devices.test:1234", "/a%2Fb//c/../d?x=%20y&z", nil,
		"X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "evil", "X-Forwarded-Port", "1",
		"x_forwarded_prefix", "/evil", "Forwarded", "for=6.6.6.6", "X-Real-Ip", "6.6.6.6", "Remote-User", "admin", "Remote-Name", "kept",
		"Remote_Groups", "admin", "Iottunnel-Device", "x", "iottunnel_error", "x", "Authorization", "Basic eDp5", "Cookie", "c=d",
		"X-Hop", "1", "x-drop", "3", "X-Other", "2", "Connection", "X-Hop, X-Forwarded-For, Authorization, close", "Upgrade", "h2c", "HTTP2-Settings", "x")
	req := <-seen
	h := req.Header
	if from, err := netip.ParseAddrPort(h.Get("X-Forwarded-For")); err != nil || !from.Addr().IsLoopback() || len(h["X-Forwarded-For"]) != 1 {
		t.Errorf("X-Forwarded-For: %q", h["X-Forwarded-For"])
	}
	for name, want := range map[string]string{
		"X-Forwarded-Proto": "http", "X-Forwarded-Host": "lamp.devices.test:1234",
		"Authorization": "Basic eDp5", "Cookie": "c=d", "X-Other": "2", "Remote-Name": "kept",
	} {
		if got := h.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q; want %q", name, got, want)
		}
	}
	for _, name := range []string{"X-Forwarded-Port", "X_forwarded_prefix", "Forwarded", "X-Real-Ip", "Remote-User", "Remote_groups", "Iottunnel-Device", "Iottunnel_error", "X-Hop", "X-Drop", "Upgrade"} {
		if got := h.Values(name); got != nil {
			t.Errorf("%s: %q reaches the node", name, got)
		}
	}
	if req.Host != "lamp.devices.test:1234" || req.RequestURI != "/a%2Fb//c/../d?x=%20y&z" {
		t.Errorf("Host %q, target %q", req.Host, req.RequestURI)
	}
	if g.body != "hello" || g.header.Get("Server") != "the device" || g.header.Get("Set-Cookie") != "a=b" || g.header.Get("Iottunnel-Owner") != "" || g.header.Get("X-Accel-Redirect") != "" {
		t.Errorf("the visitor has got %v", g)
	}
}

// TestNginxHost: the host that nginx has chosen its server by is the one that the
// node is asked for, whatever else the request says.
func TestNginxHost(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	a.Hold(t, "safe", "safe-1")
	a.Serve(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host, " ", r.RequestURI) })
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r)})
	say := func(text string) string {
		c, err := net.Dial("tcp", n.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, text)
		b, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if s := say("GET http://lamp.devices.test/x HTTP/1.1\r\nHost: safe.devices.test\r\nConnection: close\r\n\r\n"); !strings.HasSuffix(s, "lamp.devices.test /x") && !strings.Contains(s, "lamp.devices.test /x\r\n") {
		t.Errorf("two hosts: %q", s)
	}
	for _, host := range []string{"*.devices.test", "a_b.devices.test", "lamp%0d%0a.devices.test", "{lamp}.devices.test", "x.lamp.devices.test", strings.Repeat("a", 64) + ".devices.test", "xn--80.devices.test"} {
		before := commands(t, r, "hmget")
		if s := say("GET / HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(s, "HTTP/1.1 404") && !strings.HasPrefix(s, "HTTP/1.1 400") {
			t.Errorf("%s: %.80q", host, s)
		}
		if after := commands(t, r, "hmget"); after > before+4 { // heartbeats of the router
			t.Errorf("%s: Redis was asked: %d, then %d", host, before, after)
		}
	}
	// Visitors of devices reach nothing of the edge by its paths, and agents' paths
	// are reached by one spelling.
	for _, path := range []string{"/.iottunnel/v1/control", "/.iottunnel/link/v1"} {
		if s := say("GET " + path + " HTTP/1.1\r\nHost: lamp.devices.test\r\nConnection: close\r\n\r\n"); !strings.Contains(s, "lamp.devices.test "+path) {
			t.Errorf("a device's own path: %q", s)
		}
	}
	for _, path := range []string{"/.iottunnel/link/v1", "/.iottunnel/v2/control", "/.iottunnel/v1/../link/v1", "/.iottunnel/v1/control/../../link/v1", "/.iottunnel/v1/%63ontrol", "/x/../.iottunnel/v1/control", "//.iottunnel/v1/control"} {
		s := say("GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if strings.Contains(s, "localhost "+path) {
			t.Errorf("%s reaches a node: %q", path, s)
		}
		if s := say("GET http://localhost" + path + " HTTP/1.1\r\nHost: lamp.devices.test\r\nConnection: close\r\n\r\n"); strings.Contains(s, "lamp.devices.test") {
			t.Errorf("%s beside the devices' server: %q", path, s)
		}
		if strings.HasPrefix(path, "/.iottunnel/v2") && (!strings.HasPrefix(s, "HTTP/1.1 426") || !strings.Contains(s, "Iottunnel-Versions: v1")) {
			t.Errorf("%s: %q", path, s)
		}
	}
}

func TestNginxReadsOnce(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r), Workers: 2})
	c := n.Client(t)
	fetch(t, c, "GET", "warm.devices.test", "/", nil) // the nodes are known now
	monitor := harness.Monitor(t, r, "lease:{lamp}")
	began := time.Now()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
				t.Errorf("%v", g)
			}
		})
	}
	wg.Wait()
	reads, took := monitor(), time.Since(began)
	if most := 1 + int(took/(2*time.Second)); reads > most {
		t.Errorf("%d reads of one label in %v; want %d", reads, took, most)
	}
}

// TestNginxFollows: where a device goes, its visitors come after.
func TestNginxFollows(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a, b := playNode(t, r, "edge-a"), playNode(t, r, "edge-b")
	away := func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Iottunnel-Error", "not_here")
		w.WriteHeader(http.StatusMisdirectedRequest)
		fmt.Fprint(w, "not_here: x\n")
	}
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what came before it broke
		fmt.Fprintf(w, "b %s %s", r.Method, body)
	}
	b.Serve(echo)
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r)})
	c := n.Client(t)

	a.Hold(t, "lamp", "lamp-1")
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
		t.Fatalf("%v", g)
	}
	a.Serve(away)
	b.Hold(t, "lamp", "lamp-1") // and the cached route is stale
	if g := fetch(t, c, "DELETE", "lamp.devices.test", "/", nil); g.body != "b DELETE " {
		t.Errorf("moved: %v", g)
	}
	hits := a.hits.Load()
	if g := fetch(t, c, "POST", "lamp.devices.test", "/", strings.NewReader("body")); g.body != "b POST body" || a.hits.Load() != hits {
		t.Errorf("the new route: %v, %d asks at the former node", g, a.hits.Load()-hits)
	}

	// A short body is sent again.
	a.Hold(t, "lamp", "lamp-1")
	a.Serve(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "edge-a") })
	harness.Eventually(t, 5*time.Second, "the route leads back", func() error {
		if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
			return errors.New(g.String())
		}
		return nil
	})
	a.Serve(away)
	b.Hold(t, "lamp", "lamp-1")
	if g := fetch(t, c, "POST", "lamp.devices.test", "/", strings.NewReader("short body")); g.body != "b POST short body" {
		t.Errorf("a short body: %v", g)
	}

	// Any other that is under way cannot be.
	unknown := func() io.Reader { return io.MultiReader(strings.NewReader("body")) } // of unknown length
	a.Hold(t, "tree", "tree-1")
	a.Serve(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "edge-a") })
	fetch(t, c, "GET", "tree.devices.test", "/", nil)
	a.Serve(away)
	b.Hold(t, "tree", "tree-1")
	if g := fetch(t, c, "POST", "tree.devices.test", "/", unknown()); g.status != 503 || g.header.Get("Iottunnel-Error") != "unavailable" || g.header.Get("Retry-After") != "1" {
		t.Errorf("a body under way: %v", g)
	}
	if g := fetch(t, c, "POST", "tree.devices.test", "/", strings.NewReader("body")); g.body != "b POST body" {
		t.Errorf("after it: %v", g)
	}

	// Nobody has it any more, though Redis says so.
	b.Serve(away)
	leave(t, r, "tree", "tree-1", "connection lost: EOF")
	if g := fetch(t, c, "POST", "tree.devices.test", "/", unknown()); g.status != 503 || g.header.Get("Iottunnel-Error") != "device_offline" {
		t.Errorf("nowhere, with a body: %v", g)
	}
	b.Hold(t, "tree", "tree-1")
	r.Do(t, "HDEL", "iottunnel:device:{tree-1}", "why")
	g := fetch(t, c, "GET", "tree.devices.test", "/", nil, "Accept", "text/html")
	if g.status != 503 || g.header.Get("Iottunnel-Error") != "device_offline" || !strings.Contains(g.body, "offline") {
		t.Errorf("nowhere: %v", g)
	}
	// A device may say 421 itself.
	b.Serve(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "of the device", 421) })
	if g := fetch(t, c, "GET", "tree.devices.test", "/", nil); g.status != 421 || g.body != "of the device\n" || g.header.Get("Iottunnel-Error") != "" {
		t.Errorf("421 of a device: %v", g)
	}

	// A node that served it over the link says where it is: the route is read anew.
	b.Serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Iottunnel-Owner", "edge-a")
		fmt.Fprint(w, "by b")
	})
	a.Serve(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "by a") })
	a.Hold(t, "tree", "tree-1")
	if g := fetch(t, c, "GET", "tree.devices.test", "/", nil); g.body != "by b" && g.body != "by a" {
		t.Errorf("over the link: %v", g)
	}
	if g := fetch(t, c, "GET", "tree.devices.test", "/", nil); g.body != "by a" {
		t.Errorf("after it: %v", g)
	}
	// One that dies is passed over.
	a.server.CloseClientConnections()
	a.server.Close()
	b.Serve(echo)
	for range 3 {
		if g := fetch(t, c, "POST", "tree.devices.test", "/", strings.NewReader("body")); g.body != "b POST body" {
			t.Errorf("its node is dead: %v", g)
		}
	}
	b.server.CloseClientConnections()
	b.server.Close()
	for _, method := range []string{"GET", "HEAD", "POST"} {
		g := fetch(t, c, method, "tree.devices.test", "/", nil, "Accept", "text/html")
		if g.status != 503 || g.header.Get("Iottunnel-Error") != "unavailable" || method == "GET" && !strings.Contains(g.body, "Not available right now") {
			t.Errorf("%s, all nodes dead: %v", method, g)
		}
	}
}

// TestNginxKeptConnections: a kept connection that ends as it is used costs no visitor
// anything, and what may not be sent twice is sent once.
func TestNginxKeptConnections(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	var mu sync.Mutex
	served := make(map[string]int) // requests by the connection they came on
	var cut, kept atomic.Int64
	hangUp := func(w http.ResponseWriter) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	}
	a.Serve(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		served[r.RemoteAddr]++
		used := served[r.RemoteAddr]
		mu.Unlock()
		if used == 2 {
			cut.Add(1)
			hangUp(w)
			return
		}
		if r.Header.Get("Connection") != "close" {
			kept.Add(1)
		}
		fmt.Fprintf(w, "%s of %s", r.Method, r.URL.Path)
	})
	a.Hold(t, "lamp", "lamp-1")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r)})
	c := n.Client(t)
	for i := range 40 {
		method := []string{"GET", "HEAD", "OPTIONS", "GET"}[i%4]
		path := "/" + strconv.Itoa(i)
		want := method + " of " + path
		if method == "HEAD" {
			want = ""
		}
		if g := fetch(t, c, method, "lamp.devices.test", path, nil); g.status != 200 || g.body != want {
			t.Errorf("%s: %v", method, g)
		}
	}
	if cut.Load() == 0 || kept.Load() == 0 {
		t.Errorf("%d requests came by a kept connection, and %d asked to keep theirs: nothing was tried", cut.Load(), kept.Load())
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		before := cut.Load()
		if g := fetch(t, c, method, "lamp.devices.test", "/", strings.NewReader("body")); g.body != method+" of /" {
			t.Errorf("%s: %v", method, g)
		}
		if cut.Load() != before {
			t.Errorf("%s came by a kept connection", method)
		}
	}

	// A node that takes a request and then hangs up may have served it.
	a.Serve(func(w http.ResponseWriter, r *http.Request) { hangUp(w) })
	for _, method := range []string{"POST", "PATCH"} {
		hits := a.hits.Load()
		g := fetch(t, c, method, "lamp.devices.test", "/", strings.NewReader("body"))
		if g.status != 503 || g.header.Get("Iottunnel-Error") != "unavailable" || a.hits.Load() != hits+1 {
			t.Errorf("%s: %v after %d tries; want 503 after 1", method, g, a.hits.Load()-hits)
		}
	}
}

// TestNginxWaits: a device whose connection broke is waited for.
func TestNginxWaits(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r)})
	leave(t, r, "lamp", "lamp-1", "connection lost: EOF")
	done := make(chan got, 1)
	go func() { done <- fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil) }()
	monitor := harness.Monitor(t, r, "lease:{lamp}")
	harness.Eventually(t, 5*time.Second, "the visitor waits", func() error {
		if monitor() == 0 {
			return errors.New("nobody looks")
		}
		return nil
	})
	a.Hold(t, "lamp", "lamp-1")
	if g := <-done; g.body != "edge-a" {
		t.Errorf("%v", g)
	}
}

// TestNginxHints: what the edges publish counts at once.
func TestNginxHints(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a, b := playNode(t, r, "edge-a"), playNode(t, r, "edge-b")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r), Workers: 2})
	c := n.Client(t)
	fetch(t, c, "GET", "lamp.devices.test", "/", nil)
	harness.Eventually(t, 5*time.Second, "nginx listens to hints", func() error {
		if s := r.Do(t, "PUBSUB", "NUMSUB", "iottunnel:hints"); !strings.HasSuffix(s, "1") {
			return errors.New(s)
		}
		return nil
	})
	late := 0 // counted after as long as a route lives
	for range 10 {
		for _, node := range []*playedNode{a, b} {
			node.Hold(t, "lamp", "lamp-1")
			r.Do(t, "PUBLISH", "iottunnel:hints", `{"ports":true}`)
			began := time.Now()
			r.Do(t, "PUBLISH", "iottunnel:hints", `{"device":"lamp-1","label":"lamp"}`)
			harness.Eventually(t, 5*time.Second, "the hint counts", func() error {
				if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != node.ID {
					return errors.New(g.String())
				}
				return nil
			})
			if time.Since(began) > 900*time.Millisecond {
				late++
			}
		}
	}
	if late > 5 {
		t.Errorf("%d of 20 hints did not count at once", late)
	}
}

func TestNginxRedisAway(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + " redis_timeout_ms = 200,", Workers: 2})
	c := n.Client(t)
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
		t.Fatalf("%v", g)
	}
	for _, away := range []struct {
		how         string
		begin, over func()
	}{
		{"stopped", r.Hold, r.Go},
		{"killed", r.Kill, func() { r.Start(t) }},
	} {
		away.begin()
		mark := n.Log().Mark()
		deadline := time.Now().Add(4 * time.Second) // beyond the life of a route
		for time.Now().Before(deadline) {
			if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
				t.Fatalf("%s: a route that was known: %v", away.how, g)
			}
			began := time.Now()
			g := fetch(t, c, "GET", "unseen"+strconv.Itoa(int(began.UnixNano()))+".devices.test", "/", nil)
			if g.status != 503 || g.header.Get("Iottunnel-Error") != "unavailable" || g.header.Get("Retry-After") != "1" {
				t.Fatalf("%s: a route that was not known: %v", away.how, g)
			}
			inTime(t, "an answer without Redis", time.Since(began), 2*time.Second)
		}
		said, tries := 0, 0
		for _, line := range n.Log().Since(mark) {
			if strings.Contains(line, "redis does not answer") {
				said++
			}
			if strings.Contains(line, "connect() failed") || strings.Contains(line, "lua tcp socket read timed out") || strings.Contains(line, "lua tcp socket connect timed out") {
				tries++
			}
		}
		// A worker that was not asked in between does not know that Redis was back.
		if said > 1 || said == 0 && away.how == "stopped" {
			t.Errorf("%s: said %d times", away.how, said)
		}
		if tries > 40 {
			t.Errorf("%s: Redis was tried %d times in 4 s", away.how, tries)
		}
		away.over()
		if away.how == "killed" {
			a.Beat(t, 0, 0)
		}
		a.Hold(t, "late-"+away.how, "late")
		harness.Eventually(t, 10*time.Second, "Redis is asked again", func() error {
			if g := fetch(t, c, "GET", "late-"+away.how+".devices.test", "/", nil); g.body != "edge-a" {
				return errors.New(g.String())
			}
			return nil
		})
		a.Hold(t, "lamp", "lamp-1")
	}
}

// TestNginxOwnSites: an nginx that has sites of its own goes on as before.
func TestNginxOwnSites(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	own := `
	gzip on; gzip_types text/plain; gzip_min_length 1;
	access_by_lua_block { ngx.header["X-Own"] = "yes" }
	server { listen OTHER default_server; return 200 "the default site, as it was before"; }
	server { listen OTHER; server_name one.test; location / { return 200 "site one: $host"; } error_page 404 /gone; location /gone { return 200 "its own page"; } location /x { return 404; } }
	server { listen OTHER; server_name two.test; location / { access_by_lua_block { if ngx.var.arg_no then return ngx.exit(403) end ngx.header["X-Two"] = "2" } return 200; content_by_lua_block { ngx.say("two") } } }
`
	before := ` before = function() ngx.header["X-Before"] = ngx.var.host end,`
	with := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + before, Sites: own, Server: "error_page 404 503 /own; location /own { return 200 own; }"})
	without, err := harness.NewNginx(t.TempDir(), harness.NginxSetup{Omit: "http.conf", Sites: own})
	if err != nil {
		t.Fatal(err)
	}
	if err := without.WriteOwn(own); err != nil {
		t.Fatal(err)
	}
	if err := without.Launch(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { without.Close() })
	ask := func(n *harness.Nginx, host, path string) string {
		c, err := net.Dial("tcp", n.OtherAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n", path, host)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body) // its length is part of what is compared
		resp.Header.Del("Date")
		return fmt.Sprintf("%d %v %q", resp.StatusCode, resp.Header, b)
	}
	for _, host := range []string{"one.test", "two.test", "else.test", "lamp.devices.test"} {
		for _, path := range []string{"/", "/x", "/?no=1", "/.iottunnel/v1/control"} {
			if have, want := ask(with, host, path), ask(without, host, path); have != want {
				t.Errorf("%s%s: %s, and before %s", host, path, have, want)
			}
		}
	}
	c := with.Client(t)
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil, "Accept-Encoding", "gzip"); g.body != "edge-a" || g.header.Get("Content-Encoding") != "" || g.header.Get("X-Before") != "lamp.devices.test" {
		t.Errorf("a device beside them: %v", g)
	}
	a.Serve(func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.status != 404 || !strings.Contains(g.body, "404 page not found") {
		t.Errorf("404 of a device: %v", g)
	}
	sameAnswer(t, "page of the edge", fetch(t, c, "GET", "nobody.devices.test", "/", nil, "Accept", "text/html"), golden(t, "unknown_device.html"), "X-Before")
}

// TestNginxHalves: what is not there is named.
func TestNginxHalves(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		setup harness.NginxSetup
		says  string
	}{
		{"no http.conf", harness.NginxSetup{Omit: "http.conf", Settings: `redis = "redis://127.0.0.1",`}, "include iottunnel/http.conf in http {}"},
		{"no redis", harness.NginxSetup{}, "setup: redis: an address is missing"},
		{"odd setting", harness.NginxSetup{Settings: `redis = "redis://127.0.0.1", pasword = "x",`}, "setup: pasword: there is no such setting"},
		{"odd url", harness.NginxSetup{Settings: `redis = "http://127.0.0.1",`}, "setup: redis: an address begins with"},
		{"no password file", harness.NginxSetup{Settings: `redis = "redis://127.0.0.1", password_file = "/nowhere/p",`}, "setup: password_file: /nowhere/p"},
	} {
		n, err := harness.NewNginx(t.TempDir(), c.setup)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Launch(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
			n.Close()
		}
	}
	// Without a setup nginx starts: nothing tells it that there should be one.
	n, err := harness.NewNginx(t.TempDir(), harness.NginxSetup{Omit: "setup"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Launch(); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil)
	if g.status != 500 || strings.Contains(strings.ToLower(g.body), "lua") || strings.Contains(g.body, "setup") {
		t.Errorf("without a setup: %v", g)
	}
	n.WaitStderr(t, 0, 5*time.Second, "there is no setup: call init_by_lua_block")
}

// TestNginxRedisKinds: passwords, sockets, TLS, names and prefixes.
func TestNginxRedisKinds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secret := "p@ss word:/%"
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key, authority := harness.WriteCertificate(t, dir, "localhost")
	withPassword := harness.RedisSetup{Args: []string{"--requirepass", secret}, CLI: []string{"-a", secret, "--no-auth-warning"}}
	acl := harness.RedisSetup{}
	for _, c := range []struct {
		name  string
		setup harness.RedisSetup
		with  func(r *harness.Redis) (settings, http string)
	}{
		{"password in a file", withPassword, func(r *harness.Redis) (string, string) {
			return redisSetting(r) + `password_file = "` + file + `",`, ""
		}},
		{"password in the address", withPassword, func(r *harness.Redis) (string, string) {
			return `redis = "` + r.URL(":p%40ss%20word%3A%2F%25") + `",`, ""
		}},
		{"password and socket", harness.RedisSetup{Socket: true, Args: withPassword.Args, CLI: withPassword.CLI}, func(r *harness.Redis) (string, string) {
			return redisSetting(r) + `password = [[` + secret + `]],`, ""
		}},
		{"user who only reads", acl, func(r *harness.Redis) (string, string) {
			r.Do(t, "ACL", "SETUSER", "router", "on", ">secret", "resetchannels", "%R~iottunnel:lease:*", "%R~iottunnel:node:*", "-@all", "+ping", "+hmget")
			return `redis = "` + r.URL("router:secret") + `",`, ""
		}},
		{"host name", acl, func(r *harness.Redis) (string, string) {
			return fmt.Sprintf(`redis = "redis://localhost:%d",`, r.Port), ""
		}},
		{"the first of two is dead", acl, func(r *harness.Redis) (string, string) {
			return fmt.Sprintf(`redis = { "redis://127.0.0.1:%d", "%s" },`, harness.FreePort(t, 1), r.URL("")), ""
		}},
		{"TLS", harness.RedisSetup{Args: []string{"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", authority, "--tls-auth-clients", "no"}}, func(r *harness.Redis) (string, string) {
			port := harness.FreePort(t, 1)
			r.Do(t, "CONFIG", "SET", "tls-port", strconv.Itoa(port))
			return fmt.Sprintf(`redis = "rediss://localhost:%d",`, port), "lua_ssl_trusted_certificate " + authority + ";"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := harness.StartRedis(t, c.setup)
			a := playNode(t, r, "edge-a")
			a.Hold(t, "lamp", "lamp-1")
			settings, http := c.with(r)
			n := harness.StartNginx(t, harness.NginxSetup{Settings: settings, HTTP: http})
			if g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
				t.Errorf("%v", g)
			}
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		r := harness.StartRedis(t, withPassword)
		n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + `password = "wrong-one",`})
		if g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil); g.status != 503 {
			t.Errorf("%v", g)
		}
		n.WaitStderr(t, 0, 5*time.Second, "redis does not answer", "AUTH: WRONGPASS")
		for _, line := range n.Log().Since(0) {
			if strings.Contains(line, "wrong-one") {
				t.Errorf("the log has the password: %s", line)
			}
		}
	})
	t.Run("prefix and database", func(t *testing.T) {
		r := harness.StartRedis(t, harness.RedisSetup{})
		a := playNode(t, r, "edge-a")
		r.Do(t, "HSET", "other:lease:{lamp}", "device", "lamp-1", "node", "edge-a", "epoch", a.Epoch, "http", a.Addr)
		r.Do(t, "HSET", "other:node:{edge-a}", "epoch", a.Epoch, "internal", a.Addr)
		for _, key := range []string{"other:lease:{lamp}", "other:node:{edge-a}"} {
			r.Do(t, "MOVE", key, "3")
		}
		n := harness.StartNginx(t, harness.NginxSetup{Settings: fmt.Sprintf(`redis = "redis://127.0.0.1:%d/3", prefix = "other:",`, r.Port)})
		if g := fetch(t, n.Client(t), "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
			t.Errorf("%v", g)
		}
	})
}

// TestNginxAgents: agents go to a node that has room, and transfer sockets to the
// one that their URL names.
func TestNginxAgents(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a, b, d := playNode(t, r, "edge-a"), playNode(t, r, "edge-b"), playNode(t, r, "edge-d")
	upgrade := websocket.Upgrader{}
	var last atomic.Pointer[http.Request]
	serve := func(n *playedNode) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			last.Store(r)
			ws, err := upgrade.Upgrade(w, r, nil)
			if err != nil {
				return // it has been answered
			}
			defer ws.Close()
			ws.WriteMessage(websocket.TextMessage, []byte(n.ID))
			ws.ReadMessage()
		}
	}
	for _, n := range []*playedNode{a, b, d} {
		n.Serve(serve(n))
	}
	a.Beat(t, 100, 0)
	b.Beat(t, 10, 0)
	d.Beat(t, 0, 1) // draining
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r)})
	dial := func(path string) (string, *http.Response) {
		ws, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+n.Addr()+path, http.Header{"X-Forwarded-For": {"6.6.6.6"}, "Authorization": {"Bearer x"}})
		if err != nil {
			if resp == nil {
				t.Fatal(err)
			}
			return "", resp
		}
		defer ws.Close()
		_, m, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		return string(m), resp
	}
	for range 20 {
		if id, _ := dial("/.iottunnel/v1/control?device=x"); id != "edge-b" {
			t.Errorf("an agent went to %q", id)
		}
	}
	req := last.Load()
	if h := req.Header; !strings.HasPrefix(h.Get("X-Forwarded-For"), "127.0.0.1:") || h.Get("Authorization") != "Bearer x" || req.RequestURI != "/.iottunnel/v1/control?device=x" {
		t.Errorf("a node was told %v %v", req.RequestURI, h)
	}
	before := commands(t, r, "hmget")
	began := time.Now()
	for _, node := range []*playedNode{a, b, d} {
		for range 20 {
			if id, _ := dial("/.iottunnel/v1/transfer?node=" + node.ID + "&tunnel=1&id=2"); id != node.ID {
				t.Errorf("the transfer socket for %s went to %q", node.ID, id)
			}
		}
	}
	if reads, most := commands(t, r, "hmget")-before, 3*(2+int(time.Since(began)/(700*time.Millisecond))); reads > most {
		t.Errorf("%d reads for transfer sockets, of which %d are the router's heartbeats", reads, most)
	}
	if _, resp := dial("/.iottunnel/v1/transfer?node=edge-x&tunnel=1&id=2"); resp.StatusCode != 421 || resp.Header.Get("Iottunnel-Error") != "not_here" {
		t.Errorf("an unknown node: %v", resp)
	}
	health := func() (int, string) {
		g := fetch(t, n.Client(t), "GET", "localhost", "/.iottunnel/health", nil)
		return g.status, g.body
	}
	if status, body := health(); status != 200 || body != "ok\n" {
		t.Errorf("health: %d %q", status, body)
	}
	// A new node takes transfer sockets at once.
	e := playNode(t, r, "edge-e")
	e.Serve(serve(e))
	harness.Eventually(t, 2*time.Second, "a new node is known", func() error {
		if id, _ := dial("/.iottunnel/v1/transfer?node=edge-e&id=2"); id != "edge-e" {
			return errors.New(id)
		}
		return nil
	})
	// One that has died, and is not known to have, costs nobody an attempt.
	e.server.Close()
	b.Beat(t, 200, 0)
	harness.Eventually(t, 3*time.Second, "numbers are read", func() error {
		if id, _ := dial("/.iottunnel/v1/control?device=x"); id != "edge-a" {
			return errors.New(id)
		}
		return nil
	})
	for _, node := range []*playedNode{a, b, d, e} {
		node.Die(t)
	}
	harness.Eventually(t, 3*time.Second, "no node is left", func() error {
		_, resp := dial("/.iottunnel/v1/control?device=x")
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "3" {
			return errors.New(resp.Status)
		}
		return nil
	})
	if status, body := health(); status != 503 || body != "no node\n" {
		t.Errorf("health without a node: %d %q", status, body)
	}
}

// TestNginxStreams: bodies, events and WebSockets go through as they come, and
// sockets outlive a reload.
func TestNginxStreams(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r)})
	c := n.Client(t)

	// An upload reaches the node while the visitor still has more.
	pr, pw := io.Pipe()
	first := make(chan string)
	a.Serve(func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 5)
		io.ReadFull(r.Body, b)
		first <- string(b)
		rest, _, err := harness.Sum(r.Body)
		fmt.Fprint(w, rest, err)
	})
	done := make(chan got, 1)
	go func() { done <- fetch(t, c, "POST", "lamp.devices.test", "/", pr) }()
	fmt.Fprint(pw, "hello")
	if got := <-first; got != "hello" {
		t.Errorf("the first bytes: %q", got)
	}
	const size = 32 << 20
	io.Copy(pw, harness.NewPattern(size))
	pw.Close()
	if g := <-done; g.body != fmt.Sprint(size, " <nil>") {
		t.Errorf("an upload: %v", g)
	}

	// An event reaches the visitor while the node has more.
	next := make(chan struct{})
	a.Serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-next
		fmt.Fprint(w, "data: 2\n\n")
	})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://lamp.devices.test/", nil)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 9)
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "data: 1\n\n" {
		t.Errorf("an event: %q, %v", b, err)
	}
	close(next)
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()

	// A WebSocket outlives a reload, and new visitors are served meanwhile.
	upgrade := websocket.Upgrader{}
	a.Serve(func(w http.ResponseWriter, r *http.Request) {
		if !websocket.IsWebSocketUpgrade(r) {
			fmt.Fprint(w, "plain")
			return
		}
		ws, err := upgrade.Upgrade(w, r, nil)
		if err != nil {
			return // it has been answered
		}
		defer ws.Close()
		for {
			kind, m, err := ws.ReadMessage()
			if err != nil {
				return
			}
			ws.WriteMessage(kind, m)
		}
	})
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", n.Addr())
	}}
	ws, _, err := dialer.DialContext(t.Context(), "ws://lamp.devices.test/", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	echo := func(text string) {
		ws.WriteMessage(websocket.TextMessage, []byte(text))
		if _, m, err := ws.ReadMessage(); err != nil || string(m) != text {
			t.Fatalf("echo of %s: %q, %v", text, m, err)
		}
	}
	echo("before")
	for range 3 {
		n.Reload(t)
		c.CloseIdleConnections()
		if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "plain" {
			t.Errorf("after a reload: %v", g)
		}
		echo("after")
	}
}

// TestNginxReload: agents, streams and WebSockets outlive a reload of nginx, with
// real nodes behind it.
func TestNginxReload(t *testing.T) {
	t.Parallel()
	f := harness.Own(t, harness.Routed(), harness.Setup{TCPPorts: 4})
	h := newHeld(t, f)
	feed, ws := h.openFeed(t), h.openSocket(t)
	if err := errors.Join(feed.want(3), echoes(ws, 1, "before")); err != nil {
		t.Fatal(err)
	}
	mark := h.agent.Stderr.Mark()
	for i := range 3 {
		harness.ReloadRouter(t, f)
		if err := errors.Join(feed.want(3), echoes(ws, 1, "after")); err != nil {
			t.Fatalf("reload %d: %v", i, err)
		}
		h.client.CloseIdleConnections()
		h.serves(t)
	}
	for _, line := range h.agent.Stderr.Since(mark) {
		if strings.Contains(line, "tunnel down") {
			t.Errorf("the agent: %s", line)
		}
	}
}

// TestNginxExample runs the example, with only its names, files and ports changed.
func TestNginxExample(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{Args: []string{"--requirepass", "secret"}, CLI: []string{"-a", "secret", "--no-auth-warning"}})
	a := playNode(t, r, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lua, err := filepath.Abs(filepath.Join("..", "lua"))
	if err != nil {
		t.Fatal(err)
	}
	port := harness.FreePort(t, 1)
	ports := harness.FreePort(t, 2)
	cert, key, authority := harness.WriteCertificate(t, dir, "*.devices.test")
	text, err := os.ReadFile(filepath.Join(lua, "nginx.conf.example"))
	if err != nil {
		t.Fatal(err)
	}
	conf := strings.NewReplacer(
		"REDIS.EXAMPLE.NET:6379", fmt.Sprintf("127.0.0.1:%d", r.Port), "/etc/nginx/iottunnel/redis-password", dir+"/password",
		"DEVICES.EXAMPLE.NET", "devices.test", "EDGE.EXAMPLE.NET", "edge.test", "listen 443", fmt.Sprintf("listen 127.0.0.1:%d", port),
		"/etc/ssl/devices/fullchain.pem", cert, "/etc/ssl/devices/privkey.pem", key,
		"/etc/ssl/edge/fullchain.pem", cert, "/etc/ssl/edge/privkey.pem", key,
		"/var/log/nginx/", dir+"/", "/run/nginx.pid", dir+"/pid", "user www-data;", "user root;", "65536", "8192", "30000", "4000",
		"# stream {", "stream {", "#     include", "    include", "# }", "}",
		"http {\n", "http {\n    lua_package_path \""+lua+"/?.lua;;\";\n",
	).Replace(string(text))
	script := exec.Command(filepath.Join(lua, "stream-ports"), "-l", "127.0.0.1", fmt.Sprintf("%d-%d", ports, ports+1), "127.0.0.11", "127.0.0.12")
	streams, err := script.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "iottunnel"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"nginx.conf": conf, "password": "secret\n", "iottunnel/ports.conf": string(streams)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"http.conf", "server.conf", "agents.conf"} {
		if err := os.Symlink(filepath.Join(lua, name), filepath.Join(dir, "iottunnel", name)); err != nil {
			t.Fatal(err)
		}
	}
	p := harness.Run(t, harness.Command{Name: "nginx", Args: []string{"nginx", "-c", filepath.Join(dir, "nginx.conf"), "-g", "daemon off;", "-e", "stderr"}})
	pem, err := os.ReadFile(authority)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
	}}
	t.Cleanup(transport.CloseIdleConnections)
	harness.Eventually(t, 10*time.Second, "the example serves", func() error {
		if !p.Running() {
			t.Fatal("nginx has ended")
		}
		resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("https://lamp.devices.test/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); string(body) != "edge-a" {
			return fmt.Errorf("status %d, %s", resp.StatusCode, body)
		}
		return nil
	})
	harness.Eventually(t, 5*time.Second, "the request is logged", func() error {
		access, err := os.ReadFile(filepath.Join(dir, "access.log"))
		if err == nil && !strings.Contains(string(access), "device=lamp-1 node=edge-a error=-") {
			err = errors.New(string(access))
		}
		return err
	})
}
