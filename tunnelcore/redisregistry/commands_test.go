package redisregistry

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// TestCommands counts what Redis carries out, commands of scripts included, and
// holds the table in docs/redis.md to it.
func TestCommands(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	cluster := short(t, Options{URL: "redis://" + s.Addr, KeyPrefix: "cluster:"})
	cluster.perCall = 1 // as in a cluster
	exercise(t, r)      // so that all scripts are known
	const many = 1024
	n := beatNode(t, r, "n1", "e1")
	nc := beatNode(t, cluster, "n1", "e1")
	var held, clustered []registry.Held
	for i := range many {
		held = append(held, claim(t, r, ask(n, fmt.Sprintf("d%04d", i), "t1")))
		clustered = append(clustered, claim(t, cluster, ask(nc, fmt.Sprintf("d%04d", i), "t1")))
	}
	count := func(what string, per int, f func()) {
		t.Helper()
		s.ResetCommands()
		f()
		calls := s.Commands()
		delete(calls, "info")
		delete(calls, "config|resetstat")
		total := 0
		for _, n := range calls {
			total += n
		}
		line := fmt.Sprintf("| %s | %.2f | ", what, float64(total)/float64(per))
		for _, name := range slices.Sorted(maps.Keys(calls)) {
			line += fmt.Sprintf("%s %.3g, ", name, float64(calls[name])/float64(per))
		}
		t.Log(line)
		if row := fmt.Sprintf("| %s | %.2f |", what, float64(total)/float64(per)); !strings.Contains(string(doc), row) {
			t.Errorf("docs/redis.md has no row %q", row)
		}
	}
	beatNode(t, r, "n1", "e1") // lately, so that the first claim looks for the node's key
	count("first claim of a device", 1, func() { claim(t, r, ask(n, "new", "t1")) })
	count("claim of a device that was offline", 1, func() {
		h := claim(t, r, ask(n, "new", "t2"))
		s.ResetCommands()
		if err := r.Release(t.Context(), h.Holder, time.Hour, "bye"); err != nil {
			t.Fatal(err)
		}
		s.ResetCommands()
		claim(t, r, ask(n, "new", "t3"))
	})
	count("claim that replaces a tunnel", 1, func() { claim(t, r, ask(n, "new", "t4")) })
	count("refresh of one of many devices", many, func() { refresh(t, r, held) })
	count("the same in a cluster", many, func() { refresh(t, cluster, clustered) })
	count("release", 1, func() {
		if err := r.Release(t.Context(), held[0].Holder, time.Hour, "bye"); err != nil {
			t.Fatal(err)
		}
	})
	count("look-up of a label", 1, func() { online1(t, r, held[1]) })
	count("heartbeat of a node", 10, func() {
		for range 10 {
			beatNode(t, r, "n1", "e1")
		}
	})
	count("whether leased ports have changed", 10, func() {
		_, version, err := r.Ports(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		s.ResetCommands()
		for range 10 {
			if list, _, err := r.Ports(t.Context(), version); err != nil || list != nil {
				t.Fatalf("Ports: %v, %v", list, err)
			}
		}
	})
	ports := &held[2]
	count("lease of two new ports", 1, func() { leasePorts(t, r, ports, 22, 80) })
	count("giving one of them back", 1, func() { leasePorts(t, r, ports, 22) })
	count("taking it back", 1, func() { leasePorts(t, r, ports, 22, 80) })
	s.Do("FLUSHALL")
	count("writing a device again", many-10, func() { restore(t, r, held[10:]) })
}

// online1 is one look-up by label.
func online1(t *testing.T, r *Registry, h registry.Held) {
	t.Helper()
	if rec, err := r.ByLabel(t.Context(), h.Label); err != nil || rec.Device != h.Device {
		t.Errorf("ByLabel: %+v, %v", rec, err)
	}
}
