package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// onOneFace runs a case on the first of the faces only: what it is about lies
// behind them.
func onOneFace(t *testing.T, run func(t *testing.T, k harness.Kind)) {
	t.Helper()
	t.Parallel()
	k := kinds()[0]
	result(t.Name(), k.Name(), "did not end")
	defer func() {
		if t.Failed() {
			result(t.Name(), k.Name(), "FAIL")
		} else {
			result(t.Name(), k.Name(), "ok")
		}
	}()
	run(t, k)
}

// onRedis is an edge whose registry is a Redis.
func onRedis(r *harness.Redis) harness.Setup {
	return harness.Setup{TCPPorts: 64, Tunnel: []string{"registry redis " + r.URL("")}}
}

// held is a device with a page and an echo on a public port.
type held struct {
	*site
	setup harness.AgentSetup
	port  string // the public one
}

func newHeld(t *testing.T, f harness.Face) *held {
	t.Helper()
	o := harness.StartOrigin(t)
	h := &held{setup: harness.AgentSetup{
		Device:   f.NewDevice(t),
		Forwards: []string{"80=" + o.Addr, "7=" + harness.ServeTCP(t, harness.Echo)},
	}}
	h.site = &site{face: f, origin: o, client: harness.Visitor(t, f, false)}
	h.agent = harness.StartAgent(t, f, h.setup)
	// Where it is refused at first, its backoff is 30 s at most.
	up := h.agent.UpWithin(t, 60*time.Second)
	h.host, h.port = up.Hostname(t, 80), publicPort(t, up, 7)
	// A router keeps away for 10 s from a node that did not have the port open yet, which
	// is then asked about the device for the first time.
	for _, addr := range harness.PortsOf(f, h.port) {
		harness.Eventually(t, 10*time.Second, "every node has the public port", func() error { return tryTCP(addr, "are you there") })
	}
	h.serves(t)
	return h
}

// restart starts another agent for the device.
func (h *held) restart(t *testing.T) { h.agent = harness.StartAgent(t, h.face, h.setup) }

// same waits for the agent to come up, with the name and the port that it had.
func (h *held) same(t *testing.T, after string) {
	t.Helper()
	up := h.agent.UpWithin(t, 60*time.Second)
	if host, port := up.Hostname(t, 80), publicPort(t, up, 7); host != h.host || port != h.port {
		t.Fatalf("after %s: %s and port %s became %s and %s", after, h.host, h.port, host, port)
	}
	h.serves(t)
}

// serves fails unless page and port answer.
func (h *held) serves(t *testing.T) {
	t.Helper()
	h.mustServe(t)
	if err := h.echoes(); err != nil {
		t.Fatalf("public port %s: %v", h.port, err)
	}
}

// echoes has one exchange at the public port, where visitors enter.
func (h *held) echoes() error {
	host, _, err := net.SplitHostPort(h.face.VisitorAddr())
	if err != nil {
		return err
	}
	return tryTCP(net.JoinHostPort(host, h.port), "are you there")
}

// watched is devices that must not notice what happens: visitors keep asking for
// their pages, on kept and on fresh connections, and at their public ports.
type watched struct {
	devices []*held
	marks   []int
	asked   atomic.Int64
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

func watch(t *testing.T, devices ...*held) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watched{devices: devices, stop: cancel}
	t.Cleanup(func() { cancel(); w.wg.Wait() })
	for _, h := range devices {
		// Whichever node they enter at, it has been asked before: one that has not cannot
		// know where the device is while Redis is away.
		for range 8 {
			if err := h.echoes(); err != nil {
				t.Fatalf("public port of a connected device: %v", err)
			}
		}
		w.marks = append(w.marks, h.agent.Stderr.Mark())
		fresh := harness.Visitor(t, h.face, true)
		fresh.Transport.(*http.Transport).DisableKeepAlives = true
		for _, c := range []*http.Client{h.client, fresh} {
			w.wg.Go(func() {
				for ctx.Err() == nil {
					r, err := try(c, request(t, "GET", h.url("/page"), nil))
					if err != nil {
						t.Errorf("a visitor of a connected device: %v", err)
						return
					}
					if r.StatusCode != 200 {
						t.Errorf("a visitor of a connected device got %v", r)
						return
					}
					w.asked.Add(1)
					rest(ctx, 20*time.Millisecond)
				}
			})
		}
		w.wg.Go(func() {
			for ctx.Err() == nil {
				if err := h.echoes(); err != nil {
					t.Errorf("public port of a connected device: %v", err)
					return
				}
				w.asked.Add(1)
				rest(ctx, 50*time.Millisecond)
			}
		})
	}
	return w
}

// rest is the pause between two requests of a visitor.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// end ends the visitors, and wants that no tunnel has broken.
func (w *watched) end(t *testing.T) {
	t.Helper()
	w.stop()
	w.wg.Wait()
	for i, h := range w.devices {
		for _, line := range h.agent.Stderr.Since(w.marks[i]) {
			if strings.Contains(line, "tunnel down") || strings.Contains(line, "tunnel up") {
				t.Errorf("a tunnel broke: %s", line)
			}
		}
		h.serves(t)
	}
	t.Logf("%d requests of visitors", w.asked.Load())
}

// TestRedisKeepsNames ends agent, edge and Redis in every way: the device has the
// same name and the same public port each time after.
func TestRedisKeepsNames(t *testing.T) {
	onOneFace(t, func(t *testing.T, k harness.Kind) {
		r := harness.StartRedis(t, harness.RedisSetup{Durable: true})
		f := harness.Own(t, k, onRedis(r))
		h := newHeld(t, f)
		for _, c := range []struct {
			name string
			do   func()
		}{
			{"agent stopped", func() { h.agent.Stop(t, 10*time.Second); h.restart(t) }},
			{"agent killed", func() { h.agent.Kill(); h.restart(t) }},
			{"edge stopped", func() { f.Stop(t); h.agent.Forget(); f.Start(t) }},
			{"edge killed", func() { f.Kill(t); f.Start(t) }},
			{"Redis stopped while the device was away", func() {
				h.agent.Stop(t, 10*time.Second)
				r.Stop(t, 10*time.Second)
				r.Start(t)
				h.restart(t)
			}},
			{"all killed", func() {
				h.agent.Kill()
				r.Kill()
				f.Kill(t)
				r.Start(t)
				f.Start(t)
				h.restart(t)
			}},
		} {
			began := time.Now()
			c.do()
			h.same(t, c.name)
			t.Logf("%s: back after %v", c.name, time.Since(began).Round(time.Millisecond))
		}
		w := watch(t, h)
		r.Kill()
		r.Start(t)
		newHeld(t, f) // it is let in: Redis is known to be back
		w.end(t)
		h.agent.Stop(t, 10*time.Second)
		h.restart(t)
		h.same(t, "Redis killed while the device was connected")
	})
}

// refusedWithoutRedis comes as a device by hand, and wants to be told to come again.
func refusedWithoutRedis(t *testing.T, f harness.Face) {
	t.Helper()
	d := f.NewDevice(t)
	ws, resp, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(d.ID), harness.Bearer(d.Token))
	if err == nil {
		ws.Close()
		t.Error("a new device was let in without Redis")
		return
	}
	a := harness.Refusal(resp)
	if after, err := strconv.Atoi(a.Header.Get("Retry-After")); a.Status != 503 || a.Code != "unavailable" || err != nil || after < 1 || after > 60 {
		t.Errorf("a new device got %v, Retry-After %q", a, a.Header.Get("Retry-After"))
	}
}

// TestRedisAway holds Redis for longer than a node counts as alive, and kills it:
// connected devices do not notice, new ones wait outside and come in by themselves.
func TestRedisAway(t *testing.T) {
	for _, how := range []string{"held", "killed"} {
		t.Run(how, func(t *testing.T) {
			onOneFace(t, func(t *testing.T, k harness.Kind) {
				r := harness.StartRedis(t, harness.RedisSetup{Durable: true})
				f := harness.Own(t, k, onRedis(r))
				a, b := newHeld(t, f), newHeld(t, f)
				feed, ws := a.openFeed(t), b.openSocket(t)
				w := watch(t, a, b)

				mark, away := f.Log().Mark(), time.Now()
				if how == "held" {
					r.Hold()
				} else {
					r.Kill()
				}
				o := harness.StartOrigin(t)
				late := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr}})
				refusedWithoutRedis(t, f)
				late.WaitStderr(t, 0, harness.UpTime, "unavailable")
				nobody := do(t, harness.Visitor(t, f, false), request(t, "GET", f.URL("aaaabbbbccccdddd."+f.Domain(), "/"), nil))
				if nobody.StatusCode != 503 || nobody.Header.Get("Retry-After") == "" {
					t.Errorf("a name that cannot be looked up: %v, Retry-After %q", nobody, nobody.Header.Get("Retry-After"))
				}
				edgeSays(t, f, mark, "connected devices stay reachable")
				// The node's own key lasts for 10 s: an absence that Redis notices, too.
				harness.Eventually(t, 30*time.Second, "a long absence", func() error {
					if time.Since(away) < 13*time.Second {
						return errors.New("not yet")
					}
					return nil
				})
				if how == "held" {
					r.Go()
				} else {
					r.Start(t)
				}
				back := time.Now()
				late.UpWithin(t, 60*time.Second)
				t.Logf("away for %v; the new device is in after another %v", back.Sub(away).Round(time.Millisecond), time.Since(back).Round(time.Millisecond))
				edgeSays(t, f, mark, "registry knows this node again")
				w.end(t)
				if err := errors.Join(feed.want(5), echoes(ws, 1, "still here")); err != nil {
					t.Errorf("what was open: %v", err)
				}
				for _, h := range []*held{a, b} {
					h.agent.Stop(t, 10*time.Second)
					h.restart(t)
					h.same(t, "Redis was away")
				}
			})
		})
	}
}

// edgeSays waits for a line of the edge's log.
func edgeSays(t *testing.T, f harness.Face, mark int, part string) string {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, fmt.Errorf("the edge does not say %q", part))
	defer cancel()
	line, _, err := f.Log().Wait(ctx, mark, func(line string) bool { return strings.Contains(line, part) })
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// TestRedisEmptied has Redis come back with nothing: what tunnels hold is in it
// again within 10 s, and no tunnel notices.
func TestRedisEmptied(t *testing.T) {
	for _, how := range []string{"restarted", "flushed"} {
		t.Run(how, func(t *testing.T) {
			onOneFace(t, func(t *testing.T, k harness.Kind) {
				r := harness.StartRedis(t, harness.RedisSetup{})
				f := harness.Own(t, k, onRedis(r))
				devices := []*held{newHeld(t, f), newHeld(t, f), newHeld(t, f)}
				before := make(map[string]map[string]string)
				for _, h := range devices {
					label, _, _ := strings.Cut(h.host, ".")
					for _, key := range []string{"iottunnel:device:{" + h.setup.Device.ID + "}", "iottunnel:lease:{" + label + "}"} {
						if before[key] = r.Hash(t, key); len(before[key]) == 0 {
							t.Fatalf("Redis has no %s", key)
						}
					}
				}
				ports := r.Hash(t, "iottunnel:{ports}:device")
				w := watch(t, devices...)
				if how == "flushed" {
					r.Do(t, "FLUSHALL")
				} else {
					r.Kill()
					r.Start(t)
				}
				back := time.Now()
				harness.Eventually(t, 10*time.Second, "what is held is written again", func() error {
					for key, was := range before {
						is := r.Hash(t, key)
						for _, field := range []string{"label", "device", "gen", "node", "epoch", "tunnel", "instance", "ports"} {
							if is[field] != was[field] {
								return fmt.Errorf("%s: %s is %q, was %q", key, field, is[field], was[field])
							}
						}
					}
					is := r.Hash(t, "iottunnel:{ports}:device")
					for port, leads := range ports {
						if is[port] != leads {
							return fmt.Errorf("port %s leads to %q, was %q", port, is[port], leads)
						}
					}
					return nil
				})
				t.Logf("written again after %v", time.Since(back).Round(time.Millisecond))
				inTime(t, "what is held is written again", time.Since(back), writtenAgain)
				fresh := newHeld(t, f)
				for _, h := range devices {
					if fresh.port == h.port || fresh.host == h.host {
						t.Errorf("a new device got %s and port %s, which another has", fresh.host, fresh.port)
					}
				}
				w.end(t)
				devices[0].agent.Stop(t, 10*time.Second)
				devices[0].restart(t)
				devices[0].same(t, "Redis was empty")
				f.Stop(t)
				for _, h := range devices {
					h.agent.Forget()
				}
				f.Start(t)
				for _, h := range devices {
					h.same(t, "Redis was empty, and the edge restarted")
				}
			})
		})
	}
}

// TestRedisComesLater starts the edge without Redis: it runs, and devices come in
// once Redis is there.
func TestRedisComesLater(t *testing.T) {
	onOneFace(t, func(t *testing.T, k harness.Kind) {
		r := harness.StartRedis(t, harness.RedisSetup{Later: true})
		f := harness.Own(t, k, onRedis(r))
		edgeSays(t, f, 0, "registry does not answer")
		o := harness.StartOrigin(t)
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr}})
		a.WaitStderr(t, 0, harness.UpTime, "unavailable")
		refusedWithoutRedis(t, f)
		r.Start(t)
		edgeSays(t, f, 0, "registry knows this node again")
		s := &site{face: f, client: harness.Visitor(t, f, false), host: a.UpWithin(t, 60*time.Second).Hostname(t, 80)}
		s.mustServe(t)
	})
}

// documentedACL is the rule for edges as docs/redis.md has it.
func documentedACL(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "# one server, or Sentinel\n")
	line, _, _ := strings.Cut(after, "\n")
	if !found || !strings.HasPrefix(line, "ACL SETUSER iottunnel on >PASSWORD ") {
		t.Fatalf("docs/redis.md has no rule for edges: %q", line)
	}
	return strings.Fields(line)
}

// TestRedisLogin reaches Redis as the user of the documentation, who may do the
// least, and through a Unix socket: the name is kept over a restart of the edge.
func TestRedisLogin(t *testing.T) {
	const password = "p@ss:w/rd %41"
	limited := func(t *testing.T, socket bool) *harness.Redis {
		r := harness.StartRedis(t, harness.RedisSetup{
			Socket: socket, Args: []string{"--requirepass", "admin"}, CLI: []string{"--no-auth-warning", "-a", "admin"},
		})
		rule := documentedACL(t)
		for i := range rule {
			if rule[i] == ">PASSWORD" {
				rule[i] = ">" + password
			}
		}
		if out := r.Do(t, rule...); out != "OK" {
			t.Fatalf("%q: %s", rule, out)
		}
		return r
	}
	for _, c := range []struct {
		name   string
		redis  func(t *testing.T) *harness.Redis
		config func(r *harness.Redis) []string
	}{
		{
			"user in the URL", func(t *testing.T) *harness.Redis { return limited(t, false) },
			func(r *harness.Redis) []string {
				return []string{"registry redis " + r.URL("iottunnel:p%40ss%3Aw%2Frd%20%2541")}
			},
		},
		{
			"user beside the URL", func(t *testing.T) *harness.Redis { return limited(t, false) },
			func(r *harness.Redis) []string {
				return []string{"registry redis " + r.URL("") + " {", "\tusername iottunnel", "\tpassword \"" + password + "\"", "}"}
			},
		},
		{
			"socket", func(t *testing.T) *harness.Redis { return harness.StartRedis(t, harness.RedisSetup{Socket: true}) },
			func(r *harness.Redis) []string { return []string{"registry redis " + r.URL("")} },
		},
		{
			"socket and user", func(t *testing.T) *harness.Redis { return limited(t, true) },
			func(r *harness.Redis) []string {
				return []string{"registry redis " + r.URL("") + " {", "\tusername iottunnel", "\tpassword \"" + password + "\"", "}"}
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			onOneFace(t, func(t *testing.T, k harness.Kind) {
				r := c.redis(t)
				f := harness.Own(t, k, harness.Setup{TCPPorts: 8, Tunnel: c.config(r)})
				h := newHeld(t, f)
				f.Stop(t)
				h.agent.Forget()
				f.Start(t)
				h.same(t, "a restart")
				for _, line := range f.Log().Since(0) {
					if strings.Contains(line, "NOPERM") {
						t.Errorf("the edge did what it may not: %s", line)
					}
				}
			})
		})
	}
}

// TestRedisWrongPassword has the edge say what is wrong and what to do about it,
// and no secret; with the right one on the Redis side devices come in.
func TestRedisWrongPassword(t *testing.T) {
	onOneFace(t, func(t *testing.T, k harness.Kind) {
		r := harness.StartRedis(t, harness.RedisSetup{
			Args: []string{"--requirepass", "right-secret"}, CLI: []string{"--no-auth-warning", "-a", "right-secret"},
		})
		f := harness.Own(t, k, harness.Setup{TCPPorts: 8, Tunnel: []string{"registry redis " + r.URL(":wrong-secret")}})
		line := edgeSays(t, f, 0, "registry does not answer")
		if !strings.Contains(line, "password") || !strings.Contains(line, "WRONGPASS") {
			t.Errorf("the line names neither what Redis said nor the setting to look at: %s", line)
		}
		refusedWithoutRedis(t, f)
		if out := r.Do(t, "CONFIG", "SET", "requirepass", "wrong-secret"); out != "OK" {
			t.Fatal(out)
		}
		edgeSays(t, f, 0, "registry knows this node again")
		newHeld(t, f)
		for _, line := range f.Log().Since(0) {
			if strings.Contains(line, "wrong-secret") || strings.Contains(line, "right-secret") {
				t.Errorf("a secret in the log: %s", line)
			}
		}
	})
}
