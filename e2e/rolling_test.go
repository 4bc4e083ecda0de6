package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// balanced is a visitor behind a balancer over all nodes, as HAProxy or nginx are in
// their usual settings: nodes take turns; where no connection comes about, or it ends
// before a byte of the answer, a GET goes to the next node, each once. Any answer is
// passed on as it is, and a body that breaks is the visitor's loss.
type balanced struct {
	nodes []*harness.Node
	turn  atomic.Int64
	again atomic.Int64
	via   []*http.Client // by node
}

func (c *crew) balance(t *testing.T) *balanced {
	b := &balanced{nodes: c.Nodes}
	for _, n := range c.Nodes {
		client := harness.Visitor(t, n, true)
		client.Timeout = 10 * time.Second
		b.via = append(b.via, client)
	}
	return b
}

// get asks for a path of a device and reads all of the answer.
func (b *balanced) get(ctx context.Context, h *held, path string) (r reply, err error) {
	first := int(b.turn.Add(1))
	for i := range b.nodes {
		at := (first + i) % len(b.nodes)
		req, err := http.NewRequestWithContext(ctx, "GET", b.nodes[at].URL(h.host, path), nil)
		if err != nil {
			return reply{}, err
		}
		began := time.Now()
		resp, err := b.via[at].Do(req)
		if err != nil && i+1 < len(b.nodes) && ctx.Err() == nil {
			b.again.Add(1)
			continue
		}
		if err != nil {
			return reply{}, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return reply{resp, string(body), time.Since(began)}, err
	}
	return reply{}, errors.New("no node")
}

// visitors are many at once behind a balancer.
type visitors struct {
	asked, failed atomic.Int64
	slowest       atomic.Int64
	stop          context.CancelFunc
	wg            sync.WaitGroup
}

// visitAll has visitors ask for all devices until end, which fails the test for each
// request that failed.
func visitAll(t *testing.T, b *balanced, devices []*held) *visitors {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	v := &visitors{stop: cancel}
	t.Cleanup(func() { cancel(); v.wg.Wait() })
	for _, h := range devices {
		v.wg.Go(func() {
			for ctx.Err() == nil {
				n := v.asked.Add(1)
				r, err := b.get(ctx, h, fmt.Sprintf("/bytes?n=%d", 1000+n%50_000))
				if ctx.Err() != nil {
					return
				}
				if err == nil && (r.StatusCode != 200 || int64(len(r.body)) != 1000+n%50_000) {
					err = fmt.Errorf("status %d, Iottunnel-Error %q, %d bytes", r.StatusCode, r.code(), len(r.body))
				}
				if err != nil {
					if v.failed.Add(1) <= 10 {
						t.Errorf("a visitor of %s: %v", h.setup.Device.ID, err)
					}
				}
				for took := int64(r.took); took > v.slowest.Load(); {
					v.slowest.Store(took)
				}
				rest(ctx, 5*time.Millisecond)
			}
		})
	}
	return v
}

func (v *visitors) end(t *testing.T, b *balanced) {
	t.Helper()
	v.stop()
	v.wg.Wait()
	t.Logf("%d requests, %d failed, %d went to another node, the slowest took %v",
		v.asked.Load(), v.failed.Load(), b.again.Load(), time.Duration(v.slowest.Load()).Round(time.Millisecond))
	if v.asked.Load() < 100 {
		t.Error("hardly anybody asked")
	}
}

// drain drains a node by the command, which ends when its devices have left.
func (c *crew) drain(t *testing.T, n *harness.Node) {
	t.Helper()
	// A node that has just started learns of the others with its next heartbeat.
	harness.Eventually(t, 10*time.Second, "caddy iottunnel drain", func() error {
		status, out, errs := harness.RunToEnd(t, 2*time.Minute, harness.Command{
			Name: "caddy iottunnel drain",
			Args: []string{harness.Binary(t, "caddy"), "iottunnel", "drain", "--within", "3s", "--wait", "--address", n.AdminAddr()},
		})
		if status != 0 {
			return fmt.Errorf("status %d: %s%s", status, out, errs)
		}
		return nil
	})
}

// TestRollingRestart stops and starts three nodes one after the other under visitors'
// load, drained before by the command or by their end alone: no request fails, and no
// device is missed.
func TestRollingRestart(t *testing.T) {
	for _, how := range []string{"drained", "SIGTERM alone"} {
		t.Run(how, func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				// Half of it, 4.5 s at most, is what a node gives its devices that just stops.
				c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 32, Grace: "10s"}})
				var devices []*held
				for i := range 6 {
					profile := []string{"full", "basic", "inline"}[i%3]
					devices = append(devices, c.join(t, []*harness.Node{c.Nodes[i%3]}, "--profile", profile))
				}
				c.answer(c.Nodes...)
				c.names.TakeTurns()
				b := c.balance(t)
				load := visitAll(t, b, devices)
				for _, n := range c.Nodes {
					began := time.Now()
					if how == "drained" {
						c.drain(t, n)
					}
					drained := time.Since(began)
					n.Stop(t)
					stopped := time.Since(began)
					n.Start(t)
					c.know(t)
					t.Logf("%s: drained after %v, stopped after %v, back after %v", n.ID, drained.Round(time.Millisecond),
						stopped.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
				}
				load.end(t, b)
				for _, h := range devices {
					for _, n := range c.Nodes {
						c.at(t, n, h).serves(t)
					}
				}
			})
		})
	}
}

// TestStopUnderLoad stops and starts a node again and again that has no device, only
// visitors of those of others: it goes on to serve who comes while it stops.
func TestStopUnderLoad(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 32}})
		var devices []*held
		for i := range 9 {
			profile := []string{"full", "basic", "inline"}[i%3]
			devices = append(devices, c.join(t, []*harness.Node{c.Nodes[1+i%2]}, "--profile", profile))
		}
		b := c.balance(t)
		load := visitAll(t, b, devices)
		for range 8 {
			c.Nodes[0].Stop(t)
			c.Nodes[0].Start(t)
			c.know(t)
		}
		load.end(t, b)
	})
}

// TestStreamsOfADrain has visitors in the middle of something when their devices leave
// for another node: it goes on to its end, at the node that drains and through another
// one; but for inline profiles, whose streams live no longer than their tunnel, of what
// lasts for longer than the agent stays.
func TestStreamsOfADrain(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 32}})
		from := c.Nodes[0]
		const size = 20 * 10240 // in two seconds
		var downloads sync.WaitGroup
		var begun []chan struct{}
		var open []func() error
		for _, profile := range []string{"full", "basic", "inline"} {
			h := c.join(t, []*harness.Node{from}, "--profile", profile)
			for _, n := range c.Nodes[:2] {
				there := c.at(t, n, h)
				first := make(chan struct{})
				begun = append(begun, first)
				downloads.Go(func() {
					resp, err := there.client.Do(request(t, "GET", there.url(fmt.Sprintf("/bytes?n=%d&piece=10240&pause_ms=100", size)), nil))
					close(first)
					if err != nil {
						t.Errorf("%s, by %s: %v", profile, n.ID, err)
						return
					}
					defer resp.Body.Close()
					if got, _, err := harness.Sum(resp.Body); err != nil || got != size {
						t.Errorf("%s, by %s: the download ended after %d bytes: %v", profile, n.ID, got, err)
					}
				})
				if profile == "inline" {
					continue
				}
				ws, feed := there.openSocket(t), there.openFeed(t)
				host, _, _ := net.SplitHostPort(n.VisitorAddr())
				tcp := dialTCP(t, net.JoinHostPort(host, h.port))
				still := func() error {
					tcp.SetDeadline(time.Now().Add(harness.VisitorTimeout))
					if err := errors.Join(echoes(ws, 1, "there"), feed.want(1), ping(tcp, "there")); err != nil {
						return fmt.Errorf("%s, by %s: %w", profile, n.ID, err)
					}
					return nil
				}
				if err := still(); err != nil {
					t.Fatal(err)
				}
				open = append(open, still)
			}
		}
		for _, first := range begun {
			<-first
		}
		c.answer(c.others(from)...)
		c.drain(t, from)
		downloads.Wait()
		for _, still := range open {
			if err := still(); err != nil {
				t.Errorf("after its device has left: %v", err)
			}
		}
	})
}

// TestBesideLastVersion runs a node of this version beside two of another, whose Caddy
// is named by IOTTUNNEL_LAST, on one Redis: each serves its own devices, which keep
// their names when they come to the other version.
func TestBesideLastVersion(t *testing.T) {
	last := os.Getenv("IOTTUNNEL_LAST")
	if last == "" {
		t.Skip("IOTTUNNEL_LAST does not name a Caddy of another version: it has to be built from another commit")
	}
	onCluster(t, func(t *testing.T) {
		alone := os.Getenv("IOTTUNNEL_LAST_ALONE") != "" // it knows of no other nodes
		c := newCrew(t, harness.ClusterSetup{
			Setup: harness.Setup{TCPPorts: 16},
			Program: func(i int) string {
				if i == 0 {
					return ""
				}
				return last
			},
			Each: func(i int, m *harness.Member) {
				if i > 0 && alone {
					m.URL, m.Internal, m.Secret = "", "", ""
				}
			},
		})
		for _, from := range c.Nodes[:2] {
			h := c.join(t, []*harness.Node{from})
			c.at(t, from, h).serves(t)
			if !alone {
				c.everywhere(t, h)
			}
			for _, to := range append(c.others(from), from) {
				h.agent.Stop(t, 10*time.Second)
				c.answer(to)
				c.start(t, h)
				up := h.agent.UpWithin(t, 30*time.Second)
				if host, port := up.Hostname(t, 80), publicPort(t, up, 7); host != h.host || port != h.port {
					t.Errorf("from %s to %s: %s and port %s became %s and %s", from.ID, to.ID, h.host, h.port, host, port)
				}
				c.at(t, to, h).serves(t)
			}
			live, resp, err := harness.DialSocket(t.Context(), c.others(from)[0], harness.ControlPath+"?"+harness.Query(h.setup.Device.ID), harness.Bearer(h.setup.Device.Token))
			if err == nil {
				live.Close()
			}
			t.Logf("a second device at the other version: %v %v", err, harness.Refusal(resp))
		}
	})
}
