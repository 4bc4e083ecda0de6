package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
