package redisregistry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// short opens a registry that gives up soon, as one does in production. No node ends by
// itself, on a slow machine, unless o says when.
func short(t *testing.T, o Options) *Registry {
	t.Helper()
	o.Timeout, o.DialTimeout = 5*time.Second, 5*time.Second
	if o.nodeTTL == 0 {
		o.nodeTTL = time.Hour
	}
	return open(t, o)
}

// patient opens a registry that leases nothing new after a loss until all nodes
// have restored, however long it takes.
func patient(t *testing.T, o Options) *Registry {
	t.Helper()
	o.settle = time.Hour
	return short(t, o)
}

// awaitLost fails unless Lost asks for Restore, now or after heartbeats.
func awaitLost(t *testing.T, r *Registry, n registry.NodeRef) {
	t.Helper()
	redistest.Eventually(t, "the loss is noticed", func() bool {
		select {
		case <-r.Lost():
			return true
		default:
		}
		// It may fail as long as Redis is not there.
		_ = r.Beat(t.Context(), registry.Node{NodeRef: n})
		return false
	})
}

func notLost(t *testing.T, r *Registry) {
	t.Helper()
	select {
	case <-r.Lost():
		t.Error("Lost asks for Restore, but nothing was lost")
	default:
	}
}

// refused fails unless a device without a lease gets none for the time being.
func refusedNew(t *testing.T, r *Registry, c registry.Claim) {
	t.Helper()
	if l, err := r.Claim(t.Context(), c); !errors.Is(err, errRestoring) {
		t.Errorf("Claim of a new device before all has been restored: %+v, %v", l, err)
	}
}

func TestRedisDown(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	s.Kill()
	const secret = "correct-horse"
	o := Options{URL: "redis://:" + secret + "@" + s.Addr}
	required := o
	required.Require = true
	if r, err := Open(t.Context(), required); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("Open that requires Redis: %v, %v", r, err)
	}
	r := short(t, Options{URL: "redis://" + s.Addr})
	n := registry.NodeRef{ID: "n1", Epoch: "e1"}
	fails := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := r.Claim(ctx, ask(n, "cam", "t1"))
		if err == nil || errors.Is(err, registry.ErrLost) || errors.Is(err, registry.ErrLabelTaken) || ctx.Err() != nil {
			t.Errorf("Claim without Redis: %v", err)
		}
		if lost, err := r.Refresh(ctx, time.Hour, []registry.Holder{{Device: "cam", Generation: 1, Tunnel: "t1"}}); err == nil {
			t.Errorf("Refresh without Redis: lost %v", lost)
		}
		if _, err := r.ByLabel(ctx, "label-cam"); err == nil || errors.Is(err, registry.ErrUnknown) {
			t.Errorf("ByLabel without Redis: %v", err)
		}
		if err := r.Beat(ctx, registry.Node{NodeRef: n}); err == nil {
			t.Error("Beat without Redis")
		}
	}
	fails()
	s.Start()
	beatNode(t, r, n.ID, n.Epoch)
	cam := claim(t, r, ask(n, "cam", "t1"))
	notLost(t, r) // it was empty, as far as this node can know
	s.Kill()
	fails()
	s.Start()
	awaitLost(t, r, n)
	restore(t, r, []registry.Held{cam})
	online(t, r, cam)
}

func TestRedisHangs(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, r, "n1", "e1")
	s.Do("CLIENT", "PAUSE", "3000", "ALL")
	ctx, cancel := context.WithCancel(t.Context())
	stop := time.AfterFunc(50*time.Millisecond, cancel)
	defer stop.Stop()
	began := time.Now()
	if _, err := r.Claim(ctx, ask(n, "cam", "t1")); !errors.Is(err, context.Canceled) {
		t.Errorf("Claim that was given up: %v", err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Claim ended %v after its context had", took)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Nodes(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Nodes with a deadline: %v", err)
	}
}

// TestRestartedEmpty also plays what comes in before the loss was noticed.
func TestRestartedEmpty(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	a, b := patient(t, Options{URL: "redis://" + s.Addr}), patient(t, Options{URL: "redis://" + s.Addr})
	na, nb := beatNode(t, a, "a", "e1"), beatNode(t, b, "b", "e1")
	beatNode(t, a, "a", "e1") // and sees b
	cam, door, bell := claim(t, a, ask(na, "cam", "t1")), claim(t, a, ask(na, "door", "t1")), claim(t, b, ask(nb, "bell", "t1"))
	leasePorts(t, a, &cam, 22, 80)
	leasePorts(t, b, &bell, 22)
	leases, version, err := b.Ports(t.Context(), 0)
	if err != nil || len(leases) != 3 {
		t.Fatalf("Ports: %v, %v", leases, err)
	}
	s.Kill()
	s.Start()

	if none, _, err := b.Ports(t.Context(), version); !errors.Is(err, errRestoring) {
		t.Errorf("Ports that Redis has forgotten: %v, %v", none, err)
	}
	refresh(t, a, []registry.Held{cam, door}) // nobody is told to be lost
	if _, err := b.LeasePorts(t.Context(), bell.Holder, []uint16{22, 80}, 40000, 40099); !errors.Is(err, errRestoring) {
		t.Errorf("LeasePorts of what Redis has forgotten: %v", err)
	}
	refusedNew(t, b, ask(nb, "new", "t1"))
	// A device of the other node comes here, and must not get another label.
	moved := ask(nb, "cam", "t2")
	moved.Label = "another"
	refusedNew(t, b, moved)
	awaitLost(t, a, na)
	awaitLost(t, b, nb)

	restore(t, b, []registry.Held{bell})
	beatNode(t, b, "b", "e1")
	refusedNew(t, b, ask(nb, "new", "t1")) // a has not
	if some, _, err := b.Ports(t.Context(), version); !errors.Is(err, errRestoring) {
		t.Errorf("Ports before all has been restored: %v, %v", some, err)
	}
	restore(t, a, []registry.Held{cam, door})
	beatNode(t, a, "a", "e1")
	for _, h := range []registry.Held{cam, door, bell} {
		online(t, a, h)
	}
	if again, _, err := b.Ports(t.Context(), version); err != nil || len(again) != 3 {
		t.Errorf("Ports: %v, %v", again, err)
	}
	refresh(t, a, []registry.Held{cam, door})
	if page, err := b.Devices(t.Context(), "", 10); err != nil || len(page) != 3 {
		t.Errorf("Devices: %+v, %v", page, err)
	}
	next, err := b.Claim(t.Context(), moved)
	if err != nil || next.Label != cam.Label || next.Fresh || next.Generation <= cam.Generation || next.Previous.Holder != cam.Holder {
		t.Errorf("Claim after all is restored: %+v, %v", next, err)
	}
	refresh(t, a, []registry.Held{cam, door}, cam.Holder)
	restore(t, a, []registry.Held{cam, door}, cam.Holder) // late, with what it has lost since
	fresh := claim(t, b, ask(nb, "new", "t1"))
	leasePorts(t, b, &fresh, 22, 23, 24)
	online(t, a, fresh)
}

// TestRolledBack goes back to an old dump: what was written since is gone, and
// what had been replaced is there again.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	a, b := patient(t, Options{URL: "redis://" + s.Addr}), patient(t, Options{URL: "redis://" + s.Addr})
	na, nb := beatNode(t, a, "a", "e1"), beatNode(t, b, "b", "e1")
	beatNode(t, a, "a", "e1")
	oldCam, oldDoor, lamp := claim(t, a, ask(na, "cam", "t1")), claim(t, a, ask(na, "door", "t1")), claim(t, a, ask(na, "lamp", "t1"))
	leasePorts(t, a, &oldDoor, 22)
	s.Do("SAVE")

	cam := claim(t, b, ask(nb, "cam", "t2"))
	if err := a.Release(t.Context(), oldDoor.Holder, 0, "revoked"); err != nil {
		t.Fatal(err)
	}
	c := ask(na, "door", "t2")
	c.Label = "door-after"
	door := claim(t, a, c)
	leasePorts(t, a, &door, 80)
	bell := claim(t, b, ask(nb, "bell", "t1"))
	leasePorts(t, b, &bell, 22, 23)
	s.Kill()
	s.Start()

	refresh(t, a, []registry.Held{door, lamp})
	refresh(t, b, []registry.Held{cam, bell})
	awaitLost(t, a, na)
	awaitLost(t, b, nb)
	restore(t, a, []registry.Held{oldCam, door, lamp}) // nobody has told a that it lost cam
	restore(t, b, []registry.Held{cam, bell})
	beatNode(t, a, "a", "e1")
	beatNode(t, b, "b", "e1")
	for _, h := range []registry.Held{cam, door, bell, lamp} {
		online(t, a, h)
	}
	refresh(t, a, []registry.Held{oldCam, door, lamp}, oldCam.Holder)
	refresh(t, b, []registry.Held{cam, bell})
	if rec, err := a.ByLabel(t.Context(), oldDoor.Label); !errors.Is(err, registry.ErrUnknown) {
		t.Errorf("the label of a lease that had ended: %+v, %v", rec, err)
	}
	// Its route came back with the dump, and is in nobody's way.
	c = ask(na, "new", "t1")
	c.Label = oldDoor.Label
	online(t, b, claim(t, a, c))
}

// TestNodeIsLost loses the key of a node that lives, and not the records of its devices:
// another instance does not get them until that node has had the time to say so.
func TestNodeIsLost(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	a, b := patient(t, Options{URL: "redis://" + s.Addr}), patient(t, Options{URL: "redis://" + s.Addr})
	na, nb := beatNode(t, a, "a", "e1"), beatNode(t, b, "b", "e1")
	beatNode(t, b, "b", "e1") // and sees a
	cam := claim(t, a, ask(na, "cam", "t1"))
	s.Do("SAVE")
	s.Kill()
	s.Start()
	s.Do("DEL", a.keys.node("a"))
	other := ask(nb, "cam", "t2")
	other.Instance = "another"
	refusedNew(t, b, other)
	restore(t, b, nil)
	refusedNew(t, b, other)
	restore(t, a, []registry.Held{cam})
	var held *registry.HeldError
	if l, err := b.Claim(t.Context(), other); !errors.As(err, &held) || held.Incumbent.Holder != cam.Holder {
		t.Errorf("Claim of a device that is connected: %+v, %v", l, err)
	}
	online(t, b, cam)
}

// TestSweep lists many devices that are gone: heartbeats take them out of the list.
func TestSweep(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, r, "n", "e1")
	cam := claim(t, r, ask(n, "cam", "t1"))
	const many = 3000
	var gone []redis.Z
	for i := range many {
		gone = append(gone, redis.Z{Member: fmt.Sprintf("d%04d", i)})
	}
	if err := r.c.ZAdd(t.Context(), r.keys.devices(), gone...).Err(); err != nil {
		t.Fatal(err)
	}
	for range sweepEvery + many/sweepMost + 1 {
		beatNode(t, r, "n", "e1")
	}
	if left := s.Do("ZRANGE", r.keys.devices(), "0", "-1"); left != "cam" {
		t.Errorf("%d devices are listed, want one", strings.Count(left, "\n")+1)
	}
	online(t, r, cam)
}

func TestFlushed(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	a := patient(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, a, "a", "e1")
	cam := claim(t, a, ask(n, "cam", "t1"))
	notLost(t, a)
	s.Do("FLUSHALL")
	refresh(t, a, []registry.Held{cam})
	refusedNew(t, a, ask(n, "new", "t1"))
	awaitLost(t, a, n)
	restore(t, a, []registry.Held{cam})
	online(t, a, cam)
	claim(t, a, ask(n, "new", "t1"))

	beatNode(t, a, "a", "e1")
	s.Do("FLUSHALL")
	awaitLost(t, a, n) // by the heartbeat alone
	restore(t, a, nil) // who forgets to name what it holds loses it
	refresh(t, a, []registry.Held{cam}, cam.Holder)
}

// TestSettles gives up waiting for a node that does not come back.
func TestSettles(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	var ahead atomic.Int64
	a := short(t, Options{URL: "redis://" + s.Addr, settle: time.Hour, now: func() time.Time {
		return time.Now().Add(time.Duration(ahead.Load()))
	}})
	b := short(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, a, "a", "e1")
	beatNode(t, b, "b", "e1")
	beatNode(t, a, "a", "e1")
	s.Kill()
	s.Start()
	awaitLost(t, a, n)
	restore(t, a, nil)
	refusedNew(t, a, ask(n, "new", "t1"))
	ahead.Store(int64(time.Hour))
	claim(t, a, ask(n, "new", "t1"))
}

// TestSilentNode is a node that was cut off for a while, whose devices went elsewhere.
func TestSilentNode(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	o := Options{URL: "redis://" + s.Addr, nodeTTL: 300 * time.Millisecond}
	a, b := patient(t, o), patient(t, o)
	n := beatNode(t, a, "a", "e1")
	cam, door := claim(t, a, ask(n, "cam", "t1")), claim(t, a, ask(n, "door", "t1"))
	redistest.Eventually(t, "the node counts as gone", func() bool {
		nodes, err := b.Nodes(t.Context())
		return err == nil && len(nodes) == 0
	})
	c := ask(registry.NodeRef{ID: "b", Epoch: "e1"}, "cam", "t2")
	c.Instance = "another"
	if l, err := b.Claim(t.Context(), c); err != nil || l.Previous != (registry.Incumbent{}) {
		t.Errorf("Claim from a node that is gone: %+v, %v", l, err)
	}
	notLost(t, a)
	beatNode(t, a, "a", "e1")
	select {
	case <-a.Lost():
	default:
		t.Error("the node is not told that it was silent")
	}
	restore(t, a, []registry.Held{cam, door}, cam.Holder)
	claim(t, a, ask(n, "new", "t1")) // no data was lost
}

// TestNodeMoves is a node whose internal address changes while it lives.
func TestNodeMoves(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, r, "n1", "e1")
	cam := claim(t, r, ask(n, "cam", "t1"))
	beatNode(t, r, "n1", "e1")
	notLost(t, r)
	hints := r.Hints(t.Context())
	heard(t, hints, registry.Hint{})
	if err := r.Beat(t.Context(), registry.Node{NodeRef: n, Internal: "10.0.0.99:8080"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Lost():
	default:
		t.Fatal("nobody is asked to write the routes again")
	}
	restore(t, r, []registry.Held{cam})
	if to := s.Do("HGET", "iottunnel:lease:{"+cam.Label+"}", "http"); to != "10.0.0.99:8080" {
		t.Errorf("the route leads to %s", to)
	}
	heard(t, hints, registry.Hint{Device: "cam", Label: cam.Label})
	claim(t, r, ask(n, "new", "t1")) // no data was lost
}

func TestFailover(t *testing.T) {
	t.Parallel()
	g := redistest.WithSentinels(t, "sentinel-password", nil)
	r := patient(t, Options{Sentinel: &Sentinel{Master: g.Name, Addrs: g.Addrs(), Password: "sentinel-password"}})
	n := beatNode(t, r, "n1", "e1")
	var held []registry.Held
	for i := range 50 {
		held = append(held, claim(t, r, ask(n, fmt.Sprintf("d%02d", i), "t1")))
	}
	leasePorts(t, r, &held[0], 22)
	g.Master.Kill()
	awaitLost(t, r, n)
	redistest.Eventually(t, "all is written again", func() bool {
		lost, err := r.Restore(t.Context(), held)
		if len(lost) > 0 {
			t.Errorf("lost %v", lost)
		}
		return err == nil
	})
	refresh(t, r, held)
	for _, h := range held {
		online(t, r, h)
	}
	next := claim(t, r, ask(n, "d00", "t2"))
	if next.Generation <= held[0].Generation {
		t.Errorf("generation %d after %d", next.Generation, held[0].Generation)
	}
}

// TestClusterLosesAMaster restarts one of three masters empty.
func TestClusterLosesAMaster(t *testing.T) {
	t.Parallel()
	servers := redistest.Cluster(t, nil)
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.Addr)
	}
	r := patient(t, Options{Cluster: addrs})
	n := beatNode(t, r, "n1", "e1")
	var held []registry.Held
	for i := range 50 {
		held = append(held, claim(t, r, ask(n, fmt.Sprintf("d%02d", i), "t1")))
		if i%10 == 0 {
			leasePorts(t, r, &held[i], 22)
		}
	}
	for _, s := range servers {
		s.Kill()
		s.Start()
		awaitLost(t, r, n)
		redistest.Eventually(t, "all is written again", func() bool {
			lost, err := r.Restore(t.Context(), held)
			if len(lost) > 0 {
				t.Errorf("lost %v", lost)
			}
			return err == nil
		})
		refresh(t, r, held)
		for _, h := range held {
			online(t, r, h)
		}
		if list, _, err := r.Ports(t.Context(), 0); err != nil || len(list) != 5 {
			t.Errorf("Ports: %v, %v, want the 5 that are leased", list, err)
		}
		beatNode(t, r, "n1", "e1")
	}
}

// TestClusterHasASilentMaster has a node start, and live on, while a master is silent of
// which its heartbeat needs no key.
func TestClusterHasASilentMaster(t *testing.T) {
	t.Parallel()
	servers := redistest.Cluster(t, nil)
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.Addr)
		s.Do("CONFIG", "SET", "cluster-require-full-coverage", "no")
	}
	first := open(t, Options{Cluster: addrs})
	beatNode(t, first, "n0", "e1") // writes the schema
	needed := func(key string) string {
		c, err := first.masterOf(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return c.Options().Addr
	}
	used := map[string]bool{}
	for _, key := range []string{first.keys.schema(), first.keys.fresh(), first.keys.nodes()} {
		used[needed(key)] = true
	}
	if len(used) == len(servers) {
		t.Fatalf("each master has a key that a heartbeat needs")
	}
	id := 1
	for !used[needed(first.keys.node(fmt.Sprintf("n%d", id)))] {
		id++
	}
	for _, s := range servers {
		if !used[s.Addr] {
			s.Stop()
			defer s.Continue()
		}
	}
	r := open(t, Options{Cluster: addrs, Timeout: defaultTimeout})
	within := defaultTimeout + registry.NodeHeartbeat // the silent master may be asked first who has which slots
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		n := registry.Node{NodeRef: registry.NodeRef{ID: fmt.Sprintf("n%d", id), Epoch: "e1"}, Capacity: 1}
		if err := r.Beat(ctx, n); err != nil {
			t.Error(err)
		}
		cancel()
		within = registry.NodeHeartbeat
	}
}

// TestClusterIsFlushed flushes one master after the other, as redis-cli does, of which just one
// has the node's key.
func TestClusterIsFlushed(t *testing.T) {
	t.Parallel()
	servers := redistest.Cluster(t, nil)
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.Addr)
	}
	r := patient(t, Options{Cluster: addrs})
	n := beatNode(t, r, "n1", "e1")
	var held []registry.Held
	for i := range 30 {
		held = append(held, claim(t, r, ask(n, fmt.Sprintf("d%02d", i), "t1")))
	}
	for i, s := range servers {
		notLost(t, r)
		s.Do("FLUSHALL")
		if i == 0 { // by a call that misses something, else by a heartbeat
			refresh(t, r, held)
		} else {
			beatNode(t, r, "n1", "e1")
		}
		select {
		case <-r.Lost():
		default:
			t.Error("the flush is not noticed")
		}
		restore(t, r, held)
		refresh(t, r, held)
		for _, h := range held {
			online(t, r, h)
		}
		s.Do("CONFIG", "RESETSTAT")
		beatNode(t, r, "n1", "e1")
	}
	notLost(t, r)
}

// TestPortsAreLost loses public ports, and not the records of those that have them.
func TestPortsAreLost(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := patient(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, r, "n", "e1")
	cam, door, bell := claim(t, r, ask(n, "cam", "t1")), claim(t, r, ask(n, "door", "t1")), claim(t, r, ask(n, "bell", "t1"))
	all := []registry.Held{cam, door, bell}
	for i, want := range [][]uint16{{22, 80}, {22}, {9, 80, 443}} {
		leasePorts(t, r, &all[i], want...)
	}
	lose := func() {
		s.Do(append([]string{"DEL"}, r.keys.portKeys()...)...)
	}
	leased := func(want int) {
		t.Helper()
		if list, _, err := r.Ports(t.Context(), 0); err != nil || len(list) != want {
			t.Errorf("Ports: %v, %v, want %d", list, err, want)
		}
	}
	lose()
	s.Do("HDEL", r.keys.device("door"), "ports") // as of before they were leased
	s.Do("HSET", r.keys.device("bell"), "ports", fmt.Sprintf("80=%d", all[2].Ports[80]), "rests",
		fmt.Sprintf("443=%d=%d", all[2].Ports[443], time.Now().Add(time.Hour).UnixMilli()))
	restore(t, r, all)
	leased(6)
	for _, h := range all {
		online(t, r, h)
	}
	if rests := s.Do("HGET", r.keys.device("bell"), "rests"); rests != "" {
		t.Errorf("%s rests while it is leased", rests)
	}

	// Somebody else gets one before it is written again.
	lose()
	thief := claim(t, r, ask(n, "thief", "t1"))
	public := all[0].Ports[22]
	if _, err := r.LeasePorts(t.Context(), thief.Holder, []uint16{22}, public, public); err != nil {
		t.Fatal(err)
	}
	refresh(t, r, all, all[0].Holder)
	restore(t, r, all, all[0].Holder)
	leased(6) // all, but one of them is the thief's
	again := claim(t, r, ask(n, "cam", "t2"))
	again.Ports = map[uint16]uint16{80: all[0].Ports[80]}
	online(t, r, again)
	leasePorts(t, r, &again, 22, 80)
	if again.Ports[22] == public || again.Ports[80] != all[0].Ports[80] {
		t.Errorf("ports %v after %v, of which %d is another's", again.Ports, all[0].Ports, public)
	}
	leased(7)
	refresh(t, r, []registry.Held{again, all[1], all[2], thief})
}

func TestOptions(t *testing.T) {
	t.Parallel()
	const secret = "correct-horse"
	for name, o := range map[string]Options{
		"nothing":              {},
		"two":                  {URL: "redis://h", Cluster: []string{"h:1"}},
		"another scheme":       {URL: "http://u:" + secret + "@h"},
		"a port that is none":  {URL: "redis://u:" + secret + "@h:port"},
		"a password with %":    {URL: "redis://u:" + secret + "%zz@h"},
		"two databases":        {URL: "redis://u:" + secret + "@h/1/2"},
		"options in it":        {URL: "redis://u:" + secret + "@h?pool_size=3"},
		"TLS without rediss":   {URL: "redis://u:" + secret + "@h", TLS: &tls.Config{}},
		"no sentinel":          {Sentinel: &Sentinel{Master: "m", Password: secret}},
		"no master":            {Sentinel: &Sentinel{Addrs: []string{"h:1"}, Password: secret}},
		"cluster without port": {Cluster: []string{"h"}},
		"cluster with a DB":    {Cluster: []string{"h:1"}, DB: 1},
		"braces":               {URL: "redis://h", KeyPrefix: "{x}:"},
	} {
		r, err := Open(t.Context(), o)
		if err == nil {
			t.Errorf("%s: accepted", name)
			_ = r.Close()
			continue
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the password is in %q", name, err)
		}
	}
	s := redistest.Start(t, redistest.Options{Args: []string{"--requirepass", "another"}, CLI: []string{"--pass", "another"}})
	if _, err := Open(t.Context(), Options{URL: "redis://:" + secret + "@" + s.Addr, Require: true}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("Open with a wrong password: %v", err)
	}
}

// TestStartAfterLoss starts nodes beside a Redis that has come back empty: they hand
// out nothing that a node holds which was there before.
func TestStartAfterLoss(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	o := Options{URL: "redis://" + s.Addr}
	a := patient(t, o)
	na := beatNode(t, a, "a", "e1")
	cam, door := claim(t, a, ask(na, "cam", "t1")), claim(t, a, ask(na, "door", "t1"))
	leasePorts(t, a, &cam, 22)
	s.Kill()
	s.Start()
	var ahead atomic.Int64
	o.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	o.newTime = time.Minute
	b, c := patient(t, o), patient(t, o)
	nb, nc := beatNode(t, b, "b", "e1"), beatNode(t, c, "c", "e1")
	moved := ask(nb, "door", "t2")
	moved.Label = "another"
	refusedNew(t, b, moved)
	refusedNew(t, c, ask(nc, "bell", "t1"))
	awaitLost(t, a, na) // and its heartbeat says that it has not restored yet
	ahead.Store(int64(o.newTime))
	beatNode(t, b, "b", "e1")
	beatNode(t, c, "c", "e1")
	refusedNew(t, b, moved)
	refusedNew(t, c, ask(nc, "bell", "t1"))
	restore(t, a, []registry.Held{cam, door})
	if l := claim(t, b, moved); l.Label != door.Label {
		t.Errorf("door gets the label %q at another node, want its own, %q", l.Label, door.Label)
	}
	bell := claim(t, c, ask(nc, "bell", "t1"))
	leasePorts(t, c, &bell, 22)
	if bell.Ports[22] == cam.Ports[22] {
		t.Errorf("port %d is leased twice", bell.Ports[22])
	}
	notLost(t, b)
}

// TestReadBeforeRestore judges what was read while it was lost, once it is there again.
func TestReadBeforeRestore(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := patient(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, r, "a", "e1")
	cam := claim(t, r, ask(n, "cam", "t1"))
	s.Do("FLUSHALL")
	began := r.now()
	records, _, err := r.readAll(t.Context(), []string{"cam"})
	if err != nil {
		t.Fatal(err)
	}
	by := records[0].generationText()
	awaitLost(t, r, n)
	restore(t, r, []registry.Held{cam})
	lost, err := r.sortLost(t.Context(), []registry.Holder{cam.Holder}, []string{by}, []bool{false}, began)
	if len(lost) > 0 || err != nil {
		t.Errorf("lost %v, %v, though it was written again meanwhile", lost, err)
	}
	if err := r.lostError(t.Context(), cam.Holder, by, began); !errors.Is(err, errRestoring) {
		t.Errorf("a call that missed it then: %v", err)
	}
	if err := r.lostError(t.Context(), cam.Holder, by, r.now()); !errors.Is(err, registry.ErrLost) {
		t.Errorf("a call that misses it now: %v", err)
	}
}
