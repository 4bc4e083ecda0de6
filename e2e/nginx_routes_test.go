package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

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

// TestNginxNews: whom a node has denied waits for other news than those there are, and for none of
// a device that was forgotten.
func TestNginxNews(t *testing.T) {
	t.Parallel()
	r := harness.StartRedis(t, harness.RedisSetup{})
	a, b := playNode(t, r, "edge-a"), playNode(t, r, "edge-b")
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(r) + "wait_s = 600,"})
	c := n.Client(t)
	away := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Iottunnel-Error", "not_here")
		w.WriteHeader(http.StatusMisdirectedRequest)
	}

	a.Hold(t, "lamp", "lamp-1")
	again := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "edge-b") }
	for _, move := range []struct {
		from *playedNode
		then http.HandlerFunc // what it answers later
		gen  string           // of the device at edge-b
	}{
		{a, away, "1"},
		{b, again, "2"}, // away and back
	} {
		arrived, deny := make(chan struct{}), make(chan struct{})
		move.from.Serve(func(w http.ResponseWriter, r *http.Request) {
			close(arrived)
			select {
			case <-deny:
			case <-r.Context().Done():
			}
			away(w, r)
		})
		first := make(chan got, 1)
		go func() { first <- fetch(t, c, "GET", "lamp.devices.test", "/", nil) }()
		<-arrived
		move.from.Serve(func(w http.ResponseWriter, r *http.Request) { // the next visitor, once
			move.from.Serve(move.then)
			away(w, r)
		})
		b.Hold(t, "lamp", "lamp-1")
		r.Do(t, "HSET", "iottunnel:lease:{lamp}", "gen", move.gen)
		if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "edge-b" {
			t.Errorf("who comes later, generation %s: %v", move.gen, g)
		}
		close(deny)
		select {
		case g := <-first:
			if g.body != "edge-b" {
				t.Errorf("who was denied once the route had been read anew, generation %s: %v", move.gen, g)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("who was denied once the route had been read anew waits, generation %s", move.gen)
		}
	}

	b.Serve(away)
	r.Do(t, "DEL", "iottunnel:lease:{lamp}", "iottunnel:device:{lamp-1}")
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.status != 404 || g.header.Get("Iottunnel-Error") != "unknown_device" {
		t.Errorf("forgotten: %v", g)
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

// TestNginxReplica has a router ask a replica while the master is silent, and the master
// again when it answers: what the replica has may be old by then.
func TestNginxReplica(t *testing.T) {
	t.Parallel()
	master := harness.StartRedis(t, harness.RedisSetup{})
	replica := harness.StartRedis(t, harness.RedisSetup{Args: []string{"--replicaof", "127.0.0.1 " + strconv.Itoa(master.Port)}})
	a := playNode(t, master, "edge-a")
	a.Hold(t, "lamp", "lamp-1")
	harness.Eventually(t, 10*time.Second, "the replica follows", func() error {
		if replica.Hash(t, "iottunnel:lease:{lamp}")["device"] != "lamp-1" {
			return errors.New("it has no route")
		}
		return nil
	})
	n := harness.StartNginx(t, harness.NginxSetup{Workers: 2, Settings: fmt.Sprintf(
		"redis = { %q, %q }, redis_timeout_ms = 1000,", master.URL(""), replica.URL(""))})
	c := n.Client(t)
	master.Hold()
	if g := fetch(t, c, "GET", "lamp.devices.test", "/", nil); g.body != "edge-a" {
		t.Fatalf("by the replica: %v", g)
	}
	mark := n.Log().Mark()
	replica.Do(t, "REPLICAOF", "127.0.0.1", "1") // where nobody is
	master.Go()
	harness.Eventually(t, 10*time.Second, "the master is asked again", func() error {
		fetch(t, c, "GET", "unseen.devices.test", "/", nil)
		if !strings.Contains(strings.Join(n.Log().Since(mark), "\n"), "answers again, and is asked") {
			return errors.New("it is not")
		}
		return nil
	})
	a.Hold(t, "late", "late-1")
	if g := fetch(t, c, "GET", "late.devices.test", "/", nil); g.body != "edge-a" {
		t.Errorf("a device that only the master knows: %v", g)
	}
}
