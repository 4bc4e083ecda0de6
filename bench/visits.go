//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/bench/load"
)

// visits is visitors who each ask one device after the other for a page, by Host,
// on fresh connections. The devices are those of a fleet, and the edge has
// `hostname device`.
type visits struct {
	addr     string // IP:port of the edge, for HTTP
	domain   string
	prefix   string
	first    int
	devices  int
	visitors int

	mu     sync.Mutex // guards what follows
	waits  []time.Duration
	failed map[string]int
}

// run visits until ctx ends.
func (v *visits) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range v.visitors {
		wg.Go(func() {
			for ctx.Err() == nil {
				v.visit()
			}
		})
	}
	wg.Wait()
}

// pause is for visitors that are refused at once.
const pause = 20 * time.Millisecond

func (v *visits) visit() {
	host := fmt.Sprintf("%s%d.%s", v.prefix, v.first+rand.IntN(v.devices), v.domain)
	a, err := load.Requests{Visitors: 1, Each: 1, Path: "/", Fresh: true}.Run(load.Target{Addr: v.addr, Host: host}, load.Window{})
	if err != nil {
		time.Sleep(pause)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.waits = append(v.waits, a.Earliest...)
		return
	}
	if v.failed == nil {
		v.failed = make(map[string]int)
	}
	if reason := fmt.Sprintf("%.60s", err.Error()); len(v.failed) < 50 {
		v.failed[reason]++
	}
}

// since says what came of the visits since it was last called.
func (v *visits) since() string {
	v.mu.Lock()
	waits, failed := v.waits, v.failed
	v.waits, v.failed = nil, nil
	v.mu.Unlock()
	if len(waits) == 0 {
		return fmt.Sprintf("no visit, failures %v", failed)
	}
	slices.Sort(waits)
	return fmt.Sprintf("%d visits, p50 %.1f ms, p99 %.1f ms, failures %v",
		len(waits), milliseconds(waits[len(waits)/2]), milliseconds(waits[len(waits)*99/100]), failed)
}
