//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

func (b *bench) http(ctx context.Context, s *report.Section) error {
	return b.keepAlive(ctx, s, byHost, ways.Caddy)
}

func (b *bench) tcp(ctx context.Context, s *report.Section) error {
	return b.keepAlive(ctx, s, byPort, ways.Relays)
}

func (b *bench) keepAlive(ctx context.Context, s *report.Section, target func(*ways.Way) *load.Target, base string) error {
	setup, err := b.loopback(ctx, s)
	if err != nil {
		return err
	}
	for _, visitors := range []int{1, 16, 64} {
		name := fmt.Sprintf("%d visitors", visitors)
		err := b.requests(ctx, s, setup, name, target, load.Requests{Visitors: visitors, Path: "/small"})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	b.compare(s, base)
	return nil
}

func (b *bench) fresh(ctx context.Context, s *report.Section) error {
	setup, err := b.loopback(ctx, s)
	if err != nil {
		return err
	}
	visit := load.Requests{Visitors: 16, Path: "/small", Fresh: true}
	if err := b.requests(ctx, s, setup, "HTTP by Host", byHost, visit); err != nil {
		return err
	}
	if err := b.requests(ctx, s, setup, "TCP port", byPort, visit); err != nil {
		return err
	}
	b.compare(s, ways.Caddy, ways.Relays)
	return nil
}

// compare adds what rates and costs are of those of each base. Costs wander less
// than rates when the machine has other things to do.
func (b *bench) compare(s *report.Section, bases ...string) {
	for _, base := range bases {
		s.Ratio("rate", base, "of "+base)
		s.Ratio("CPU", base, "CPU of "+base)
	}
}

// requests measures one load over all ways.
func (b *bench) requests(ctx context.Context, s *report.Section, setup *ways.Setup, name string, target func(*ways.Way) *load.Target, visit load.Requests) error {
	if !b.wants(name) {
		return nil
	}
	return b.over(ctx, setup.Ways, target, func(w *ways.Way, t load.Target) error {
		stop := b.profiled(ctx, setup, s.Name, name, w)
		a, err := visit.Run(t, b.windowOf(w))
		stop()
		if err != nil {
			return err
		}
		s.Add(name, w.Name, "rate", "req/s", a.PerSecond())
		s.Add(name, w.Name, "p50", "ms", milliseconds(a.Quantile(0.5)))
		s.Add(name, w.Name, "p99", "ms", milliseconds(a.Quantile(0.99)))
		addCPU(s, name, w, "µs/req", func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(a.Count) }, a.CPU)
		return nil
	})
}

// wants says whether a load is to be run.
func (b *bench) wants(name string) bool { return strings.Contains(name, b.loads) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
