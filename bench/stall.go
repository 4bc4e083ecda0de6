//go:build linux

package main

import (
	"context"
	"time"

	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/proc"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

// stall measures 8 visitors alone, and again while 4 others have asked for an
// endless file each and read nothing of it.
func (b *bench) stall(ctx context.Context, s *report.Section) error {
	setup, err := b.loopback(ctx, s)
	if err != nil {
		return err
	}
	visit := load.Requests{Visitors: 8, Path: "/small"}
	return b.over(ctx, setup.Ways, byPort, func(w *ways.Way, t load.Target) error {
		alone, err := visit.Run(t, b.windowOf(w))
		if err != nil {
			return err
		}
		memory := func(pids []int) float64 {
			bytes, _ := proc.Memory(pids) // a process that has ended fails the load, too
			return float64(bytes) / (1 << 20)
		}
		edge, device := memory(w.Edge), memory(w.Device)
		stalled, err := load.Stall(t, 4)
		if err != nil {
			return err
		}
		defer stalled.Close()
		time.Sleep(b.window / 2) // until nothing fits into their buffers any more
		beside, err := visit.Run(t, b.windowOf(w))
		if err != nil {
			return err
		}
		s.Add(stallLoad, w.Name, "alone", "req/s", alone.PerSecond())
		s.Add(stallLoad, w.Name, "beside", "req/s", beside.PerSecond())
		s.Add(stallLoad, w.Name, "of alone", "×", beside.PerSecond()/alone.PerSecond())
		if len(w.Edge) > 0 {
			s.Add(stallLoad, w.Name, "edge grows", "MiB", memory(w.Edge)-edge)
			s.Add(stallLoad, w.Name, "device grows", "MiB", memory(w.Device)-device)
		}
		return nil
	})
}
