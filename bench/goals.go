//go:build linux

package main

import (
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

// goals are what the tunnel wants to reach, of what this benchmark measures. They
// are for a machine that does nothing else.
var goals = []report.Goal{
	{What: "HTTP, 16 visitors, of Caddy alone", Section: "http", Load: "16 visitors", Way: ways.Full, Figure: "of " + ways.Caddy, Least: 0.75, Bound: byHTTP},
	{What: "HTTP, 64 visitors, of Caddy alone", Section: "http", Load: "64 visitors", Way: ways.Full, Figure: "of " + ways.Caddy, Least: 0.75, Bound: byHTTP},
	// 1.3 times what Caddy in front of frp reaches, which is 0.56 and 0.63 of Caddy alone; at 16 visitors that asks for less than the above.
	{What: "HTTP, 64 visitors, 1.3 × Caddy with frp", Section: "http", Load: "64 visitors", Way: ways.Full, Figure: "of " + ways.Caddy, Least: 0.82, Bound: byHTTP},
	// 130 µs where Caddy alone takes 72, and 140 where it takes 79.
	{What: "HTTP, 16 visitors, CPU per request, of Caddy alone", Section: "http", Load: "16 visitors", Way: ways.Full, Figure: "CPU of " + ways.Caddy, Most: 1.8, Bound: byHTTP},
	{What: "HTTP, 64 visitors, CPU per request, of Caddy alone", Section: "http", Load: "64 visitors", Way: ways.Full, Figure: "CPU of " + ways.Caddy, Most: 1.8, Bound: byHTTP},
	{What: "TCP port, 16 visitors, of two relays", Section: "tcp", Load: "16 visitors", Way: ways.Full, Figure: "of " + ways.Relays, Least: 0.95, Bound: byWakes},
	{What: "TCP port, 64 visitors, of two relays", Section: "tcp", Load: "64 visitors", Way: ways.Full, Figure: "of " + ways.Relays, Least: 0.95, Bound: byWakes},
	{What: "TCP port, new connections, of two relays", Section: "new", Load: "TCP port", Way: ways.Full, Figure: "of " + ways.Relays, Least: 1, Bound: byWakes},
	{What: "one bulk stream down, of two relays", Section: "bulk", Load: "TCP port, 1 down", Way: ways.Full, Figure: "of " + ways.Relays, Least: 0.7, Bound: byMasking},
	{What: "one bulk stream down, CPU s per GiB", Section: "bulk", Load: "TCP port, 1 down", Way: ways.Full, Figure: "CPU", Most: 1.2, Bound: byMasking},
	{What: "one bulk stream up, of two relays", Section: "bulk", Load: "TCP port, 1 up", Way: ways.Full, Figure: "of " + ways.Relays, Least: 0.7, Bound: byHeaders},
	{What: "one bulk stream up, CPU s per GiB", Section: "bulk", Load: "TCP port, 1 up", Way: ways.Full, Figure: "CPU", Most: 1.2, Bound: byHeaders},
	{What: "4 bulk streams down, of two relays", Section: "bulk", Load: "TCP port, 4 down", Way: ways.Full, Figure: "of " + ways.Relays, Least: 0.7, Bound: byMasking},
	{What: "4 bulk streams up, of two relays", Section: "bulk", Load: "TCP port, 4 up", Way: ways.Full, Figure: "of " + ways.Relays, Least: 0.7, Bound: byHeaders},
	// 1.6 times frp's over TLS, which reaches 0.27 of two relays without.
	{What: "one bulk stream down, TLS, of two relays without", Section: "bulk", Load: "TCP port, 1 down", Way: ways.FullTLS, Figure: "of " + ways.Relays, Least: 0.43, Bound: byCiphers},
	{What: "one bulk stream up, TLS, of two relays without", Section: "bulk", Load: "TCP port, 1 up", Way: ways.FullTLS, Figure: "of " + ways.Relays, Least: 0.43, Bound: byCiphers},
	{What: "8 visitors beside 4 that stopped reading, of their rate alone", Section: "stall", Load: stallLoad, Way: ways.Full, Figure: "of alone", Least: 0.95},
	{What: "the same, growth of the edge, MiB", Section: "stall", Load: stallLoad, Way: ways.Full, Figure: "edge grows", Most: 2},
	{What: "first visitor ever, round trips", Section: "latency", Load: "TCP port", Way: ways.Full, Figure: firstEver, Most: 1.05},
	{What: "fresh visitor, round trips", Section: "latency", Load: "TCP port", Way: ways.Full, Figure: freshVisitor, Most: 1.05},
	{What: "keep-alive, round trips", Section: "latency", Load: "TCP port", Way: ways.Full, Figure: keptAlive, Most: 1.05},
	{What: "slowest of 16 at once, answers of 300 bytes, round trips", Section: "latency", Load: "TCP port", Way: ways.Full, Figure: burstTiny, Most: 1.2, Bound: byWindow},
	{What: "slowest of 16 at once, answers of 1 KiB, round trips", Section: "latency", Load: "TCP port", Way: ways.Full, Figure: burstSmall, Most: 2.1, Bound: byWindow},
	{What: "first visitor ever, by Host, round trips", Section: "latency", Load: "HTTP by Host", Way: ways.Full, Figure: firstEver, Most: 1.05, Bound: byLearning},
	{What: "fresh visitor, by Host, round trips", Section: "latency", Load: "HTTP by Host", Way: ways.Full, Figure: freshVisitor, Most: 1.05},
	{What: "keep-alive, by Host, round trips", Section: "latency", Load: "HTTP by Host", Way: ways.Full, Figure: keptAlive, Most: 1.05},
	{What: "first visitor ever, TLS, round trips", Section: "latency", Load: "TCP port", Way: ways.FullTLS, Figure: firstEver, Most: 1.05},
	{What: "fresh visitor, TLS, round trips", Section: "latency", Load: "TCP port", Way: ways.FullTLS, Figure: freshVisitor, Most: 1.05},
	{What: "keep-alive, TLS, round trips", Section: "latency", Load: "TCP port", Way: ways.FullTLS, Figure: keptAlive, Most: 1.05},
	{What: "beside a download with 1 % loss, p50 of no tunnel's", Section: "loss", Load: lossLoad, Way: ways.Full, Figure: "p50 of direct", Most: 1.05},
	{What: "beside a download with 1 % loss, p99 of no tunnel's", Section: "loss", Load: lossLoad, Way: ways.Full, Figure: "p99 of direct", Most: 1.1},
	{What: "bulk over 100 ms, 1 stream down, of no tunnel", Section: "farbulk", Load: "1 down", Way: ways.Full, Figure: "of " + ways.Direct, Least: 0.95},
	{What: "bulk over 100 ms, 4 streams down, of no tunnel", Section: "farbulk", Load: "4 down", Way: ways.Full, Figure: "of " + ways.Direct, Least: 0.95},
	{What: "edge memory per idle device, ws, KiB", Section: "idle", Load: idleLoad, Way: "ws", Figure: "memory", Most: 10},
	{What: "edge memory per idle device, wss, KiB", Section: "idle", Load: idleLoad, Way: "wss", Figure: "memory", Most: 18},
	{What: "edge CPU per idle device, ws, µs per second", Section: "idle", Load: idleLoad, Way: "ws", Figure: "CPU", Most: 2.5},
	{What: "edge CPU per idle device, wss, µs per second", Section: "idle", Load: idleLoad, Way: "wss", Figure: "CPU", Most: 2.5},
	{What: "bytes on the wire per idle device and day, wss, MB", Section: "idle", Load: idleLoad, Way: "wss", Figure: "on the wire", Most: 0.75, Bound: byAcks},
	{What: "the same at heartbeats of 300 s", Section: "idle", Load: idleLoad, Way: "wss", Figure: slowOnTheWire, Most: 0.07, Bound: byAcks},
	{What: "edge memory per open stream, KiB", Section: "streams", Load: streamsLoad, Way: ways.Full, Figure: "edge", Most: 16, Bound: byStacks},
	{What: "agent memory per open stream, KiB", Section: "streams", Load: streamsLoad, Way: ways.Full, Figure: "device", Most: 16, Bound: byStacks},
	{What: "agent, resident after its start, MiB", Section: "agent", Load: agentLoad, Way: ways.Full, Figure: "resident", Most: 8, Bound: byPages},
	{What: "agent, resident after its start, TLS, MiB", Section: "agent", Load: agentLoad, Way: ways.FullTLS, Figure: "resident", Most: 8, Bound: byPages},
}

// What bounds figures that have missed their goals; docs/performance.md says how that is
// known.
const (
	byHTTP     = "a second HTTP exchange, inside the tunnel, for each of Caddy's"
	byWakes    = "goroutines and threads that wake each other: four per connection at the agent"
	byMasking  = "every byte is copied and masked by the agent, where relays splice"
	byHeaders  = "a header per message, and asking how much waits"
	byCiphers  = "ciphers, and the copies around them"
	byWindow   = "TCP's first window of 10 segments"
	byLearning = "the first request to a port without a kept connection"
	byAcks     = "an acknowledgement of its own, from whoever answers a ping late"
	byStacks   = "stacks of two goroutines per stream"
	byPages    = "pages of the program's file"
)

// Names of loads and figures that goals know.
const (
	stallLoad   = "8 visitors, keep-alive, 1 KiB"
	lossLoad    = "15 visitors, keep-alive, 1 KiB"
	idleLoad    = "devices that do nothing"
	streamsLoad = "visitors that stay"
	agentLoad   = "after its start"

	firstEver    = "first ever"
	freshVisitor = "fresh"
	keptAlive    = "keep-alive"
	burstTiny    = "slowest of 16 at once, 300 B"
	burstSmall   = "slowest of 16 at once, 1 KiB"

	slowOnTheWire = "at 300 s"
)
