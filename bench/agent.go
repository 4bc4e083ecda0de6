//go:build linux

package main

import (
	"context"
	"time"

	"github.com/iottunnel/iottunnel/bench/proc"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

// agent measures what the device's side holds when its tunnel is up and no visitor
// has come yet.
func (b *bench) agent(ctx context.Context, s *report.Section) error {
	if b.short { // these have had visitors, but they are there
		setup, err := b.loopback(ctx, s)
		if err != nil {
			return err
		}
		return addResident(s, setup)
	}
	for range b.repeats {
		setup, err := ways.New(ctx, ways.Config{Bin: b.bin, Self: b.self, Ways: b.ways})
		if err != nil {
			return err
		}
		wait(ctx, 2*time.Second)
		err = addResident(s, setup)
		setup.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func addResident(s *report.Section, setup *ways.Setup) error {
	for _, w := range setup.Ways {
		if len(w.Device) == 0 {
			continue
		}
		resident, err := proc.Resident(w.Device)
		if err != nil {
			return err
		}
		memory, err := proc.Memory(w.Device)
		if err != nil {
			return err
		}
		s.Add(agentLoad, w.Name, "resident", "MiB", float64(resident)/(1<<20))
		s.Add(agentLoad, w.Name, "of it anonymous", "MiB", float64(memory)/(1<<20))
	}
	return nil
}
