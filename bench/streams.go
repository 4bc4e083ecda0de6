//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/proc"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

// streams measures how much memory grows by visitors who have had one answer and
// stay connected. A few before them, who have left, have warmed it up. Each way has
// programs of its own: memory that others' streams have left behind would hide
// what these take.
func (b *bench) streams(ctx context.Context, s *report.Section) error {
	visitors, settle := 240, 1500*time.Millisecond // an agent takes 256 at once
	if b.short {
		visitors, settle = 20, 0
	}
	s.Note("%d streams.", visitors)
	for range b.repeats {
		for _, name := range b.ways {
			if name == ways.Direct || name == ways.Caddy || b.short && name != ways.Basic {
				continue
			}
			if err := b.growthOf(ctx, s, name, visitors, settle); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (b *bench) growthOf(ctx context.Context, s *report.Section, name string, visitors int, settle time.Duration) error {
	setup, err := ways.New(ctx, ways.Config{Bin: b.bin, Self: b.self, Ways: []string{name}})
	if err != nil {
		return err
	}
	defer setup.Close()
	noteMissing(s, setup)
	for _, w := range setup.Ways {
		if err := growth(ctx, s, w, visitors, settle); err != nil {
			return err
		}
	}
	return nil
}

// growth measures one way.
func growth(ctx context.Context, s *report.Section, w *ways.Way, visitors int, settle time.Duration) error {
	warm, err := load.Hold(*w.TCP, visitors/20)
	if err != nil {
		return err
	}
	warm.Close()
	wait(ctx, settle)
	edge, device, err := memories(w)
	if err != nil {
		return err
	}
	held, err := load.Hold(*w.TCP, visitors)
	if err != nil {
		return err
	}
	defer held.Close()
	wait(ctx, settle)
	cpu, begin := proc.CPU(w.Processes()), time.Now()
	if !wait(ctx, settle) {
		return ctx.Err()
	}
	edgeNow, deviceNow, err := memories(w)
	if err != nil {
		return err
	}
	each := func(bytes int64) float64 { return float64(bytes) / 1024 / float64(visitors) }
	s.Add(streamsLoad, w.Name, "edge", "KiB each", each(edgeNow-edge))
	s.Add(streamsLoad, w.Name, "device", "KiB each", each(deviceNow-device))
	if settle > 0 {
		spent := proc.CPU(w.Processes()) - cpu
		s.Add(streamsLoad, w.Name, "CPU", "µs/s each", float64(spent.Microseconds())/time.Since(begin).Seconds()/float64(visitors))
	}
	return nil
}

// memories are the anonymous memory of both sides, in bytes.
func memories(w *ways.Way) (edge, device int64, err error) {
	if edge, err = proc.Memory(w.Edge); err != nil {
		return 0, 0, err
	}
	device, err = proc.Memory(w.Device)
	return edge, device, err
}
