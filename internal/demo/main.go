//go:build unix

// Command demo runs an edge and a device on loopback, for `make demo`: it writes
// their configuration, starts bin/caddy and bin/thermometer, says what to open,
// and stops and starts the device when the user presses Enter. All it writes
// goes to one folder per port, which the next start finds again.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

const (
	startTimeout = 30 * time.Second // for the edge to listen, and for the device to get its name
	stopTimeout  = 5 * time.Second  // between SIGTERM and SIGKILL
	typedAhead   = 200 * time.Millisecond
)

// options are the command line's, and where the user types and reads.
type options struct {
	port string // TCP port to listen on
	bin  string // folder of the built programs
	data string // folder for configuration, names and logs
	in   io.Reader
	out  io.Writer
}

func main() {
	o := options{in: os.Stdin, out: os.Stdout}
	flag.StringVar(&o.port, "port", "8080", "TCP `port` to listen on, on loopback only")
	flag.StringVar(&o.bin, "bin", "bin", "`folder` of the built programs")
	flag.StringVar(&o.data, "data", ".demo", "`folder` for configuration, names and logs")
	check := flag.Bool("check", false, "only say whether the port can be used")
	flag.Parse()

	// SIGTTIN would stop a demo in the background that reads the terminal.
	signal.Ignore(syscall.SIGTTIN)
	ctx, stop := signal.NotifyContext(context.Background(),
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	var err error
	if *check {
		_, err = freeLoopback(o.port)
	} else {
		err = run(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run sets the demo up and keeps it running until ctx ends, which is no error,
// or the edge does. When it returns neither program is running.
func run(ctx context.Context, o options) error {
	loopback, err := freeLoopback(o.port)
	if err != nil {
		return err
	}
	files, err := prepare(o.data, o.port, loopback)
	if err != nil {
		return err
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	d := &demo{out: o.out, port: o.port, bin: bin, files: files}
	defer d.end()
	if err := d.startEdge(ctx); err != nil {
		return interrupted(ctx, err)
	}
	url, err := d.startDevice(ctx)
	if err != nil {
		return interrupted(ctx, err)
	}
	d.welcome(url)
	return d.loop(ctx, url, enters(o.in))
}

// interrupted makes err none when it only says that the user wanted to stop.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// freeLoopback returns the loopback addresses on which port can be listened on.
// Caddy itself would share a port with another Caddy of the same user, and the
// two would answer in turn: so it is tried here, without sharing.
func freeLoopback(port string) ([]string, error) {
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return nil, fmt.Errorf("DEMO_PORT is %q, which is not a port between 1 and 65535", port)
	}
	var hosts []string
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, port))
		switch {
		case err == nil:
			l.Close()
			hosts = append(hosts, host)
		case errors.Is(err, syscall.EADDRINUSE):
			return nil, fmt.Errorf("port %s is in use on %s. Choose another: make demo DEMO_PORT=%d", port, host, max(1024, (number+1)%65536))
		case errors.Is(err, syscall.EACCES):
			return nil, fmt.Errorf("this user may not listen on port %s. Choose one above 1023: make demo DEMO_PORT=8080", port)
		case host == "127.0.0.1":
			return nil, fmt.Errorf("port %s (DEMO_PORT): %w", port, err)
		} // a system without IPv6 is served on IPv4 alone
	}
	return hosts, nil
}

// demo is a running edge and its device, which may be stopped. Only run's
// goroutine uses it.
type demo struct {
	out    io.Writer
	port   string
	bin    string
	files  files
	edge   *process
	device *process // nil while stopped
}

func (d *demo) startEdge(ctx context.Context) (err error) {
	d.edge, err = start(command{
		path: filepath.Join(d.bin, "caddy"),
		args: []string{"run", "--config", "Caddyfile", "--adapter", "caddyfile"},
		dir:  d.files.dir,
		env:  []string{"XDG_DATA_HOME=" + d.files.dir, "XDG_CONFIG_HOME=" + d.files.dir},
		log:  d.files.edgeLog,
	})
	if err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", d.port), time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-d.edge.done:
			return d.edgeEnded()
		case <-ctx.Done():
			return fmt.Errorf("edge: not listening on port %s after %v%s", d.port, startTimeout, tail(d.files.edgeLog))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *demo) edgeEnded() error {
	return fmt.Errorf("the edge has ended (%v)%s", d.edge.err, tail(d.files.edgeLog))
}

func (d *demo) deviceArgs() []string {
	return []string{
		"--server", "ws://127.0.0.1:" + d.port,
		"--device", deviceID,
		"--token-file", d.files.token,
	}
}

// startDevice starts the device and returns the URL that it was given.
func (d *demo) startDevice(ctx context.Context) (url string, err error) {
	d.device, err = start(command{
		path: filepath.Join(d.bin, "thermometer"),
		args: d.deviceArgs(),
		dir:  d.files.dir,
		log:  d.files.deviceLog,
	})
	if err != nil {
		return "", fmt.Errorf("device: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		select {
		case line := <-d.device.lines:
			// A line per port, as the agent's command prints them: `80/http http://…/`.
			if port, url, ok := strings.Cut(line, " "); ok && strings.HasPrefix(port, "80/") {
				return url, nil
			}
		case <-d.device.done:
			err := fmt.Errorf("the device has ended (%v)%s", d.device.err, tail(d.files.deviceLog))
			d.device = nil
			return "", err
		case <-d.edge.done:
			return "", d.edgeEnded()
		case <-ctx.Done():
			return "", fmt.Errorf("device: no name after %v%s", startTimeout, tail(d.files.deviceLog))
		}
	}
}

func (d *demo) welcome(url string) {
	host := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	fmt.Fprintf(d.out, `
The device is online. Open

    %s

or, where *.localhost does not resolve:

    curl -H 'Host: %s' http://127.0.0.1:%s/

Press Enter to stop the device, and reload the page to see what its visitors get.
Press Enter again to start it: it comes back under the same name.
By hand, from another terminal, it is stopped by    kill %d
and started by    %s %s

Logs: %s and %s
Ctrl-C ends everything.

`, url, host, d.port, d.device.pid, shell(filepath.Join(d.bin, "thermometer")), shell(d.deviceArgs()...),
		d.files.edgeLog, d.files.deviceLog)
}

// loop stops and starts the device as the user wishes, until ctx or the edge ends.
func (d *demo) loop(ctx context.Context, url string, keys <-chan struct{}) error {
	parent, terminal := os.Getppid(), term.IsTerminal(0)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var ended chan struct{} // of a running device
		if d.device != nil {
			ended = d.device.done
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(d.out, "\nstopping the device and the edge")
			return nil
		case <-tick.C:
			// A make that was killed outright cannot pass its signal on, and one
			// that leads the session keeps that of a closed terminal to itself.
			if os.Getppid() != parent || terminal && !term.IsTerminal(0) {
				return nil
			}
		case <-d.edge.done:
			return d.edgeEnded()
		case <-ended:
			fmt.Fprintf(d.out, "The device has ended (%v). Press Enter to start it again.\n", d.device.err)
			d.device = nil
		case <-keys:
			if err := d.toggle(ctx, url); err != nil {
				return interrupted(ctx, err)
			}
		}
	}
}

func (d *demo) toggle(ctx context.Context, before string) error {
	if d.device != nil {
		d.device.stop()
		d.device = nil
		fmt.Fprintln(d.out, "The device is stopped. Reload the page, then press Enter to start it again.")
		return nil
	}
	url, err := d.startDevice(ctx)
	if err != nil {
		return err
	}
	name := "under the same name"
	if url != before {
		name = "under another name"
	}
	fmt.Fprintf(d.out, "The device is online again, %s: %s (process %d)\n", name, url, d.device.pid)
	return nil
}

// end stops what runs, the device first, so that the edge sees it leave.
func (d *demo) end() {
	if d.device != nil {
		d.device.stop()
	}
	if d.edge != nil {
		d.edge.stop()
	}
}

// enters delivers a value for each line that the user enters. What was typed
// ahead, while things were built, is not meant for the device. Its goroutine
// ends with in, which may be when the process does.
func enters(in io.Reader) <-chan struct{} {
	keys := make(chan struct{})
	from := time.Now().Add(typedAhead)
	go func() {
		for lines := bufio.NewScanner(in); lines.Scan(); {
			if time.Now().After(from) {
				keys <- struct{}{}
			}
		}
	}()
	return keys
}

// shell writes args as a shell would read them.
func shell(args ...string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		if strings.ContainsAny(arg, " '\"\\$&;()<>|*?`#~!{}[]\t\n") {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		quoted[i] = arg
	}
	return strings.Join(quoted, " ")
}

// tail is the end of a log, for an error's message.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Sprintf("; the last lines of %s:\n  %s", path, strings.Join(lines[max(0, len(lines)-8):], "\n  "))
}
