package redisregistry

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// A gate is a link to a server that keeps what is sent while it is shut, as a kernel does also
// when the socket has been closed, and delivers it when it opens.
type gate struct {
	addr string
	wg   sync.WaitGroup

	mu    sync.Mutex // guards what follows
	open  map[way]chan struct{}
	conns []net.Conn
}

// A way is which of what passes a gate is meant.
type way int

const (
	calls way = iota
	replies
)

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: l.Addr().String(), open: map[way]chan struct{}{}}
	for _, w := range []way{calls, replies} {
		g.shut(w)()
	}
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			g.mu.Lock()
			g.conns = append(g.conns, c, s)
			g.mu.Unlock()
			g.wg.Go(func() { g.pass(calls, c, s) })
			g.wg.Go(func() { g.pass(replies, s, c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.cut()
		g.wg.Wait()
	})
	return g
}

// pass hands on what comes from one side, once the gate is open for it. What a client
// has sent arrives also when it has closed its side.
func (g *gate) pass(w way, from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		open := g.open[w]
		g.mu.Unlock()
		<-open
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut ends all connections there are.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

// shut keeps calls or replies back; the function that it returns, which may be called
// again, opens the gate for them.
func (g *gate) shut(w way) func() {
	open := make(chan struct{})
	g.mu.Lock()
	g.open[w] = open
	g.mu.Unlock()
	return sync.OnceFunc(func() { close(open) })
}

// TestLateClaim delivers a claim after its caller has given it up, and the device has gone
// to another node: it stays there.
func TestLateClaim(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	s := redistest.Start(t, redistest.Options{Clock: clock})
	g := newGate(t, s.Addr)
	a := short(t, Options{URL: "redis://" + g.addr, now: clock.Now})
	b := short(t, Options{URL: "redis://" + s.Addr, now: clock.Now})
	na, nb := beatNode(t, a, "a", "e1"), beatNode(t, b, "b", "e1")
	claim(t, a, ask(na, "door", "t0")) // so that Redis knows the script
	open := g.shut(calls)
	t.Cleanup(open)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if l, err := a.Claim(ctx, ask(na, "cam", "late")); err == nil {
		t.Fatalf("Claim without an answer: %+v", l)
	}
	clock.Advance(time.Minute)
	cam := claim(t, b, ask(nb, "cam", "t2"))
	before := s.Commands()["evalsha"]
	open()
	redistest.Eventually(t, "the late claim is delivered", func() bool { return s.Commands()["evalsha"] > before })
	online(t, b, cam)
	refresh(t, b, []registry.Held{cam})
}

// TestDoubt carries a claim out whose caller does not hear of it, and whose agent does not
// come back: the device is offline soon, and not at the end of its lease.
func TestDoubt(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	s := redistest.Start(t, redistest.Options{Clock: clock})
	g := newGate(t, s.Addr)
	r := short(t, Options{URL: "redis://" + g.addr, now: clock.Now})
	n := beatNode(t, r, "a", "e1")
	first := claim(t, r, ask(n, "cam", "t0"))
	if err := r.Release(t.Context(), first.Holder, time.Hour, "bye"); err != nil {
		t.Fatal(err)
	}
	door := claim(t, r, ask(n, "door", "t0"))
	open := g.shut(replies)
	t.Cleanup(open)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := r.Claim(ctx, ask(n, "cam", "t1"))
		done <- err
	}()
	redistest.Eventually(t, "the claim is carried out", func() bool {
		return s.Do("HGET", r.keys.device("cam"), "tunnel") == "t1"
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Claim without an answer: %v", err)
	}
	open()
	beatNode(t, r, "a", "e1") // too soon: the claim might still come
	clock.Advance(time.Minute)
	beatNode(t, r, "a", "e1")
	rec, err := r.ByDevice(t.Context(), "cam")
	if err != nil || rec.Online != (registry.Incumbent{}) || rec.Label != first.Label || rec.Why != whyGivenUp {
		t.Errorf("record %+v, %v, want it offline", rec, err)
	}
	online(t, r, door)

	// One that comes to a good end after all is none.
	r.doubts.add("t2", doubt{"cam", time.Hour, clock.Now()})
	cam := claim(t, r, ask(n, "cam", "t2"))
	clock.Advance(time.Minute)
	beatNode(t, r, "a", "e1")
	online(t, r, cam)
}

// TestRepeatedClaim repeats a claim whose answer was lost: it still says whom it has replaced.
func TestRepeatedClaim(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, r, "a", "e1")
	first := claim(t, r, ask(n, "cam", "t1"))
	want := registry.Incumbent{Holder: first.Holder, Instance: first.Instance, Node: n}
	var cam registry.Lease
	for range 3 {
		var err error
		cam, err = r.Claim(t.Context(), ask(n, "cam", "t2"))
		if err != nil || cam.Previous != want {
			t.Errorf("Claim: %+v, %v, want that it replaced %+v", cam, err, want)
		}
	}
	if err := r.Release(t.Context(), cam.Holder, time.Hour, "bye"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if again, err := r.Claim(t.Context(), ask(n, "cam", "t2")); err != nil || again.Previous != (registry.Incumbent{}) {
			t.Errorf("Claim of a device that was offline: %+v, %v", again, err)
		}
	}
}

// TestClocksOfServers claims at servers whose clock is not what it was said to be.
func TestClocksOfServers(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, r, "n", "e1")
	addr := s.Addr
	for _, ahead := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		r.clocks.set(addr, moment{time.Now().Add(ahead).UnixMilli(), time.Now()})
		online(t, r, claim(t, r, ask(n, "cam", "t1")))
	}
	if m, ok := r.clocks.get(addr); !ok || time.UnixMilli(m.serverMS).Before(time.Now().Add(-time.Hour)) {
		t.Errorf("the clock of %s: %+v, %v", addr, m, ok)
	}
}

// TestLateReservation plays the reservation of a label that an earlier claim of its device has
// sent: it takes the node out of the route, and a refresh puts it there again.
func TestLateReservation(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	cam := claim(t, r, ask(beatNode(t, r, "n", "e1"), "cam", "t1"))
	route := func() string { return s.Do("HMGET", r.keys.lease(cam.Label), "node", "epoch", "http", "gen") }
	before := route()
	if reserved, err := r.reserve(t.Context(), "cam", cam.Label, "token of before", live(cam.Lease)); !reserved || err != nil {
		t.Fatalf("reserve: %v, %v", reserved, err)
	}
	if route() == before {
		t.Fatalf("the route is left as it was: %s", before)
	}
	refresh(t, r, []registry.Held{cam})
	if got := route(); got != before {
		t.Errorf("the route after a refresh is %q, want %q", got, before)
	}
}

// A hold keeps one batch back that calls a script.
type hold struct {
	script      *redis.Script
	reached, on chan struct{} // closed when it is there, and by the test
}

func (h hold) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h hold) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h hold) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if slices.ContainsFunc(cmds, func(c redis.Cmder) bool { return slices.Contains(c.Args(), any(h.script.Hash())) }) {
			close(h.reached)
			<-h.on
		}
		return next(ctx, cmds)
	}
}

// TestLateGoodbye has the second half of a release come after the next claim: the ports
// last as long as the lease of that one.
func TestLateGoodbye(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	a, b := short(t, Options{URL: "redis://" + s.Addr}), short(t, Options{URL: "redis://" + s.Addr})
	na, nb := beatNode(t, a, "a", "e1"), beatNode(t, b, "b", "e1")
	cam := claim(t, a, ask(na, "cam", "t1"))
	leasePorts(t, a, &cam, 22)
	h := hold{leavePortsScript, make(chan struct{}), make(chan struct{})}
	a.c.AddHook(h)
	done := make(chan error, 1)
	go func() { done <- a.Release(t.Context(), cam.Holder, time.Hour, "bye") }()
	<-h.reached
	again := claim(t, b, ask(nb, "cam", "t2"))
	close(h.on)
	if err := <-done; err != nil {
		t.Errorf("Release: %v", err)
	}
	again.Ports = cam.Ports
	online(t, b, again)
	rec, err := b.ByDevice(t.Context(), "cam")
	if _, until := use(t, b, cam.Ports[22]); err != nil || until < rec.Until.UnixMilli() {
		t.Errorf("the port ends at %d, and the lease at %d, %v", until, rec.Until.UnixMilli(), err)
	}
}

// TestRepeatedNotes repeats a batch whose answer was lost: each event is there once.
func TestRepeatedNotes(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	g := newGate(t, s.Addr)
	r := short(t, Options{URL: "redis://" + g.addr})
	events := func(kinds ...string) (list []registry.Event) {
		for _, kind := range kinds {
			list = append(list, registry.Event{Device: "cam", Kind: kind, Node: "n"})
		}
		return list
	}
	if err := r.Note(t.Context(), events(registry.EventOnline)); err != nil { // so that Redis knows the script
		t.Fatal(err)
	}
	open := g.shut(replies)
	t.Cleanup(open)
	done := make(chan error, 1)
	go func() { done <- r.Note(t.Context(), events("offline", registry.EventOnline)) }()
	redistest.Eventually(t, "the events are written", func() bool {
		return strings.Count(s.Do("HGET", r.keys.journal("cam"), "events"), "\t") == 3*3
	})
	g.cut()
	open()
	if err := <-done; err != nil {
		t.Errorf("Note, repeated: %v", err)
	}
	j, err := r.Journal(t.Context(), "cam")
	if err != nil || len(j.Events) != 3 || j.Connects != 2 {
		t.Errorf("journal %+v, %v, want 3 events of which 2 are connections", j, err)
	}
}

// TestRepeatedBeat repeats a heartbeat whose answer was lost, and which has found the node's key
// missing: it still says so.
func TestRepeatedBeat(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	g := newGate(t, s.Addr)
	r := patient(t, Options{URL: "redis://" + g.addr})
	n := beatNode(t, r, "n", "e1")
	beatNode(t, r, "n", "e1")
	notLost(t, r)
	s.Do("DEL", r.keys.node("n"))
	open := g.shut(replies)
	t.Cleanup(open)
	done := make(chan error, 1)
	go func() { done <- r.Beat(t.Context(), registry.Node{NodeRef: n, Internal: "10.0.0.1:8080"}) }()
	redistest.Eventually(t, "the heartbeat is carried out", func() bool {
		return s.Do("HGET", r.keys.node("n"), "epoch") == "e1"
	})
	g.cut()
	open()
	if err := <-done; err != nil {
		t.Fatalf("Beat, repeated: %v", err)
	}
	select {
	case <-r.Lost():
	default:
		t.Error("nobody is asked to write again what is held")
	}
}
