package registry_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/registry/registrytest"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// A fakeClock moves only when it is told to.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t *testing.T, opts registry.MemoryOptions) *registry.Memory {
	t.Helper()
	m, err := registry.OpenMemory(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return m
}

func TestMemory(t *testing.T) {
	registrytest.Run(t, func(t *testing.T) registrytest.Env {
		clock := newFakeClock()
		return registrytest.Env{
			Registry: open(t, registry.MemoryOptions{Now: clock.Now}),
			Advance:  clock.Advance,
			Exact:    true,
		}
	})
}

func TestMemoryInFile(t *testing.T) {
	registrytest.Run(t, func(t *testing.T) registrytest.Env {
		clock := newFakeClock()
		opts := registry.MemoryOptions{Path: filepath.Join(t.TempDir(), "registry.db"), Now: clock.Now}
		m := open(t, opts)
		return registrytest.Env{
			Registry: m,
			Advance:  clock.Advance,
			Exact:    true,
			Reopen: func() registry.Registry {
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				m = open(t, opts)
				return m
			},
		}
	})
}

// TestMemoryOnRunningClock runs the suite as other implementations must: on a
// clock that it does not move, though this one runs ten times as fast.
func TestMemoryOnRunningClock(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for leases and rests, some 20 seconds")
	}
	const speed = 10
	registrytest.Run(t, func(t *testing.T) registrytest.Env {
		begin := time.Now()
		now := func() time.Time { return begin.Add(speed * time.Since(begin)) }
		return registrytest.Env{
			Registry: open(t, registry.MemoryOptions{Now: now}),
			Advance:  func(d time.Duration) { time.Sleep(d / speed) },
			Lease:    30 * time.Second,
		}
	})
}

func TestMaxPorts(t *testing.T) {
	if registry.MaxPorts != 2*wire.MaxPorts {
		t.Errorf("a device has %d public ports, and forwards %d: want twice as many", registry.MaxPorts, wire.MaxPorts)
	}
}
