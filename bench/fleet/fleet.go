//go:build linux

package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/bench/proc"
)

// Fleet is processes of devices.
type Fleet struct {
	procs []*proc.Proc
	count int64
	watch sync.WaitGroup

	mu    sync.Mutex // guards what follows
	stats []Stat
	news  chan struct{} // closed and replaced with each new Stat
}

// perProcess is how many devices one process plays: it may hold fewer than 20,000
// descriptors, and shares the work.
const perProcess = 7500

// Start plays c.Count devices, in as many processes as they need. self is this
// program, which calls Work when it is started with `fleet-worker JSON`. They run
// until the group is closed.
func Start(group *proc.Group, self string, c Config) (*Fleet, error) {
	f := &Fleet{count: int64(c.Count), news: make(chan struct{})}
	processes := (c.Count + perProcess - 1) / perProcess
	for i := range processes {
		part := c
		part.First, part.Count = c.First+c.Count*i/processes, c.Count*(i+1)/processes-c.Count*i/processes
		if c.Rate > 0 {
			part.Rate = max(1, c.Rate/processes)
		}
		text, err := json.Marshal(part)
		if err != nil {
			return nil, err
		}
		p, err := group.Start(proc.Spec{Name: fmt.Sprintf("fleet-%s%d", part.Prefix, part.First), Args: []string{self, "fleet-worker", string(text)}})
		if err != nil {
			return nil, err
		}
		f.procs, f.stats = append(f.procs, p), append(f.stats, Stat{})
		f.watch.Go(func() { f.follow(i, p) }) // ends with the process
	}
	return f, nil
}

// follow keeps the latest Stat of a process.
func (f *Fleet) follow(i int, p *proc.Proc) {
	for {
		line, err := p.Line(context.Background())
		if err != nil {
			return
		}
		var s Stat
		if json.Unmarshal([]byte(line), &s) != nil {
			continue
		}
		f.mu.Lock()
		f.stats[i] = s
		close(f.news)
		f.news = make(chan struct{})
		f.mu.Unlock()
	}
}

// Stat is the sum of all processes, half a second old at most; its Wire is their
// mean.
func (f *Fleet) Stat() Stat {
	s, _ := f.stat()
	return s
}

func (f *Fleet) stat() (all Stat, news <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all.Failures = make(map[string]int)
	for _, s := range f.stats {
		all.Up += s.Up
		all.Connects += s.Connects
		all.Lost += s.Lost
		all.Pings += s.Pings
		all.Opens += s.Opens
		all.In += s.In
		all.Out += s.Out
		all.Wire += s.Wire / float64(len(f.stats))
		for reason, n := range maps.All(s.Failures) {
			all.Failures[reason] += n
		}
	}
	return all, f.news
}

// Up waits until all devices are connected and returns how long it took.
func (f *Fleet) Up(ctx context.Context) (time.Duration, error) {
	return f.until(ctx, func(s Stat) bool { return s.Up == f.count })
}

// Storm aborts all connections at once, and waits until all devices are back.
func (f *Fleet) Storm(ctx context.Context) (time.Duration, error) {
	before := f.Stat()
	for _, p := range f.procs {
		if err := p.Signal(syscall.SIGUSR1); err != nil {
			return 0, err
		}
	}
	return f.until(ctx, func(s Stat) bool { return s.Lost >= before.Lost+before.Up && s.Up == f.count })
}

// settleTime is how long after a kill all devices have noticed, on one machine.
const settleTime = time.Second

// Kill kills a process, a node that some of the devices are connected to, and waits until
// all are connected again. It returns how long that took, and how many had to come back.
func (f *Fleet) Kill(ctx context.Context, pid int) (took time.Duration, lost int64, err error) {
	before, began := f.Stat(), time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return 0, 0, fmt.Errorf("kill %d: %w", pid, err)
	}
	took, err = f.until(ctx, func(s Stat) bool { return time.Since(began) > settleTime && s.Up == f.count })
	return took, f.Stat().Lost - before.Lost, err
}

func (f *Fleet) until(ctx context.Context, done func(Stat) bool) (time.Duration, error) {
	begin := time.Now()
	for {
		s, news := f.stat()
		if done(s) {
			return time.Since(begin), nil
		}
		for _, p := range f.procs {
			if err := p.Alive(); err != nil {
				return 0, err
			}
		}
		select {
		case <-news:
		case <-time.After(5 * time.Second): // a process that ended says nothing more
		case <-ctx.Done():
			return 0, errors.Join(context.Cause(ctx), fmt.Errorf("%d of %d devices are up: %v", s.Up, f.count, s.Failures))
		}
	}
}

// Stop ends the devices.
func (f *Fleet) Stop() {
	for _, p := range f.procs {
		p.Stop()
	}
	f.watch.Wait()
}
