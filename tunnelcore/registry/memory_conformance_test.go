package registry_test

import (
	"path/filepath"
	"sync"
	"sync/atomic"
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

// TestMemoryOnRunningClock runs the suite as others do: on a clock that also runs by
// itself.
func TestMemoryOnRunningClock(t *testing.T) {
	registrytest.Run(t, func(t *testing.T) registrytest.Env {
		var ahead atomic.Int64
		return registrytest.Env{
			Registry: open(t, registry.MemoryOptions{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}),
			Advance:  func(d time.Duration) { ahead.Add(int64(d)) },
			Lease:    time.Hour,
		}
	})
}

func TestMaxPorts(t *testing.T) {
	if registry.MaxPorts != 2*wire.MaxPorts {
		t.Errorf("a device has %d public ports, and forwards %d: want twice as many", registry.MaxPorts, wire.MaxPorts)
	}
}
