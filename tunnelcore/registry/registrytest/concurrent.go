package registrytest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

var concurrentTests = []test{
	{"one of many gets a label", func(s *suite) {
		n := s.node("n1", "e1")
		var won [20]atomic.Int32 // many labels, so that some first claims come together
		many(10*len(won), func(i int) {
			c := s.ask(n, fmt.Sprintf("d%d", i), "t1")
			c.Label = fmt.Sprintf("wanted%d", i%len(won))
			switch _, err := s.Registry.Claim(s.ctx, c); {
			case err == nil:
				won[i%len(won)].Add(1)
			case !errors.Is(err, registry.ErrLabelTaken):
				s.Errorf("Claim: %v", err)
			}
		})
		for i := range won {
			if n := won[i].Load(); n != 1 {
				s.Errorf("%d devices got label wanted%d", n, i)
			}
		}
	}},
	{"one of many gets a device", func(s *suite) {
		n := s.node("n1", "e1")
		const devices, claims = 10, 20
		var first [devices]registry.Holder
		for i := range first {
			first[i] = s.claim(s.ask(n, fmt.Sprintf("d%d", i), "t0")).Holder
		}
		var mu sync.Mutex
		won := map[string]registry.Holder{}
		refused := map[registry.Holder]int{}
		many(devices*claims, func(i int) { // each has found the first one dead
			c := s.ask(n, fmt.Sprintf("d%d", i%devices), fmt.Sprintf("t%d", i+1))
			c.Instance, c.Evict = fmt.Sprintf("i%d", i), first[i%devices]
			l, err := s.Registry.Claim(s.ctx, c)
			mu.Lock()
			defer mu.Unlock()
			var held *registry.HeldError
			switch {
			case err == nil && won[c.Device] == registry.Holder{}:
				won[c.Device] = l.Holder
			case errors.As(err, &held):
				refused[held.Incumbent.Holder]++
			default:
				s.Errorf("Claim = %+v, %v, after %+v has won", l, err, won[c.Device])
			}
		})
		for device, h := range won {
			if refused[h] != claims-1 {
				s.Errorf("%d claims of %s were refused because of the winner", refused[h], device)
			}
		}
		if len(won) != devices {
			s.Errorf("%d devices were won", len(won))
		}
	}},
	{"takeovers form a chain", func(s *suite) {
		n := s.node("n1", "e1")
		var mu sync.Mutex
		replaced := map[registry.Holder]registry.Holder{} // loser → winner
		many(40, func(i int) {
			l := s.claim(s.ask(n, "cam", fmt.Sprintf("t%d", i)))
			mu.Lock()
			defer mu.Unlock()
			if w, twice := replaced[l.Previous.Holder]; twice {
				s.Errorf("%+v was replaced by %+v and %+v", l.Previous.Holder, w, l.Holder)
			}
			replaced[l.Previous.Holder] = l.Holder
		})
		h := registry.Holder{} // before the first
		for range 40 {
			next := replaced[h]
			if next.Generation <= h.Generation {
				s.Fatalf("%+v was replaced by %+v", h, next)
			}
			h = next
		}
		if r := s.device("cam"); r.Online.Holder != h {
			s.Errorf("the last is %+v, but %+v is online", h, r.Online.Holder)
		}
	}},
	{"ports of a range that just suffices", func(s *suite) {
		n := s.node("n1", "e1")
		var mu sync.Mutex
		owner := map[uint16]string{}
		full := 0
		many(30, func(i int) {
			device := fmt.Sprintf("d%d", i)
			l := s.claim(s.ask(n, device, "t1"))
			ports, err := s.Registry.LeasePorts(s.ctx, l.Holder, []uint16{22, 80}, 40000, 40039)
			mu.Lock()
			defer mu.Unlock()
			var e *registry.PortsFullError
			if errors.As(err, &e) {
				full++
				return
			}
			if err != nil {
				s.Errorf("LeasePorts: %v", err)
			}
			for _, p := range ports {
				if owner[p] != "" {
					s.Errorf("%d belongs to %s and %s", p, owner[p], device)
				}
				owner[p] = device
			}
		})
		if len(owner) != 40 || full != 10 {
			s.Errorf("%d ports were leased, %d devices refused", len(owner), full)
		}
	}},
	{"invariants under random calls", func(s *suite) {
		seed := seed()
		s.Logf("IOTTUNNEL_SEED=%d", seed)
		c := &crowd{suite: s, current: map[string]int64{}, settledAt: map[string]int64{}}
		const rounds = 4 // all leases and rests end in between
		for round := range rounds {
			c.labels, c.ports = map[string]string{}, map[uint16]string{}
			n := s.node("n1", fmt.Sprintf("e%d", round))
			many(8, func(i int) {
				r := rand.New(rand.NewPCG(seed, uint64(100*round+i)))
				for range steps(3000) / 8 / rounds {
					c.step(r, n)
				}
			})
			c.settled()
			s.silence()
			s.pass(2*s.whileLive() + s.PortRest)
		}
	}},
}

// many runs f(0) to f(n-1) at the same time, and waits.
func many(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// A crowd makes random calls at the same time. What it was told must fit together,
// whatever their order was: no lease ends and no port has rested meanwhile.
type crowd struct {
	*suite
	mu        sync.Mutex        // guards all below
	labels    map[string]string // label → device that it was seen with
	ports     map[uint16]string // public port → its owner
	holders   []registry.Holder
	current   map[string]int64 // device → highest generation that a finished claim has got
	settledAt map[string]int64 // what current was at the end of the last round
}

func (c *crowd) step(r *rand.Rand, n registry.NodeRef) {
	switch r.IntN(10) {
	case 0, 1, 2, 3:
		c.tryClaim(r, n)
	case 4, 5:
		c.tryPorts(r)
	case 6:
		c.tryStale(r, func(h registry.Holder) error { return c.Registry.Release(c.ctx, h, c.Lease, "bye") })
	case 7:
		c.tryStale(r, func(h registry.Holder) error {
			lost, err := c.Registry.Refresh(c.ctx, c.Lease, []registry.Holder{h})
			if len(lost) > 0 {
				return registry.ErrLost
			}
			return err
		})
	default:
		rec, err := c.Registry.ByLabel(c.ctx, someLabels[r.IntN(len(someLabels))])
		if err == nil {
			c.sawLabel(rec.Label, rec.Device)
		} else if !errors.Is(err, registry.ErrUnknown) {
			c.Errorf("ByLabel: %v", err)
		}
	}
}

func (c *crowd) tryClaim(r *rand.Rand, n registry.NodeRef) {
	device := someDevices[r.IntN(len(someDevices))]
	ask := c.ask(n, device, fmt.Sprintf("t%d", r.Uint64()))
	ask.Label = someLabels[r.IntN(len(someLabels))]
	ask.Instance = someInstances[r.IntN(len(someInstances))]
	if r.IntN(3) == 0 {
		ask.Evict = c.holder(r)
	}
	c.mu.Lock()
	before := c.current[device]
	c.mu.Unlock()
	l, err := c.Registry.Claim(c.ctx, ask)
	var held *registry.HeldError
	switch {
	case errors.Is(err, registry.ErrLabelTaken):
		return
	case errors.As(err, &held):
		if g := held.Incumbent.Generation; g < before {
			c.Errorf("Claim of %s: held by generation %d, after %d was claimed", device, g, before)
		}
		return
	case err != nil:
		c.Errorf("Claim: %v", err)
		return
	}
	c.sawLabel(l.Label, device)
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.Generation <= before || l.Generation <= l.Previous.Generation {
		c.Errorf("Claim = %+v, after generation %d was claimed", l, before)
	}
	for _, h := range c.holders {
		if h.Device == device && h.Generation == l.Generation {
			c.Errorf("generation %d of %s was handed out twice", l.Generation, device)
		}
	}
	c.current[device] = max(c.current[device], l.Generation)
	c.holders = append(c.holders, l.Holder)
}

// holder draws one that was handed out, mostly a recent one.
func (c *crowd) holder(r *rand.Rand) registry.Holder {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.holders) == 0 {
		return registry.Holder{Device: "cam", Generation: 1, Tunnel: "none"}
	}
	return c.holders[max(0, len(c.holders)-1-r.IntN(20))]
}

// tryStale fails when a call succeeds for a holder that was replaced before.
func (c *crowd) tryStale(r *rand.Rand, call func(registry.Holder) error) {
	h := c.holder(r)
	c.mu.Lock()
	newest := c.current[h.Device]
	c.mu.Unlock()
	err := call(h)
	if err == nil && h.Generation < newest {
		c.Errorf("a call of %+v was carried out after generation %d was claimed", h, newest)
	}
	if err != nil && !errors.Is(err, registry.ErrLost) {
		c.Errorf("call of %+v: %v", h, err)
	}
}

func (c *crowd) tryPorts(r *rand.Rand) {
	var want []uint16
	for _, p := range somePorts {
		if r.IntN(2) == 0 {
			want = append(want, p)
		}
	}
	c.tryStale(r, func(h registry.Holder) error {
		ports, err := c.Registry.LeasePorts(c.ctx, h, want, 40000, 40099)
		var full *registry.PortsFullError
		if errors.As(err, &full) {
			return nil // all rest by now
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for p, public := range ports {
			// The same device may only have it for the same port: else it did not rest.
			owner := fmt.Sprintf("%s:%d", h.Device, p)
			if o, known := c.ports[public]; known && o != owner {
				c.Errorf("public port %d leads to %s and %s within its rest", public, o, owner)
			}
			c.ports[public] = owner
		}
		return err
	})
}

func (c *crowd) sawLabel(label, device string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, known := c.labels[label]; known && d != device {
		c.Errorf("label %s was leased to %s and %s", label, d, device)
	}
	c.labels[label] = device
}

// settled compares what is recorded in the end with what was told.
func (c *crowd) settled() {
	c.Helper()
	for _, id := range slices.Sorted(maps.Keys(c.current)) {
		if c.settledAt[id] == c.current[id] {
			continue // not claimed in this round
		}
		c.settledAt[id] = c.current[id]
		r := c.device(id)
		if r.Generation != c.current[id] {
			c.Errorf("%s has generation %d, the last claim got %d", id, r.Generation, c.current[id])
		}
		c.label(r.Label, id)
		c.sawLabel(r.Label, id)
	}
}
