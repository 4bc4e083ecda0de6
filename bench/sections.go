//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/bench/link"
	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/proc"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

// section is a part of the benchmark that can be run alone.
type section struct {
	name, title string
	run         func(b *bench, ctx context.Context, s *report.Section) error
}

var sections = []section{
	{"http", "HTTP by Host, keep-alive, 1 KiB", (*bench).http},
	{"tcp", "TCP port, keep-alive requests, 1 KiB", (*bench).tcp},
	{"new", "A new connection per request, 1 KiB, 16 visitors", (*bench).fresh},
	{"bulk", "Bulk", (*bench).bulk},
	{"stall", "4 visitors stop reading, 8 others go on (TCP port)", (*bench).stall},
	{"agent", "The agent after its start", (*bench).agent},
	{"streams", "Memory of open streams (TCP port)", (*bench).streams},
	{"idle", "Idle devices at one edge process", (*bench).idle},
	{"latency", "Time to the first byte, link of 100 ms", (*bench).latency},
	{"farbulk", "Bulk over a link of 100 ms (TCP port)", (*bench).farBulk},
	{"loss", "Requests beside a download, link of 100 ms with 1 % loss (TCP port)", (*bench).lossy},
}

func sectionNames() (names []string) {
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

// bench is a run.
type bench struct {
	config
	self  string
	local *ways.Setup // nil: not needed so far
	far   *ways.Setup // over link; nil: not needed so far
	link  *link.Link
}

func runSections(ctx context.Context, c config) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.most, fmt.Errorf("it is not done after %v: -most", c.most))
	defer cancel()
	b := &bench{config: c}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	defer b.close()
	begin := time.Now()
	r := &report.Report{
		Date:    time.Now().Format(time.DateTime),
		Machine: fmt.Sprintf("%s/%s, %d CPUs, load average at the start %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), loadAverage()),
		Method:  fmt.Sprintf("%d repeats of %v each, ways taking turns; medians", c.repeats, c.window),
	}
	fmt.Printf("%s; %s; %s\n", r.Date, r.Machine, r.Method)
	var failed error
	for _, s := range sections {
		if !slices.Contains(c.only, s.name) {
			continue
		}
		begin, table := time.Now(), r.Section(s.name, s.title)
		if err := s.run(b, ctx, table); err != nil {
			err = fmt.Errorf("%s: %w", s.name, cmp.Or(context.Cause(ctx), err))
			failed = errors.Join(failed, err)
			if ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "bench: %v; the other sections go on\n", err)
			}
			table.Note("Not all of it: something failed.")
			b.close() // what it has left behind may be broken
		}
		table.Close()
		if err := errors.Join(table.Markdown(os.Stdout), b.write(r)); err != nil { // what was measured is kept, whatever comes
			return errors.Join(failed, err)
		}
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(os.Stderr, "%s took %v\n", s.name, time.Since(begin).Round(100*time.Millisecond))
	}
	fmt.Fprintf(os.Stderr, "all of it took %v\n", time.Since(begin).Round(time.Second))
	if !b.short { // its figures mean nothing
		r.Judge(goals)
	}
	if err := r.MarkdownGoals(os.Stdout); err != nil {
		return err
	}
	err = b.write(r)
	switch {
	case err != nil || b.update == "":
		return errors.Join(failed, err)
	case failed != nil: // the document's figures are better than half of new ones
		return fmt.Errorf("-update: %s stays as it is: %w", b.update, failed)
	}
	document, err := updated(b.update, r)
	if err == nil {
		err = os.WriteFile(b.update, document, 0o644)
	}
	return err
}

// updated is the document with the figures of r.
func updated(document string, r *report.Report) ([]byte, error) {
	text, err := os.ReadFile(document)
	if err != nil {
		return nil, fmt.Errorf("-update: %w", err)
	}
	if text, err = r.Update(text); err != nil {
		return nil, fmt.Errorf("-update %s: %w", document, err)
	}
	return text, nil
}

func (b *bench) write(r *report.Report) error {
	if b.json == "" {
		return nil
	}
	f, err := os.Create(b.json)
	if err != nil {
		return err
	}
	if err := r.JSON(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}

// close ends all programs. What is needed again is started anew.
func (b *bench) close() {
	if b.local != nil {
		b.local.Close()
	}
	if b.far != nil {
		b.far.Close()
	}
	if b.link != nil {
		b.link.Close()
	}
	b.local, b.far, b.link = nil, nil, nil
}

// loopback are the ways with everything on loopback.
func (b *bench) loopback(ctx context.Context, s *report.Section) (_ *ways.Setup, err error) {
	if b.local == nil {
		b.local, err = ways.New(ctx, ways.Config{Bin: b.bin, Self: b.self, Ways: b.ways})
		if err != nil {
			return nil, err
		}
	}
	noteMissing(s, b.local)
	return b.local, nil
}

func noteMissing(s *report.Section, setup *ways.Setup) {
	for _, missing := range setup.Missing {
		s.Note("Left out: %s.", missing)
	}
}

// windowOf is one measurement of what a way's processes spend.
func (b *bench) windowOf(w *ways.Way) load.Window {
	return load.Window{
		Warm: min(b.window/4, 500*time.Millisecond), Length: b.window,
		Probe: func() load.CPU { return load.CPU{Edge: proc.CPU(w.Edge), Device: proc.CPU(w.Device)} },
	}
}

// over measures each way in turn, in every repeat. Ways without a target are left
// out.
func (b *bench) over(ctx context.Context, all []*ways.Way, target func(*ways.Way) *load.Target, measure func(*ways.Way, load.Target) error) error {
	for range b.repeats {
		for _, w := range all {
			t := target(w)
			if t == nil {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := measure(w, *t); err != nil {
				return fmt.Errorf("%s: %w", w.Name, err)
			}
		}
	}
	return nil
}

// addCPU adds what one unit of a load cost.
func addCPU(s *report.Section, name string, w *ways.Way, unit string, each func(time.Duration) float64, spent load.CPU) {
	if len(w.Processes()) == 0 {
		return
	}
	s.Add(name, w.Name, "CPU", unit, each(spent.Edge+spent.Device))
	s.Add(name, w.Name, "of the edge", unit, each(spent.Edge))
}

func byHost(w *ways.Way) *load.Target { return w.HTTP }
func byPort(w *ways.Way) *load.Target { return w.TCP }
