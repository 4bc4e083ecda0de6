package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

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
