package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestConformance has both agents tried by the rules of the protocol, in each of their
// profiles.
func TestConformance(t *testing.T) {
	forwards := []string{
		"--server", "{url}", "--server", "{url2}", "--device", "{device}", "--token-file", "{token_file}",
		"--forward", "7={echo}", "--forward", "80={http}", "--forward", "9={dead}",
	}
	agent := append([]string{harness.Binary(t, "iottunnel-agent"), "run", "--max-backoff", "1s"}, forwards...)
	small := append([]string{sanitized(t), "--max-backoff", "1"}, forwards...)
	for _, c := range []struct {
		name    string
		agent   []string
		profile string
		secure  bool
	}{
		{"Go, full", agent, "full", false},
		{"Go, basic", agent, "basic", false},
		{"Go, inline", agent, "inline", false},
		{"Go, full, TLS", agent, "full", true},
		{"C, basic", small, "basic", false},
		{"C, inline", small, "inline", false},
		{"C, inline, TLS", small, "inline", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// A machine that also does other things is no reason to fail.
			args := []string{harness.Binary(t, "iottunnel-conformance"), "--max-backoff", "1s", "--patience", "30s", "--jobs", "8", "--profile", c.profile}
			command := slices.Concat(c.agent, []string{"--profile", c.profile})
			if c.secure {
				args, command = append(args, "--tls"), append(command, "--ca", "{ca}")
			}
			args = slices.Concat(args, []string{"--"}, command)
			status, out, errs := harness.RunToEnd(t, 4*time.Minute, harness.Command{Name: "iottunnel-conformance", Args: args})
			if status != 0 {
				t.Errorf("status %d\n%s%s", status, out, errs)
			}
			t.Log(out)
		})
	}
}
