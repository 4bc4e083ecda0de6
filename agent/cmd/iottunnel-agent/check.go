package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/agent/internal/check"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// runCheck says of each hop whether it works. An error is the configuration's.
func runCheck(o *options, stdout, stderr io.Writer) (int, error) {
	if o.output != "text" && o.output != "json" {
		return 0, &usageError{fmt.Errorf("--output: %q is not text or json", o.output)}
	}
	config, err := o.config(stderr)
	if err != nil {
		return 0, err
	}
	if _, err := agent.New(config); err != nil {
		return 0, o.named(err)
	}
	if o.logLevel > slog.LevelDebug { // what it has to say stands in the findings
		config.Logger = nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	})
	defer watcher.Wait()
	defer cancel()
	defer signal.Stop(signals)
	subject := check.Subject{Config: config}
	if o.status != "" {
		subject.Running = func(ctx context.Context) (check.Running, bool) { return askRunning(ctx, o.status) }
	}
	findings := []check.Finding{{Hop: "settings", Verdict: check.OK, Text: o.summary(config)}}
	tell := func(check.Finding) {}
	if o.output == "text" {
		tell = check.Writer(stdout)
	}
	tell(findings[0])
	cause, err := check.Run(ctx, subject, func(f check.Finding) {
		findings = append(findings, f)
		tell(f)
	})
	status := map[check.Cause]int{check.None: exitOK, check.Refused: exitRefused, check.Unreachable: exitUnreachable}[cause]
	if err != nil { // interrupted
		fmt.Fprintf(stderr, "iottunnel-agent: check: %v\n", err)
		return exitUnreachable, nil
	}
	if o.output == "json" {
		return status, writeJSON(stdout, config.Device, status, findings)
	}
	io.WriteString(stdout, "\n"+verdict(findings)+"\n")
	return status, nil
}

func writeJSON(w io.Writer, device string, status int, findings []check.Finding) error {
	text, err := json.MarshalIndent(struct {
		Device   string          `json:"device"`
		Status   int             `json:"exit_status"`
		Findings []check.Finding `json:"findings"`
	}{device, status, findings}, "", "  ")
	if err != nil {
		return err
	}
	_, _ = w.Write(append(text, '\n')) // nobody may be reading
	return nil
}

// summary is what a run would go by.
func (o *options) summary(c agent.Config) string {
	text := "device " + c.Device
	switch {
	case o.tokenFile != "":
		text += ", token of " + o.tokenFile
	case o.token != "":
		text += ", token of IOTTUNNEL_TOKEN"
	case o.clientCert != "":
		text += ", certificate " + o.clientCert
	default:
		text += ", no token"
	}
	if o.configFile != "" {
		text += ", " + o.configFile
	}
	ports := "1 port"
	if n := len(c.Forwards); n > 1 {
		ports = fmt.Sprintf("%d ports", n)
	}
	return fmt.Sprintf("%s, profile %s, %s", text, c.Profile, ports)
}

// verdict sums findings up.
func verdict(findings []check.Finding) string {
	var first string
	failed, warned := 0, 0
	for _, f := range findings {
		switch f.Verdict {
		case check.Failed:
			failed++
			if first == "" {
				first = strings.TrimSpace(f.Hop + " " + f.Server)
			}
		case check.Warning:
			warned++
		}
	}
	switch {
	case failed == 1:
		return "Something is wrong: " + first + "."
	case failed > 1:
		return fmt.Sprintf("%d things are wrong; begin with the first: %s.", failed, first)
	case warned > 0:
		return "It works; see the warnings."
	}
	return "All is well."
}

// askTime bounds the question to the agent that runs.
const askTime = 2 * time.Second

// askRunning asks the agent that runs on this device with the same --status.
func askRunning(ctx context.Context, addr string) (r check.Running, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if host, port, err := net.SplitHostPort(addr); err == nil && (host == "" || host == "0.0.0.0" || host == "::") {
		addr = net.JoinHostPort("localhost", port)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return r, false
	}
	defer conn.Close()
	limit, _ := ctx.Deadline()
	_ = conn.SetDeadline(limit) // if it fails, so does the next call
	fmt.Fprintf(conn, "GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")
	br := bufio.NewReader(io.LimitReader(conn, 64<<10))
	for { // the header says nothing that the body does not
		line, err := br.ReadString('\n')
		if err != nil {
			return r, false
		}
		if strings.TrimSpace(line) == "" {
			break
		}
	}
	body, _ := io.ReadAll(br) // as much as comes
	told := wire.Texts(body)
	r = check.Running{Device: told["device"], State: told["state"], Server: told["server"], Name: told["hostname"]}
	return r, r.Device != ""
}
