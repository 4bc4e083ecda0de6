package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/agent/internal/deviceid"
	"github.com/iottunnel/iottunnel/agent/internal/monitor"
)

// run keeps a tunnel up until ctx ends or a signal comes, or with --once until it
// fails. An error is the configuration's.
func run(ctx context.Context, o *options, stdout, stderr io.Writer) (status int, err error) {
	started := keepSmall()
	config, err := o.config(stderr)
	if err != nil {
		return 0, err
	}
	config.OnUp = func(up agent.Up) {
		printPorts(stdout, up)
		started()
	}
	a, err := agent.New(config)
	if err != nil {
		return 0, o.named(err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watched, err := o.watch(a, config)
	if err != nil {
		return 0, err
	}
	defer watched() // after the tunnel's end
	notified := make(chan struct{})
	go func() { defer close(notified); notify(ctx, func() { a.Status() }) }()
	defer func() { stop(); <-notified }()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // ends with the process
		<-signals
		stop()
		<-signals // no grace any more
		os.Exit(exitOK)
	}()
	if err := a.Run(ctx); err != nil {
		fmt.Fprintf(stderr, "iottunnel-agent: %v\n", err)
		return exitStatus(err), nil
	}
	return exitOK, nil
}

// watch serves --status, if it is given, until the function that it returns is
// called.
func (o *options) watch(a *agent.Agent, c agent.Config) (end func(), err error) {
	if o.status == "" {
		return func() {}, nil
	}
	s, err := monitor.Listen(o.status, monitor.About{
		Device: c.Device, Version: version(), Started: time.Now(), Forwards: c.Forwards, Status: a.Status,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.name("status"), err)
	}
	c.Logger.Info("status page", "url", "http://"+s.Addr().String()+"/")
	if !s.Local() {
		c.Logger.Warn("the status page is open to all who reach this address, and tells them about this device; "+
			"127.0.0.1 would keep it to the device", "setting", o.name("status"), "address", s.Addr().String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	return func() { cancel(); <-done }, nil
}

// Garbage that is collected at a growth of the heap of so many per cent. Reading
// the system's certificates makes megabytes of it, once.
const (
	gcAtStart = 20
	gcAfter   = 50
)

// keepSmall makes the start cost little memory, and returns what is to be called
// after it. GOGC in the environment wins.
func keepSmall() (started func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	debug.SetGCPercent(gcAtStart)
	return sync.OnceFunc(func() {
		debug.SetGCPercent(gcAfter)
		debug.FreeOSMemory()
	})
}

// exitStatus is that of a failure with --once. What is no edge has refused nothing.
func exitStatus(err error) int {
	if refused(err) {
		return exitRefused
	}
	return exitUnreachable
}

// refused reports whether an edge, of all that were asked, has refused the device for good.
func refused(err error) bool {
	switch e := err.(type) {
	case *agent.RefusedError:
		return e.Code != "" && e.Final()
	case interface{ Final() bool }:
		return e.Final()
	case interface{ Unwrap() error }:
		return refused(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), refused)
	}
	return false
}

// flagOf are the flags that fields of agent.Config are set by.
var flagOf = map[string]string{
	"Servers":    "server",
	"Device":     "device",
	"Forwards":   "forward",
	"Profile":    "profile",
	"Heartbeat":  "heartbeat",
	"MaxBackoff": "max-backoff",
	"RedirectTo": "redirect-to",
}

// named says of a field of agent.Config that is wrong where it was set.
func (o *options) named(err error) error {
	var wrong *agent.ConfigError
	if !errors.As(err, &wrong) {
		return err
	}
	name := "IOTTUNNEL_TOKEN"
	switch flag, known := flagOf[wrong.Field]; {
	case known:
		name = o.name(flag)
	case wrong.Field != "Token":
		return err
	case o.tokenFile != "":
		name = o.name("token-file")
	}
	return fmt.Errorf("%s: %w", name, wrong.Err)
}

// config makes the agent's configuration of what was said.
func (o *options) config(stderr io.Writer) (agent.Config, error) {
	none := agent.Config{}
	c, err := o.reach(stderr)
	if err != nil {
		return none, err
	}
	switch {
	case o.device == "":
		return none, errNoDevice
	case len(o.forwards.values) == 0:
		return none, errors.New("--forward is needed, such as 80=127.0.0.1:8080")
	case o.maxBackoff == 0: // which agent.Config takes for the default
		return none, fmt.Errorf("%s: 0s is not from 1s to 1h", o.name("max-backoff"))
	}
	if c.Device, err = o.deviceID(); err != nil {
		return none, err
	}
	c.RedirectTo, c.Profile = o.redirectTo.values, agent.Profile(o.profile)
	c.Heartbeat, c.MaxBackoff, c.Once = time.Duration(o.heartbeat), o.maxBackoff, o.once
	for _, s := range o.forwards.values {
		f, err := parseForward(s)
		if err != nil {
			return none, fmt.Errorf("%s: %s: %w", o.name("forward"), s, err)
		}
		c.Forwards = append(c.Forwards, f)
	}
	if o.tokenFile != "" {
		c.TokenSource = func(context.Context) (string, error) { return readToken(o.tokenFile) }
	}
	c.Token, err = o.secret() // looked at by New, like what the source tells
	return c, err
}

var errNoDevice = errors.New("--device is needed: the id of this device, such as cam-17, or cam-{mac}")

// deviceID is --device with its placeholders filled in.
func (o *options) deviceID() (string, error) {
	if !deviceid.IsTemplate(o.device) {
		return o.device, nil
	}
	device, err := deviceid.This().Expand(o.device)
	if err != nil {
		return "", fmt.Errorf("%s: %w", o.name("device"), err)
	}
	return device, nil
}

// secret is the token that --token-file holds, or the environment.
func (o *options) secret() (string, error) {
	if o.tokenFile == "" {
		return o.token, nil
	}
	token, err := readToken(o.tokenFile)
	if err != nil {
		return "", fmt.Errorf("%s: %w%s", o.name("token-file"), err,
			cure(err, "write the secret into it that the edge's operator gave you (connect: the grant), or have `iottunnel-agent enroll` do so for a claim code"))
	}
	return token, nil
}

// cure is the end of a message on a file that could not be read: what to do where it
// is not there.
func cure(err error, absent string) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "; " + absent
	case errors.Is(err, os.ErrPermission):
		return "; run this as root, or let this user read it"
	}
	return ""
}

// reach is that part of a configuration which says how an edge is reached.
func (o *options) reach(stderr io.Writer) (agent.Config, error) {
	none := agent.Config{}
	if len(o.servers.values) == 0 {
		return none, errors.New("--server is needed, such as wss://edge.example.com")
	}
	log, err := o.logger(stderr)
	if err != nil {
		return none, err
	}
	c := agent.Config{Servers: o.servers.values, AllowPlaintext: o.allowPlaintext, Built: buildTime(), Logger: log}
	if c.TLS, err = o.tls(); err != nil {
		return none, err
	}
	if c.Resolver, err = resolver(o.dns.values); err != nil {
		return none, fmt.Errorf("%s: %w", o.name("dns"), err)
	}
	if o.proxy != "" {
		proxy, err := url.Parse(o.proxy)
		if err != nil || proxy.Hostname() == "" || proxy.Scheme != "http" && proxy.Scheme != "https" {
			return none, fmt.Errorf("%s: not http://[USER:PASSWORD@]HOST:PORT or https://…", o.name("proxy"))
		}
		c.Proxy = func(*url.URL) (*url.URL, error) { return proxy, nil }
	}
	return c, nil
}

func (o *options) logger(w io.Writer) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: o.logLevel}
	switch o.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("%s: %q is not text or json", o.name("log-format"), o.logFormat)
}

// printPorts writes a line for each port: all that is ever on standard output.
func printPorts(w io.Writer, up agent.Up) {
	var b strings.Builder
	for _, p := range up.Ports {
		where := p.URL
		if where == "" {
			where = "-"
		}
		fmt.Fprintf(&b, "%d/%s %s\n", p.Number, p.Kind, where)
	}
	_, _ = io.WriteString(w, b.String()) // nobody may be reading
}

// maxToken bounds what is read of a token file, in bytes: a JWT fits.
const maxToken = 6 << 10

// readToken returns what a file holds, without white space around it: 1 to maxToken bytes.
func readToken(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	switch {
	case len(text) > maxToken:
		return "", fmt.Errorf("%s is longer than %d bytes", name, maxToken)
	case token == "":
		return "", fmt.Errorf("%s is empty; write the secret into it", name)
	}
	return token, nil
}

// tls is whom the agent trusts, and what it shows itself.
func (o *options) tls() (*tls.Config, error) {
	c := &tls.Config{InsecureSkipVerify: o.insecureSkipVerify}
	if o.ca != "" {
		text, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, fmt.Errorf("%s: %w%s", o.name("ca"), err, cure(err, "name a file with the certificate, in PEM, of the authority that signs the edge's"))
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: %s holds no certificate in PEM", o.name("ca"), o.ca)
		}
	}
	if (o.clientCert == "") != (o.clientKey == "") {
		return nil, errors.New("--client-cert and --client-key need each other")
	}
	if o.clientCert != "" {
		cert, err := tls.LoadX509KeyPair(o.clientCert, o.clientKey)
		if err != nil {
			return nil, fmt.Errorf("%s, %s: %w%s", o.name("client-cert"), o.name("client-key"), err, cure(err, "name two files in PEM: a certificate, and its key"))
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}
