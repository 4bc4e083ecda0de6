//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

func (b *bench) bulk(ctx context.Context, s *report.Section) error {
	setup, err := b.loopback(ctx, s)
	if err != nil {
		return err
	}
	for _, kind := range []struct {
		name    string
		target  func(*ways.Way) *load.Target
		streams int
		up      bool
	}{
		{"TCP port, 1 down", byPort, 1, false},
		{"TCP port, 1 up", byPort, 1, true},
		{"TCP port, 4 down", byPort, 4, false},
		{"TCP port, 4 up", byPort, 4, true},
		{"HTTP by Host, 1 down", byHost, 1, false},
	} {
		if !b.wants(kind.name) {
			continue
		}
		err := b.over(ctx, setup.Ways, kind.target, func(w *ways.Way, t load.Target) error {
			stop := b.profiled(ctx, setup, s.Name, kind.name, w)
			m, err := load.Bulk{Streams: kind.streams, Up: kind.up}.Run(t, b.windowOf(w))
			stop()
			if err != nil {
				return err
			}
			s.Add(kind.name, w.Name, "rate", "MiB/s", m.PerSecond())
			addCPU(s, kind.name, w, "s/GiB", func(d time.Duration) float64 { return d.Seconds() / (float64(m.Bytes) / (1 << 30)) }, m.CPU)
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	b.compare(s, ways.Relays, ways.Caddy)
	return nil
}
