package caddymodule

import (
	"fmt"
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

// memoryOf is how many bytes Redis has in use.
func memoryOf(b *testing.B, s *redistest.Server) (bytes int64) {
	b.Helper()
	for line := range strings.Lines(s.Do("INFO", "memory")) {
		if text, ok := strings.CutPrefix(line, "used_memory:"); ok {
			bytes, _ = strconv.ParseInt(strings.TrimSpace(text), 10, 64) // Redis writes it
		}
	}
	return bytes
}
