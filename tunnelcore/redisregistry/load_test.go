package redisregistry

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// TestLoad holds what idle devices cost Redis, with all that their nodes ask for, to
// 1 + 6·devices/(lease/3) commands a second.
func TestLoad(t *testing.T) {
	t.Parallel()
	const (
		devices = 15_000
		nodes   = 3
		lease   = time.Minute
		// A hub refreshes a lease once per third, a tenth earlier on average.
		period = lease / 3 * 9 / 10
		batch  = 500 // as many as a hub refreshes in one call
		most   = 1 + 6*devices/(lease/3/time.Second)
	)
	s := redistest.Start(t, redistest.Options{})
	all := make([]*Registry, nodes)
	held := make([][]registry.Held, nodes)
	for i := range all {
		all[i] = short(t, Options{URL: "redis://" + s.Addr})
		all[i].Hints(t.Context())
		n := beatNode(t, all[i], fmt.Sprintf("edge-%d", i+1), "e1")
		for d := range devices / nodes {
			device := fmt.Sprintf("cam-%d-%05d", i, d)
			held[i] = append(held[i], registry.Held{
				Holder: registry.Holder{Device: device, Generation: time.Now().UnixMicro(), Tunnel: "0123456789abcdef0123456789abcdef"},
				Label:  "label-of-" + device, Instance: "0123456789abcdef0123456789abcdef", Node: n, Lease: lease,
			})
		}
		restore(t, all[i], held[i])
	}
	versions := make([]int64, nodes)
	turn := func(i int) { // what a hub does with each heartbeat
		beatNode(t, all[i], fmt.Sprintf("edge-%d", i+1), "e1")
		_, errNodes := all[i].Nodes(t.Context())
		_, errNotices := all[i].Notices(t.Context(), 0)
		_, now, errPorts := all[i].Ports(t.Context(), versions[i])
		versions[i] = now
		if err := firstError(errNodes, errNotices, errPorts); err != nil {
			t.Fatal(err)
		}
	}
	refreshAll := func(i int) {
		for piece := range slices.Chunk(held[i], batch) {
			var holders []registry.Holder
			for _, h := range piece {
				holders = append(holders, h.Holder)
			}
			if lost, err := all[i].Refresh(t.Context(), lease, holders); err != nil || len(lost) > 0 {
				t.Fatalf("Refresh: lost %d, %v", len(lost), err)
			}
		}
	}
	for i := range all { // scripts are known from then on
		turn(i)
		refreshAll(i)
	}

	s.ResetCommands()
	cpu := -cpuOf(t, s)
	for i := range all {
		refreshAll(i)
		for range (period + registry.NodeHeartbeat - 1) / registry.NodeHeartbeat {
			turn(i)
		}
	}
	cpu += cpuOf(t, s)
	total := 0
	for name, n := range s.Commands() {
		if name != "config|resetstat" {
			total += n
		}
	}
	rate := float64(total) / period.Seconds()
	t.Logf("%d idle devices on %d nodes, leases of %v: %.0f commands a second, at most %d; redis works %.1f %% of the time",
		devices, nodes, lease, rate, most, 100*cpu.Seconds()/period.Seconds())
	if rate > float64(most) {
		t.Errorf("%.0f commands a second, at most %d are allowed", rate, most)
	}
}

// cpuOf is what the server has worked so far.
func cpuOf(t *testing.T, s *redistest.Server) time.Duration {
	t.Helper()
	var sum float64
	for line := range strings.Lines(s.Do("INFO", "cpu")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != "used_cpu_sys" && name != "used_cpu_user" {
			continue
		}
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += seconds
	}
	return time.Duration(sum * float64(time.Second))
}
