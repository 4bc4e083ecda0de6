package harness

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Cluster is several edges over one Redis, that reach each other at internal
// addresses.
type Cluster struct {
	Nodes  []*Node
	Secret string // that the nodes have in common

	fleet *fleet
}

// Node is an edge of a Cluster. As a Face it is where agents arrive as well as
// where visitors enter; [Cluster.Between] has them at different nodes.
type Node struct {
	*edge
	ID       string
	Internal string // where other nodes and routers reach it
	cluster  *Cluster
	index    int
}

// ClusterSetup says what a cluster is like.
type ClusterSetup struct {
	Setup
	Nodes    int                             // 0: three
	Devices  int                             // that the cluster knows; 0: as many as an edge
	Registry []string                        // lines of the option `registry`; nil: what Setup.Tunnel has
	TLS      func(i int) bool                // whether node i has a site for agents, by TLS; nil: none does
	Host     func(i int) *Host               // where node i runs; nil: all on loopback, at 127.0.0.1, 127.0.0.2 and so on, and the same port
	Each     func(i int, m *Member)          // what is special about node i
	Edge     func(i int, setup Setup) *Setup // the setup of node i; nil: Setup
	Program  func(i int) string              // another build of Caddy for node i; empty: the usual one
}

// Member is what a node says of itself to the others.
type Member struct {
	ID        string   // edge-1 and so on
	URL       string   // where agents reach this very node
	Internal  string   // where nodes and routers do
	Listen    string   // where it listens for them, if that is elsewhere
	Secret    string   // that nodes have in common
	Names     []string // for which it has certificates, beside its address; only with TLS
	Local     bool     // its site for agents is at 127.0.0.1, and called localhost
	PortsHost string   // where it says that public ports are
}

// membership is a Member as its edge needs it.
type membership struct {
	Member
	registry  []string
	internal  string // where it listens
	ports     string // address of its public ports
	portsHost string
	program   string // empty: the built caddy
}

// lines are those of the global option `iottunnel`.
func (m *membership) lines(s Setup) []string {
	var lines []string
	if !slices.ContainsFunc(s.Tunnel, func(line string) bool { return strings.HasPrefix(line, "registry ") }) {
		lines = append(lines, m.registry...)
	}
	lines = append(lines, "node {", "\tid "+m.ID)
	for name, value := range map[string]string{"url": m.URL, "internal": m.Internal, "secret": m.Secret} {
		if value != "" {
			lines = append(lines, "\t"+name+" "+value)
		}
	}
	if m.Internal != "" {
		lines = append(lines, "\trouters 127.0.0.0/8 10.77.0.0/16")
	}
	return append(lines, "}")
}

// StartCluster starts a cluster for the length of the test, all nodes at once.
// Without a registry it has a Redis of its own.
func StartCluster(tb testing.TB, s ClusterSetup) *Cluster {
	tb.Helper()
	if s.Registry == nil {
		s.Registry = []string{"registry redis " + StartRedis(tb, RedisSetup{Socket: true}).URL("")}
	}
	c, err := newCluster(shortTemp(tb), s)
	if err == nil {
		err = c.launch()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, fault := range c.close() {
			tb.Error(fault)
		}
		if tb.Failed() {
			for _, n := range c.Nodes {
				tb.Log(n.Dump(0))
			}
		}
	})
	return c
}

// newCluster prepares the nodes; launch starts them.
func newCluster(dir string, s ClusterSetup) (*Cluster, error) {
	if s.Nodes == 0 {
		s.Nodes = 3
	}
	c := &Cluster{fleet: newFleet(s.Devices), Secret: newSecret()}
	port, err := freePort(1)
	if err != nil {
		return nil, err
	}
	agents, err := freePort(1)
	if err != nil {
		return nil, err
	}
	ranges, err := freeRange(s.TCPPorts)
	if err != nil {
		return nil, err
	}
	for i := range s.Nodes {
		id := fmt.Sprintf("edge-%d", i+1)
		e := &edge{
			kind: single{name: id}, dir: filepath.Join(dir, id), addr: fmt.Sprintf("127.0.0.%d", i+1), port: port,
			ranges: ranges, setup: s.Setup, fleet: c.fleet, out: NewLog(), log: NewLog(),
		}
		if s.Edge != nil {
			e.setup = *s.Edge(i, s.Setup)
		}
		own := e.addr // of what is on loopback whatever the face
		if s.Host != nil {
			e.setup.Host = s.Host(i)
			own = e.setup.Host.Addr
			if i > 0 && s.Host(i) == s.Host(0) { // hosts have one address
				if e.port, err = freePort(1); err != nil {
					return nil, err
				}
				if agents, err = freePort(1); err != nil {
					return nil, err
				}
				own = e.addr
			}
		}
		scheme := "http"
		if s.TLS != nil && s.TLS(i) {
			scheme, e.secure = "https", agents
		}
		internal, err := freePort(1)
		if err != nil {
			return nil, err
		}
		m := Member{ID: id, URL: scheme + "://" + e.AgentAddr(), Internal: net.JoinHostPort(own, strconv.Itoa(internal)), Secret: c.Secret, PortsHost: own}
		if s.Each != nil {
			s.Each(i, &m)
		}
		if m.Local && e.secure != 0 {
			m.URL = fmt.Sprintf("%s://localhost:%d", scheme, e.secure)
		}
		e.node = &membership{Member: m, registry: s.Registry, internal: m.Listen, ports: own, portsHost: m.PortsHost}
		if m.Listen == "" {
			e.node.internal = m.Internal
		}
		if s.Program != nil {
			e.node.program = s.Program(i)
		}
		if err := os.MkdirAll(e.dir, 0o700); err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, &Node{edge: e, ID: m.ID, Internal: m.Internal, cluster: c, index: i})
	}
	return c, nil
}

// each calls f for all nodes at once, and returns what went wrong.
func (c *Cluster) each(f func(n *Node) error) error {
	errs := make([]error, len(c.Nodes))
	var wg sync.WaitGroup
	for i, n := range c.Nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// launch starts all nodes that do not run. Of those with TLS the first makes the
// authority of them all.
func (c *Cluster) launch() error {
	first := slices.IndexFunc(c.Nodes, func(n *Node) bool { return n.tls() && n.ca == nil })
	if first >= 0 {
		if err := c.Nodes[first].launch(); err != nil {
			return err
		}
	}
	return c.each(func(n *Node) error {
		if n.proc != nil && n.proc.Running() {
			return nil
		}
		return n.launch()
	})
}

// close ends all nodes and returns what their logs hold against them.
func (c *Cluster) close() (faults []string) {
	var mu sync.Mutex
	_ = c.each(func(n *Node) error { // it returns no error
		if n.proc == nil {
			return nil
		}
		for _, fault := range n.Close() {
			mu.Lock()
			faults = append(faults, n.ID+": "+fault)
			mu.Unlock()
		}
		return nil
	})
	return faults
}

// Launch starts the node without failing a test: the error is what its process
// said.
func (n *Node) Launch() error { return n.launch() }

// Reload gives the node another setup, where it runs.
func (n *Node) Reload(tb testing.TB, s Setup) {
	tb.Helper()
	s.Host = n.setup.Host
	n.edge.Reload(tb, s)
}

// ReloadFails is Reload of what Caddy must refuse; it returns what it said.
func (n *Node) ReloadFails(tb testing.TB, s Setup) string {
	tb.Helper()
	s.Host = n.setup.Host
	return n.edge.ReloadFails(tb, s)
}

// Index is its place among the nodes.
func (n *Node) Index() int { return n.index }

// AdminAddr is where Caddy's commands reach it.
func (n *Node) AdminAddr() string { return "unix/" + n.adminSocket() }

// Running says whether its process has not ended.
func (n *Node) Running() bool { return n.proc != nil && n.proc.Running() }

// Process is its process; another one after each start.
func (n *Node) Process() *Proc { return n.proc }

// Hold stops it in its tracks: connections stay, and nothing is answered.
func (n *Node) Hold() { n.proc.Signal(syscall.SIGSTOP) }

// Go on after Hold.
func (n *Node) Go() { n.proc.Signal(syscall.SIGCONT) }

// Become changes what the node says of itself, from its next start or reload on.
func (n *Node) Become(f func(m *Member)) {
	f(&n.node.Member)
	n.ID = n.node.ID
}

// Owner is the node that a device is connected to; nil when none says so.
func (c *Cluster) Owner(tb testing.TB, device string) *Node {
	tb.Helper()
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		status, body := n.Admin(tb, "GET", "/iottunnel/devices/"+device, nil)
		var d struct{ State, Node string }
		if status != 200 || json.Unmarshal(body, &d) != nil || d.State != "online" {
			continue
		}
		for _, owner := range c.Nodes {
			if owner.ID == d.Node {
				return owner
			}
		}
	}
	return nil
}

// Between is the cluster with agents at one node and visitors at another. Stop,
// Kill, Start, Reload and the rest mean all nodes.
func (c *Cluster) Between(agents, visitors *Node) Face {
	return &between{Node: visitors, agents: agents, all: c}
}

// between is a Face of a whole cluster; what it does not say is the visitors' node's.
type between struct {
	*Node
	agents *Node
	all    *Cluster
	log    *Log // of all nodes; nil: the visitors' node's alone
}

func (b *between) Servers() []string     { return b.agents.Servers() }
func (b *between) AgentAddr() string     { return b.agents.AgentAddr() }
func (b *between) CAFile() string        { return b.agents.CAFile() }
func (b *between) AgentTLS() *tls.Config { return b.agents.AgentTLS() }

func (b *between) DialAgent(ctx context.Context) (net.Conn, string, error) {
	return b.agents.DialAgent(ctx)
}

func (b *between) Log() *Log {
	if b.log != nil {
		return b.log
	}
	return b.Node.Log()
}

func (b *between) Reload(tb testing.TB, s Setup) {
	tb.Helper()
	for _, n := range b.all.Nodes {
		n.Reload(tb, s)
	}
}

func (b *between) ReloadFails(tb testing.TB, s Setup) (said string) {
	tb.Helper()
	for _, n := range b.all.Nodes {
		said = n.ReloadFails(tb, s)
	}
	return said
}

func (b *between) Stop(tb testing.TB) {
	tb.Helper()
	_ = b.all.each(func(n *Node) error { n.Stop(tb); return nil })
}

func (b *between) Kill(tb testing.TB) {
	_ = b.all.each(func(n *Node) error { n.Kill(tb); return nil })
}

func (b *between) Start(tb testing.TB) {
	tb.Helper()
	if err := b.all.launch(); err != nil {
		tb.Fatal(err)
	}
}

func (b *between) Pause(_ testing.TB, d time.Duration) {
	for _, n := range b.all.Nodes {
		n.Hold()
	}
	time.Sleep(d) // what it is about
	for _, n := range b.all.Nodes {
		n.Go()
	}
}

// Footprint is that of the two nodes through which visitors reach their devices.
func (b *between) Footprint(tb testing.TB) Footprint {
	tb.Helper()
	one, two := b.Node.Footprint(tb), b.agents.Footprint(tb)
	return Footprint{
		Edges:      one.Edges + two.Edges,
		Goroutines: one.Goroutines + two.Goroutines, Descriptors: one.Descriptors + two.Descriptors,
		Heap: one.Heap + two.Heap, Stack: one.Stack + two.Stack, Anonymous: one.Anonymous + two.Anonymous,
	}
}

func (b *between) Close() (faults []string) { return b.all.close() }

func (b *between) Dump(int) string {
	var all strings.Builder
	for _, n := range b.all.Nodes {
		all.WriteString(n.Dump(0))
	}
	return all.String()
}
