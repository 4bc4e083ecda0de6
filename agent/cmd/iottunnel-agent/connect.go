package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	maxLocal    = 64                     // connections to --listen at once
	acceptPause = 100 * time.Millisecond // after one that could not be taken
)

// errCut is the end of a connection that was not its end.
var errCut = errors.New("cut off")

// destination makes the configuration for a device and port: DEVICE:PORT, or DEVICE
// alone where a port is usual.
func (o *options) destination(usual uint16, stderr io.Writer) (c agent.Config, port uint16, err error) {
	device, number, given := strings.Cut(o.action, ":")
	port = usual
	if given {
		p, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			p = 0
		}
		port = uint16(p)
	}
	if device == "" || port == 0 {
		return c, 0, &usageError{fmt.Errorf("%q is not DEVICE:PORT, such as cam-17:22", o.action)}
	}
	if err := names.CheckDevice(device); err != nil {
		return c, 0, &usageError{fmt.Errorf("%q: %w", o.action, err)}
	}
	if c, err = o.reach(stderr); err != nil {
		return c, 0, err
	}
	if o.tokenFile == "" && o.token == "" {
		return c, 0, errors.New("--token-file is needed: it holds the grant that `caddy iottunnel grant` has printed; or IOTTUNNEL_TOKEN")
	}
	c.Device = device
	c.Token, err = o.secret()
	return c, port, err
}

// connect reaches a port of a device, on standard input and output or at --listen. An
// error is the configuration's.
func connect(o *options, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	config, port, err := o.destination(0, stderr)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer untilSignal(cancel)()
	if o.listen != "" {
		return o.serveLocal(ctx, config, port, stdout)
	}
	conn, err := agent.Connect(ctx, config, port)
	if wrong := new(agent.ConfigError); errors.As(err, &wrong) {
		return 0, o.named(err)
	}
	if err == nil {
		err = join(ctx, conn, stdin, stdout)
	}
	switch {
	case err == nil:
		return exitOK, nil
	case ctx.Err() != nil: // by a signal
		return exitOK, nil
	case errors.Is(err, errCut):
		fmt.Fprintf(stderr, "iottunnel-agent: connect %s: %v\n", o.action, err)
		return exitFailed, nil
	}
	fmt.Fprintf(stderr, "iottunnel-agent: connect %s: %v\n%s\n", o.action, err, cureOfConnect(err))
	return exitStatus(err), nil
}

// join passes in to conn, and what comes from conn to out, until both directions have
// ended, one fails, or ctx ends. Somebody may be left who waits for in: the process
// is about to end.
func join(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer) error {
	stop := context.AfterFunc(ctx, func() { stream.Abort(conn) })
	defer stop()
	ends := make(chan error, 2)
	go func() { // ends with the process, if in does not
		_, err := io.Copy(conn, in)
		if err == nil {
			err = conn.(interface{ CloseWrite() error }).CloseWrite()
		}
		ends <- err
	}()
	go func() { // ends with conn
		_, err := io.Copy(out, conn)
		if c, ok := out.(io.Closer); ok {
			_ = c.Close() // whoever reads may have gone
		}
		ends <- err
	}()
	for range 2 {
		if err := <-ends; err != nil {
			stream.Abort(conn)
			return fmt.Errorf("%w: %w", errCut, err)
		}
	}
	return conn.Close()
}

// serveLocal connects each connection to --listen, until ctx ends. The first line of
// standard output is where it listens.
func (o *options) serveLocal(ctx context.Context, config agent.Config, port uint16, stdout io.Writer) (int, error) {
	if _, _, err := net.SplitHostPort(o.listen); err != nil {
		return 0, fmt.Errorf("--listen: %q is not ADDRESS:PORT, such as 127.0.0.1:2222", o.listen)
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return 0, fmt.Errorf("--listen: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	if addr, ok := l.Addr().(*net.TCPAddr); ok && !addr.IP.IsLoopback() {
		config.Logger.Warn("everybody who reaches this address reaches the device; 127.0.0.1 would keep it to this machine", "setting", "--listen", "address", addr.String())
	}
	fmt.Fprintln(stdout, l.Addr())
	var wg sync.WaitGroup
	defer wg.Wait()
	free := make(chan struct{}, maxLocal)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return exitOK, nil
		}
		local, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return exitOK, nil
		case errors.Is(err, net.ErrClosed):
			return 0, fmt.Errorf("--listen: %w", err)
		case err != nil:
			// Out of descriptors, most likely: connections that end free some.
			config.Logger.Error("connection not taken", "setting", "--listen", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			<-free
			continue
		}
		wg.Go(func() {
			defer func() { <-free }()
			log := config.Logger.With("to", o.action, "from", local.RemoteAddr().String())
			c := config
			if token, err := o.secret(); err == nil { // it may be another one by now
				c.Token = token
			}
			far, err := agent.Connect(ctx, c, port)
			if err != nil {
				stream.Abort(local)
				log.Error("not connected", "error", err, "cure", cureOfConnect(err))
				return
			}
			up, down, err := stream.Relay(ctx, local, far)
			log.LogAttrs(ctx, slog.LevelInfo, "connection over", slog.Int64("sent", up), slog.Int64("received", down), slog.Any("error", err))
		})
	}
}

// cureOfConnect says what helps against a failure.
func cureOfConnect(err error) string {
	var refused *agent.RefusedError
	if !errors.As(err, &refused) {
		return "No edge was reached: check --server, and the network of this computer; it may need --proxy."
	}
	switch wire.Code(refused.Code) {
	case wire.Unauthorized:
		return "The grant is unknown, has expired, was revoked, or is for another device or port. Ask for one: caddy iottunnel grant DEVICE:PORT --for 1h"
	case wire.UnknownDevice:
		return "No device of this name has ever been connected: check DEVICE."
	case wire.DeviceOffline:
		return "The device is not connected now. Try again later; at the device, iottunnel-agent check says why."
	case wire.DeviceRefused:
		return "The device is there, but nothing answers at this port: check that its agent forwards it, and that the service runs."
	case wire.DeviceTimeout:
		return "The device, or its service, does not answer in time: try again."
	case wire.BadRequest:
		return "The edge does not serve connect: its operator writes `connect` into the iottunnel block of the Caddyfile; else the message above says what is wrong."
	case "":
		return "Check host and port of --server: it has to be a site with `iottunnel agents`."
	}
	if retry := refused.RetryAfter(); retry > 0 {
		return fmt.Sprintf("Try again in %v.", retry)
	}
	return "Try again later; the edge's log says more."
}

// untilSignal calls stop at the first signal that ends programs. The function that it
// returns is to be called when that does not matter any more.
func untilSignal(stop func()) (over func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-signals:
			stop()
		case <-ended:
		}
	})
	return func() { signal.Stop(signals); close(ended); wg.Wait() }
}

// sshConfig prints what lets ssh, scp, rsync and git reach a device by its name.
func sshConfig(o *options, stdout, stderr io.Writer) (int, error) {
	config, port, err := o.destination(22, stderr)
	if err != nil {
		return 0, err
	}
	if o.tokenFile == "" {
		return 0, errors.New("--token-file is needed: ssh does not pass IOTTUNNEL_TOKEN on")
	}
	program, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("where is this program? %w", err)
	}
	words := []string{program, "connect", fmt.Sprintf("%s:%d", config.Device, port)}
	for _, s := range o.servers.values {
		words = append(words, "--server", s)
	}
	for _, f := range []struct{ flag, file string }{
		{"--token-file", o.tokenFile}, {"--ca", o.ca}, {"--client-cert", o.clientCert}, {"--client-key", o.clientKey},
	} {
		if f.file == "" {
			continue
		}
		path, err := filepath.Abs(f.file)
		if err != nil {
			return 0, err
		}
		words = append(words, f.flag, path)
	}
	if o.proxy != "" {
		words = append(words, "--proxy", o.proxy)
	}
	for _, s := range o.dns.values {
		words = append(words, "--dns", s)
	}
	if o.insecureSkipVerify {
		words = append(words, "--insecure-skip-verify")
	}
	if o.allowPlaintext {
		words = append(words, "--allow-plaintext")
	}
	for i, w := range words {
		words[i] = sshWord(w)
	}
	fmt.Fprintf(stdout, "Host %[1]s\n\tHostName %[1]s\n\tPort %[2]d\n\tHostKeyAlias %[1]s\n\tProxyCommand %[3]s\n", config.Device, port, strings.Join(words, " "))
	return exitOK, nil
}

// sshWord quotes a word for the shell that runs a ProxyCommand, behind ssh, which
// replaces what begins with % (ssh_config(5), TOKENS).
func sshWord(w string) string {
	w = strings.ReplaceAll(w, "%", "%%")
	if strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,@+%") == "" {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}
