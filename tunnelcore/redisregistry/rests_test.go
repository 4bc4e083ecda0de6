package redisregistry

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// restsOf reads what ports a device has and which of them rest.
func restsOf(t *testing.T, r *Registry, device string) record {
	t.Helper()
	records, _, err := r.readAll(t.Context(), []string{device})
	if err != nil {
		t.Fatal(err)
	}
	return records[0]
}

// use reads whose a public port is, and until when.
func use(t *testing.T, r *Registry, public uint16) (owner string, until int64) {
	t.Helper()
	owner = r.c.HGet(t.Context(), r.keys.portDevices(), fmt.Sprint(public)).Val()
	return owner, int64(r.c.ZScore(t.Context(), r.keys.ports(), fmt.Sprint(public)).Val())
}

// TestUndo takes a resting port back and undoes that, as a call does that comes too
// late: the port rests as before. But what another call has taken meanwhile stays
// taken, whichever of the two is undone.
func TestUndo(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	h := claim(t, r, ask(beatNode(t, r, "n1", "e1"), "cam", "t1"))
	leasePorts(t, r, &h, 22)
	had := h.Ports
	leasePorts(t, r, &h)
	owner, rests := use(t, r, had[22])
	if owner != "cam:22" || rests == 0 {
		t.Fatalf("port %d rests for %q until %d", had[22], owner, rests)
	}
	take := func() takenPort {
		t.Helper()
		taken, err := r.allocate(t.Context(), "cam", []uint16{22}, had, 40000, 40099, time.Hour.Milliseconds())
		if err != nil || len(taken) != 1 || taken[0].public != had[22] {
			t.Fatalf("allocate: %+v, %v, want %d", taken, err, had[22])
		}
		return taken[0]
	}
	undo := func(taken takenPort) {
		t.Helper()
		b := r.batch(t.Context())
		r.undoPorts(b, "cam", []takenPort{taken})
		if err := b.run(); err != nil {
			t.Fatal(err)
		}
	}
	is := func(what string, want int64) {
		t.Helper()
		if o, until := use(t, r, had[22]); o != owner || until != want {
			t.Errorf("%s: the port is %q's until %d, want %q's until %d", what, o, until, owner, want)
		}
	}
	one := take()
	is("taken", one.written)
	undo(one)
	is("undone", rests)

	one, two := take(), take()
	undo(one)
	is("the earlier one undone", two.written)
	undo(two)
	is("the later one undone", one.written)

	two = take()
	b := r.batch(t.Context())
	r.leavePorts(b, 1, "cam", had, map[uint16]int64{had[22]: one.written})
	if err := b.run(); err != nil {
		t.Fatal(err)
	}
	is("given back by who knew it before it was taken", two.written)
}

// TestRestsRestored writes a device again after a loss that has left what rests.
func TestRestsRestored(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	h := claim(t, r, ask(beatNode(t, r, "n1", "e1"), "cam", "t1"))
	leasePorts(t, r, &h, 22, 80)
	had := h.Ports
	leasePorts(t, r, &h)
	// As if it were of an older generation, and 80 had been taken back since.
	h.Generation++
	h.Ports = map[uint16]uint16{80: had[80]}
	restore(t, r, []registry.Held{h})
	online(t, r, h)
	if rec := restsOf(t, r, "cam"); len(rec.rests) != 1 || rec.rests[0].port != 22 || rec.rests[0].public != had[22] {
		t.Errorf("what rests is %+v, want 22 of %v", rec.rests, had)
	}
	leasePorts(t, r, &h, 22, 80)
	if fmt.Sprint(h.Ports) != fmt.Sprint(had) {
		t.Errorf("ports %v, want %v back", h.Ports, had)
	}
}

// TestMaxPortsAtOnce has many calls ask for different ports of one device at the
// same time.
func TestMaxPortsAtOnce(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	o := Options{URL: "redis://" + s.Addr}
	nodes := []*Registry{short(t, o), short(t, o)}
	h := claim(t, nodes[0], ask(beatNode(t, nodes[0], "n1", "e1"), "cam", "t1"))
	var wg sync.WaitGroup
	for worker := range 12 {
		wg.Go(func() {
			var want []uint16
			for i := range 10 {
				want = append(want, uint16(1+10*worker+i))
			}
			_, err := nodes[worker%2].LeasePorts(t.Context(), h.Holder, want, 40000, 40999)
			if err != nil && !errors.Is(err, registry.ErrTooManyPorts) && !errors.Is(err, errBusy) {
				t.Errorf("LeasePorts(%v): %v", want, err)
			}
		})
	}
	wg.Wait()
	rec := restsOf(t, nodes[0], "cam")
	if n := len(rec.ports) + len(rec.rests); n > registry.MaxPorts || n < registry.MaxPorts-10 {
		t.Errorf("%d ports of which %d rest, want at most %d", n, len(rec.rests), registry.MaxPorts)
	}
	// What was undone is free: nothing but these is in use.
	if n := nodes[0].c.ZCard(t.Context(), nodes[0].keys.ports()).Val(); n != int64(len(rec.ports)+len(rec.rests)) {
		t.Errorf("%d ports are in use, want the %d of the device", n, len(rec.ports)+len(rec.rests))
	}
}
