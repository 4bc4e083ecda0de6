package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// onCluster runs a case about several nodes, which brings its own.
func onCluster(t *testing.T, run func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	name := t.Name()
	result(name, "nodes", "did not end")
	defer func() {
		if t.Failed() {
			result(name, "nodes", "FAIL")
		} else {
			result(name, "nodes", "ok")
		}
	}()
	run(t)
}

// edgeName is the name by which agents know a crew; nodes have names beside it, so
// that a redirect to one may be followed.
const edgeName = "edge.fleet.test"

func nodeName(i int) string { return fmt.Sprintf("edge-%d.fleet.test", i+1) }

// crew is a cluster that agents reach by one name, which has the addresses of all
// nodes. What runs on hosts of a network has them; else they are nil.
type crew struct {
	*harness.Cluster
	redis *harness.Redis // nil: the registry is of another kind
	names *harness.Names

	net                    *harness.Network
	hosts                  []*harness.Host // of the nodes
	store, visitor, device *harness.Host
}

// newCrew starts one on loopback.
func newCrew(t *testing.T, s harness.ClusterSetup) *crew {
	t.Helper()
	return startCrew(t, new(crew), s)
}

// newFarCrew starts one with nodes, Redis, device and visitor on hosts of their own.
func newFarCrew(t *testing.T, s harness.ClusterSetup) *crew {
	t.Helper()
	c := &crew{net: harness.NewNetwork(t)}
	c.store, c.visitor, c.device = c.net.Host(t, "redis"), c.net.Host(t, "visitor"), c.net.Host(t, "device")
	for i := range 3 {
		c.hosts = append(c.hosts, c.net.Host(t, fmt.Sprintf("edge-%d", i+1)))
	}
	s.Host = func(i int) *harness.Host { return c.hosts[i] }
	return startCrew(t, c, s)
}

func startCrew(t *testing.T, c *crew, s harness.ClusterSetup) *crew {
	t.Helper()
	if s.Registry == nil {
		c.redis = harness.StartRedis(t, harness.RedisSetup{Host: c.store})
		s.Registry = []string{"registry redis " + c.redis.URL("")}
	}
	each := s.Each
	s.Each = func(i int, m *harness.Member) {
		// By the name, an agent may go there.
		scheme, addr, _ := strings.Cut(m.URL, "://")
		m.Names = []string{nodeName(i), edgeName}
		m.URL = scheme + "://" + m.Names[0] + addr[strings.LastIndexByte(addr, ':'):]
		if each != nil {
			each(i, m)
		}
	}
	c.Cluster = harness.StartCluster(t, s)
	c.names = harness.StartNames(t, c.device)
	c.answer(c.Nodes...)
	for i, n := range c.Nodes {
		c.names.Set(nodeName(i), n.AgentAddr())
	}
	c.know(t)
	return c
}

// answer has the name of the edge mean these nodes, in this order.
func (c *crew) answer(nodes ...*harness.Node) {
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.AgentAddr())
	}
	c.names.Set(edgeName, addrs...)
}

// others are all nodes but one.
func (c *crew) others(not *harness.Node) (nodes []*harness.Node) {
	for _, n := range c.Nodes {
		if n != not {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// seen is a node as the admin API of one tells of it.
type seen struct {
	Node           string
	This, Draining bool
	URL, Internal  string
	Clients        int
}

// asks asks a node for all that it knows of.
func asks(t *testing.T, n *harness.Node) ([]seen, error) {
	t.Helper()
	status, body := n.Admin(t, "GET", "/iottunnel/nodes", nil)
	var all struct{ Nodes []seen }
	if err := json.Unmarshal(body, &all); status != 200 || err != nil {
		return nil, fmt.Errorf("%s: nodes: status %d, %v: %.300s", n.ID, status, err, body)
	}
	return all.Nodes, nil
}

// know waits until every running node knows every other one.
func (c *crew) know(t *testing.T) {
	t.Helper()
	var running []*harness.Node
	for _, n := range c.Nodes {
		if n.Running() {
			running = append(running, n)
		}
	}
	harness.Eventually(t, 30*time.Second, "the nodes know each other", func() error {
		for _, n := range running {
			if known, err := asks(t, n); err != nil || len(known) != len(running) {
				return fmt.Errorf("%s knows %+v: %w", n.ID, known, err)
			}
		}
		return nil
	})
}

// setup is how an agent of the crew is run, that knows the edge by its name.
func (c *crew) setup(t *testing.T, flags ...string) harness.AgentSetup {
	t.Helper()
	n := c.Nodes[0]
	scheme, addr, _ := strings.Cut(n.Servers()[0], "://")
	s := harness.AgentSetup{
		Device:  n.NewDevice(t),
		Servers: []string{scheme + "://" + edgeName + addr[strings.LastIndexByte(addr, ':'):]},
		Flags:   append([]string{"--dns", c.names.Addr, "--max-backoff", "5s"}, flags...),
	}
	if scheme == "ws" {
		s.Flags = append(s.Flags, "--allow-plaintext")
	}
	return s
}

// join brings a device up that comes to nodes in this order. Visitors come to it by
// held.at.
func (c *crew) join(t *testing.T, nodes []*harness.Node, flags ...string) *held {
	t.Helper()
	c.answer(nodes...)
	h := &held{setup: c.setup(t, flags...)}
	var tcp string
	serve := func() { tcp = harness.ServeTCP(t, harness.Echo) }
	h.site = &site{face: nodes[0], client: harness.Visitor(t, nodes[0], false)}
	if c.device != nil {
		h.origin = c.device.StartOrigin(t)
		c.device.Do(t, serve)
		h.client = c.visitor.Visitor(t, nodes[0], false)
	} else {
		h.origin = harness.StartOrigin(t)
		serve()
	}
	h.setup.Forwards = []string{"80=" + h.origin.Addr}
	if first, _ := nodes[0].TCPPorts(); first != 0 {
		h.setup.Forwards = append(h.setup.Forwards, "7="+tcp)
	}
	c.start(t, h)
	up := h.agent.UpWithin(t, 60*time.Second)
	h.agent.WaitStderr(t, 0, harness.UpTime, "tunnel up") // so that a later one is another
	h.host = up.Hostname(t, 80)
	if up.URLs[7] != "" {
		h.port = publicPort(t, up, 7)
		if !slices.ContainsFunc(c.Nodes, func(n *harness.Node) bool { return n.Internal == "" }) { // such a node is reached by no other
			c.listen(t, h)
		}
	}
	return h
}

// listen waits until the device's public port is open at every running node, which
// takes a heartbeat where a hint is lost.
func (c *crew) listen(t *testing.T, h *held) {
	t.Helper()
	for _, n := range c.Nodes {
		if n.Running() && c.visitor == nil {
			harness.Eventually(t, 5*time.Second, "port "+h.port+" is open at "+n.ID, c.at(t, n, h).echoes)
		}
	}
}

func (c *crew) start(t *testing.T, h *held) {
	t.Helper()
	if c.device != nil {
		h.agent = c.device.StartAgent(t, h.face, h.setup)
	} else {
		h.agent = harness.StartAgent(t, h.face, h.setup)
	}
}

// at is the device for visitors who enter at a node.
func (c *crew) at(t *testing.T, n *harness.Node, h *held) *held {
	t.Helper()
	there, s := *h, *h.site
	s.face, s.client = n, harness.Visitor(t, n, false)
	if c.visitor != nil {
		s.client = c.visitor.Visitor(t, n, false)
	}
	there.site = &s
	return &there
}

// owner is the node where the device is connected; it waits for one.
func (c *crew) owner(t *testing.T, h *held) (n *harness.Node) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, h.setup.Device.ID+" has an owner", func() error {
		if n = c.Owner(t, h.setup.Device.ID); n == nil {
			return errors.New("no node says so")
		}
		return nil
	})
	return n
}

// everywhere fails unless the device's page is served at all running nodes.
func (c *crew) everywhere(t *testing.T, h *held) {
	t.Helper()
	for _, n := range c.Nodes {
		if n.Running() {
			there := c.at(t, n, h)
			if r := there.get(t, "/page"); r.StatusCode != 200 {
				t.Errorf("%s at %s: %v", h.setup.Device.ID, n.ID, r)
			}
		}
	}
}

// notNow are the codes of answers that say that it may help to come again.
var notNow = []string{"device_offline", "device_timeout", "unavailable", "device_refused"}

// back asks for the device's page at a node until it is served, each time with a
// limit, and returns when that was. What is answered in between must have one of the
// codes, by default those of notNow.
func back(t *testing.T, h *held, within time.Duration, codes ...string) time.Time {
	codes = append(codes, notNow...)
	fresh := &http.Client{Transport: h.client.Transport, Timeout: 10 * time.Second, CheckRedirect: h.client.CheckRedirect}
	end := time.Now().Add(within)
	for {
		r, err := try(fresh, request(t, "GET", h.url("/page"), nil, "Accept", "application/json"))
		switch {
		case err == nil && r.StatusCode == 200:
			return time.Now()
		case err == nil && !slices.Contains(codes, r.code()):
			t.Errorf("%s: %v", h.setup.Device.ID, r)
			return time.Now()
		case time.Now().After(end):
			t.Errorf("%s is not back within %v: %v, %v", h.setup.Device.ID, within, r, err)
			return time.Now()
		}
		rest(t.Context(), 20*time.Millisecond)
	}
}

// allBack waits for all devices at the nodes given by turns, and returns how long
// each took since began, sorted.
func (c *crew) allBack(t *testing.T, began time.Time, at []*harness.Node, devices []*held, within time.Duration, codes ...string) []time.Duration {
	t.Helper()
	took := make([]time.Duration, len(devices))
	var wg sync.WaitGroup
	for i, h := range devices {
		there := c.at(t, at[i%len(at)], h)
		wg.Go(func() { took[i] = back(t, there, within, codes...).Sub(began) })
	}
	wg.Wait()
	slices.Sort(took)
	return took
}

func median(sorted []time.Duration) time.Duration {
	return sorted[len(sorted)/2].Round(time.Millisecond)
}

func slowest(sorted []time.Duration) time.Duration {
	return sorted[len(sorted)-1].Round(time.Millisecond)
}

// stays fails if an agent's tunnel broke since mark.
func stays(t *testing.T, h *held, mark int) {
	t.Helper()
	for _, line := range h.agent.Stderr.Since(mark) {
		if strings.Contains(line, "tunnel down") || strings.Contains(line, "tunnel up") {
			t.Errorf("%s: a tunnel broke: %s", h.setup.Device.ID, line)
		}
	}
}

// after waits until some time has passed since began: how long a fault lasts is its
// subject.
func after(ctx context.Context, began time.Time, d time.Duration) {
	rest(ctx, time.Until(began.Add(d)))
}

// TestNodesServe has devices on every node, and visitors of each at all of them: by
// HTTP, by WebSocket and at public ports.
func TestNodesServe(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := newCrew(t, harness.ClusterSetup{Setup: harness.Setup{TCPPorts: 16}})
		for _, n := range c.Nodes {
			h := c.join(t, append([]*harness.Node{n}, c.others(n)...))
			if owner := c.owner(t, h); owner != n {
				t.Errorf("the device came to %s and is at %s", n.ID, owner.ID)
			}
			for _, at := range c.Nodes {
				there := c.at(t, at, h)
				there.serves(t)
				if err := echoes(there.openSocket(t), 1, "from "+at.ID); err != nil {
					t.Errorf("WebSocket of a device of %s at %s: %v", n.ID, at.ID, err)
				}
				const size = 4 << 20
				useSite(t, there.site, size)
			}
		}
	})
}
