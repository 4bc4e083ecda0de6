//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/bench/fleet"
	"github.com/iottunnel/iottunnel/bench/proc"
)

// runFleet plays devices for an edge that runs already.
func runFleet(ctx context.Context, args []string) error {
	var c fleet.Config
	flags := flag.NewFlagSet("bench fleet", flag.ContinueOnError)
	flags.StringVar(&c.Server, "server", "", "`URL` of the edge: ws://HOST:PORT or wss://HOST:PORT; of its nodes, with commas in between")
	flags.StringVar(&c.CA, "ca", "", "`file` with certificates to trust")
	flags.StringVar(&c.Prefix, "prefix", "dev-", "of the device ids; a number follows")
	flags.IntVar(&c.First, "first", 1, "number of the first device")
	flags.IntVar(&c.Count, "devices", 100, "how many")
	flags.IntVar(&c.Rate, "rate", 0, "devices that connect per second at the start; 0: all at once")
	flags.StringVar(&c.Caps, "caps", "", "capabilities to offer, such as redirect,early,reuse")
	flags.DurationVar(&c.Heartbeat, "heartbeat", 0, "to ask for; 0: the edge's")
	flags.BoolVar(&c.Spread, "spread", false, "come from 127.0.1.1 to 127.0.1.250; the edge is on loopback")
	token := flags.String("token-file", "", "`file` with the secret of every device; or IOTTUNNEL_TOKEN")
	length := flags.Duration("for", time.Minute, "how long all are up before the end, or between storms")
	storms := flags.Int("storms", 0, "how often all connections are aborted at once")
	kill := flags.Int("kill", 0, "`PID` of a node to kill (-9) at the end: how soon are all devices back?")
	v := &visits{}
	flags.StringVar(&v.addr, "visit", "", "`IP:PORT` of the edge, for visitors by Host, if it has `hostname device`")
	flags.StringVar(&v.domain, "domain", "devices.localhost", "of the hostnames that visitors ask for")
	flags.IntVar(&v.visitors, "visitors", 4, "how many visit at the same time")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c.Token = os.Getenv("IOTTUNNEL_TOKEN")
	if *token != "" {
		text, err := os.ReadFile(*token)
		if err != nil {
			return err
		}
		c.Token = strings.TrimSpace(string(text))
	}
	if c.Server == "" || c.Count < 1 {
		return errors.New("fleet wants -server, and at least one of -devices")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	group, err := proc.NewGroup()
	if err != nil {
		return err
	}
	defer group.Close()
	f, err := fleet.Start(group, self, c)
	if err != nil {
		return err
	}
	took, err := f.Up(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%d devices are up after %v\n", c.Count, took.Round(time.Millisecond))
	ctx, cancel := context.WithCancel(ctx)
	var visiting sync.WaitGroup
	defer visiting.Wait()
	defer cancel()
	if v.addr == "" {
		v = nil
	} else {
		v.prefix, v.first, v.devices = c.Prefix, c.First, c.Count
		visiting.Go(func() { v.run(ctx) })
	}
	for i := range *storms {
		watch(ctx, f, v, *length)
		if took, err = f.Storm(ctx); err != nil {
			return err
		}
		fmt.Printf("storm %d: all are back after %v\n", i+1, took.Round(time.Millisecond))
	}
	watch(ctx, f, v, *length)
	if *kill == 0 {
		return nil
	}
	took, lost, err := f.Kill(ctx, *kill)
	if err != nil {
		return err
	}
	fmt.Printf("%d of %d devices have lost their node: all are back after %v; %v\n", lost, c.Count, took.Round(time.Millisecond), f.Stat().Failures)
	if v != nil {
		fmt.Println("visitors meanwhile:", v.since())
	}
	return nil
}

// watch prints, every few seconds, how the fleet and its visitors are; a nil v are
// none.
func watch(ctx context.Context, f *fleet.Fleet, v *visits, length time.Duration) {
	end := time.After(length)
	tick := time.NewTicker(min(length, 5*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end:
			return
		case <-tick.C:
			s := f.Stat()
			fmt.Printf("up %d, lost %d, pings %d, streams %d, failures %v\n", s.Up, s.Lost, s.Pings, s.Opens, s.Failures)
			if v != nil {
				fmt.Println(v.since())
			}
		}
	}
}
