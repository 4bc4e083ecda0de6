package tunnelcore

import (
	"context"
	"errors"
	"fmt"
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
	takes time.Duration
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

// finds is the tunnel that a label leads to, or an error.
func finds(t *testing.T, r *routes, label string) string {
	t.Helper()
	rt, err := r.find(t.Context(), key{name: label})
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

// Labels that do not exist are asked for at a bounded rate, and forgotten; what exists
// does not count.
func TestFloodOfUnknownLabels(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, _ <-chan string) {
		for i := range 3 * unknownBurst {
			label := fmt.Sprintf("on-%d", i)
			reg.set(func() { reg.by[label] = recordAt(label, label) })
			if got := finds(t, r, label); got != label {
				t.Fatalf("%s: %s", label, got)
			}
		}
		reg.reads.Store(0)
		errors := 0
		for i := range 10_000 {
			if finds(t, r, fmt.Sprintf("none-%d", i)) == "error" {
				errors++
			}
		}
		if n := reg.reads.Load(); n != unknownBurst || errors != 10_000-unknownBurst {
			t.Errorf("%d reads, %d refusals; want %d reads", n, errors, unknownBurst)
		}
		if got := finds(t, r, "on-5"); got != "on-5" {
			t.Errorf("what is known, during the flood: %s", got)
		}
		time.Sleep(time.Second)
		for i := range 1000 {
			finds(t, r, fmt.Sprintf("later-%d", i))
		}
		if n := reg.reads.Load(); n > unknownBurst+unknownRate+1 {
			t.Errorf("%d reads a second later", n)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.absent) > maxAbsent {
			t.Errorf("%d labels are remembered", len(r.absent))
		}
	})
}

func TestRoutesAreBounded(t *testing.T) {
	routed(t, func(t *testing.T, r *routes, reg *told, ended <-chan string) {
		const more = 100
		for i := range maxRoutes + more {
			label := fmt.Sprint("on-", i)
			reg.set(func() { reg.by[label] = recordAt(label, label) })
			finds(t, r, label)
		}
		r.mu.Lock()
		devices, labels := len(r.byDevice), len(r.byLabel)
		r.mu.Unlock()
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
