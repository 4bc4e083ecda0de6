package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/redisregistry"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// BenchmarkDevicesPage reads pages of a list of 100,000 devices on Redis, each with
// a lease and a public port, connected to another node. The first pages are as far
// from the end as can be. What Redis holds for a device comes beside it.
func BenchmarkDevicesPage(b *testing.B) {
	const devices, ports = 100_000, 20_000
	s := redistest.Start(b, redistest.Options{})
	s.Do("SET", "iottunnel:schema", "1") // a new one has nodes wait for a moment
	reg, err := redisregistry.Open(b.Context(), redisregistry.Options{URL: "redis://" + s.Addr, PoolSize: 64})
	if err != nil {
		b.Fatal(err)
	}
	hub, err := tunnelcore.New(tunnelcore.Config{Node: "this", Registry: reg, Settings: tunnelcore.Settings{Domain: testDomain}})
	if err != nil {
		b.Fatal(err)
	}
	defer hub.Shutdown(b.Context())
	other := registry.Node{NodeRef: registry.NodeRef{ID: "other", Epoch: "1"}, Capacity: devices}
	if err := reg.Beat(b.Context(), other); err != nil {
		b.Fatal(err)
	}
	empty := memoryOf(b, s)
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := w; i < devices; i += 64 {
				device := fmt.Sprintf("device-%06d", i)
				l, err := reg.Claim(b.Context(), registry.Claim{
					Device: device, Instance: "0123456789abcdef0123456789abcdef", Tunnel: fmt.Sprintf("%032x", i), Node: other.NodeRef,
					Label: fmt.Sprintf("%016x", i), Lease: time.Hour,
				})
				if err == nil && i < ports {
					_, err = reg.LeasePorts(b.Context(), l.Holder, []uint16{22}, 20000, 20000+ports-1)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	perDevice := float64(memoryOf(b, s)-empty) / devices
	for _, q := range []deviceQuery{
		{Limit: defaultPage}, {Limit: maxPage}, {Limit: maxPage, After: "device-050000"},
		{Limit: maxPage, Text: "no such device"}, // goes through maxScan devices
	} {
		b.Run(fmt.Sprintf("limit=%d,after=%s,text=%s", q.Limit, q.After, q.Text), func(b *testing.B) {
			for b.Loop() {
				page, err := listDevices(b.Context(), hub, q)
				if err != nil || q.Text == "" && len(page.Devices) != q.Limit {
					b.Fatalf("%d devices, %v", len(page.Devices), err)
				}
			}
			b.ReportMetric(perDevice, "redis-B/device")
		})
	}
}

// TestPageIsBounded reads pages of a small and of a large fleet: what a page costs does
// not depend on how many devices there are beside those on it. How long one of 100,000
// takes is BenchmarkDevicesPage's to tell.
func TestPageIsBounded(t *testing.T) {
	const few, many = 1300, 2600
	pages := []deviceQuery{{Limit: defaultPage}, {Limit: maxPage, After: "device-000200"}}
	t.Run("memory", func(t *testing.T) {
		reg, err := registry.OpenMemory(registry.MemoryOptions{})
		if err != nil {
			t.Fatal(err)
		}
		hub := listHub(t, reg)
		var bytes [2][]float64
		for i, size := range []int{few, many} {
			fillFleet(t, reg, size)
			for _, q := range pages {
				bytes[i] = append(bytes[i], bytesPerRun(5, func() { wantPage(t, hub, q) }))
			}
		}
		for i, q := range pages {
			if small, large := bytes[0][i], bytes[1][i]; large > 1.1*small {
				t.Errorf("%+v: %.0f bytes are allocated with %d devices, %.0f with %d", q, small, few, large, many)
			}
		}
	})
	t.Run("redis", func(t *testing.T) {
		s := redistest.Start(t, redistest.Options{})
		s.Do("SET", "iottunnel:schema", "1") // a new one has nodes wait for a moment
		reg, err := redisregistry.Open(t.Context(), redisregistry.Options{URL: "redis://" + s.Addr, PoolSize: 16})
		if err != nil {
			t.Fatal(err)
		}
		hub := listHub(t, reg)
		var commands, sent [2][]int64
		for i, size := range []int{few, many} {
			fillFleet(t, reg, size)
			for _, q := range pages {
				s.ResetCommands()
				wantPage(t, hub, q)
				var n int64
				for _, count := range s.Commands() {
					n += int64(count)
				}
				commands[i], sent[i] = append(commands[i], n), append(sent[i], redisInfo(t, s, "stats", "total_net_output_bytes"))
			}
		}
		for i, q := range pages {
			// The node's own heartbeats come between.
			if small, large := commands[0][i], commands[1][i]; large > small+small/10+50 {
				t.Errorf("%+v: %d commands with %d devices, %d with %d", q, small, few, large, many)
			}
			if small, large := sent[0][i], sent[1][i]; large > small+small/10+20_000 {
				t.Errorf("%+v: %d bytes with %d devices, %d with %d", q, small, few, large, many)
			}
		}
	})
}

// bytesPerRun is how many bytes f allocates, and what the hub does meanwhile.
func bytesPerRun(runs int, f func()) float64 {
	f() // what is allocated once
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / float64(runs)
}

func listHub(t *testing.T, reg registry.Registry) *tunnelcore.Hub {
	t.Helper()
	hub, err := tunnelcore.New(tunnelcore.Config{Node: "this", Registry: reg, Settings: tunnelcore.Settings{Domain: testDomain}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Shutdown(context.WithoutCancel(t.Context())) })
	return hub
}

// fillFleet makes the registry's devices as many as size.
func fillFleet(t *testing.T, reg registry.Registry, size int) {
	t.Helper()
	inParallel(size, func(i int) {
		device := fmt.Sprintf("device-%06d", i)
		_, err := reg.Claim(t.Context(), registry.Claim{
			Device: device, Instance: "0123456789abcdef0123456789abcdef", Tunnel: fmt.Sprintf("%032x", i),
			Node: registry.NodeRef{ID: "other", Epoch: "1"}, Label: fmt.Sprintf("%016x", i), Lease: time.Hour,
		})
		if err == nil && i%2 == 0 {
			_, err = registry.Enroll(t.Context(), reg, device, registry.HashSecret(device), registry.ReplaceRevoked)
		}
		if err != nil && !errors.Is(err, registry.ErrEnrolled) {
			t.Error(err)
		}
	})
}

func wantPage(t *testing.T, hub *tunnelcore.Hub, q deviceQuery) {
	page, err := listDevices(t.Context(), hub, q)
	if err != nil || len(page.Devices) != q.Limit || page.Next == "" {
		t.Errorf("%+v: %d devices, %v", q, len(page.Devices), err)
	}
}

// memoryOf is how many bytes Redis has in use.
func memoryOf(tb testing.TB, s *redistest.Server) (bytes int64) {
	tb.Helper()
	return redisInfo(tb, s, "memory", "used_memory")
}

// redisInfo is a number that Redis tells about itself.
func redisInfo(tb testing.TB, s *redistest.Server, section, name string) int64 {
	tb.Helper()
	for line := range strings.Lines(s.Do("INFO", section)) {
		if text, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			if err != nil {
				tb.Fatalf("%s: %v", name, err)
			}
			return n
		}
	}
	tb.Fatalf("Redis does not tell %s", name)
	return 0
}
