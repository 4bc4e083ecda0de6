package redisregistry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// TestTwoNodes has two nodes fight for the same devices, labels and ports, with
// calls that are given up anywhere on their way. Afterwards everything that is
// recorded must fit together.
func TestTwoNodes(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	twoNodes(t, func() string { return s.Do("KEYS", "*") }, Options{URL: "redis://" + s.Addr})
}

func TestTwoNodesOfCluster(t *testing.T) {
	t.Parallel()
	var addrs []string
	servers := redistest.Cluster(t, nil)
	for _, s := range servers {
		addrs = append(addrs, s.Addr)
	}
	keys := func() string {
		var all []string
		for _, s := range servers {
			all = append(all, s.Do("KEYS", "*"))
		}
		return strings.Join(all, "\n")
	}
	twoNodes(t, keys, Options{Cluster: addrs})
}

func twoNodes(t *testing.T, keys func() string, o Options) {
	const devices, workers, steps = 6, 8, 150
	nodes := []*Registry{short(t, o), short(t, o)}
	var refs []registry.NodeRef
	for i, r := range nodes {
		refs = append(refs, beatNode(t, r, fmt.Sprintf("n%d", i), "e1"))
	}
	var mu sync.Mutex // guards what follows
	generations := map[string]int64{}
	newest := map[string]registry.Holder{}

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(worker)))
			var mine []registry.Holder
			for step := range steps {
				ctx, cancel := t.Context(), func() {}
				if rnd.IntN(4) == 0 { // gives up within the time that a call takes
					ctx, cancel = context.WithTimeout(ctx, time.Duration(rnd.IntN(3000))*time.Microsecond)
				}
				at := rnd.IntN(2)
				r := nodes[at]
				var h registry.Holder
				if len(mine) > 0 {
					h = mine[max(0, len(mine)-1-rnd.IntN(3))]
				}
				var err error
				switch rnd.IntN(8) {
				case 0, 1, 2, 3:
					c := ask(refs[at], fmt.Sprintf("d%d", rnd.IntN(devices)), fmt.Sprintf("t%d-%d", worker, step))
					c.Label = fmt.Sprintf("label%d", rnd.IntN(devices+1))
					c.Instance = fmt.Sprintf("i%d", rnd.IntN(2))
					var l registry.Lease
					if l, err = r.Claim(ctx, c); err == nil {
						mine = append(mine, l.Holder)
						mu.Lock()
						if was, twice := generations[fmt.Sprint(l.Device, l.Generation)]; twice {
							t.Errorf("generation %d of %s was handed out twice", was, l.Device)
						}
						generations[fmt.Sprint(l.Device, l.Generation)] = l.Generation
						if l.Generation > newest[l.Device].Generation {
							newest[l.Device] = l.Holder
						}
						mu.Unlock()
					}
				case 4:
					_, err = r.LeasePorts(ctx, h, []uint16{22, uint16(1 + rnd.IntN(3))}, 40000, 40031)
				case 5:
					_, err = r.Refresh(ctx, time.Hour, mine[max(0, len(mine)-5):])
				case 6:
					err = r.Release(ctx, h, []time.Duration{0, time.Hour}[rnd.IntN(2)], "bye")
				case 7:
					_, err = r.ByLabel(ctx, fmt.Sprintf("label%d", rnd.IntN(devices+1)))
				}
				cancel()
				var held *registry.HeldError
				var full *registry.PortsFullError
				switch {
				case err == nil, ctx.Err() != nil, errors.As(err, &held), errors.As(err, &full),
					errors.Is(err, registry.ErrLost), errors.Is(err, registry.ErrLabelTaken), errors.Is(err, registry.ErrUnknown):
				default:
					t.Errorf("%v", err)
				}
			}
		})
	}
	wg.Wait()

	// What was given up may still be on its way.
	for _, r := range nodes {
		r.calls.Wait()
	}
	labels, public := map[string]string{}, map[uint16]string{}
	for i := range devices {
		id := fmt.Sprintf("d%d", i)
		rec, err := nodes[0].ByDevice(t.Context(), id)
		if errors.Is(err, registry.ErrUnknown) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Generation < newest[id].Generation {
			t.Errorf("%s has generation %d, but %d was claimed", id, rec.Generation, newest[id].Generation)
		}
		if other, twice := labels[rec.Label]; twice {
			t.Errorf("label %s is leased to %s and %s", rec.Label, other, id)
		}
		labels[rec.Label] = id
		for port, p := range rec.Ports {
			owner := portOwner(id, port)
			if other, twice := public[p]; twice {
				t.Errorf("port %d is leased to %s and %s", p, other, owner)
			}
			public[p] = owner
			if o, err := nodes[0].c.HGet(t.Context(), nodes[0].keys.portDevices(), fmt.Sprint(p)).Result(); o != owner {
				t.Errorf("port %d of %s belongs to %q, %v", p, owner, o, err)
			}
		}
		if d, err := nodes[1].c.HGet(t.Context(), nodes[1].keys.lease(rec.Label), "device").Result(); d != id {
			t.Errorf("label %s of %s leads to %q, %v", rec.Label, id, d, err)
		}
	}
	// Nobody is stuck: each device can be had again by someone.
	for i := range devices {
		id := fmt.Sprintf("d%d", i)
		c := ask(refs[1], id, "last")
		_, err := nodes[1].Claim(t.Context(), c)
		var held *registry.HeldError
		if errors.As(err, &held) {
			c.Evict = held.Incumbent.Holder
			_, err = nodes[1].Claim(t.Context(), c)
		}
		if err != nil {
			t.Errorf("Claim of %s: %v", id, err)
		}
		rec, err := nodes[0].ByDevice(t.Context(), id)
		if err != nil || rec.Online.Tunnel != "last" {
			t.Errorf("%s: %+v, %v", id, rec, err)
		} else if again, err := nodes[0].ByLabel(t.Context(), rec.Label); err != nil || again.Device != id {
			t.Errorf("label %s: %+v, %v", rec.Label, again, err)
		}
	}
	for key := range strings.Lines(keys()) {
		if !strings.HasPrefix(key, "iottunnel:") {
			t.Errorf("key %q is outside the prefix", key)
		}
	}
}
