package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// arrive comes to a node as an agent that follows a redirect, once, and tries again
// where it is told to come later; it returns where it is and how often it was
// redirected.
func (c *crew) arrive(ctx context.Context, first *harness.Node, d harness.Device) (ws *websocket.Conn, at *harness.Node, redirects int, err error) {
	at = first
	path := harness.ControlPath + "?" + harness.Query(d.ID) + "&caps=redirect"
	for {
		ws, resp, err := harness.DialSocket(ctx, at, path, harness.Bearer(d.Token))
		if err == nil {
			return ws, at, redirects, nil
		}
		a := harness.Refusal(resp)
		switch {
		case a.Status == http.StatusFound:
			to, err := url.Parse(a.Header.Get("Location"))
			if err != nil {
				return nil, nil, redirects, err
			}
			i := slices.IndexFunc(c.Nodes, func(n *harness.Node) bool { return nodeName(n.Index()) == to.Hostname() })
			if redirects++; i < 0 || redirects > 3 {
				return nil, nil, redirects, fmt.Errorf("redirected to %s", to)
			}
			at, path = c.Nodes[i], to.RequestURI()
		case a.Status == http.StatusServiceUnavailable && a.Header.Get("Retry-After") != "":
			rest(ctx, time.Second)
			at, path = first, harness.ControlPath+"?"+harness.Query(d.ID)+"&caps=redirect"
		default:
			return nil, nil, redirects, fmt.Errorf("%w: %v", err, a)
		}
		if ctx.Err() != nil {
			return nil, nil, redirects, ctx.Err()
		}
	}
}

// TestSpread has agents come within seconds, all to one node, and to all of them: they
// are spread, and nobody is sent on more than once.
func TestSpread(t *testing.T) {
	for _, how := range []string{"at one node", "uniform"} {
		t.Run(how, func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				arrivals, over := 600, 2*time.Second
				if heavy {
					arrivals, over = 3000, 10*time.Second
					oneCrowd.Lock() // a process has fewer than 20,000 descriptors
					defer oneCrowd.Unlock()
				}
				c := newCrew(t, harness.ClusterSetup{
					Devices: arrivals, Setup: harness.Setup{Limits: []string{"new_tunnels 5000"}},
				})
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				var wg sync.WaitGroup
				var mu sync.Mutex
				at, sent := make(map[string]int), make(map[int]int) // guarded by mu
				began := time.Now()
				for i := range arrivals {
					after(ctx, began, over*time.Duration(i)/time.Duration(arrivals))
					d, first := c.Nodes[0].NewDevice(t), c.Nodes[0]
					if how == "uniform" {
						first = c.Nodes[i%3]
					}
					wg.Go(func() {
						ws, n, redirects, err := c.arrive(ctx, first, d)
						if err != nil {
							t.Errorf("%s: %v", d.ID, err)
							return
						}
						t.Cleanup(func() { ws.Close() })
						mu.Lock()
						defer mu.Unlock()
						at[n.ID]++
						sent[redirects]++
					})
				}
				wg.Wait()
				busiest := 0
				for _, n := range at {
					busiest = max(busiest, n)
				}
				ratio := float64(busiest) * 3 / float64(arrivals)
				t.Logf("%d arrivals in %v: %v, busiest / mean %.3f, by redirects %v", arrivals, time.Since(began).Round(10*time.Millisecond), at, ratio, sent)
				// Of so few that come so fast, many are there before the nodes have told
				// each other of the first.
				if heavy && ratio > 1.10 || len(at) < len(c.Nodes) {
					t.Errorf("busiest / mean is %.3f: %v", ratio, at)
				}
				for times := range sent {
					if times > 1 {
						t.Errorf("%d agents were redirected %d times", sent[times], times)
					}
				}
			})
		})
	}
}

// crowded brings up so many tunnels at a node, by hand, that it sends on who may be
// sent on.
func (c *crew) crowded(t *testing.T, n *harness.Node, tunnels int) {
	t.Helper()
	for range tunnels {
		harness.DialHand(t, n, n.NewDevice(t))
	}
}

// sentOn brings a device up that comes to a crowded node and is at another one. A node
// keeps those that come while the heartbeats of all others are late, which they may be
// on a busy machine: then another device comes.
func (c *crew) sentOn(t *testing.T, full *harness.Node, flags ...string) *held {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		mark := full.Log().Mark()
		h := c.join(t, []*harness.Node{full}, flags...)
		if c.owner(t, h) != full {
			return h
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: not sent on; the node says %q", flags, full.Log().Since(mark))
		}
		t.Logf("%v: %s was not sent on", flags, h.setup.Device.ID)
		h.agent.Stop(t, 10*time.Second)
	}
}

// TestRedirected has agents of every profile come to a node that has more than its
// share: they are up at another one, with all their streams. Where the others have
// just died, they come in all the same.
func TestRedirected(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %t", secure), func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 16}, TLS: func(int) bool { return secure }})
				full := c.Nodes[0]
				c.crowded(t, full, 90)
				for _, profile := range []string{"full", "basic", "inline"} {
					h := c.sentOn(t, full, "--profile", profile)
					for _, n := range c.Nodes {
						there := c.at(t, n, h)
						there.serves(t)
						useSite(t, there.site, 256<<10)
					}
				}
				for _, n := range c.others(full) {
					n.Kill(t)
				}
				began := time.Now()
				h := c.join(t, []*harness.Node{full})
				t.Logf("beside two dead nodes a device is up after %v", time.Since(began).Round(time.Millisecond))
				h.mustServe(t)
			})
		})
	}
}

// TestLiveDeviceStaysElsewhere starts agents with the id of a device that lives at
// another node: each is refused and says why, and the device loses nothing.
func TestLiveDeviceStaysElsewhere(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		newcomers := 10
		if heavy {
			newcomers = 100
		}
		c := newCrew(t, harness.ClusterSetup{})
		h := c.join(t, []*harness.Node{c.Nodes[0]})
		mark := h.agent.Stderr.Mark()
		there := c.at(t, c.Nodes[2], h)
		feed := there.openFeed(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		var pages atomic.Int64
		for i := range 4 {
			visited := c.at(t, c.Nodes[i%3], h)
			wg.Go(func() {
				for ctx.Err() == nil {
					r, err := try(visited.client, request(t, "GET", visited.url("/bytes?n=20000"), nil))
					if err != nil || r.StatusCode != 200 || len(r.body) != 20000 {
						t.Errorf("a visitor got %v %v", r, err)
						return
					}
					pages.Add(1)
				}
			})
		}
		for i := range newcomers {
			paced(ctx, i)
			n := c.Nodes[1+i%2]
			status, out, errs := harness.AgentToEnd(t, n, 60*time.Second, harness.AgentSetup{
				Device: h.setup.Device, Forwards: []string{"80=127.0.0.1:1"}, Flags: []string{"--once"},
			})
			if status != 3 || out != "" || !strings.Contains(errs, "device_connected") {
				t.Errorf("newcomer %d at %s ended with %d, standard output %q:\n%s", i+1, n.ID, status, out, errs)
			}
		}
		cancel()
		wg.Wait()
		if err := feed.want(20); err != nil {
			t.Errorf("the device lost something: %v", err)
		}
		stays(t, h, mark)
		t.Logf("%d refused; %d pages meanwhile", newcomers, pages.Load())
	})
}

// TestRebootedElsewhere lets a device die without a word, its connections open at one
// node, and come back to another.
func TestRebootedElsewhere(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		reboots := 6
		if heavy {
			reboots = 60
		}
		c := newFarCrew(t, harness.ClusterSetup{})
		h := c.join(t, []*harness.Node{c.Nodes[0]})
		var took []time.Duration
		for i := range reboots {
			c.everywhere(t, h)
			var lift []func()
			for _, host := range c.hosts {
				for _, port := range c.device.Ports(t, host.Addr) {
					lift = append(lift, c.device.Block(t, port))
				}
			}
			if len(lift) == 0 {
				t.Fatal("the device has no connection")
			}
			h.agent.Kill()
			c.answer(c.Nodes[(i+1)%3])
			began := time.Now()
			c.start(t, h)
			if host := h.agent.UpWithin(t, 60*time.Second).Hostname(t, 80); host != h.host {
				t.Fatalf("the name became %s", host)
			}
			took = append(took, time.Since(began))
			for _, l := range lift { // late packets of the dead change nothing
				l()
			}
		}
		slices.Sort(took)
		t.Logf("back after %v (median), %v (slowest of %d)", median(took), slowest(took), len(took))
		inTime(t, "a rebooted device is back at another node, median", median(took), 1200*time.Millisecond)
		inTime(t, "a rebooted device is back at another node, slowest", slowest(took), 3*time.Second)
	})
}

// TestCutAnywhere disconnects and revokes a device by another node than its own: its
// tunnel is cut within 5 s.
func TestCutAnywhere(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{Tunnel: []string{"auth enrolled"}}})
		admin := func(n *harness.Node, path string) (token string) {
			t.Helper()
			status, body := n.Admin(t, "POST", "/iottunnel/devices/"+path, nil)
			var answer struct{ Token string }
			if status/100 != 2 || len(body) > 0 && json.Unmarshal(body, &answer) != nil {
				t.Fatalf("%s: %s: status %d: %.300s", n.ID, path, status, body)
			}
			return answer.Token
		}
		for i, c2 := range []struct {
			verb string
			back bool // the device may come again
		}{{"disconnect", true}, {"revoke", false}} {
			for j := range 2 { // at its own node, and at another
				id := fmt.Sprintf("enrolled-%d-%d", i, j)
				token := admin(c.Nodes[1], id+"/enroll")
				d := harness.Device{ID: id, Token: token}
				hand := harness.DialHand(t, c.Nodes[0], d)
				began := time.Now()
				admin(c.Nodes[2*j], id+"/"+c2.verb)
				code := harness.CloseCode(t, hand.Conn, 5*time.Second)
				inTime(t, c2.verb+" by any node", time.Since(began), 5*time.Second)
				t.Logf("%s by %s: cut after %v with %d", c2.verb, c.Nodes[2*j].ID, time.Since(began).Round(time.Millisecond), code)
				if c2.verb == "revoke" && code != 4003 {
					t.Errorf("%s: closed with %d", c2.verb, code)
				}
				_, resp, err := harness.DialSocket(t.Context(), c.Nodes[1], harness.ControlPath+"?"+harness.Query(id), harness.Bearer(token))
				if a := harness.Refusal(resp); c2.back != (err == nil) || err != nil && a.Status != 401 && a.Status != 403 {
					t.Errorf("after %s: %v, %v", c2.verb, err, a)
				}
			}
		}
	})
}

// TestTransferElsewhere has an edge's name lead to another node with every
// connection: streams whose transfer socket comes to the wrong node work all the same.
func TestTransferElsewhere(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %t", secure), func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 8}, TLS: func(int) bool { return secure }})
				h := c.join(t, []*harness.Node{c.Nodes[0]}, "--profile", "basic")
				mark := h.agent.Stderr.Mark()
				if owner := c.owner(t, h); owner != c.Nodes[0] {
					t.Fatalf("the device is at %s", owner.ID)
				}
				use := func(round string) {
					for _, n := range c.Nodes {
						there := c.at(t, n, h)
						there.serves(t)
						useSite(t, there.site, 4<<20)
					}
					var wg sync.WaitGroup
					for i := range 8 {
						there := c.at(t, c.Nodes[i%3], h)
						wg.Go(func() {
							fresh := harness.Visitor(t, there.face, true)
							fresh.Transport.(*http.Transport).DisableKeepAlives = true
							for range 8 {
								r, err := try(fresh, request(t, "POST", there.url("/echo"), strings.NewReader("x")))
								if err == nil && r.StatusCode != 200 {
									err = errors.New(r.String())
								}
								if err == nil {
									err = there.echoes()
								}
								if err != nil {
									t.Errorf("%s: a stream at %s: %v", round, there.face.VisitorAddr(), err)
								}
							}
						})
					}
					wg.Wait()
				}
				c.answer(c.Nodes[1], c.Nodes[2]) // never the right one
				use("always the wrong node")
				c.answer(c.Nodes...)
				c.names.TakeTurns()
				use("each node in turn")
				stays(t, h, mark)
			})
		})
	}
}
