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

// streams measures how much memory grows by visitors who have had one answer and
// stay connected. Those before them, who have left, have warmed it up.
func (b *bench) streams(ctx context.Context, s *report.Section) error {
	setup, err := b.loopback(ctx, s)
	if err != nil {
		return err
	}
	visitors, settle := 240, 2*time.Second // an agent takes 256 at once
	if b.short {
		visitors, settle = 20, 0
	}
	s.Note("%d streams.", visitors)
	return b.over(ctx, setup.Ways, byPort, func(w *ways.Way, t load.Target) error {
		if len(w.Edge) == 0 {
			return nil
		}
		warm, err := load.Hold(t, visitors/20)
		if err != nil {
			return err
		}
		warm.Close()
		time.Sleep(settle)
		edge, device, err := memories(w)
		if err != nil {
			return err
		}
		held, err := load.Hold(t, visitors)
		if err != nil {
			return err
		}
		defer func() {
			held.Close()
			time.Sleep(settle)
		}()
		time.Sleep(settle)
		cpu := proc.CPU(w.Processes())
		begin := time.Now()
		time.Sleep(settle)
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
	})
}

// memories are the anonymous memory of both sides, in bytes.
func memories(w *ways.Way) (edge, device int64, err error) {
	if edge, err = proc.Memory(w.Edge); err != nil {
		return 0, 0, err
	}
	device, err = proc.Memory(w.Device)
	return edge, device, err
}
