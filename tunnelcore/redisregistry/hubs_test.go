package redisregistry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/redisregistry"
)

// A fleet is two nodes on one Redis with real agents, half of them at each, and
// what must not happen to them while Redis has a fault.
type fleet struct {
	*testing.T
	options redisregistry.Options
	nodes   []*node
	devices []*device
}

// node is a hub with its agents' door, and an address for public ports.
type node struct {
	hub    *tunnelcore.Hub
	server *httptest.Server
	id     string
	bind   string       // address of public ports
	ended  atomic.Int64 // tunnels
	log    lockedLog
}

type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// device is an agent with an echo behind port 80 and public port 7.
type device struct {
	id     string
	node   *node
	up     agent.Up
	public string // address of port 7, as the agent was told
	downs  atomic.Int64
}

// startFleet starts nodes and devices; leases last that long.
func startFleet(t *testing.T, o redisregistry.Options, lease time.Duration, first uint16) *fleet {
	t.Helper()
	o.Timeout, o.DialTimeout = 2*time.Second, 2*time.Second
	f := &fleet{T: t, options: o}
	for i := range 2 {
		f.startNode(fmt.Sprintf("edge-%d", i+1), fmt.Sprintf("127.0.0.%d", 11+i), lease, first)
	}
	for i := range 6 {
		f.startDevice(fmt.Sprintf("cam-%d", i), f.nodes[i%2])
	}
	return f
}

func (f *fleet) open(logger *slog.Logger) *redisregistry.Registry {
	f.Helper()
	o := f.options
	o.Logger = logger
	r, err := redisregistry.Open(f.Context(), o)
	if err != nil {
		f.Fatal(err)
	}
	return r
}

func (f *fleet) startNode(id, bind string, lease time.Duration, first uint16) {
	f.Helper()
	n := &node{id: id, bind: bind}
	logger := slog.New(slog.NewTextHandler(&n.log, nil))
	s := tunnelcore.Defaults()
	s.Domain, s.Scheme, s.Lease, s.Wait, s.Logger = "devices.test", "http", lease, -1, logger
	s.Authenticators = []tunnelcore.Authenticator{tunnelcore.AuthenticatorFunc(func(context.Context, tunnelcore.Credential) error { return nil })}
	s.TCP = &tunnelcore.TCPPorts{First: first, Last: first + 99, Bind: []string{bind}, Host: bind}
	s.Events = func(name string, _ map[string]any) {
		if name == "offline" {
			n.ended.Add(1)
		}
	}
	n.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == cluster.Path {
			n.hub.ServePeer(w, r)
			return
		}
		n.hub.ServeAgent(w, r, tunnelcore.Arrival{From: netip.MustParseAddrPort(r.RemoteAddr).Addr()})
	}))
	s.Node = tunnelcore.NodeSettings{Internal: n.server.Listener.Addr().String(), Secrets: []string{"the secret of these tests"}}
	hub, err := tunnelcore.New(tunnelcore.Config{Node: id, Registry: f.open(logger), Settings: s})
	if err != nil {
		f.Fatal(err)
	}
	n.hub = hub
	n.server.Start()
	f.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no patience with streams
		// Redis may be gone by now.
		_ = hub.Shutdown(ctx)
		n.server.Close()
		if f.Failed() {
			f.Logf("log of %s:\n%s", id, n.log.String())
		}
	})
	f.nodes = append(f.nodes, n)
}

// startDevice starts an agent and waits until it is up.
func (f *fleet) startDevice(id string, n *node) *device {
	f.Helper()
	d := &device{id: id, node: n}
	ups := make(chan agent.Up, 100)
	pages, page := agent.Listen(80, agent.HTTP)
	echoes, echo := agent.Listen(7, agent.TCP)
	a, err := agent.New(agent.Config{
		Servers: []string{strings.Replace(n.server.URL, "http://", "ws://", 1)}, Device: id, Token: "x",
		Forwards: []agent.Forward{page, echo}, MaxBackoff: time.Second,
		OnUp:   func(up agent.Up) { ups <- up },
		OnDown: func(error, time.Duration) { d.downs.Add(1) },
	})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, l := range []net.Listener{pages, echoes} {
		wg.Go(func() { serveEcho(l) })
	}
	wg.Go(func() { _ = a.Run(ctx) }) // nil, when ctx has ended
	f.Cleanup(func() {
		cancel()
		pages.Close()
		echoes.Close()
		wg.Wait()
	})
	select {
	case d.up = <-ups:
	case <-time.After(40 * time.Second):
		f.Fatalf("%s does not come up", id)
	}
	d.public = strings.TrimPrefix(d.up.Ports[1].URL, "tcp://")
	d.downs.Store(0) // it may have been refused while Redis was restored
	f.devices = append(f.devices, d)
	return d
}

func serveEcho(l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // until the visitor leaves
		})
	}
}

// echoes says what is wrong with a connection to a device.
func echoes(c net.Conn, err error) error {
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 5))
	return err
}

// serves fails unless each device is served by its node, by name and by port.
func (f *fleet) serves() {
	f.Helper()
	for _, d := range f.devices {
		c, err := d.node.hub.Dial(f.Context(), d.id, 80, netip.MustParseAddrPort("203.0.113.7:1234"))
		if err := echoes(c, err); err != nil {
			f.Errorf("%s at %s: %v", d.id, d.node.id, err)
		}
		if err := echoes(net.DialTimeout("tcp", d.public, 5*time.Second)); err != nil {
			f.Errorf("%s at public port %s: %v", d.id, d.public, err)
		}
	}
}

// everywhere fails unless each device is served by every node, by name and by port.
func (f *fleet) everywhere() {
	f.Helper()
	for _, d := range f.devices {
		_, port, err := net.SplitHostPort(d.public)
		if err != nil {
			f.Fatal(err)
		}
		for _, n := range f.nodes {
			redistest.Eventually(f, d.id+" is served by "+n.id, func() bool {
				c, err := n.hub.Dial(f.Context(), d.id, 80, netip.MustParseAddrPort("203.0.113.7:1234"))
				return echoes(c, err) == nil && echoes(net.DialTimeout("tcp", net.JoinHostPort(n.bind, port), 5*time.Second)) == nil
			})
		}
	}
}

// during watches for a while that devices are served, and no second agent of one is
// let in.
func (f *fleet) during(d time.Duration) {
	f.Helper()
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		f.serves()
		f.noSecond()
		select {
		case <-end.C:
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// noSecond fails if another agent is let in for a device, at either node.
func (f *fleet) noSecond() {
	f.Helper()
	for _, n := range f.nodes {
		_, forward := agent.Listen(80, agent.HTTP)
		a, err := agent.New(agent.Config{
			Servers: []string{strings.Replace(n.server.URL, "http://", "ws://", 1)}, Device: f.devices[0].id, Token: "x",
			Forwards: []agent.Forward{forward}, Once: true,
		})
		if err != nil {
			f.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(f.Context(), 20*time.Second)
		err = a.Run(ctx)
		cancel()
		var refused *agent.RefusedError
		if !errors.As(err, &refused) || refused.Status != 409 && refused.Status != 503 {
			f.Errorf("a second %s at %s: %v, want it refused", f.devices[0].id, n.id, err)
		}
	}
}

// again fails unless everything is in Redis within 10 s, as it was.
func (f *fleet) again() {
	f.Helper()
	began := time.Now()
	var missing error
	for time.Since(began) < 10*time.Second {
		if missing = f.written(); missing == nil {
			f.Logf("all is written again after %v", time.Since(began).Round(time.Millisecond))
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	f.Errorf("not written again within 10 s: %v", missing)
}

// written says what Redis does not have of the devices, for somebody who has not
// seen the fault.
func (f *fleet) written() error {
	look := f.open(nil)
	defer look.Close()
	labels := map[string]string{}
	for _, d := range f.devices {
		ctx, cancel := context.WithTimeout(f.Context(), time.Second)
		rec, err := look.ByLabel(ctx, d.up.Label)
		cancel()
		if err != nil || rec.Device != d.id || rec.Online.Node.ID != d.node.id {
			return fmt.Errorf("%s with label %s at %s: %+v, %w", d.id, d.up.Label, d.node.id, rec, err)
		}
		if want := fmt.Sprintf(":%d", rec.Ports[7]); !strings.HasSuffix(d.public, want) {
			return fmt.Errorf("%s at %s: public port %s", d.id, d.public, want)
		}
		if other := labels[rec.Label]; other != "" {
			return fmt.Errorf("label %s is that of %s and of %s", rec.Label, other, d.id)
		}
		labels[rec.Label] = d.id
	}
	ctx, cancel := context.WithTimeout(f.Context(), time.Second)
	defer cancel()
	leases, _, err := look.Ports(ctx, 0)
	if err != nil || len(leases) != len(f.devices) {
		return fmt.Errorf("leased ports %v, %w", leases, err)
	}
	return nil
}

// kept fails if a tunnel has ended.
func (f *fleet) kept() {
	f.Helper()
	for _, n := range f.nodes {
		if ended := n.ended.Load(); ended > 0 {
			f.Errorf("%d tunnels were closed at %s", ended, n.id)
		}
	}
	for _, d := range f.devices {
		if downs := d.downs.Load(); downs > 0 {
			f.Errorf("%s went down %d times", d.id, downs)
		}
	}
}

// A redisFault befalls one of several servers, or the only one. It returns how to
// end it.
type redisFault struct {
	name  string
	lease time.Duration
	lasts time.Duration
	slow  bool
	begin func(f *fleet, s *redistest.Server) (end func())
}

var redisFaults = []redisFault{
	{name: "restarted empty", begin: func(_ *fleet, s *redistest.Server) func() {
		s.Kill()
		return s.Start
	}},
	{name: "killed for a while", lasts: 4 * time.Second, begin: func(_ *fleet, s *redistest.Server) func() {
		s.Kill()
		return s.Start
	}},
	{name: "flushed", begin: func(_ *fleet, s *redistest.Server) func() {
		s.Do("FLUSHALL")
		return func() {}
	}},
	{name: "rolled back", begin: func(f *fleet, s *redistest.Server) func() {
		s.Do("SAVE")
		f.startDevice("late-1", f.nodes[0])
		f.startDevice("late-2", f.nodes[1])
		s.Kill()
		return s.Start
	}},
	{name: "stopped for longer than a third of the lease", lease: 9 * time.Second, lasts: 5 * time.Second, begin: stop},
	{name: "stopped for longer than the lease", lease: 3 * time.Second, lasts: 7 * time.Second, begin: stop},
	{name: "stopped for longer than nodes live", lease: time.Minute, lasts: 15 * time.Second, slow: true, begin: stop},
	{name: "stopped for a minute", lease: time.Minute, lasts: time.Minute, slow: true, begin: stop},
}

func stop(_ *fleet, s *redistest.Server) func() {
	s.Stop()
	return s.Continue
}

// TestHubsOnFaultyRedis keeps everything that is connected whatever happens to
// Redis, and has all written again soon after. IOTTUNNEL_SLOW=1 adds the faults that
// last. It and the next two are not parallel with other tests, as heartbeats of hubs are in
// time or late by the real clock.
func TestHubsOnFaultyRedis(t *testing.T) {
	for i, fault := range redisFaults {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			if fault.slow && os.Getenv("IOTTUNNEL_SLOW") == "" {
				t.Skipf("lasts %v: IOTTUNNEL_SLOW=1 runs it", fault.lasts)
			}
			s := redistest.Start(t, redistest.Options{})
			f := startFleet(t, redisregistry.Options{URL: "redis://" + s.Addr}, max(fault.lease, 3*time.Second), uint16(14000+100*i))
			f.suffer(func() func() { return fault.begin(f, s) }, fault.lasts)
		})
	}
}

// suffer has a fault begin, last and end.
func (f *fleet) suffer(begin func() (end func()), lasts time.Duration) {
	f.Helper()
	f.everywhere()
	if err := f.written(); err != nil {
		f.Fatal(err)
	}
	end := begin()
	f.during(lasts)
	end()
	f.again()
	f.during(time.Second)
	f.startDevice("new-1", f.nodes[0])
	f.startDevice("new-2", f.nodes[1])
	f.again()
	f.everywhere()
	f.kept()
}

// TestHubsOverFailover loses the master that sentinels watch.
func TestHubsOverFailover(t *testing.T) {
	g := redistest.WithSentinels(t, "sentinel-password", nil)
	f := startFleet(t, redisregistry.Options{
		Sentinel: &redisregistry.Sentinel{Master: g.Name, Addrs: g.Addrs(), Password: "sentinel-password"},
	}, 6*time.Second, 15000)
	f.suffer(func() func() {
		g.Master.Kill()
		return g.AwaitFailover
	}, 0)
}

// TestHubsLoseAMaster loses each master of a cluster, one after the other.
func TestHubsLoseAMaster(t *testing.T) {
	servers := redistest.Cluster(t, nil)
	var o redisregistry.Options
	for _, s := range servers {
		o.Cluster = append(o.Cluster, s.Addr)
	}
	f := startFleet(t, o, 6*time.Second, 15100)
	for _, s := range servers {
		s.Kill()
		f.during(time.Second)
		s.Start()
		f.again()
	}
	f.during(time.Second)
	f.kept()
}
