//go:build linux

// Command bench measures what the tunnel costs, beside what can stand in its
// place: the service asked directly, two plain TCP relays in a chain, Caddy's own
// reverse_proxy, and ssh -R. It runs the built programs, and prints tables in
// Markdown.
//
//	make bench                       or, with make build done before:
//	cd bench && go run . -only http,bulk -json figures.json
//	cd bench && go run . fleet -help
//
// All ways lead to the same service, a process of its own, and take turns in
// every repeat, so that what else the machine does hits all of them; medians
// count. docs/performance.md has the figures, and says what each section does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/bench/fleet"
	"github.com/iottunnel/iottunnel/bench/load"
	"github.com/iottunnel/iottunnel/bench/report"
	"github.com/iottunnel/iottunnel/bench/ways"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run plays the role that the first argument names. Bench gives the first three
// to itself, in processes of their own; two of them end with a signal at once.
func run(args []string) error {
	role := ""
	if len(args) > 0 {
		role = args[0]
	}
	switch role {
	case "serve":
		return load.Serve(strings.Join(args[1:], ""))
	case "relay":
		return beRelay(args[1:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	switch role {
	case "fleet-worker":
		return fleet.Work(ctx, strings.Join(args[1:], ""))
	case "fleet":
		return runFleet(ctx, args[1:])
	default:
		c, err := parse(args)
		if err != nil {
			return err
		}
		return runSections(ctx, c)
	}
}

// config is what a run measures, and how.
type config struct {
	bin     string
	only    []string // sections
	ways    []string
	loads   string        // part of the names of the loads to run
	window  time.Duration // of one measurement
	repeats int
	most    time.Duration // of all of it
	devices int           // idle ones
	json    string        // file; empty: none
	update  string        // document; empty: none
	profile string        // folder; empty: none
	short   bool
}

func parse(args []string) (c config, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	bin := os.Getenv("IOTTUNNEL_BIN")
	if bin == "" {
		bin = "../bin"
	}
	flags.StringVar(&c.bin, "bin", bin, "`folder` of the built programs; IOTTUNNEL_BIN by default")
	only := flags.String("only", "", "`sections` to run, separated by commas: "+strings.Join(sectionNames(), ", "))
	chosen := flags.String("ways", "", "`ways` to measure, separated by semicolons: "+strings.Join(ways.All, "; "))
	flags.StringVar(&c.loads, "loads", "", "`part` of the names of loads: others are left out")
	flags.DurationVar(&c.window, "time", time.Second, "length of a measurement")
	flags.IntVar(&c.repeats, "repeats", 3, "measurements of each kind, of which the median counts")
	flags.DurationVar(&c.most, "most", 40*time.Minute, "end, with what there is by then, after so long at the latest")
	flags.IntVar(&c.devices, "devices", 15000, "idle devices at one edge, which may hold fewer than 20,000 descriptors")
	flags.StringVar(&c.json, "json", "", "`file` for the figures of every repeat")
	flags.StringVar(&c.update, "update", "", "`document` whose figures are to be those of this run, which has to be a whole one")
	flags.StringVar(&c.profile, "profile", "", "`folder` for CPU profiles of the edge, one per load")
	flags.BoolVar(&c.short, "short", false, "everything once and as short as can be: shows that the benchmark works, and nothing else")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	if c.only, err = choose("section", *only, ",", sectionNames()); err != nil {
		return c, err
	}
	if c.ways, err = choose("way", *chosen, ";", ways.All); err != nil {
		return c, err
	}
	if c.short {
		c.window, c.repeats, c.devices = 50*time.Millisecond, 1, 50
		if *chosen == "" {
			c.ways = []string{ways.Direct, ways.Relays, ways.Caddy, ways.SSH, ways.Basic, ways.FullTLS}
		}
	}
	if c.update != "" {
		if c.short || c.loads != "" || *only != "" || *chosen != "" {
			return c, errors.New("-update wants all sections, ways and loads, in their full length")
		}
		if _, err := updated(c.update, new(report.Report)); err != nil { // now rather than at the end
			return c, err
		}
	}
	if c.window <= 0 || c.most <= 0 || c.repeats < 1 || c.devices < 1 {
		return c, errors.New("-time, -most, -repeats and -devices must be more than zero")
	}
	return c, nil
}

// choose picks from all; nothing chosen is everything.
func choose(what, chosen, separator string, all []string) (picked []string, err error) {
	if chosen == "" {
		return all, nil
	}
	for name := range strings.SplitSeq(chosen, separator) {
		name = strings.TrimSpace(name)
		found := false
		for _, known := range all {
			found = found || known == name
		}
		if !found {
			return nil, fmt.Errorf("no %s %q: there are %s", what, name, strings.Join(all, separator+" "))
		}
		picked = append(picked, name)
	}
	return picked, nil
}
