package e2e

import (
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// Promises to visitors and devices when a node fails.
const (
	routableAgain = 5 * time.Second  // after the owner's death
	errorWithin   = 2 * time.Second  // of what was under way then
	writtenAgain  = 10 * time.Second // what is held, once Redis is back
	deadAfter     = 29 * time.Second // a node that says nothing: visitors' clients wait for no more than 30 s
)

// ended waits until something has, and returns when; false after the limit.
func ended(done <-chan error, within time.Duration) (err error, ok bool) {
	select {
	case err := <-done:
		return err, true
	case <-time.After(within):
		return nil, false
	}
}

// inFlight is a visitor of each kind in the middle of something.
type inFlight struct {
	feed   *feed
	socket *websocket.Conn
	tcp    net.Conn
	hang   chan error // of a request that is not answered yet
}

func fly(t *testing.T, h *held) *inFlight {
	t.Helper()
	f := &inFlight{feed: h.openFeed(t), socket: h.openSocket(t), hang: make(chan error, 1)}
	host, _, err := net.SplitHostPort(h.face.VisitorAddr())
	if err != nil {
		t.Fatal(err)
	}
	f.tcp = dialTCP(t, net.JoinHostPort(host, h.port))
	if err := errors.Join(f.feed.want(2), echoes(f.socket, 1, "before"), ping(f.tcp, "before")); err != nil {
		t.Fatal(err)
	}
	client := harness.Visitor(t, h.face, true)
	go func() { // ends with its timeout
		r, err := try(client, request(t, "POST", h.url("/hang"), nil))
		if err == nil {
			err = errors.New(r.String())
		}
		f.hang <- err
	}()
	harness.Eventually(t, harness.VisitorTimeout, "the request reaches the device", func() error {
		if len(h.origin.Seen("/hang")) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	return f
}

// mustEnd fails unless all visitors are told within the limit that it is over.
func (f *inFlight) mustEnd(t *testing.T, began time.Time, within time.Duration) {
	t.Helper()
	patience := max(within, harness.Patience)
	done := map[string]chan error{"a request": f.hang, "events": make(chan error, 1), "a WebSocket": make(chan error, 1), "a public port": make(chan error, 1)}
	f.tcp.SetDeadline(time.Time{})
	go func() { done["events"] <- f.feed.want(1 << 30) }() // they end with the test's clean-up at last
	go func() {
		for {
			if _, _, err := f.socket.ReadMessage(); err != nil {
				done["a WebSocket"] <- err
				return
			}
		}
	}()
	go func() {
		_, err := f.tcp.Read(make([]byte, 1))
		done["a public port"] <- err
	}()
	f.socket.SetReadDeadline(time.Time{})
	for what, c := range done {
		err, ok := ended(c, time.Until(began.Add(patience)))
		if !ok {
			t.Errorf("%s: the visitor is not told within %v", what, patience)
			continue
		}
		inTime(t, what+" that was under way ends", time.Since(began), within)
		t.Logf("%s ended after %v: %v", what, time.Since(began).Round(time.Millisecond), err)
	}
}

// TestNodeKilled kills the node that owns devices: visitors that were there are told
// at once, and the others find every device again, by its name and at its public
// port, ssh included, through the nodes that are left.
func TestNodeKilled(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		fleet := 10
		if heavy {
			fleet = 45 // fewer than a node takes in any case
		}
		c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 256}})
		dies := c.Nodes[1]
		order := append([]*harness.Node{dies}, c.others(dies)...)
		var devices []*held
		for range fleet {
			devices = append(devices, c.join(t, order))
		}
		server := startSSH(t)
		secure := c.setup(t)
		secure.Forwards = []string{"22=" + server.addr}
		login := publicPort(t, harness.StartAgent(t, dies, secure).Up(t), 22)
		left := c.others(dies)
		for i, h := range devices {
			if owner := c.owner(t, h); owner != dies {
				t.Fatalf("%s is at %s", h.setup.Device.ID, owner.ID)
			}
			c.at(t, left[i%2], h).serves(t) // the route is known, connections are kept
		}
		host := func(n *harness.Node) string { host, _, _ := net.SplitHostPort(n.VisitorAddr()); return host }
		ssh := func() error {
			status, out, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "ssh", Args: append(server.ssh(login, host(left[0])), "echo in")})
			if status != 0 || out != "in\n" {
				return errors.New(errs)
			}
			return nil
		}
		harness.Eventually(t, 10*time.Second, "ssh", ssh)
		there := fly(t, c.at(t, left[0], devices[0]))

		began := time.Now()
		dies.Kill(t)
		var wg sync.WaitGroup
		wg.Go(func() { there.mustEnd(t, began, errorWithin) })
		wg.Go(func() {
			harness.Eventually(t, routableAgain, "ssh to the same address by another node", ssh)
			t.Logf("ssh after %v", time.Since(began).Round(time.Millisecond))
			inTime(t, "ssh after its node's death", time.Since(began), routableAgain)
		})
		took := c.allBack(t, began, left, devices, 30*time.Second)
		wg.Wait()
		t.Logf("%d devices are back after %v (median), %v (slowest)", len(took), median(took), slowest(took))
		inTime(t, "a device is routable after its node's death", slowest(took), routableAgain)
		for i, h := range devices {
			c.at(t, left[(i+1)%2], h).serves(t)
		}
		dies.Start(t)
		c.know(t)
		for i, h := range devices {
			there := c.at(t, c.Nodes[i%3], h)
			there.mustServe(t)
			harness.Eventually(t, routableAgain, "public ports, which a node opens as it starts", there.echoes)
		}
	})
}

// TestNodeSilent has a node fall silent without a word: it is stopped in its tracks,
// or its packets are dropped. Visitors are told soon; its devices notice by their
// heartbeats, and are back at another node. What it says when it comes back harms
// nobody.
func TestNodeSilent(t *testing.T) {
	for _, how := range []string{"held", "dropped"} {
		t.Run(how, func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				// A device waits for two heartbeats and a grace of 10 s.
				heartbeat := time.Second
				if heavy {
					heartbeat = 25 * time.Second
				}
				c := newFarCrew(t, harness.ClusterSetup{Setup: harness.Setup{Tunnel: []string{"heartbeat " + heartbeat.String(), "wait 1s"}}})
				silent := c.Nodes[0]
				left := c.others(silent)
				var devices []*held
				for range 3 {
					devices = append(devices, c.join(t, c.Nodes))
				}
				for i, h := range devices {
					if owner := c.owner(t, h); owner != silent {
						t.Fatalf("%s is at %s", h.setup.Device.ID, owner.ID)
					}
					c.at(t, left[i%2], h).mustServe(t)
				}
				if heavy {
					c.names.TakeTurns()
				} else { // an attempt that goes to the silent node once more lasts
					c.answer(left...)
				}
				lift := silent.Go
				began := time.Now()
				if how == "held" {
					silent.Hold()
				} else {
					lift = c.hosts[0].Block(t, 0)
				}
				for i, h := range devices { // fresh connections and kept ones
					there := c.at(t, left[i%2], h)
					asked := time.Now()
					r, err := try(there.client, request(t, "GET", there.url("/page"), nil, "Accept", "application/json"))
					took := time.Since(asked)
					// On a connection that is kept, nobody knows until the node counts as dead.
					if err != nil || r.StatusCode != 200 && r.code() == "" || took > deadAfter {
						t.Errorf("a visitor of a device whose node is silent, after %v: %v, %v", took, r, err)
					}
					t.Logf("a visitor is told after %v: %v", took.Round(time.Millisecond), r)
				}
				took := c.allBack(t, began, left, devices, 2*heartbeat+40*time.Second)
				t.Logf("%d devices are back after %v (median), %v (slowest)", len(took), median(took), slowest(took))
				inTime(t, "a device is routable after its node fell silent", slowest(took), 2*heartbeat+15*time.Second)
				marks := make([]int, len(devices))
				for i, h := range devices {
					marks[i] = h.agent.Stderr.Mark()
				}
				lift()
				c.know(t)
				for i, h := range devices {
					c.everywhere(t, h)
					stays(t, h, marks[i])
				}
			})
		})
	}
}

// TestNodeWithoutRedis cuts a node from Redis for longer than it counts as alive:
// its devices keep their tunnels and its own visitors notice nothing; when Redis is
// back, so are its devices at the other nodes.
func TestNodeWithoutRedis(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newFarCrew(t, harness.ClusterSetup{})
		cut := c.Nodes[0]
		mine, other := c.join(t, c.Nodes), c.join(t, []*harness.Node{c.Nodes[1]})
		c.everywhere(t, mine)
		c.everywhere(t, other)
		marks := [2]int{mine.agent.Stderr.Mark(), other.agent.Stderr.Mark()}
		lift := c.hosts[0].BlockPeer(t, c.store.Addr)
		began := time.Now()
		for time.Since(began) < 14*time.Second {
			if r, err := try(mine.client, request(t, "GET", mine.url("/page"), nil)); err != nil || r.StatusCode != 200 {
				t.Fatalf("a visitor of the node without Redis: %v, %v", r, err)
			}
			there := c.at(t, c.Nodes[1], mine)
			asked := time.Now()
			if r, err := try(there.client, request(t, "GET", there.url("/page"), nil)); err != nil || time.Since(asked) > harness.VisitorTimeout {
				t.Errorf("a visitor of the other nodes after %v: %v, %v", time.Since(asked), r, err)
			}
			if r := c.at(t, c.Nodes[2], other).get(t, "/page"); r.StatusCode != 200 {
				t.Errorf("a device of another node: %v", r)
			}
			rest(t.Context(), 300*time.Millisecond)
		}
		lift()
		back := time.Now()
		took := c.allBack(t, back, c.others(cut), []*held{mine, mine}, harness.Patience)
		inTime(t, "a device is reachable by other nodes after its node was without Redis", slowest(took), writtenAgain)
		t.Logf("reachable through the other nodes after %v", time.Since(back).Round(time.Millisecond))
		c.know(t)
		c.everywhere(t, mine)
		stays(t, mine, marks[0])
		stays(t, other, marks[1])
	})
}

// TestNodeWithoutPeers cuts a node from the other ones, while all have Redis: its
// devices stay, visitors of other nodes are told soon, and a stranger with the id of
// one of its devices is told to come again, never that he may have it.
func TestNodeWithoutPeers(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newFarCrew(t, harness.ClusterSetup{Setup: harness.Setup{Tunnel: []string{"wait 1s"}}})
		cut := c.Nodes[0]
		h := c.join(t, c.Nodes)
		c.everywhere(t, h)
		mark := h.agent.Stderr.Mark()
		lift := c.hosts[0].BlockPeer(t, c.hosts[1].Addr, c.hosts[2].Addr)
		for _, n := range c.others(cut) {
			for i := range 3 {
				there := c.at(t, n, h)
				asked := time.Now()
				r, err := try(there.client, request(t, "GET", there.url("/page"), nil, "Accept", "application/json"))
				took := time.Since(asked)
				if i == 0 && took <= deadAfter { // on a connection that is kept
					took = 0
				}
				if err != nil || r.StatusCode < 502 || r.code() == "" {
					t.Errorf("a visitor at %s after %v: %v, %v", n.ID, took, r, err)
				}
				inTime(t, "a visitor is told that a node cannot be reached", took, errorWithin+2*time.Second)
			}
		}
		h.mustServe(t)
		began := time.Now()
		ws, resp, err := harness.DialSocket(t.Context(), c.Nodes[1], harness.ControlPath+"?"+harness.Query(h.setup.Device.ID), harness.Bearer(h.setup.Device.Token))
		if err == nil {
			ws.Close()
		}
		if a := harness.Refusal(resp); err == nil || a.Status != 503 || a.Header.Get("Retry-After") == "" {
			t.Errorf("a second device of that id at another node, after %v: %v, Retry-After %q", time.Since(began), a, a.Header.Get("Retry-After"))
		}
		lift()
		took := c.allBack(t, time.Now(), c.others(cut), []*held{h, h}, harness.Patience)
		inTime(t, "a device is reachable by other nodes after its node was without them", slowest(took), writtenAgain)
		stays(t, h, mark)
		_, resp, err = harness.DialSocket(t.Context(), c.Nodes[1], harness.ControlPath+"?"+harness.Query(h.setup.Device.ID), harness.Bearer(h.setup.Device.Token))
		if a := harness.Refusal(resp); err == nil || a.Status != 409 {
			t.Errorf("a second device of that id, when nodes reach each other again: %v, %v", a, err)
		}
		stays(t, h, mark)
	})
}

// TestTwoOwners has two nodes believe that they own a device: the one that slept, or
// could not reach Redis, gives way to the newer tunnel and tells its device so, and
// visitors of all nodes come to the newer one.
func TestTwoOwners(t *testing.T) {
	for _, how := range []string{"held", "cut from Redis"} {
		t.Run(how, func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				c := newFarCrew(t, harness.ClusterSetup{})
				old, newer := c.Nodes[0], c.Nodes[1]
				d := old.NewDevice(t)
				first := harness.DialHand(t, old, d)
				lift := old.Go
				if how == "held" {
					old.Hold()
				} else {
					// Its key ends, and it cannot be asked.
					redis, peers := c.hosts[0].BlockPeer(t, c.store.Addr), c.hosts[0].BlockPeer(t, c.hosts[1].Addr, c.hosts[2].Addr)
					lift = func() { peers(); redis() }
				}
				h := &held{setup: harness.AgentSetup{Device: d, Servers: newer.Servers(), Flags: []string{"--allow-plaintext", "--max-backoff", "1s"}}}
				h.site = &site{face: newer, origin: c.device.StartOrigin(t), client: c.visitor.Visitor(t, newer, false)}
				h.setup.Forwards = []string{"80=" + h.origin.Addr}
				began := time.Now()
				c.start(t, h)
				h.host = h.agent.UpWithin(t, 30*time.Second).Hostname(t, 80)
				h.agent.WaitStderr(t, 0, harness.UpTime, "tunnel up")
				t.Logf("the newer one is in after %v", time.Since(began).Round(time.Millisecond))
				for _, line := range h.agent.Stderr.Since(0) {
					if strings.Contains(line, "device_connected") {
						t.Errorf("refused for a node that cannot be asked: %s", line)
					}
				}
				mark := h.agent.Stderr.Mark()
				if h.host != first.Ready.Hostname {
					t.Errorf("the name became %s, was %s", h.host, first.Ready.Hostname)
				}
				lift()
				again := time.Now()
				if code := harness.CloseCode(t, first.Conn, 15*time.Second); code != 4001 {
					t.Errorf("the older one was closed with %d", code)
				}
				t.Logf("the older one is told after %v", time.Since(again).Round(time.Millisecond))
				c.know(t)
				for range 5 {
					c.everywhere(t, h)
					rest(t.Context(), 500*time.Millisecond)
				}
				stays(t, h, mark)
			})
		})
	}
}

// TestWrongClock sets the clocks of two nodes off by an hour, one each way: nothing
// depends on what time a node believes it is.
func TestWrongClock(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 16, Tunnel: []string{"lease 15s"}}})
		before := c.join(t, []*harness.Node{c.Nodes[0]})
		c.everywhere(t, before)
		mark := before.agent.Stderr.Mark()
		c.Nodes[0].Process().ShiftClock(t, time.Hour)
		c.Nodes[1].Process().ShiftClock(t, -time.Hour)
		began := time.Now()
		var devices []*held
		for _, n := range c.Nodes {
			devices = append(devices, c.join(t, []*harness.Node{n}))
		}
		for time.Since(began) < 12*time.Second { // heartbeats, and the lease is written again
			for _, h := range append(devices, before) {
				for _, n := range c.Nodes {
					c.at(t, n, h).serves(t)
				}
			}
			rest(t.Context(), 500*time.Millisecond)
		}
		stays(t, before, mark)
		c.know(t)
		// A device that leaves keeps its name for the lease, whichever node says so.
		for i, h := range devices {
			h.agent.Stop(t, 10*time.Second)
			c.answer(c.Nodes[(i+1)%3])
			c.start(t, h)
			if host := h.agent.UpWithin(t, 30*time.Second).Hostname(t, 80); host != h.host {
				t.Errorf("%s became %s", h.host, host)
			}
			c.everywhere(t, h)
		}
		// One that is ahead refuses nobody, and keeps nobody's place: the others are asked.
		_, resp, err := harness.DialSocket(t.Context(), c.Nodes[0], harness.ControlPath+"?"+harness.Query(before.setup.Device.ID), harness.Bearer(before.setup.Device.Token))
		if a := harness.Refusal(resp); err == nil || a.Status != 409 {
			t.Errorf("a second device: %v, %v", a, err)
		}
	})
}

// TestRefusesToStart starts a node with the id of one that lives: it ends and says
// why, and nobody notices. After its death the id is free.
func TestRefusesToStart(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newCrew(t, harness.ClusterSetup{})
		h := c.join(t, []*harness.Node{c.Nodes[0]})
		mark := h.agent.Stderr.Mark()
		twin := c.Nodes[2]
		twin.Stop(t)
		twin.Become(func(m *harness.Member) { m.ID = "edge-1" })
		began := time.Now()
		err := twin.Launch()
		if err == nil {
			t.Fatal("two live nodes have one id")
		}
		if said := err.Error(); !strings.Contains(said, "edge-1") || !strings.Contains(said, "node") || !strings.Contains(said, "id") {
			t.Errorf("it does not say which id, and what to do: %s", said)
		}
		t.Logf("refused after %v", time.Since(began).Round(time.Millisecond))
		stays(t, h, mark)
		c.at(t, c.Nodes[1], h).mustServe(t)
		c.Nodes[0].Kill(t)
		if err := twin.Launch(); err != nil {
			t.Fatalf("the id of a node that is dead: %v", err)
		}
		c.answer(twin)
		back(t, c.at(t, c.Nodes[1], h), 30*time.Second)
		twin.Stop(t)
		twin.Become(func(m *harness.Member) { m.ID = "edge-3" })
		twin.Start(t)
		c.Nodes[0].Start(t)
	})
}

// TestWrongSecret gives one node another secret: it says so, its devices stay
// reachable there, and by no other node.
func TestWrongSecret(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		setup := harness.Setup{Tunnel: []string{"wait 1s"}}
		c := newCrew(t, harness.ClusterSetup{Setup: setup, Each: func(i int, m *harness.Member) {
			if i == 2 {
				m.Secret = strings.Repeat("5ec4e7", 11)
			}
		}})
		odd := c.Nodes[2]
		mine, other := c.join(t, []*harness.Node{odd}), c.join(t, []*harness.Node{c.Nodes[0]})
		c.at(t, odd, mine).mustServe(t)
		c.at(t, c.Nodes[1], other).mustServe(t)
		for _, wrong := range []*held{c.at(t, c.Nodes[0], mine), c.at(t, odd, other)} {
			r := wrong.get(t, "/page", "Accept", "application/json")
			if r.StatusCode < 500 || r.code() == "" {
				t.Errorf("without a common secret: %v after %v", r, r.took)
			}
			inTime(t, "a visitor is told that nodes have no common secret", r.took, 5*time.Second)
		}
		for _, n := range []*harness.Node{c.Nodes[0], odd} {
			if line := edgeSays(t, n, 0, "secret"); strings.Contains(line, "5ec4e7") {
				t.Errorf("a secret in the log: %s", line)
			}
		}
		for _, n := range c.Nodes {
			for _, line := range n.Log().Since(0) {
				if strings.Contains(line, "5ec4e75ec4e7") {
					t.Errorf("a secret in the log: %s", line)
				}
			}
		}
		odd.Become(func(m *harness.Member) { m.Secret = c.Secret })
		odd.Reload(t, setup)
		took := c.allBack(t, time.Now(), []*harness.Node{c.Nodes[0]}, []*held{mine}, harness.Patience)
		inTime(t, "a device is reachable by other nodes after a reload with their secret", slowest(took), writtenAgain)
		c.everywhere(t, other)
	})
}

// TestClusterRedis has Redis fail in every way under three nodes: no tunnel breaks,
// no visitor of a node's own devices notices, and when it is back, what is held is
// known at all nodes within seconds.
func TestClusterRedis(t *testing.T) {
	type store struct {
		registry []string
		fail     func(t *testing.T)
		redis    *harness.Redis // nil: there are several
	}
	plain := func(t *testing.T, fail func(t *testing.T, r *harness.Redis)) *store {
		r := harness.StartRedis(t, harness.RedisSetup{})
		return &store{registry: []string{"registry redis " + r.URL("")}, redis: r, fail: func(t *testing.T) { fail(t, r) }}
	}
	for _, one := range []struct {
		name  string
		store func(t *testing.T) *store
	}{
		{"killed and empty", func(t *testing.T) *store {
			return plain(t, func(t *testing.T, r *harness.Redis) { r.Kill(); r.Start(t) })
		}},
		{"stopped", func(t *testing.T) *store {
			return plain(t, func(t *testing.T, r *harness.Redis) {
				long := 14 * time.Second // longer than a node counts as alive
				if heavy {
					long = time.Minute
				}
				r.Hold()
				after(t.Context(), time.Now(), long)
				r.Go()
			})
		}},
		{"rolled back", func(t *testing.T) *store {
			return plain(t, func(t *testing.T, r *harness.Redis) { r.Kill(); r.Start(t) }) // with what it once saved
		}},
		{"failed over", func(t *testing.T) *store {
			master, replica, registry := harness.StartSentinels(t)
			return &store{registry: registry, fail: func(t *testing.T) {
				master.Kill()
				harness.Eventually(t, 30*time.Second, "the replica is the master", func() error {
					if info := replica.Do(t, "INFO", "replication"); !strings.Contains(info, "role:master") {
						return errors.New("not yet")
					}
					return nil
				})
			}}
		}},
		{"a master of a cluster lost", func(t *testing.T) *store {
			masters, registry := harness.StartRedisCluster(t)
			return &store{registry: registry, fail: func(t *testing.T) {
				masters[1].Kill()
				harness.Eventually(t, 30*time.Second, "a replica has its slots", func() error {
					if info := masters[0].Do(t, "CLUSTER", "INFO"); !strings.Contains(info, "cluster_state:ok") ||
						!strings.Contains(masters[0].Do(t, "CLUSTER", "NODES"), "master,fail") {
						return errors.New(info)
					}
					return nil
				})
			}}
		}},
	} {
		t.Run(one.name, func(t *testing.T) {
			onCluster(t, func(t *testing.T) {
				s := one.store(t)
				c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 64}, Registry: s.registry})
				var devices []*held
				for i := range 6 {
					if i == 3 && one.name == "rolled back" { // to before half of them came, and one came again
						if out := s.redis.Do(t, "SAVE"); out != "OK" {
							t.Fatal(out)
						}
						devices[0].agent.Kill()
						c.start(t, devices[0])
						devices[0].agent.Up(t)
					}
					devices = append(devices, c.join(t, []*harness.Node{c.Nodes[i%3]}))
				}
				for _, h := range devices {
					c.everywhere(t, h)
				}
				w := watch(t, devices...)
				s.fail(t)
				back := time.Now()
				at := []*harness.Node{c.Nodes[1], c.Nodes[2], c.Nodes[0]}                 // never where a device is
				took := c.allBack(t, back, at, devices, 30*time.Second, "unknown_device") // until it is written again
				t.Logf("reachable by other nodes after %v (median), %v (slowest)", median(took), slowest(took))
				inTime(t, "a device is reachable by other nodes after Redis failed", slowest(took), writtenAgain+2*time.Second)
				c.know(t)
				fresh := c.join(t, c.Nodes)
				for _, h := range devices {
					if fresh.host == h.host || fresh.port == h.port {
						t.Errorf("a new device got %s and port %s, which another has", fresh.host, fresh.port)
					}
				}
				c.everywhere(t, fresh)
				w.end(t)
				for i, h := range devices { // names and ports are kept
					h.agent.Kill()
					c.answer(c.Nodes[(i+1)%3])
					c.start(t, h)
					up := h.agent.UpWithin(t, 60*time.Second)
					if host, port := up.Hostname(t, 80), publicPort(t, up, 7); host != h.host || port != h.port {
						t.Errorf("%s and port %s became %s and %s", h.host, h.port, host, port)
					}
				}
			})
		})
	}
}
