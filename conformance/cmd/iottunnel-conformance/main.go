// Command iottunnel-conformance plays the edge against an agent, and tells rule by
// rule of docs/protocol.md what the agent keeps.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/iottunnel/iottunnel/conformance"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const help = `usage: iottunnel-conformance [FLAGS] -- COMMAND ARGS…
       iottunnel-conformance [FLAGS] --listen ADDR:PORT

Plays an iottunnel edge against your agent, and tells for each numbered rule of
docs/protocol.md whether the agent keeps it: pass; FAIL, with what the rule wants,
what came, and the bytes; or not tried, with the reason.

With a COMMAND, it starts your agent for each case anew, many at once, each with an
edge of its own. These words in it are replaced:

  {url}         of the edge, such as ws://127.0.0.1:40001; with --tls wss://localhost:…
  {url2}        of a second edge, for agents that may have several
  {device}      the device's id
  {token}, {token_file}
                its secret, or a file with it; IOTTUNNEL_TOKEN is set, too
  {ca}          a file with the certificate to trust, in PEM, for --tls
  {echo}        HOST:PORT of a service that sends back what it gets: forward port 7 there
  {http}        of one with a web page: forward port 80 there
  {dead}        where nothing listens: forward port 9 there

The agent that is in this repository is tried so:

  iottunnel-conformance --max-backoff 1s -- iottunnel-agent run --server {url} \
      --device {device} --token-file {token_file} --max-backoff 1s \
      --forward 7={echo} --forward 80={http} --forward 9={dead}

Without a COMMAND, a device connects by itself. Give its firmware the URL, device id
and token that the tool says (--device and --token keep them over several runs), and
let it forward port 7 to a service that echoes, in the firmware or where --echo says.
Cases run one after the other, and when the device was told to stay away for long, the
tool asks you to reset it:

  iottunnel-conformance --listen 192.168.1.10:8080

Begin with one section, and go on when it passes: --only 2, --only 3, --only 5.1.

Flags

`

func main() { os.Exit(command(os.Args[1:], os.Stdout, os.Stderr)) }

// command runs the tool and returns its exit status.
func command(args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("iottunnel-conformance", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	var cfg conformance.Config
	f.StringVar(&cfg.Listen, "listen", "", "`ADDR:PORT` of the edge; cases then run one at a time (default: a free port of 127.0.0.1 for each)")
	f.BoolVar(&cfg.TLS, "tls", false, "speak TLS, with certificates of an authority made for the run: {ca}")
	f.StringVar(&cfg.Profile, "profile", "auto", "basic, full, inline, or auto: all that the agent offers")
	junit := f.String("junit", "", "write JUnit XML to `FILE`, too")
	only := f.String("only", "", "try these `RULES` alone: numbers such as 3.2, or sections such as 5, with commas between")
	list := f.Bool("list", false, "list the rules, and what is tried of each, and end")
	f.BoolVar(&cfg.Slow, "slow", false, "try what takes minutes, too: up to half an hour")
	verbose := f.Bool("verbose", false, "list the cases of each rule, and all that crossed where one fails")
	f.IntVar(&cfg.Jobs, "jobs", 8*runtime.NumCPU(), "cases at once, where the tool starts the agent; most of them wait")
	f.DurationVar(&cfg.Patience, "patience", 0, "how long the agent may take for what it should do at once (default 5s)")
	f.DurationVar(&cfg.MaxBackoff, "max-backoff", 0, "max_backoff of the agent (rule 5.6), such as 1s; the shorter it is, the more is seen (default 30s)")
	f.DurationVar(&cfg.ResetWithin, "reset-within", 0, "how long to wait for a device that has to be reset (default 2m)")
	f.StringVar(&cfg.Device, "device", "", "`ID` of the device (default conformance-1)")
	f.StringVar(&cfg.Token, "token", "", "`SECRET` of the device; it opens nothing but this tool (default: one that is drawn for the run)")
	f.StringVar(&cfg.Echo, "echo", "", "`ADDR:PORT` for the echo service, so that a device can forward to it")
	f.StringVar(&cfg.HTTP, "http", "", "`ADDR:PORT` for the web page, in the same way")
	port := func(to *uint16, name string, value uint, what string) {
		*to = uint16(value)
		f.Func(name, fmt.Sprintf("the device's `PORT` %s (default %d)", what, value), func(s string) error {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil || n == 0 {
				return errors.New("not a number from 1 to 65535")
			}
			*to = uint16(n)
			return nil
		})
	}
	port(&cfg.EchoPort, "echo-port", 7, "that echoes")
	port(&cfg.HTTPPort, "http-port", 80, "with a web page")
	port(&cfg.DeadPort, "dead-port", 9, "whose service is not there")
	err := f.Parse(args)
	usage := func(err error) int {
		fmt.Fprintf(stderr, "iottunnel-conformance: %v (--help tells more)\n", err)
		return exitUsage
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		var flags strings.Builder
		f.SetOutput(&flags)
		f.PrintDefaults()
		fmt.Fprintf(stdout, "%s%s\nExit status: 0 nothing fails; 1 a rule fails, or no agent came; 2 usage\n",
			help, strings.ReplaceAll(flags.String(), "  -", "  --"))
		return exitOK
	case err != nil:
		return usage(err)
	case *list:
		conformance.List(stdout)
		return exitOK
	}
	if *only != "" {
		cfg.Only = strings.Split(*only, ",")
	}
	if err := cfg.Check(); err != nil {
		return usage(err)
	}
	cmd := f.Args()
	switch {
	case len(cmd) == 0 && cfg.Listen == "":
		return usage(errors.New("a COMMAND, or --listen for a device that connects by itself"))
	case len(cmd) > 0 && !conformance.Names(cmd, "{url}"):
		return usage(errors.New("the COMMAND has no {url}: the agent would not find the edge"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg.Say = func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }
	cfg.OwnService = cfg.Echo != ""
	if len(cmd) > 0 {
		dir, err := os.MkdirTemp("", "iottunnel-conformance-")
		if err != nil {
			return usage(err)
		}
		defer os.RemoveAll(dir)
		cfg.Launch = conformance.Command(dir, cmd)
		cfg.UsesSecond, cfg.OwnService = conformance.Names(cmd, "{url2}"), conformance.Names(cmd, "{echo}") || cfg.OwnService
	}
	results, err := conformance.Run(ctx, cfg)
	if err != nil {
		fmt.Fprintf(stderr, "iottunnel-conformance: %v\n", err)
		return exitFailed
	}
	if *junit != "" {
		var b bytes.Buffer
		err := conformance.JUnit(&b, results)
		if err == nil {
			err = os.WriteFile(*junit, b.Bytes(), 0o644)
		}
		if err != nil {
			return usage(fmt.Errorf("--junit: %w", err))
		}
	}
	if conformance.Report(stdout, results, *verbose) > 0 {
		return exitFailed
	}
	return exitOK
}
