package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// soak is an edge on Redis with a few devices, and visitors at each of them, for a
// long time, to whom things happen.
type soak struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand // of what happens: only the cycle draws from it
	face    harness.Face
	setup   harness.Setup
	redis   *harness.Redis
	net     *far  // nil: all on loopback, and no network to cut
	crew    *crew // nil: the edge is alone
	devices []*soaked
	clients []*http.Client

	edgeLife int
	mu       sync.Mutex
	failures int  // guarded by mu
	forgets  bool // a Redis that was emptied may not know a name for a moment; guarded by mu
}

// soaked is a device.
type soaked struct {
	setup   harness.AgentSetup
	profile string
	lasting bool // its agent is never ended: what it holds is watched
	agent   *harness.Agent
	status  string // address of its status page; empty: it has none
	host    string
	port    string // public
}

// TestSoak is one half of `make soak`: for half of SOAKTIME, cycles of faults at
// random, in an order that SOAKSEED repeats. In between and at the end everything
// must work, nothing that was answered may be wrong, names and ports stay, and what
// processes hold at rest does not grow.
func TestSoak(t *testing.T) {
	length := soakLength(t)
	s := newSoak(t)
	end := time.Now().Add(length)
	edge := soakSeries("edge", true)
	agents := map[string][]*series{}
	for cycle := 0; time.Now().Before(end) || cycle < 1; cycle++ {
		s.cycle(cycle, edge, agents)
	}
	s.summary(edge, agents)
}

// soakLength is how long one of the two soaks runs, or skips it.
func soakLength(t *testing.T) time.Duration {
	t.Helper()
	if os.Getenv("IOTTUNNEL_SOAK") == "" {
		t.Skip("runs for minutes or hours: `make soak` does it, for SOAKTIME")
	}
	length, err := time.ParseDuration(os.Getenv("IOTTUNNEL_SOAK"))
	if err != nil {
		t.Fatalf("SOAKTIME: %v", err)
	}
	return length / 2
}

// soakSeed draws what decides the order of things, unless it is given.
func soakSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("IOTTUNNEL_SOAKSEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SOAKSEED: %v", err)
		}
	}
	fmt.Printf("soak: SOAKSEED=%d repeats the order of what happens\n", seed)
	t.Cleanup(func() {
		if t.Failed() {
			fmt.Printf("soak: FAILED, with SOAKSEED=%d\n", seed)
		}
	})
	return seed
}

func newSoak(t *testing.T) *soak {
	seed := soakSeed(t)
	s := &soak{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0))}
	s.redis = harness.StartRedis(t, harness.RedisSetup{Durable: true, Socket: true})
	// Of one address come all visitors.
	s.setup = harness.Setup{TCPPorts: 32, Tunnel: []string{"registry redis " + s.redis.URL("")}}
	k := kinds()[min(1, len(kinds())-1)] // by TLS
	if os.Geteuid() == 0 {
		s.net = newFar(t, k, s.setup, 0)
		s.face, s.setup.Host = s.net.face, s.net.edge
	} else {
		fmt.Println("soak: not root: there is no network that could be cut")
		s.face = harness.Own(t, k, s.setup)
	}
	for range 4 {
		if s.net != nil {
			s.clients = append(s.clients, s.net.visitor.Visitor(t, s.face, len(s.clients)%2 == 0))
		} else {
			s.clients = append(s.clients, harness.Visitor(t, s.face, len(s.clients)%2 == 0))
		}
	}
	for _, profile := range []string{"basic", "full"} {
		for _, lasting := range []bool{true, false} {
			s.addDevice(profile, lasting)
		}
	}
	fmt.Printf("soak: edge of kind %s on Redis, devices %s and visitors on networks of their own: %t\n", k.Name(), s.names(), s.net != nil)
	return s
}

func (s *soak) names() string {
	var all []string
	for _, d := range s.devices {
		all = append(all, d.setup.Device.ID+" ("+d.profile+")")
	}
	return strings.Join(all, ", ")
}

// onDevice listens on the loopback of where devices run.
func (s *soak) onDevice() net.Listener {
	var l net.Listener
	listen := func() {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			s.t.Fatal(err)
		}
	}
	if s.net != nil {
		s.net.device.Do(s.t, listen)
	} else {
		listen()
	}
	return l
}

func (s *soak) addDevice(profile string, lasting bool) {
	d := &soaked{profile: profile, lasting: lasting}
	if s.crew != nil {
		d.setup = s.crew.setup(s.t)
	} else {
		d.setup.Device = s.face.NewDevice(s.t)
	}
	id := d.setup.Device.ID
	web := httptest.NewUnstartedServer(station(id))
	web.Listener.Close()
	web.Listener = s.onDevice()
	web.Config.IdleTimeout = 2 * time.Second // at rest means at rest
	web.Start()
	s.t.Cleanup(func() { web.CloseClientConnections(); web.Close() })
	var tcp string
	serve := func() { tcp = harness.ServeTCP(s.t, banner(id)) }
	if s.net != nil {
		s.net.device.Do(s.t, serve)
	} else {
		serve()
	}
	d.setup.Forwards = []string{"80=" + web.Listener.Addr().String(), "7=" + tcp}
	d.setup.Flags = append(d.setup.Flags, "--profile", profile, "--heartbeat", "10s", "--max-backoff", "3s")
	if s.hasStatus() {
		l := s.onDevice()
		d.status = l.Addr().String()
		l.Close()
		d.setup.Flags = append(d.setup.Flags, "--status", d.status)
	}
	s.devices = append(s.devices, d)
	s.start(d)
	up := d.agent.UpWithin(s.t, time.Minute)
	d.host, d.port = up.Hostname(s.t, 80), publicPort(s.t, up, 7)
}

// hasStatus says whether agents tell what they hold.
func (s *soak) hasStatus() bool {
	_, out, errs := harness.RunToEnd(s.t, harness.UpTime, harness.Command{Name: "help", Args: []string{harness.Binary(s.t, "iottunnel-agent"), "run", "--help"}})
	return strings.Contains(out+errs, "--status")
}

func (s *soak) start(d *soaked) {
	if s.net != nil {
		d.agent = s.net.device.StartAgent(s.t, s.face, d.setup)
	} else {
		d.agent = harness.StartAgent(s.t, s.face, d.setup)
	}
}

// dial opens a connection to a public port.
func (s *soak) dial(ctx context.Context, port string) (net.Conn, error) {
	if s.net != nil {
		return s.net.visitor.Dial(ctx, net.JoinHostPort(s.net.edge.Addr, port))
	}
	return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
}

// visitor opens a connection of HTTP/1.1 to a hostname, with a limit on all of it.
func (s *soak) visitor(ctx context.Context, hostname string) (net.Conn, error) {
	c, err := s.face.DialVisitor(ctx, hostname)
	if err == nil {
		c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	}
	return c, err
}

// judge says what is amiss with an answer that is not the device's, and closes it.
func (s *soak) judge(resp *http.Response, d *soaked) error {
	id, code := resp.Header.Get("X-Device"), resp.Header.Get("Iottunnel-Error")
	if resp.StatusCode == http.StatusOK && id == d.setup.Device.ID {
		return nil
	}
	resp.Body.Close()
	s.mu.Lock()
	forgets := s.forgets
	s.mu.Unlock()
	switch {
	case id != "" && id != d.setup.Device.ID:
		return wrongf("the answer is %s's", id)
	case resp.StatusCode < 400:
		return wrongf("status %d without a device", resp.StatusCode)
	case code == "unknown_device" && !forgets:
		return wrongf("the name is lost")
	}
	return fmt.Errorf("status %d, Iottunnel-Error %q", resp.StatusCode, code)
}

// fail counts what must not be, and shows the first ones.
func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	s.failures++
	n := s.failures
	s.mu.Unlock()
	if n <= 30 {
		fmt.Printf("soak: "+format+"\n", args...)
	}
	s.t.Fail()
}

// fault is something that happens; it returns when it is over, and what it was.
type fault struct {
	name   string
	weight int
	do     func(s *soak) string
}

// The faults of a cycle; those of eras come once in a while, because what a process
// holds is compared with itself.
var (
	soakFaults = []fault{
		{"edge reloaded", 3, (*soak).edgeReloaded},
		{"edge paused", 2, (*soak).edgePaused},
		{"agent killed", 3, (*soak).agentKilled},
		{"agent stopped", 2, (*soak).agentStopped},
		{"agent paused", 3, (*soak).agentPaused},
		{"Redis away", 2, (*soak).redisAway},
		{"Redis held", 1, (*soak).redisHeld},
		{"Redis emptied", 1, (*soak).redisEmptied},
		{"network cut", 3, (*soak).networkCut},
		{"connection aborted", 2, (*soak).connectionAborted},
	}
	eraFaults = []fault{
		{"edge killed", 2, (*soak).edgeKilled},
		{"edge stopped", 1, (*soak).edgeStopped},
		{"edge and Redis killed", 1, (*soak).allKilled},
	}
)

const (
	soakRounds = 3 // of faults in a cycle
	soakEra    = 6 // cycles
)

func (s *soak) pick(from []fault) fault {
	total := 0
	for _, f := range from {
		total += f.weight
	}
	at := s.rng.IntN(total)
	for _, f := range from {
		if at -= f.weight; at < 0 {
			return f
		}
	}
	panic("unreachable")
}

// while draws how long something lasts.
func (s *soak) while(most time.Duration) time.Duration {
	d := time.Duration(s.rng.Int64N(int64(most)))
	return d.Round(time.Millisecond)
}

// lasts is the length of a fault itself.
func lasts(d time.Duration) { time.Sleep(d) }

// device draws one; only one that may be ended, if so.
func (s *soak) device(ended bool) *soaked {
	for {
		if d := s.devices[s.rng.IntN(len(s.devices))]; !ended || !d.lasting {
			return d
		}
	}
}

func (s *soak) edgeReloaded() string {
	setup := s.setup
	setup.AccessLog = s.rng.IntN(2) == 0
	setup.Tunnel = append(setup.Tunnel[:len(setup.Tunnel):len(setup.Tunnel)], fmt.Sprintf("wait %ds", 1+s.rng.IntN(9)))
	s.face.Reload(s.t, setup)
	return "edge reloaded"
}

func (s *soak) edgePaused() string {
	d := s.while(8 * time.Second)
	s.face.Pause(s.t, d)
	return fmt.Sprintf("edge paused for %v", d)
}

func (s *soak) edgeKilled() string {
	d := s.while(3 * time.Second)
	s.face.Kill(s.t)
	s.edgeLife++
	lasts(d)
	s.face.Start(s.t)
	return fmt.Sprintf("edge killed, back after %v", d)
}

func (s *soak) edgeStopped() string {
	s.face.Stop(s.t)
	s.edgeLife++
	s.face.Start(s.t)
	return "edge stopped and started"
}

func (s *soak) allKilled() string {
	d := s.while(5 * time.Second)
	s.redis.Kill()
	s.face.Kill(s.t)
	s.edgeLife++
	s.redis.Start(s.t)
	lasts(d)
	s.face.Start(s.t)
	return fmt.Sprintf("edge and Redis killed, back after %v", d)
}

func (s *soak) agentKilled() string {
	d, away := s.device(true), s.while(2*time.Second)
	d.agent.Kill()
	lasts(away)
	s.start(d)
	return fmt.Sprintf("agent %s killed, back after %v", d.setup.Device.ID, away)
}

func (s *soak) agentStopped() string {
	d, away := s.device(true), s.while(2*time.Second)
	d.agent.Stop(s.t, 20*time.Second)
	lasts(away)
	s.start(d)
	return fmt.Sprintf("agent %s stopped, back after %v", d.setup.Device.ID, away)
}

func (s *soak) agentPaused() string {
	d, away := s.device(false), s.while(12*time.Second)
	d.agent.Signal(syscall.SIGSTOP)
	lasts(away)
	d.agent.Signal(syscall.SIGCONT)
	return fmt.Sprintf("agent %s paused for %v", d.setup.Device.ID, away)
}

func (s *soak) redisAway() string {
	away := s.while(14 * time.Second)
	s.redis.Kill()
	lasts(away)
	s.redis.Start(s.t)
	return fmt.Sprintf("Redis away for %v", away)
}

func (s *soak) redisHeld() string {
	away := s.while(8 * time.Second)
	s.redis.Hold()
	lasts(away)
	s.redis.Go()
	return fmt.Sprintf("Redis held for %v", away)
}

// redisEmptied has Redis come back with nothing, while all devices are connected.
func (s *soak) redisEmptied() string {
	s.allServe()
	s.mu.Lock()
	s.forgets = true
	s.mu.Unlock()
	s.redis.Do(s.t, "FLUSHALL")
	s.redis.Kill()
	s.redis.Start(s.t)
	began := time.Now()
	harness.Eventually(s.t, 30*time.Second, "what is held is written again", func() error {
		for _, d := range s.devices {
			label, _, _ := strings.Cut(d.host, ".")
			if is := s.redis.Hash(s.t, "iottunnel:device:{"+d.setup.Device.ID+"}")["label"]; is != label {
				return fmt.Errorf("%s has label %q, not %s", d.setup.Device.ID, is, label)
			}
		}
		return nil
	})
	s.mu.Lock()
	s.forgets = false
	s.mu.Unlock()
	return fmt.Sprintf("Redis emptied, written again after %v", time.Since(began).Round(time.Millisecond))
}

func (s *soak) networkCut() string {
	away, all := s.while(15*time.Second), s.rng.IntN(2) == 0
	if s.net == nil {
		return "nothing (no network to cut)"
	}
	at := s.net.device
	if all {
		at = s.net.edge
	}
	lift := at.Block(s.t, 0)
	lasts(away)
	lift()
	return fmt.Sprintf("network of the %s cut for %v", at.Name, away)
}

func (s *soak) connectionAborted() string {
	n := s.rng.IntN(4)
	if s.net == nil {
		return "nothing (no network to break)"
	}
	ports := s.net.device.Ports(s.t, s.net.edge.Addr)
	for range min(n+1, len(ports)) {
		s.net.device.AbortConnection(s.t, ports[n%len(ports)])
		ports = s.net.device.Ports(s.t, s.net.edge.Addr)
		if len(ports) == 0 {
			break
		}
	}
	return "connections of devices aborted"
}

// allServe waits until every device answers by its name and at its port, and returns
// how long that took.
func (s *soak) allServe() time.Duration {
	began := time.Now()
	v := &soakVisitor{s: s, client: s.clients[0], rng: rand.New(rand.NewPCG(s.seed, 1))}
	for _, d := range s.devices {
		v.d = d
		harness.Eventually(s.t, 2*time.Minute, d.setup.Device.ID+" serves again", func() error {
			ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
			defer cancel()
			err := errors.Join(v.page(ctx), v.tcpLines(ctx))
			if bad, isWrong := errors.AsType[wrong](err); isWrong {
				s.fail("%s, coming back: WRONG: %s", d.setup.Device.ID, bad.what)
			}
			return err
		})
	}
	return time.Since(began)
}

// cycle is some rounds of faults and calm under load, and a look at what processes
// hold when all is at rest again.
func (s *soak) cycle(cycle int, edge []*series, agents map[string][]*series) {
	t := s.t
	l := s.startLoad(t, cycle)
	var what []string
	var slowest time.Duration
	for round := range soakRounds {
		f := s.pick(soakFaults)
		if cycle%soakEra == soakEra-1 && round == 0 {
			f = s.pick(eraFaults)
		}
		what = append(what, f.do(s))
		slowest = max(slowest, s.allServe())
		s.beCalm(l)
	}
	l.end()
	s.waitForRest()
	now := s.face.Footprint(t)
	for i, value := range []float64{float64(now.Goroutines), float64(now.Descriptors), float64(now.Heap), float64(now.Stack), float64(now.Anonymous)} {
		edge[i].add(s.edgeLife, cycle, value)
	}
	held := ""
	for _, d := range s.devices {
		if !d.lasting {
			continue
		}
		if agents[d.profile] == nil {
			agents[d.profile] = soakSeries("agent "+d.profile, d.status != "")
		}
		fds, memory := d.agent.Holds(t)
		values := []float64{float64(fds), float64(memory)}
		held += fmt.Sprintf("; agent %s %d fd, %d KiB", d.profile, fds, memory>>10)
		if d.status != "" {
			values = append([]float64{s.agentGoroutines(d)}, values...)
			held += fmt.Sprintf(", %v goroutines", values[0])
		}
		for i, v := range values {
			agents[d.profile][i].add(0, cycle, v)
		}
	}
	fmt.Printf("soak: cycle %d: %s | %d done, %d broken by faults, back within %v, %d failures | edge %d goroutines, %d fd, %d KiB heap, %d KiB in all%s\n",
		cycle+1, strings.Join(what, "; "), l.done.Load(), l.broken.Load(), slowest.Round(10*time.Millisecond), s.failures,
		now.Goroutines, now.Descriptors, now.Heap>>10, now.Anonymous>>10, held)
}

// beCalm wants every device to serve its visitors without a fault for a while.
func (s *soak) beCalm(l *soakLoad) {
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
	for i := range l.served {
		l.served[i].Store(0)
	}
	l.calm.Add(1)
	defer l.calm.Add(1)
	const each = 12
	harness.Eventually(s.t, 2*time.Minute, "visitors are served", func() error {
		for i := range l.served {
			if n := l.served[i].Load(); n < each {
				return fmt.Errorf("%s: %d", s.devices[i].setup.Device.ID, n)
			}
		}
		return nil
	})
}

// waitForRest waits until kept connections have ended: parked sockets take longest,
// 20 s at the edge.
func (s *soak) waitForRest() {
	began, still := time.Now(), 0
	var last harness.Footprint
	harness.Eventually(s.t, 3*time.Minute, "edge and agents are at rest", func() error {
		time.Sleep(time.Second) // between two looks
		now := s.face.Footprint(s.t)
		if now.Goroutines != last.Goroutines || now.Descriptors != last.Descriptors {
			still = 0
		}
		still++
		last = now
		if still < 4 || time.Since(began) < 24*time.Second {
			return fmt.Errorf("%v", now)
		}
		return nil
	})
}

var agentRoutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)

// agentGoroutines asks an agent's status page.
func (s *soak) agentGoroutines(d *soaked) float64 {
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		if s.net != nil {
			return s.net.device.Dial(ctx, addr)
		}
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}}
	resp, err := (&http.Client{Transport: t, Timeout: 10 * time.Second}).Get("http://" + d.status + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	m := agentRoutines.FindSubmatch(text)
	if err != nil || m == nil {
		s.t.Fatalf("%s tells no goroutines: %v", d.setup.Device.ID, err)
	}
	n, _ := strconv.ParseFloat(string(m[1]), 64) // digits
	return n
}

// soakSeries are the figures of a process. A stream that is left behind costs at
// least a goroutine and a descriptor; memory that no file backs also grows with what
// the allocator keeps, so more of it is let pass.
func soakSeries(of string, routines bool) (all []*series) {
	if routines {
		all = append(all, &series{name: of + " goroutines", unit: 1, harmful: 0.2})
	}
	all = append(all, &series{name: of + " descriptors", unit: 1, harmful: 0.2})
	if of == "edge" {
		all = append(all, &series{name: of + " heap, KiB", unit: 1 << 10, harmful: 32 << 10}, &series{name: of + " stacks, KiB", unit: 1 << 10, harmful: 32 << 10})
	}
	return append(all, &series{name: of + " memory, KiB", unit: 1 << 10, harmful: 256 << 10})
}

func (s *soak) summary(edge []*series, agents map[string][]*series) {
	fmt.Printf("soak: at rest, over %d cycles, with intervals of 99 %% confidence:\n", len(edge[0].points))
	all := edge
	for _, profile := range []string{"basic", "full"} {
		all = append(all, agents[profile]...)
	}
	for _, one := range all {
		text, leak := one.verdict()
		fmt.Println("soak:   " + text)
		if leak {
			s.t.Fail()
		}
	}
	for _, fault := range s.devices[0].agent.Faults() {
		s.fail("agent: %s", fault)
	}
	fmt.Printf("soak: %d failures, SOAKSEED=%d\n", s.failures, s.seed)
}
