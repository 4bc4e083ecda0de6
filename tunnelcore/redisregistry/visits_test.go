package redisregistry_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/redisregistry"
)

// visit fails unless a visitor who enters at n is served by the device.
func (n *node) visit(t *testing.T, d *device) {
	t.Helper()
	target, err := n.hub.Await(t.Context(), d.up.Label+".devices.test")
	if err != nil || !target.Online || target.Node != d.node.id || target.Port != 80 {
		t.Errorf("%s from %s: %+v, %v", d.id, n.id, target, err)
		return
	}
	c, err := n.hub.Dial(t.Context(), target.Device, target.Port, netip.MustParseAddrPort("203.0.113.7:1234"))
	if err := echoes(c, err); err != nil {
		t.Errorf("%s from %s: %v", d.id, n.id, err)
	}
}

// Each node serves each device, and asks Redis for it now and then; while Redis is gone
// not at all.
func TestEachNodeServesEachDevice(t *testing.T) {
	s := redistest.Start(t, redistest.Options{})
	f := startFleet(t, redisregistry.Options{URL: "redis://" + s.Addr}, time.Hour, 15200)
	other := func(d *device) *node {
		if d.node == f.nodes[0] {
			return f.nodes[1]
		}
		return f.nodes[0]
	}
	redistest.Eventually(t, "the nodes know of each other", func() bool {
		_, err := other(f.devices[0]).hub.Lookup(t.Context(), f.devices[0].up.Label+".devices.test")
		return err == nil
	})
	d := f.devices[1]
	s.ResetCommands()
	other(d).visit(t, d)
	t.Logf("commands for a first visit, heartbeats included: %v", s.Commands())
	for _, n := range f.nodes {
		for _, d := range f.devices {
			n.visit(t, d)
		}
	}

	s.Kill()
	began := time.Now()
	for time.Since(began) < 5*time.Second { // routes are older than they are believed
		for _, n := range f.nodes {
			for _, d := range f.devices {
				before := time.Now()
				n.visit(t, d)
				if took := time.Since(before); took > time.Second {
					t.Fatalf("%s from %s: %v", d.id, n.id, took)
				}
			}
		}
	}
	_, err := f.nodes[0].hub.Await(t.Context(), "never-seen.devices.test")
	if err == nil {
		t.Error("an unknown device was found while Redis is gone")
	}
	s.Start()
	f.again()
	for _, n := range f.nodes {
		for _, d := range f.devices {
			n.visit(t, d)
		}
	}
	f.kept()
}
