// Package registrytest is the conformance suite of registry.Registry: what it
// promises, as tests that every implementation runs.
package registrytest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// Env is a registry under test, empty and used by one test alone, and how to make
// time pass for it. Whoever opens it closes it, by t.Cleanup.
type Env struct {
	Registry registry.Registry

	// Advance lets that much time pass on the registry's clock, at once.
	Advance func(time.Duration)
	// Exact says that only Advance moves the clock. Then the suite also tests to
	// the millisecond, and runs the model test with time in it.
	Exact bool

	// Reopen ends the registry as a crash would and opens what it kept; the result
	// is closed by the Env too. Nil: the tests that need it are skipped.
	Reopen func() registry.Registry

	// Lease is the lease that tests ask for; zero means a minute. On a clock that runs by
	// itself, a third of it must be long enough for a slow machine.
	Lease time.Duration
	// NodeTTL and PortRest are what the implementation takes for the constants of
	// these names; zero means just these.
	NodeTTL, PortRest time.Duration
}

// Run runs the suite; open is called once by each test. Tests run in parallel, unless
// open makes them wait.
//
// The random tests take the seed from IOTTUNNEL_SEED, and log the one they drew;
// IOTTUNNEL_STEPS sets how many operations they try.
func Run(t *testing.T, open func(t *testing.T) Env) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"Claim", claimTests},
		{"LeasePorts", portTests},
		{"Rest", restTests},
		{"Public", publicTests},
		{"Time", timeTests},
		{"Hint", hintTests},
		{"Lease", leaseTests},
		{"Look", lookTests},
		{"Node", nodeTests},
		{"Credential", credentialTests},
		{"Code", codeTests},
		{"Notice", noticeTests},
		{"Grant", grantTests},
		{"Journal", journalTests},
		{"Drop", dropTests},
		{"Call", callTests},
		{"Reopen", reopenTests},
		{"Concurrent", concurrentTests},
		{"Random", randomTests},
	} {
		for _, test := range group.tests {
			t.Run(group.name+"/"+test.name, func(t *testing.T) {
				t.Parallel()
				test.run(newSuite(t, open(t)))
			})
		}
	}
}

type test struct {
	name string
	run  func(*suite)
}

// suite is one test with its registry.
type suite struct {
	*testing.T
	Env
	ctx   context.Context
	alive []registry.Node // beaten while time passes
}

func newSuite(t *testing.T, env Env) *suite {
	if env.Lease == 0 {
		env.Lease = time.Minute
	}
	if env.NodeTTL == 0 {
		env.NodeTTL = registry.NodeTTL
	}
	if env.PortRest == 0 {
		env.PortRest = registry.PortRest
	}
	return &suite{T: t, Env: env, ctx: t.Context()}
}

// now is the registry's time.
func (s *suite) now() time.Time {
	s.Helper()
	now, err := s.Registry.Time(s.ctx)
	if err != nil {
		s.Fatalf("Time: %v", err)
	}
	return now
}

// whileLive is how long a lease runs from a claim or refresh.
func (s *suite) whileLive() time.Duration { return s.Lease + s.Lease/3 }

// slack is how long before the end of something a test looks whether it still is.
func (s *suite) slack() time.Duration {
	if s.Exact {
		return time.Millisecond
	}
	return min(s.Lease, s.NodeTTL, s.PortRest) / 4
}

// margin is added to what must have passed.
func (s *suite) margin() time.Duration {
	if s.Exact {
		return time.Millisecond
	}
	return 50 * time.Millisecond
}

// pass lets time pass, with all alive nodes beating.
func (s *suite) pass(d time.Duration) {
	s.Helper()
	for d > 0 {
		step := d
		if len(s.alive) > 0 {
			step = min(d, s.NodeTTL/3)
		}
		s.Advance(step)
		d -= step
		for _, n := range s.alive {
			s.beat(n)
		}
	}
}

func (s *suite) beat(n registry.Node) {
	s.Helper()
	if err := s.Registry.Beat(s.ctx, n); err != nil {
		s.Fatalf("Beat(%v): %v", n.NodeRef, err)
	}
}

// node starts a node and keeps it alive.
func (s *suite) node(id, epoch string) registry.NodeRef {
	s.Helper()
	n := registry.Node{NodeRef: registry.NodeRef{ID: id, Epoch: epoch}}
	s.beat(n)
	s.alive = append(s.alive, n)
	return n.NodeRef
}

// silence stops the heartbeats of all nodes, and waits until none is live.
func (s *suite) silence() {
	s.Helper()
	s.alive = nil
	s.pass(s.NodeTTL + s.margin())
}

// ask is a claim of the device by its first instance on node, with the label
// "l-" and its name.
func (s *suite) ask(node registry.NodeRef, device, tunnel string) registry.Claim {
	return registry.Claim{
		Device: device, Instance: device + "-first", Tunnel: tunnel, Node: node,
		Label: "l-" + device, Lease: s.Lease,
	}
}

func (s *suite) claim(c registry.Claim) registry.Lease {
	s.Helper()
	l, err := s.Registry.Claim(s.ctx, c)
	if err != nil {
		s.Fatalf("Claim(%+v): %v", c, err)
	}
	want := registry.Holder{Device: c.Device, Generation: l.Generation, Tunnel: c.Tunnel}
	if l.Holder != want || l.Generation <= 0 {
		s.Fatalf("Claim(%+v) = %+v: another holder", c, l)
	}
	return l
}

// held fails unless the claim is refused because of that holder, and changes nothing.
func (s *suite) held(c registry.Claim, by registry.Incumbent) {
	s.Helper()
	before := s.device(c.Device)
	_, err := s.Registry.Claim(s.ctx, c)
	var held *registry.HeldError
	if !errors.As(err, &held) {
		s.Fatalf("Claim(%+v): %v, want a HeldError", c, err)
	}
	if held.Incumbent != by {
		s.Errorf("Claim(%+v): held by %+v, want %+v", c, held.Incumbent, by)
	}
	s.same(before, s.device(c.Device))
}

func (s *suite) release(h registry.Holder, why string) {
	s.Helper()
	if err := s.Registry.Release(s.ctx, h, s.Lease, why); err != nil {
		s.Fatalf("Release(%+v): %v", h, err)
	}
}

func (s *suite) lease(h registry.Holder, first, last uint16, want ...uint16) map[uint16]uint16 {
	s.Helper()
	ports, err := s.Registry.LeasePorts(s.ctx, h, want, first, last)
	if err != nil {
		s.Fatalf("LeasePorts(%+v, %v, %d, %d): %v", h, want, first, last, err)
	}
	s.samePorts(s.device(h.Device).Ports, ports)
	return ports
}

// full fails unless there is no room for the ports, and nothing changes.
func (s *suite) full(h registry.Holder, first, last uint16, want ...uint16) {
	s.Helper()
	before := s.device(h.Device)
	_, err := s.Registry.LeasePorts(s.ctx, h, want, first, last)
	var full *registry.PortsFullError
	if !errors.As(err, &full) {
		s.Fatalf("LeasePorts(%+v, %v, %d, %d): %v, want a PortsFullError", h, want, first, last, err)
	}
	if full.First != first || full.Last != last {
		s.Errorf("PortsFullError of %d-%d, want %d-%d", full.First, full.Last, first, last)
	}
	s.same(before, s.device(h.Device))
}

func (s *suite) refresh(holders ...registry.Holder) (lost []registry.Holder) {
	s.Helper()
	lost, err := s.Registry.Refresh(s.ctx, s.Lease, holders)
	if err != nil {
		s.Fatalf("Refresh(%+v): %v", holders, err)
	}
	return lost
}

func (s *suite) device(device string) registry.Record {
	s.Helper()
	r, err := s.Registry.ByDevice(s.ctx, device)
	if err != nil {
		s.Fatalf("ByDevice(%s): %v", device, err)
	}
	return r
}

// label fails unless the label is leased to the device, and returns its record.
func (s *suite) label(label, device string) registry.Record {
	s.Helper()
	r, err := s.Registry.ByLabel(s.ctx, label)
	if err != nil {
		s.Fatalf("ByLabel(%s): %v", label, err)
	}
	if r.Label != label || r.Device != device {
		s.Fatalf("ByLabel(%s) = %+v, want device %s", label, r, device)
	}
	s.same(s.device(device), r)
	return r
}

// gone fails unless neither the device nor the label has a lease.
func (s *suite) gone(device, label string) {
	s.Helper()
	if r, err := s.Registry.ByDevice(s.ctx, device); !errors.Is(err, registry.ErrUnknown) {
		s.Errorf("ByDevice(%s) = %+v, %v, want ErrUnknown", device, r, err)
	}
	if r, err := s.Registry.ByLabel(s.ctx, label); !errors.Is(err, registry.ErrUnknown) {
		s.Errorf("ByLabel(%s) = %+v, %v, want ErrUnknown", label, r, err)
	}
}

// lost fails unless the holder is lost to each call, and none changes anything.
func (s *suite) lost(h registry.Holder) {
	s.Helper()
	before, errBefore := s.Registry.ByDevice(s.ctx, h.Device)
	if err := s.Registry.Release(s.ctx, h, s.Lease, "late"); !errors.Is(err, registry.ErrLost) {
		s.Errorf("Release(%+v): %v, want ErrLost", h, err)
	}
	if p, err := s.Registry.LeasePorts(s.ctx, h, []uint16{22}, 60000, 60099); !errors.Is(err, registry.ErrLost) {
		s.Errorf("LeasePorts(%+v) = %v, %v, want ErrLost", h, p, err)
	}
	if p, err := s.Registry.LeasePorts(s.ctx, h, nil, 0, 0); !errors.Is(err, registry.ErrLost) {
		s.Errorf("LeasePorts(%+v) to give back = %v, %v, want ErrLost", h, p, err)
	}
	if lost := s.refresh(h); len(lost) != 1 || lost[0] != h {
		s.Errorf("Refresh(%+v) lost %+v", h, lost)
	}
	after, errAfter := s.Registry.ByDevice(s.ctx, h.Device)
	if !errors.Is(errAfter, errBefore) {
		s.Errorf("lost calls change ByDevice from %v to %v", errBefore, errAfter)
	}
	s.same(before, after)
}

func (s *suite) same(want, got registry.Record) {
	s.Helper()
	if w, g := line(want), line(got); w != g {
		s.Errorf("record:\n got %s\nwant %s", g, w)
	}
}

func (s *suite) samePorts(want, got map[uint16]uint16) {
	s.Helper()
	if w, g := fmt.Sprint(want), fmt.Sprint(got); w != g {
		s.Errorf("ports %s, want %s", g, w)
	}
}

// line writes a record for comparison: times without their zone, no ports as none.
func line(r registry.Record) string {
	return fmt.Sprintf("device=%s label=%s gen=%d online=%+v until=%d seen=%d why=%q ports=%v",
		r.Device, r.Label, r.Generation, r.Online, r.Until.UnixMilli(), r.Seen.UnixMilli(), r.Why, r.Ports)
}

// runs fails unless the lease runs that long from when the device was last seen.
func (s *suite) runs(r registry.Record, want time.Duration) {
	s.Helper()
	if d := r.Until.Sub(r.Seen) - want; d < -2*time.Millisecond || d > 2*time.Millisecond {
		s.Errorf("the lease runs %v from when the device was seen, want %v", r.Until.Sub(r.Seen), want)
	}
}
