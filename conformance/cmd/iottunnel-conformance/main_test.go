package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/golden"
	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv("CONFORMANCE_AGENT") != "" {
		os.Stderr.WriteString("this agent knows no edge\n")
		os.Exit(3)
	}
	leak.Main(m)
}

func TestHelp(t *testing.T) {
	var out strings.Builder
	if status := command([]string{"--help"}, &out, &out); status != exitOK {
		t.Errorf("status %d", status)
	}
	// The number depends on the machine.
	golden.Check(t, "help.txt", regexp.MustCompile(`wait \(default \d+\)`).ReplaceAllString(out.String(), "wait (default N)"))
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "a COMMAND, or --listen"},
		{[]string{"--", "agent", "--server", "ws://127.0.0.1"}, "has no {url}"},
		{[]string{"--only", "5.1,99", "--", "agent", "{url}"}, `"99" is no rule`},
		{[]string{"--profile", "fat", "--", "agent", "{url}"}, `"fat" is no profile`},
		{[]string{"--echo-port", "x", "--", "agent", "{url}"}, "echo-port"},
		{[]string{"--colour"}, "colour"},
	} {
		var out, errs strings.Builder
		if status := command(c.args, &out, &errs); status != exitUsage || !strings.Contains(errs.String(), c.says) || out.Len() > 0 {
			t.Errorf("%q: status %d, %q", c.args, status, errs.String())
		}
	}
}

func TestList(t *testing.T) {
	var out strings.Builder
	if status := command([]string{"--list"}, &out, &out); status != exitOK || !strings.Contains(out.String(), "5.1    Heartbeat") {
		t.Errorf("status %d, %s", status, out.String())
	}
}

// An agent that cannot be started, or ends at once, is told by its own words.
func TestNoAgent(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONFORMANCE_AGENT", "1")
	for _, c := range []struct {
		agent, says string
	}{
		{self, "this agent knows no edge"},
		{filepath.Join(t.TempDir(), "nobody"), "no such file"},
	} {
		var out, errs strings.Builder
		status := command([]string{"--patience", "1ms", "--", c.agent, "{url}"}, &out, &errs)
		if status != exitFailed || !strings.Contains(errs.String(), c.says) {
			t.Errorf("status %d, %q", status, errs.String())
		}
	}
}
