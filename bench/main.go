// Command bench measures what the tunnel costs, side by side with what stands in
// its place without one: the service asked directly, and behind Caddy's own
// reverse_proxy. It runs the built programs on loopback and prints a table in
// Markdown.
//
//	make bench                       or, with make build done before:
//	cd bench && go run . -time 5s -repeats 3
//
// All paths lead to the same service, a process of its own, and the last two go
// through the same Caddy. Paths take turns, so that what else the machine does
// hits all of them; of the repeats the median counts. Figures wander from machine
// to machine; the ratios, much less.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"
)

func main() {
	serve := flag.Bool("serve", false, "be the service (used by bench itself)")
	bin := flag.String("bin", "../bin", "`folder` of the built programs")
	length := flag.Duration("time", 5*time.Second, "length of a measurement")
	repeats := flag.Int("repeats", 3, "measurements of each kind, of which the median counts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *serve {
		err = beService(ctx)
	} else {
		err = bench(ctx, *bin, *length, *repeats)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// route is a way to the service.
type route struct {
	name  string
	addr  string // host:port to connect to
	host  string // for the Host header
	procs []int  // whose CPU time counts
}

// load is something to do over a route.
type load struct {
	name     string
	visitors int
	path     string
	fresh    bool // a connection per request
	unit     string
	rate     func(r result) float64
}

func perSecond(r result) float64 { return float64(r.requests) / r.took.Seconds() }
func mebibytes(r result) float64 { return float64(r.bytes) / (1 << 20) / r.took.Seconds() }

var loads = []load{
	{name: "1 KiB, keep-alive, 16 visitors", visitors: 16, path: "/small", unit: "req/s", rate: perSecond},
	{name: "1 KiB, keep-alive, 64 visitors", visitors: 64, path: "/small", unit: "req/s", rate: perSecond},
	{name: "1 KiB, new connections, 16 visitors", visitors: 16, path: "/small", fresh: true, unit: "req/s", rate: perSecond},
	{name: "16 MiB, one visitor", visitors: 1, path: "/large", unit: "MiB/s", rate: mebibytes},
}

func bench(ctx context.Context, bin string, length time.Duration, repeats int) error {
	s, err := setUp(ctx, bin)
	if err != nil {
		return err
	}
	defer s.tearDown()
	routes := s.routes()

	fmt.Printf("%s/%s, %d CPUs, %s each, median of %d, %s\n\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), length, repeats, time.Now().Format(time.DateOnly))
	fmt.Println("| load | path | rate | of Caddy alone | p50 | p99 | edge + agent CPU |")
	fmt.Println("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
	for _, l := range loads {
		results := make([][]result, len(routes))
		for range repeats {
			for i, r := range routes {
				one, err := measure(ctx, r, l, length)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", l.name, r.name, err)
				}
				results[i] = append(results[i], one)
			}
		}
		alone := l.rate(median(results[proxied], l.rate))
		for i, r := range routes {
			m := median(results[i], l.rate)
			fmt.Printf("| %s | %s | %.0f %s | %.2f | %s | %s | %s |\n", l.name, r.name,
				l.rate(m), l.unit, l.rate(m)/alone, milliseconds(m.p50), milliseconds(m.p99), cpu(m, l))
		}
	}
	return ctx.Err()
}

// proxied is the route through Caddy without a tunnel, which the others are
// compared with.
const proxied = 1

// median is the result whose rate is in the middle.
func median(all []result, rate func(result) float64) result {
	slices.SortFunc(all, func(a, b result) int {
		switch {
		case rate(a) < rate(b):
			return -1
		case rate(a) > rate(b):
			return 1
		}
		return 0
	})
	return all[len(all)/2]
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// cpu is what the edge and the agent spent, by request or by amount.
func cpu(r result, l load) string {
	switch {
	case r.cpu == 0 || r.requests == 0:
		return "–"
	case l.unit == "MiB/s":
		return fmt.Sprintf("%.2f s/GiB", r.cpu.Seconds()/(float64(r.bytes)/(1<<30)))
	default:
		return fmt.Sprintf("%.0f µs/req", float64(r.cpu.Microseconds())/float64(r.requests))
	}
}
