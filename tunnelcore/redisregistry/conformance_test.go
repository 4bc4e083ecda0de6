package redisregistry

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry/registrytest"
)

// conform runs the conformance suite on servers that go by clock: one test at a time,
// as each moves the clock, under a prefix of its own.
func conform(t *testing.T, clock *redistest.Clock, o Options) {
	var turn sync.Mutex
	registrytest.Run(t, func(t *testing.T) registrytest.Env {
		turn.Lock()
		t.Cleanup(turn.Unlock)
		o := o
		sum := sha256.Sum256([]byte(t.Name()))
		o.KeyPrefix = "iottunnel:" + hex.EncodeToString(sum[:4]) + ":"
		// Longer than a slow machine takes for any test.
		o.nodeTTL, o.portRest, o.now = time.Hour, time.Hour, clock.Now
		return registrytest.Env{Registry: open(t, o), Advance: clock.Advance, Lease: time.Hour, NodeTTL: time.Hour, PortRest: time.Hour}
	})
}

// open opens a registry that is closed with the test.
func open(t *testing.T, o Options) *Registry {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second // many tests share two processors
		o.DialTimeout = o.Timeout
	}
	if o.newTime == 0 {
		o.newTime = time.Nanosecond // Redis is new, with nothing to wait for
	}
	r, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

func TestPlain(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	s := redistest.Start(t, redistest.Options{Clock: clock})
	conform(t, clock, Options{URL: "redis://" + s.Addr})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	s := redistest.Start(t, redistest.Options{Clock: clock, TLS: true})
	conform(t, clock, Options{URL: "rediss://" + s.Addr, TLS: s.ClientTLS()})
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	s := redistest.Start(t, redistest.Options{Clock: clock, Unix: true})
	conform(t, clock, Options{URL: "unix://" + s.Socket})
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	g := redistest.WithSentinels(t, "sentinel-password", clock)
	conform(t, clock, Options{Sentinel: &Sentinel{Master: g.Name, Addrs: g.Addrs(), Password: "sentinel-password"}})
}

func TestCluster(t *testing.T) {
	t.Parallel()
	clock := redistest.NewClock(t)
	var addrs []string
	for _, s := range redistest.Cluster(t, clock) {
		addrs = append(addrs, s.Addr)
	}
	conform(t, clock, Options{Cluster: addrs})
}
