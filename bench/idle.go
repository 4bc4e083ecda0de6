//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/iottunnel/iottunnel/bench/fleet"
	"github.com/iottunnel/iottunnel/bench/proc"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

// idle measures what devices cost that do nothing but stay connected, all of them
// at one edge process.
func (b *bench) idle(ctx context.Context, s *report.Section) error {
	for _, secure := range []bool{false, true} {
		if err := b.idleFleet(ctx, s, secure); err != nil {
			return err
		}
	}
	s.Note("%d devices at heartbeats of 25 s. Memory is the growth of anonymous pages, after %d others have warmed the edge up: those are at heartbeats of 300 s. Bytes are those of IP packets, both ways; at 300 s: of a ping, and of what those others have between pings.", b.devices, slowDevices)
	return nil
}

// slowDevices connect before memory is counted, and are pinged every slowHeartbeat; the
// others every heartbeat, as is the default.
const (
	slowDevices   = 200
	slowHeartbeat = 300 * time.Second
	heartbeat     = 25 * time.Second
)

func (b *bench) idleFleet(ctx context.Context, s *report.Section, secure bool) error {
	// The edge tidies up, once, 30 s after a crowd has come: what that costs is not
	// what a device costs that does nothing. Then two heartbeats: each is pinged
	// twice, give or take.
	count, settle, length := b.devices, 40*time.Second, 50*time.Second
	if b.short {
		settle, length = 0, time.Second
	}
	group, err := proc.NewGroup()
	if err != nil {
		return err
	}
	defer group.Close()
	var ids []string
	for i := range slowDevices + count {
		ids = append(ids, fmt.Sprintf("dev-%d", i))
	}
	bin, err := filepath.Abs(b.bin)
	if err != nil {
		return err
	}
	edge, err := ways.StartEdge(ctx, ways.EdgeConfig{
		Caddy: filepath.Join(bin, "caddy"), Addr: "127.0.0.1", Devices: ids, Group: group, Name: "edge",
	})
	if err != nil {
		return err
	}
	name, server := "ws", edge.Plain
	if secure {
		name, server = "wss", edge.TLS
	}
	c := fleet.Config{Server: server, CA: edge.CA, Token: edge.Token, Prefix: "dev-", Count: slowDevices, Heartbeat: slowHeartbeat, Spread: true, Caps: "redirect,early,reuse"}
	up := func(c fleet.Config) (*fleet.Fleet, time.Duration, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("not all devices are up after 5 minutes"))
		defer cancel()
		f, err := fleet.Start(group, b.self, c)
		if err != nil {
			return nil, 0, err
		}
		took, err := f.Up(ctx)
		return f, took, err
	}
	slow, _, err := up(c)
	if err != nil {
		return err
	}
	pids := []int{edge.PID()}
	before, err := proc.Memory(pids)
	if err != nil {
		return err
	}
	c.First, c.Count, c.Heartbeat = slowDevices, count, heartbeat
	f, took, err := up(c)
	if err != nil {
		return err
	}
	if !wait(ctx, settle) {
		return ctx.Err()
	}
	begin, cpu, wire, slowWire := time.Now(), proc.CPU(pids), f.Stat(), slow.Stat()
	if !wait(ctx, length) {
		return ctx.Err()
	}
	spent, now, slowNow := proc.CPU(pids)-cpu, f.Stat(), slow.Stat()
	after, err := proc.Memory(pids)
	if err != nil {
		return err
	}
	if now.Lost > 0 {
		s.Note("%s: %d tunnels were lost: %v.", name, now.Lost, now.Failures)
	}
	goroutines, heap, err := runtimeOf(ctx, edge)
	if err != nil {
		return err
	}
	seconds := time.Since(begin).Seconds()
	each := float64(count + slowDevices)
	s.Add(idleLoad, name, "memory", "KiB each", float64(after-before)/1024/float64(count))
	s.Add(idleLoad, name, "live heap", "KiB each", float64(heap)/1024/each)
	s.Add(idleLoad, name, "goroutines", "each", float64(goroutines)/each)
	s.Add(idleLoad, name, "CPU", "µs/s each", float64(spent.Microseconds())/seconds/float64(count)) // pings of the slow ones cost next to nothing
	addWire(s, name, shareOf(wire, now, count), shareOf(slowWire, slowNow, slowDevices), seconds)
	s.Add(idleLoad, name, "all connected", "s", took.Seconds())
	return nil
}

// share is a device's part in what a fleet had between two moments.
type share struct{ wire, pings float64 }

func shareOf(from, to fleet.Stat, devices int) share {
	return share{to.Wire - from.Wire, float64(to.Pings-from.Pings) / float64(devices)}
}

// addWire adds what a device has on the wire in a day at either heartbeat, out of what one
// had within so many seconds. Bytes are counted per ping, as some have been pinged once more
// than others. Slow ones are not pinged within so short a time: what they have on the
// wire is what there is between pings.
func addWire(s *report.Section, name string, pinged, slow share, seconds float64) {
	if pinged.pings == 0 {
		return
	}
	const day = 86400
	ping := pinged.wire / pinged.pings
	between := max(0, slow.wire-slow.pings*ping) / seconds
	s.Add(idleLoad, name, "on the wire", "MB/day each", ping*day/heartbeat.Seconds()/1e6)
	s.Add(idleLoad, name, slowOnTheWire, "MB/day each", (ping/slowHeartbeat.Seconds()+between)*day/1e6)
}

func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// runtimeOf asks the edge, after a collection, what its Go runtime holds.
func runtimeOf(ctx context.Context, edge *ways.Edge) (goroutines, heap int, err error) {
	text, err := edge.Get(ctx, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, 0, err
	}
	if goroutines, err = numberAfter(text, "total "); err != nil {
		return 0, 0, err
	}
	if text, err = edge.Get(ctx, "/debug/pprof/heap?debug=1&gc=1"); err != nil {
		return 0, 0, err
	}
	heap, err = numberAfter(text, "# HeapAlloc = ")
	return goroutines, heap, err
}

func numberAfter(text []byte, what string) (int, error) {
	_, rest, _ := bytes.Cut(text, []byte(what))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strconv.Atoi(string(line))
}
