package redisregistry

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry/registrytest"
)

// timeless are the tests of the suite that wait for nothing to end, and must not
// see it end on a slow machine.
var timeless = []string{
	"/Random/", "/Concurrent/", "/Call/", "/Look/list", "/Look/copies", "/Look/unknown",
	"/Claim/new_device", "/Claim/the_same_instance_takes_over", "/Claim/who_is_found_dead",
	"/Claim/a_tunnel_dies_with_its_node", "/Lease/refresh_of_a_fleet", "/Lease/refresh_sets",
	"/Lease/release_with_another", "/Lease/release_cuts", "/LeasePorts/one_for_each", "/LeasePorts/all_or_nothing",
	"/LeasePorts/a_port_is_one", "/LeasePorts/given_back", "/LeasePorts/another_range",
	"/LeasePorts/a_lease_that_ends_at_once", "/Node/list", "/Node/leave", "/Rest/",
	"/Credential/", "/Code/once", "/Code/an_id", "/Code/by_one", "/Notice/", "/Drop/",
	"/Public/what_is", "/Public/one_for", "/Public/a_lease_that_ends_at_once", "/Public/calls", "/Time/", "/Hint/",
}

// The others mostly wait, and are all under way at the same time. Only then come
// the timeless ones, which keep the processors busy, a few at a time.
var (
	timed = counter{zero: sync.NewCond(new(sync.Mutex))}
	busy  = make(chan struct{}, 3)
)

type counter struct {
	zero *sync.Cond // its lock guards n
	n    int
}

func (c *counter) add(d int) {
	c.zero.L.Lock()
	defer c.zero.L.Unlock()
	if c.n += d; c.n == 0 {
		c.zero.Broadcast()
	}
}

// await waits until the count is zero.
func (c *counter) await() {
	c.zero.L.Lock()
	defer c.zero.L.Unlock()
	for c.n > 0 {
		c.zero.Wait()
	}
}

// conform runs the conformance suite, each test under a prefix of its own.
func conform(t *testing.T, o Options) {
	registrytest.Run(t, func(t *testing.T) registrytest.Env {
		o := o
		sum := sha256.Sum256([]byte(t.Name()))
		o.KeyPrefix = "iottunnel:" + hex.EncodeToString(sum[:4]) + ":"
		env := registrytest.Env{Lease: 4 * time.Second, NodeTTL: 6 * time.Second, PortRest: 4 * time.Second}
		waits := !slices.ContainsFunc(timeless, func(name string) bool { return strings.Contains(t.Name(), name) }) ||
			strings.HasSuffix(t.Name(), "/list_after_leases_have_ended") || strings.HasSuffix(t.Name(), "/waiting_ends_it")
		if waits {
			timed.add(1)
			t.Cleanup(func() { timed.add(-1) })
		} else {
			timed.await()
			busy <- struct{}{}
			t.Cleanup(func() { <-busy })
			env = registrytest.Env{Lease: time.Hour, NodeTTL: time.Hour, PortRest: time.Hour}
		}
		o.nodeTTL, o.portRest = env.NodeTTL, env.PortRest
		env.Registry = open(t, o)
		return env
	})
}

// open opens a registry that is closed with the test.
func open(t *testing.T, o Options) *Registry {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second // many tests share two processors
		o.DialTimeout = o.Timeout
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
	s := redistest.Start(t, redistest.Options{})
	conform(t, Options{URL: "redis://" + s.Addr})
}

func TestTLS(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{TLS: true})
	conform(t, Options{URL: "rediss://" + s.Addr, TLS: s.ClientTLS()})
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{Unix: true})
	conform(t, Options{URL: "unix://" + s.Socket})
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	g := redistest.WithSentinels(t, "sentinel-password")
	conform(t, Options{Sentinel: &Sentinel{Master: g.Name, Addrs: g.Addrs(), Password: "sentinel-password"}})
}

func TestCluster(t *testing.T) {
	t.Parallel()
	var addrs []string
	for _, s := range redistest.Cluster(t) {
		addrs = append(addrs, s.Addr)
	}
	conform(t, Options{Cluster: addrs})
}
