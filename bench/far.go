//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/bench/link"
	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

// roundTrip is that of the link between edge and device.
const roundTrip = 100 * time.Millisecond

// overLink are the ways with a link between edge and device; nil: there can be none
// here, and the section says why.
func (b *bench) overLink(ctx context.Context, s *report.Section) (_ *ways.Setup, err error) {
	if b.far == nil {
		if b.far, err = b.newOverLink(ctx, s); err != nil || b.far == nil {
			return nil, err
		}
	}
	noteMissing(s, b.far)
	return b.far, nil
}

// newOverLink is overLink with programs that have just been started. The direct
// way is always one of them: it is what the others are compared with.
func (b *bench) newOverLink(ctx context.Context, s *report.Section) (_ *ways.Setup, err error) {
	if why := link.Possible(); why != nil {
		s.Note("Left out: %v.", why)
		return nil, nil
	}
	if b.link == nil {
		if b.link, err = link.New(roundTrip); err != nil {
			b.link = nil
			return nil, err
		}
	}
	chosen := slices.DeleteFunc(slices.Clone(b.ways), func(name string) bool {
		return name == ways.RelaysTLS || name == ways.Direct || b.short && name != ways.Basic
	})
	return ways.New(ctx, ways.Config{Bin: b.bin, Self: b.self, Link: b.link, Ways: append([]string{ways.Direct}, chosen...)})
}

// latency measures the time to the first byte over the link, in round trips. All
// programs are started anew for each repeat, so that the first visitor is the first
// ever.
func (b *bench) latency(ctx context.Context, s *report.Section) error {
	if b.short { // what comes after it uses them, too
		setup, err := b.overLink(ctx, s)
		if setup == nil || err != nil {
			return err
		}
		return b.firstBytes(ctx, s, setup, "TCP port", byPort)
	}
	for range b.repeats {
		for _, kind := range []struct {
			name   string
			target func(*ways.Way) *load.Target
		}{{"TCP port", byPort}, {"HTTP by Host", byHost}} {
			setup, err := b.newOverLink(ctx, s)
			if setup == nil || err != nil {
				return err
			}
			noteMissing(s, setup)
			err = b.firstBytes(ctx, s, setup, kind.name, kind.target)
			setup.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) firstBytes(ctx context.Context, s *report.Section, setup *ways.Setup, name string, target func(*ways.Way) *load.Target) error {
	for _, w := range setup.Ways {
		t := target(w)
		if t == nil {
			continue
		}
		for _, kind := range []struct {
			name  string
			visit load.Requests
			pick  func([]time.Duration) time.Duration
		}{
			{firstEver, load.Requests{Visitors: 1, Each: 1, Path: "/tiny", Fresh: true}, slices.Max[[]time.Duration]},
			{freshVisitor, load.Requests{Visitors: 1, Each: 5, Path: "/tiny", Fresh: true}, median},
			{keptAlive, load.Requests{Visitors: 1, Each: 6, Path: "/tiny"}, func(all []time.Duration) time.Duration { return median(all[1:]) }},
			{burstTiny, load.Requests{Visitors: 16, Each: 1, Path: "/tiny", Fresh: true}, slices.Max[[]time.Duration]},
			{burstSmall, load.Requests{Visitors: 16, Each: 1, Path: "/small", Fresh: true}, slices.Max[[]time.Duration]},
		} {
			if err := ctx.Err(); err != nil {
				return err
			}
			if b.short && kind.visit.Each > 1 {
				continue
			}
			a, err := kind.visit.Run(*t, load.Window{})
			if err != nil {
				return fmt.Errorf("%s, %s, %s: %w", name, w.Name, kind.name, err)
			}
			s.Add(name, w.Name, kind.name, "RTT", float64(kind.pick(a.Earliest))/float64(roundTrip))
			time.Sleep(2 * roundTrip) // what was left behind is taken down
		}
	}
	return nil
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// farBulk measures bulk over the link.
func (b *bench) farBulk(ctx context.Context, s *report.Section) error {
	setup, err := b.overLink(ctx, s)
	if setup == nil || err != nil {
		return err
	}
	for _, kind := range []struct {
		name string
		load load.Bulk
	}{
		{"1 down", load.Bulk{Streams: 1}},
		{"4 down", load.Bulk{Streams: 4}},
	} {
		err := b.over(ctx, setup.Ways, byPort, func(w *ways.Way, t load.Target) error {
			window := b.windowOf(w)
			window.Warm = 15 * roundTrip // until TCP's window is as large as it gets
			if b.short {
				window.Warm = 0
			}
			m, err := kind.load.Run(t, window)
			if err != nil {
				return err
			}
			s.Add(kind.name, w.Name, "rate", "MiB/s", m.PerSecond())
			time.Sleep(2 * roundTrip)
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	s.Ratio("rate", ways.Direct, "of "+ways.Direct)
	return nil
}

// lossy measures requests beside a download without end, over the link that loses
// 1 % of all packets each way.
func (b *bench) lossy(ctx context.Context, s *report.Section) error {
	setup, err := b.overLink(ctx, s)
	if setup == nil || err != nil {
		return err
	}
	err = b.over(ctx, setup.Ways, byPort, func(w *ways.Way, t load.Target) error {
		b.link.SetLoss(10)
		defer func() {
			b.link.SetLoss(0)
			time.Sleep(3 * roundTrip)
		}()
		window := load.Window{Warm: 5 * roundTrip, Length: 5 * b.window}
		a, m, err := besideBulk(t, window)
		if err != nil { // what a tunnel can bring about is a result, too
			s.Note("%s: %v.", w.Name, err)
			return nil
		}
		s.Add(lossLoad, w.Name, "p50", "ms", milliseconds(a.Quantile(0.5)))
		s.Add(lossLoad, w.Name, "p99", "ms", milliseconds(a.Quantile(0.99)))
		s.Add(lossLoad, w.Name, "requests", "/s", a.PerSecond())
		s.Add(lossLoad, w.Name, "download", "MiB/s", m.PerSecond())
		return nil
	})
	s.Ratio("p50", ways.Direct, "p50 of direct")
	s.Ratio("p99", ways.Direct, "p99 of direct")
	s.Note("The link lost %d packets.", b.link.Lost())
	return err
}

// besideBulk lets 15 visitors send requests while a 16th downloads.
func besideBulk(t load.Target, w load.Window) (a load.Answers, m load.Moved, err error) {
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() { m, failed = load.Bulk{Streams: 1}.Run(t, w) })
	a, err = load.Requests{Visitors: 15, Path: "/small"}.Run(t, w)
	wg.Wait()
	return a, m, errors.Join(err, failed)
}
