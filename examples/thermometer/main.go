// Command thermometer is a small device with a live web page, on the internet
// without an open port: the page and a line protocol are served straight from
// the tunnel. It is the device of the demo, and an example of package agent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/examples/thermometer/device"
)

// Exit statuses, those of iottunnel-agent.
const (
	exitOK    = 0
	exitFail  = 1
	exitUsage = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

const usage = `thermometer is a pretend thermometer in a cold room, with a live web page.

Reachable through a tunnel, with no port open on this machine:

  thermometer --server wss://edge.example.com --device probe-1 --token-file FILE

Or look at its page right here, without a tunnel:

  thermometer --listen 127.0.0.1:8080

When the tunnel is up, standard output has a line per port and nothing else:

  80/http https://LABEL.devices.example.net/
  4001/tcp tcp://edge.example.com:20001

The first is the page. The second, which an edge without TCP ports does not
give, takes lines: READ, HELP, QUIT and some more. Logs are on standard error.
Ctrl-C or SIGTERM ends it.

Flags:
`

// options are what the command line says.
type options struct {
	servers        []string
	device, token  string
	allowPlaintext bool
	listen         string
	lines          string
	seed           uint64
	logger         *slog.Logger
}

// run is main without the process: it returns the exit status.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "thermometer: %v (thermometer --help says more)\n", err)
		return exitUsage
	}
	if err := serve(ctx, o, stdout); err != nil {
		fmt.Fprintf(stderr, "thermometer: %v\n", err)
		if errors.Is(err, errUsage) {
			return exitUsage
		}
		return exitFail
	}
	return exitOK
}

// errUsage marks what another command line would cure.
var errUsage = errors.New("cannot start")

func parse(args []string, getenv func(string) string, stdout, stderr io.Writer) (options, error) {
	var o options
	var tokenFile, level string
	flags := flag.NewFlagSet("thermometer", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // run prints errors, in one line
	flags.Func("server", "the edge's `URL` (wss, ws, https or http); may be given several times", func(s string) error {
		o.servers = append(o.servers, s)
		return nil
	})
	flags.StringVar(&o.device, "device", getenv("IOTTUNNEL_DEVICE"), "the `ID` by which the edge knows this device; or IOTTUNNEL_DEVICE")
	flags.StringVar(&tokenFile, "token-file", "", "the `FILE` with the device's secret; without it, IOTTUNNEL_TOKEN is the secret")
	flags.BoolVar(&o.allowPlaintext, "allow-plaintext", false, "allow ws:// and http:// to elsewhere than this machine")
	flags.StringVar(&o.listen, "listen", "", "serve the page on `ADDR`, such as 127.0.0.1:8080, as well or instead")
	flags.StringVar(&o.lines, "listen-lines", "", "serve the line protocol on `ADDR`, such as 127.0.0.1:4001")
	flags.Uint64Var(&o.seed, "seed", 1, "a `NUMBER` of its own makes a thermometer measure differently from others")
	flags.StringVar(&level, "log-level", "info", "the `LEVEL` of logs: debug, info, warn or error")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		flags.VisitAll(func(f *flag.Flag) {
			name, text := flag.UnquoteUsage(f)
			if f.DefValue != "" && f.DefValue != "false" && f.Name != "device" {
				text += " (default " + f.DefValue + ")"
			}
			fmt.Fprintf(stdout, "  %-22s %s\n", strings.TrimSpace("--"+f.Name+" "+name), text)
		})
		return o, err
	}
	if err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("%q is not a flag", flags.Arg(0))
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return o, fmt.Errorf("--log-level: %q is not debug, info, warn or error", level)
	}
	o.logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: l}))
	o.token = getenv("IOTTUNNEL_TOKEN")
	if tokenFile != "" {
		b, err := os.ReadFile(tokenFile)
		if err != nil {
			return o, fmt.Errorf("--token-file: %w", err)
		}
		o.token = strings.TrimSpace(string(b))
	}
	switch {
	case len(o.servers) == 0 && o.listen == "" && o.lines == "":
		return o, errors.New("give --server, or --listen to look at the page without a tunnel")
	case len(o.servers) > 0 && o.device == "":
		return o, errors.New("--server needs --device, the id that the edge knows this device by")
	}
	return o, nil
}

// serve runs the device until it is told to end, or a part of it fails; then it
// ends all parts and waits for them.
func serve(told context.Context, o options, stdout io.Writer) error {
	ctx, cancel := context.WithCancelCause(told)
	defer cancel(nil)
	var parts sync.WaitGroup
	part := func(f func() error) {
		parts.Go(func() {
			if err := f(); err != nil {
				cancel(err)
			}
		})
	}
	// Whatever has been started is waited for, however serve ends.
	defer parts.Wait()
	defer cancel(nil)

	d := device.New(device.Config{Seed: o.seed, Logger: o.logger})
	page, lines, err := listeners(o)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if len(o.servers) > 0 {
		tunnel, err := newTunnel(o, stdout)
		if err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		page, lines = append(page, tunnel.page), append(lines, tunnel.lines)
		part(func() error { return tunnel.run(ctx) })
	}
	part(func() error { d.Run(ctx); return nil })
	for _, l := range lines {
		part(func() error { return d.ServeLines(ctx, l) })
	}
	handler := d.Handler()
	for _, l := range page {
		part(func() error { return servePage(ctx, handler, l, o.logger) })
	}
	<-ctx.Done()
	if told.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// listeners opens the ports that were asked for; usually none.
func listeners(o options) (page, lines []net.Listener, err error) {
	if o.listen != "" {
		l, err := net.Listen("tcp", o.listen)
		if err != nil {
			return nil, nil, err
		}
		o.logger.Info("listening", "url", "http://"+l.Addr().String()+"/")
		page = append(page, l)
	}
	if o.lines != "" {
		l, err := net.Listen("tcp", o.lines)
		if err != nil {
			for _, l := range page {
				l.Close()
			}
			return nil, nil, err
		}
		o.logger.Info("listening for lines", "addr", l.Addr().String())
		lines = append(lines, l)
	}
	return page, lines, nil
}

// shutdown is how long answers under way get when the process ends.
const shutdown = 3 * time.Second

// servePage serves HTTP on l until ctx ends.
func servePage(ctx context.Context, h http.Handler, l net.Listener, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ctx, cancel := context.WithCancel(ctx) // Serve may fail first
	var closing sync.WaitGroup
	defer closing.Wait()
	defer cancel()
	closing.Go(func() {
		<-ctx.Done()
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
		defer cancel()
		if err := s.Shutdown(within); err != nil {
			s.Close() // answers that are still under way are cut
		}
	})
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
