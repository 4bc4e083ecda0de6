package tunnelcore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// told is a registry that says what the test has it say.
type told struct {
	registry.Registry
	hints chan registry.Hint
	reads atomic.Int64

	mu    sync.Mutex
	by    map[string]registry.Record // by device, which is the label, too
	err   error
	lost  string // which label or device it cannot tell of
	takes time.Duration
	off   time.Duration // by which its clock is ahead
}

func (r *told) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *told) ByDevice(ctx context.Context, device string) (registry.Record, error) {
	r.reads.Add(1)
	r.mu.Lock()
	rec, ok := r.by[device]
	err, takes := r.err, r.takes
	if device == r.lost {
		err = errAway
	}
	r.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return registry.Record{}, ctx.Err()
	}
	switch {
	case err != nil:
		return registry.Record{}, err
	case !ok:
		return registry.Record{}, registry.ErrUnknown
	}
	return rec, nil
}

func (r *told) ByLabel(ctx context.Context, label string) (registry.Record, error) {
	return r.ByDevice(ctx, label)
}

func (r *told) Nodes(ctx context.Context) ([]registry.Node, error) {
	all, err := r.Registry.Nodes(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range all {
		all[i].At = all[i].At.Add(r.off)
	}
	return all, cmp.Or(r.err, err)
}

func (r *told) Hints(context.Context) <-chan registry.Hint { return r.hints }

// recordAt is a record of a device with that tunnel at another node; without one it is offline.
func recordAt(device, tunnel string) registry.Record {
	rec := registry.Record{Device: device, Label: device}
	if tunnel != "" {
		rec.Online.Holder = registry.Holder{Device: device, Generation: 1, Tunnel: tunnel}
		rec.Online.Node = registry.NodeRef{ID: "other", Epoch: "1"}
	}
	return rec
}

// routed runs test with the routes of a hub whose time is the test's.
func routed(t *testing.T, test func(t *testing.T, r *routes, reg *told, ended <-chan string)) {
	synctest.Test(t, func(t *testing.T) {
		memory, err := registry.OpenMemory(registry.MemoryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		reg := &told{Registry: memory, hints: make(chan registry.Hint), by: map[string]registry.Record{}}
		ended := make(chan string, 2*maxRoutes)
		s := Defaults()
		s.Domain = domain
		s.TunnelEnded = func(tunnel string) { ended <- tunnel }
		s.Visitor = func(ctx context.Context) netip.Addr {
			from, _ := ctx.Value(visitorKey{}).(netip.Addr)
			return from
		}
		hub, err := New(Config{Node: "own", Registry: reg, Settings: s})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := hub.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		test(t, hub.routes, reg, ended)
	})
}

// visitorKey is of the visitor's address in a context.
type visitorKey struct{}

// finds is the tunnel that a label leads to, or an error.
func finds(t *testing.T, r *routes, label string) string {
	t.Helper()
	return findsFrom(t, r, netip.Addr{}, label)
}

// findsFrom is finds for a visitor.
func findsFrom(t *testing.T, r *routes, from netip.Addr, label string) string {
	t.Helper()
	rt, err := r.find(context.WithValue(t.Context(), visitorKey{}, from), key{name: label})
	switch {
	case errors.Is(err, registry.ErrUnknown):
		return "unknown"
	case err != nil:
		return "error"
	case rt.remote == nil:
		return "offline"
	}
	return rt.remote.holder.Tunnel
}

func TestRoutesAreBelievedForAWhile(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, ended <-chan string) {
		reg.set(func() { reg.by["on"], reg.by["off"] = recordAt("on", "t1"), recordAt("off", "") })
		want := func(when string, reads int64, tunnels ...string) {
			t.Helper()
			for i, label := range []string{"on", "off", "none"} {
				if got := finds(t, r, label); got != tunnels[i] {
					t.Errorf("%s: %s: %s, want %s", when, label, got, tunnels[i])
				}
			}
			if got := reg.reads.Swap(0); got != reads {
				t.Errorf("%s: %d reads, want %d", when, got, reads)
			}
		}
		want("first", 3, "t1", "offline", "unknown")
		want("again", 0, "t1", "offline", "unknown")
		reg.set(func() {
			reg.by["on"], reg.by["off"], reg.by["none"] = recordAt("on", "t2"), recordAt("off", "t3"), recordAt("none", "t4")
		})
		time.Sleep(absentTime - time.Millisecond)
		want("before the second is over", 0, "t1", "offline", "unknown")
		time.Sleep(time.Millisecond)
		want("after it", 2, "t1", "t3", "t4")
		time.Sleep(routeTime - absentTime)
		want("after two", 1, "t2", "t3", "t4")
		if got := <-ended; got != "t1" {
			t.Errorf("%s has ended, want t1", got)
		}
		// By device it is the same route.
		if rt, err := r.find(t.Context(), key{true, "on"}); err != nil || rt.remote.holder.Tunnel != "t2" || reg.reads.Load() != 0 {
			t.Errorf("by device: %+v, %v", rt, err)
		}
	})
}

func TestOneQuestionForThousandVisitors(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		reg.set(func() { reg.by["on"], reg.takes = recordAt("on", "t1"), 100*time.Millisecond })
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if got := finds(t, r, "on"); got != "t1" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if n := reg.reads.Load(); n != 1 {
			t.Errorf("%d reads, want 1", n)
		}
	})
}

// A hint that comes while the registry is asked makes the answer one of before.
func TestHintsDropRoutes(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, ended <-chan string) {
		reg.set(func() { reg.by["on"] = recordAt("on", "t1") })
		finds(t, r, "on")
		finds(t, r, "new")
		reg.set(func() {
			reg.by["on"], reg.by["new"], reg.by["newer"] = recordAt("on", "t2"), recordAt("new", "t3"), recordAt("newer", "t4")
		})
		reg.hints <- registry.Hint{Device: "on", Label: "on"}
		reg.hints <- registry.Hint{Device: "new", Label: "new"}
		synctest.Wait()
		if on, n := finds(t, r, "on"), finds(t, r, "new"); on != "t2" || n != "t3" {
			t.Errorf("after hints: %s %s", on, n)
		}
		if got := <-ended; got != "t1" {
			t.Errorf("%s has ended, want t1", got)
		}
		reg.set(func() { reg.by["on"], reg.takes = recordAt("on", "t5"), 100*time.Millisecond })
		reg.hints <- registry.Hint{Device: "on", Label: "on"}
		synctest.Wait()
		first := make(chan string)
		go func() { first <- finds(t, r, "on") }()
		synctest.Wait()
		reg.set(func() { reg.by["on"] = recordAt("on", "t6") })
		reg.hints <- registry.Hint{Device: "on", Label: "on"}
		synctest.Wait()
		if got := <-first; got != "t5" {
			t.Errorf("who had asked before: %s", got)
		}
		if got := finds(t, r, "on"); got != "t6" {
			t.Errorf("after a hint during the question: %s", got)
		}
		// Some were missed.
		reg.set(func() { reg.by["on"], reg.by["new"] = recordAt("on", "t7"), recordAt("new", "t8") })
		reg.hints <- registry.Hint{}
		synctest.Wait()
		if on, n := finds(t, r, "on"), finds(t, r, "new"); on != "t7" || n != "t8" {
			t.Errorf("after hints were missed: %s %s", on, n)
		}
		close(reg.hints)
		synctest.Wait()
		if got := finds(t, r, "on"); got != "t7" {
			t.Errorf("without hints: %s", got)
		}
	})
}

// While the registry does not answer, live routes go on being used, others fail, and it
// is left in peace.
func TestRegistryIsGone(t *testing.T) {
	for name, gone := range map[string]func(reg *told){
		"refuses":  func(reg *told) { reg.err = errAway },
		"is stuck": func(reg *told) { reg.takes = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
				reg.set(func() { reg.by["on"], reg.by["off"] = recordAt("on", "t1"), recordAt("off", "") })
				finds(t, r, "on")
				finds(t, r, "off")
				reg.set(func() { gone(reg) })
				reg.reads.Store(0)
				time.Sleep(routeTime)
				began := time.Now()
				for range 600 {
					before := time.Now()
					if got := finds(t, r, "on"); got != "t1" {
						t.Fatalf("live route: %s", got)
					}
					if took := time.Since(before); took > patience {
						t.Fatalf("a visitor who can be served waited %v", took)
					}
					time.Sleep(100 * time.Millisecond)
				}
				if n, most := reg.reads.Load(), int64(time.Since(began)/awayTime)+1; n > most {
					t.Errorf("%d reads in %v, want at most %d", n, time.Since(began), most)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := r.hub.Lookup(ctx, "off."+domain)
				wantCode(t, err, wire.Unavailable)
				_, err = r.hub.Lookup(ctx, "other."+domain)
				wantCode(t, err, wire.Unavailable)
				if e := retryAfter(err); e <= 0 {
					t.Errorf("Retry-After %v", e)
				}
				// It answers again.
				reg.set(func() { reg.err, reg.takes, reg.by["on"] = nil, 0, recordAt("on", "t2") })
				time.Sleep(registryTimeout + awayTime)
				if got := finds(t, r, "on"); got != "t2" {
					t.Errorf("afterwards: %s", got)
				}
			})
		})
	}
}

// Labels that do not exist are asked for at a bounded rate, by one address and by all,
// and forgotten; what exists does not count, and others find it during a flood.
func TestFloodOfUnknownLabels(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		attacker, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		add := func(label string) {
			reg.set(func() { reg.by[label] = recordAt(label, label) })
		}
		for i := range 3 * unknownBurst {
			label := fmt.Sprint("on-", i)
			add(label)
			if got := findsFrom(t, r, attacker, label); got != label {
				t.Fatalf("%s: %s", label, got)
			}
		}
		reg.reads.Store(0)
		errors := 0
		const tries = 10 * unknownBurst
		for i := range tries {
			if findsFrom(t, r, attacker, fmt.Sprint("none-", i)) == "error" {
				errors++
			}
		}
		if n := reg.reads.Load(); n != unknownBurst || errors != tries-unknownBurst {
			t.Errorf("%d reads, %d refusals; want %d reads", n, errors, unknownBurst)
		}
		add("new")
		if got := findsFrom(t, r, other, "new"); got != "new" {
			t.Errorf("a device that is looked for by another address, during the flood: %s", got)
		}
		if got := findsFrom(t, r, other, "none"); got != "unknown" {
			t.Errorf("one that does not exist: %s", got)
		}
		if got := findsFrom(t, r, attacker, "on-5"); got != "on-5" {
			t.Errorf("what is known, during the flood: %s", got)
		}
		reg.reads.Store(0)
		time.Sleep(time.Second)
		for i := range tries {
			findsFrom(t, r, attacker, fmt.Sprint("later-", i))
		}
		if n := reg.reads.Load(); n > unknownRate+1 {
			t.Errorf("%d reads a second later", n)
		}
		// From everywhere at once.
		reg.reads.Store(0)
		for i := range 2 * allUnknownBurst {
			from := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			findsFrom(t, r, from, fmt.Sprint("spread-", i))
		}
		if n := reg.reads.Load(); n > allUnknownBurst {
			t.Errorf("%d reads for all", n)
		}
		r.mu.Lock()
		absent := len(r.absent)
		r.mu.Unlock()
		if absent > maxAbsent {
			t.Errorf("%d labels are remembered", absent)
		}
		time.Sleep(time.Minute)
		findsFrom(t, r, other, "last")
		if n := len(r.unknown.by); n != 1 {
			t.Errorf("%d addresses are remembered, want one", n)
		}
	})
}

// An address beyond those that are told apart is bound by what holds for all.
func TestStrangersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStrangers(budget{unknownBurst, unknownRate}, budget{allUnknownBurst, allUnknownRate})
		for i := range 2 * maxStrangers {
			if i%allUnknownBurst == 0 {
				time.Sleep(time.Millisecond) // the first ones are not full again
				s.all.tokens = allUnknownBurst
			}
			if !s.take(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})) {
				t.Fatalf("address %d was refused", i)
			}
		}
		if len(s.by) != maxStrangers {
			t.Errorf("%d addresses are remembered", len(s.by))
		}

		// Questions of no address, about devices, share no address's bucket.
		s = newStrangers(budget{unknownBurst, unknownRate}, budget{allUnknownBurst, allUnknownRate})
		for i := range allUnknownBurst {
			if !s.take(netip.Addr{}) {
				t.Fatalf("question %d about a device was refused", i)
			}
		}
		if s.take(netip.Addr{}) || s.take(netip.AddrFrom4([4]byte{10})) {
			t.Error("there are more questions than there may be")
		}
	})
}

// One server of several that is gone, or one question without an answer, keeps nobody
// from what the others know.
func TestRegistryIsGoneForSome(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		reg.set(func() {
			reg.by["on"], reg.by["moved"], reg.lost = recordAt("on", "t1"), recordAt("moved", "t3"), "lost"
		})
		finds(t, r, "moved")
		for range 3 {
			if got := finds(t, r, "lost"); got != "error" {
				t.Fatalf("lost: %s", got)
			}
			reg.set(func() { reg.by["moved"] = recordAt("moved", "t4") })
			if got := finds(t, r, "on"); got != "t1" {
				t.Errorf("another one, right after: %s", got)
			}
			finds(t, r, "lost")
			reg.hints <- registry.Hint{Device: "moved", Label: "moved"}
			synctest.Wait()
			if got := finds(t, r, "moved"); got != "t4" {
				t.Errorf("one that is known to have moved: %s", got)
			}
			time.Sleep(routeTime)
		}
	})
}

// A label that another device has got leads there, whatever is said of the first.
func TestLabelOfAnotherDevice(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, ended <-chan string) {
		reg.set(func() { reg.by["name"] = recordAt("name", "t1") })
		finds(t, r, "name")
		next := recordAt("heir", "t2")
		next.Label = "name"
		reg.set(func() { reg.by["name"] = next })
		time.Sleep(routeTime)
		if got := finds(t, r, "name"); got != "t2" {
			t.Fatalf("the heir: %s", got)
		}
		if got := <-ended; got != "t1" {
			t.Errorf("%s has ended", got)
		}
		reg.set(func() { reg.err = errAway })
		r.stale("name", "") // the first device
		if got := finds(t, r, "name"); got != "t2" {
			t.Errorf("after a word about the first: %s", got)
		}
	})
}

// Who was told of a tunnel that has ended during the question is told of its end, too.
func TestEndOfADoubtfulTunnel(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, ended <-chan string) {
		reg.set(func() { reg.by["on"], reg.takes = recordAt("on", "t1"), 100*time.Millisecond })
		first := make(chan string)
		go func() { first <- finds(t, r, "on") }()
		synctest.Wait()
		reg.hints <- registry.Hint{Device: "on", Label: "on"}
		if got := <-first; got != "t1" {
			t.Fatal(got)
		}
		reg.set(func() { reg.by["on"] = recordAt("on", "t2") })
		if got := finds(t, r, "on"); got != "t2" {
			t.Errorf("afterwards: %s", got)
		}
		select {
		case got := <-ended:
			if got != "t1" {
				t.Errorf("%s has ended", got)
			}
		default:
			t.Error("nobody was told of the end of t1")
		}
	})
}

func TestRoutesAreBounded(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, _ *told, ended <-chan string) {
		const more = 100
		r.mu.Lock()
		var over []*remote
		for i := range maxRoutes + more {
			_, one := r.learnLocked(recordAt(fmt.Sprint("on-", i), fmt.Sprint("on-", i)), time.Now(), true)
			over = append(over, one...)
		}
		devices, labels := len(r.byDevice), len(r.byLabel)
		r.mu.Unlock()
		r.end(over...)
		if devices != maxRoutes || labels != maxRoutes {
			t.Errorf("%d devices, %d labels", devices, labels)
		}
		if len(ended) != more {
			t.Errorf("%d tunnels are over, want %d", len(ended), more)
		}
		// Nobody asks any more.
		time.Sleep(keptTime + 2*sweepTime)
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.byDevice)+len(r.byLabel) != 0 || len(ended) != maxRoutes+more {
			t.Errorf("%d routes are left, %d tunnels are over", len(r.byDevice), len(ended))
		}
	})
}

func TestRoutesToADeadNode(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, ended <-chan string) {
		reg.set(func() { reg.by["on"] = recordAt("on", "t1") })
		finds(t, r, "on")
		reg.set(func() { reg.by["on"] = recordAt("on", "") })
		r.hub.peersGone([]registry.NodeRef{{ID: "other", Epoch: "1"}})
		if got := <-ended; got != "t1" {
			t.Errorf("%s has ended", got)
		}
		if got := finds(t, r, "on"); got != "offline" {
			t.Errorf("now: %s", got)
		}
	})
}

// A registry that has forgotten what lives is not believed at once.
func TestRegistryForgets(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, ended <-chan string) {
		reg.set(func() { reg.by["on"], reg.by["off"] = recordAt("on", "t1"), recordAt("off", "") })
		finds(t, r, "on")
		finds(t, r, "off")
		reg.set(func() { clear(reg.by) })
		for range restoreTime / time.Second {
			time.Sleep(time.Second)
			if got := finds(t, r, "on"); got != "t1" {
				t.Fatalf("live route: %s", got)
			}
			if got := finds(t, r, "off"); got != "unknown" {
				t.Fatalf("the other: %s", got)
			}
		}
		time.Sleep(2 * routeTime)
		if got := finds(t, r, "on"); got != "unknown" {
			t.Errorf("at the end: %s", got)
		}
		if got := <-ended; got != "t1" {
			t.Errorf("%s has ended", got)
		}
		// Its node knows better.
		reg.set(func() { reg.by["on"] = recordAt("on", "t2") })
		time.Sleep(absentTime)
		finds(t, r, "on")
		reg.set(func() { clear(reg.by) })
		m := r.byLabel["on"].remote
		began := time.Now()
		m.fail(cluster.ErrNotHere)
		time.Sleep(time.Millisecond)
		r.refused(m, began)
		if got := finds(t, r, "on"); got != "unknown" {
			t.Errorf("a tunnel that its node denies: %s", got)
		}
	})
}

// Many whose visit was refused by the device's old node ask once.
func TestRefusedOnceForAll(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		reg.set(func() { reg.by["on"] = recordAt("on", "t1") })
		rt, _ := r.find(t.Context(), key{name: "on"})
		began := time.Now()
		reg.set(func() { reg.by["on"] = recordAt("on", "t2") })
		time.Sleep(time.Millisecond)
		for range 1000 {
			r.refused(rt.remote, began)
			if got := finds(t, r, "on"); got != "t2" {
				t.Fatal(got)
			}
		}
		if n := reg.reads.Load(); n != 2 {
			t.Errorf("%d reads, want 2", n)
		}
	})
}

// What a look-up of a device at another node costs when it is known.
func TestKnownRouteAllocatesNothing(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		reg.set(func() { reg.by["on"] = recordAt("on", "t1") })
		finds(t, r, "on")
		m := r.byLabel["on"].remote
		m.ports = []wire.Port{{Number: 80, Kind: wire.HTTP}}
		ctx := t.Context()
		if n := testing.AllocsPerRun(1000, func() {
			if got, err := r.hub.Lookup(ctx, "on."+domain); err != nil || !got.Online {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations per look-up", n)
		}
	})
}

// A device of this very node is found without any of this.
func TestLocalLookupAllocatesNothing(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(hello("cam-17"))
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		if got, err := e.hub.Lookup(ctx, a.ready.Hostname); err != nil || !got.Online {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per look-up", n)
	}
}

// Visitors who keep coming do not wait for a registry that takes its time, and follow a
// device that moves nevertheless.
func TestRoutesAreRenewedAhead(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		reg.set(func() { reg.by["cam-17"] = recordAt("cam-17", "t1") })
		if got := finds(t, r, "cam-17"); got != "t1" {
			t.Fatal(got)
		}
		reg.set(func() { reg.takes = 200 * time.Millisecond })
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			if got := finds(t, r, "cam-17"); got != "t1" || time.Since(began) > 0 {
				t.Fatalf("%s after %v", got, time.Since(began))
			}
		}
		if n := reg.reads.Load(); n > 10 {
			t.Errorf("asked %d times in 10 s", n)
		}
		reg.set(func() { reg.by["cam-17"] = recordAt("cam-17", "t2") })
		for moved := time.Now(); finds(t, r, "cam-17") != "t2"; time.Sleep(100 * time.Millisecond) {
			if time.Since(moved) > routeTime {
				t.Fatal("the device was not followed")
			}
		}
		time.Sleep(routeTime)
		began := time.Now()
		if finds(t, r, "cam-17"); time.Since(began) != 200*time.Millisecond {
			t.Error("a route that nobody asked for was believed")
		}
	})
}

// A node that has died is no peer any more after a while, whatever the registry does.
func TestDeadPeerIsForgotten(t *testing.T) {
	for name, next := range map[string]func(reg *told, second int){
		"nothing": func(*told, int) {},
		"its clock steps back": func(reg *told, second int) {
			if second == 1 {
				reg.off = -time.Hour
			}
		},
		"it comes and goes": func(reg *told, second int) {
			reg.err = nil
			if second%10 < 4 {
				reg.err = errAway
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
				peers := &r.hub.admission.peers
				if err := reg.Registry.Beat(t.Context(), registry.Node{NodeRef: registry.NodeRef{ID: "other", Epoch: "1"}}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(registry.NodeHeartbeat + time.Second)
				if len(peers.All()) != 1 {
					t.Fatal("the other node is not known")
				}
				began := time.Now()
				for second := range 60 {
					reg.set(func() { next(reg, second) })
					time.Sleep(time.Second)
					if len(peers.All()) == 0 {
						break
					}
				}
				if took := time.Since(began); len(peers.All()) > 0 || took > 45*time.Second {
					t.Errorf("after %v: %v", took, peers.All())
				}
			})
		})
	}
}

// A node that the registry forgets for a moment, and that goes on, stays a peer.
func TestLivePeerStays(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		other := registry.Node{NodeRef: registry.NodeRef{ID: "other", Epoch: "1"}}
		for round := range 60 {
			if err := reg.Registry.Beat(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			time.Sleep(registry.NodeHeartbeat)
			if round%5 == 4 {
				if err := reg.Registry.Leave(t.Context(), other.NodeRef); err != nil {
					t.Fatal(err)
				}
			}
			if round > 1 && len(r.hub.admission.peers.All()) != 1 {
				t.Fatalf("round %d: it is forgotten", round)
			}
		}
	})
}
