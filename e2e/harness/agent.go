package harness

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// AgentSetup says how to run `iottunnel-agent run`. Only what differs from the
// usual must be named.
type AgentSetup struct {
	Device   Device   // empty: a new one of the face
	Forwards []string // values of --forward
	Servers  []string // empty: those of the face
	Flags    []string
	Command  []string // empty: the built agent; else an emulator and another build
}

// Agent is a running iottunnel-agent.
type Agent struct {
	*Proc
	Device   Device
	forwards int
	mark     int // in standard output, behind the last Up
}

// Up is a tunnel as the agent announced it on standard output.
type Up struct {
	URLs  map[int]string // by the device's port: http, https or tcp URL
	Lines []string
}

// Hostname is the name of the device's URL for a port.
func (u Up) Hostname(tb testing.TB, port int) string {
	tb.Helper()
	parsed, err := url.Parse(u.URLs[port])
	if err != nil || parsed.Hostname() == "" {
		tb.Fatalf("port %d has no URL with a hostname: %q", port, u.Lines)
	}
	return parsed.Hostname()
}

// StartAgent starts an agent for the length of the test.
func StartAgent(tb testing.TB, f Face, s AgentSetup) *Agent {
	tb.Helper()
	if s.Device.ID == "" {
		s.Device = f.NewDevice(tb)
	}
	return &Agent{
		Proc:     Run(tb, Command{Name: "agent " + s.Device.ID, Args: agentArgs(tb, f, s)}),
		Device:   s.Device,
		forwards: len(s.Forwards),
	}
}

// AgentToEnd runs an agent that ends by itself, and returns its exit status.
func AgentToEnd(tb testing.TB, f Face, within time.Duration, s AgentSetup) (status int, stdout, stderr string) {
	tb.Helper()
	if s.Device.ID == "" {
		s.Device = f.NewDevice(tb)
	}
	return RunToEnd(tb, within, Command{Name: "agent " + s.Device.ID, Args: agentArgs(tb, f, s)})
}

func agentArgs(tb testing.TB, f Face, s AgentSetup) []string {
	tb.Helper()
	token := filepath.Join(tb.TempDir(), "token")
	if err := os.WriteFile(token, []byte(s.Device.Token+"\n"), 0o600); err != nil {
		tb.Fatal(err)
	}
	args := s.Command
	if args == nil {
		args = []string{Binary(tb, "iottunnel-agent")}
	}
	args = append(args[:len(args):len(args)], "run", "--device", s.Device.ID, "--token-file", token)
	servers := s.Servers
	if servers == nil {
		servers = f.Servers()
	}
	for _, server := range servers {
		args = append(args, "--server", server)
	}
	for _, forward := range s.Forwards {
		args = append(args, "--forward", forward)
	}
	if ca := f.CAFile(); ca != "" {
		args = append(args, "--ca", ca)
	}
	return append(args, s.Flags...)
}

// portLine is the whole of a line that the agent may write to standard output.
var portLine = regexp.MustCompile(`^(\d+)/(http|https|tcp) ((?:https?|tcp)://\S+)$`)

// UpTime is enough for an agent to come up on a busy machine.
const UpTime = Patience

// Up waits for the next announcement of the tunnel: a line per forwarded port.
func (a *Agent) Up(tb testing.TB) Up {
	tb.Helper()
	return a.UpWithin(tb, UpTime)
}

// Forget has Up wait for what is announced from now on.
func (a *Agent) Forget() { a.mark = a.Stdout.Mark() }

// UpWithin is Up for an agent that may take longer.
func (a *Agent) UpWithin(tb testing.TB, within time.Duration) Up {
	tb.Helper()
	within = max(within, Patience)
	up := Up{URLs: make(map[int]string)}
	ctx, cancel := context.WithTimeoutCause(tb.Context(), within, fmt.Errorf("%s is not up within %v", a.Name, within))
	defer cancel()
	go func() { // ends with the process or with this wait
		select {
		case <-a.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	for range a.forwards {
		line, next, err := a.Stdout.Wait(ctx, a.mark, func(string) bool { return true })
		if err != nil {
			tb.Fatalf("%v\n%s", err, tail(a.Stderr.Since(0), 10))
		}
		a.mark = next
		m := portLine.FindStringSubmatch(line)
		if m == nil {
			tb.Fatalf("%s wrote a line that is not PORT/KIND URL: %q", a.Name, line)
		}
		port, err := strconv.Atoi(m[1])
		if err != nil || up.URLs[port] != "" {
			tb.Fatalf("%s announced port %s twice in one tunnel", a.Name, m[1])
		}
		up.URLs[port] = m[3]
		up.Lines = append(up.Lines, line)
	}
	return up
}
