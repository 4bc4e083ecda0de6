package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func noEnv(string) string { return "" }

func TestUsage(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		want string // in the message
	}{
		{"", "give --server, or --listen"},
		{"--server wss://edge.example.com", "--device"},
		{"--server wss://edge.example.com --device A!", "Device"},
		{"--server ws://edge.example.com --device a --token-file " + token, "Servers"},
		{"--server wss://edge.example.com --device a --token-file " + token + ".gone", "--token-file"},
		{"--listen 127.0.0.1:0 --log-level loud", "--log-level"},
		{"--listen 127.0.0.1:99999", "99999"},
		{"--listen 127.0.0.1:0 --listen-lines 127.0.0.1:99999", "99999"},
		{"--listen 127.0.0.1:0 more", "more"},
		{"--token secret", "-token"},
	} {
		var out, log strings.Builder
		status := run(t.Context(), strings.Fields(c.args), noEnv, &out, &log)
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		last := lines[len(lines)-1]
		if status != exitUsage || !strings.Contains(last, c.want) || !strings.HasPrefix(last, "thermometer: ") || out.Len() > 0 {
			t.Errorf("%s: status %d, %q, want %d and %q", c.args, status, last, exitUsage, c.want)
		}
		if strings.Contains(log.String(), "secret\n") {
			t.Errorf("%s: the token is in the log", c.args)
		}
	}
}

func TestHelp(t *testing.T) {
	var out, log strings.Builder
	if status := run(t.Context(), []string{"--help"}, noEnv, &out, &log); status != exitOK {
		t.Errorf("status %d", status)
	}
	for _, want := range []string{"--server URL", "--token-file FILE", "--listen ADDR", "IOTTUNNEL_TOKEN", "READ"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help does not mention %s:\n%s", want, out.String())
		}
	}
}

// TestListen: the page without a tunnel, until the program is told to end, with
// a visitor who has it open.
func TestListen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	logs, logWriter := io.Pipe()
	var status int
	var wg sync.WaitGroup
	wg.Go(func() {
		status = run(ctx, []string{"--listen", "127.0.0.1:0", "--listen-lines", "127.0.0.1:0"}, noEnv, io.Discard, logWriter)
		logWriter.Close()
	})
	in := bufio.NewReader(logs)
	line, err := in.ReadString('\n')
	url := regexp.MustCompile(`http://\S+/`).FindString(line)
	if err != nil || url == "" {
		t.Fatalf("log: %q, %v", line, err)
	}
	wg.Go(func() { _, _ = io.Copy(io.Discard, in) }) // until run has closed its end
	resp, err := http.Get(url + "events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	cancel()
	wg.Wait()
	if status != exitOK {
		t.Errorf("status %d", status)
	}
	if took := time.Since(asked); took > 2*time.Second {
		t.Errorf("ended only after %v", took)
	}
}

// TestTunnel: an edge that is not there is no reason to end, and no port is
// needed for anything.
func TestTunnel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	logs, logWriter := io.Pipe()
	var status int
	var wg sync.WaitGroup
	env := func(name string) string { return map[string]string{"IOTTUNNEL_TOKEN": "secret"}[name] }
	wg.Go(func() {
		status = run(ctx, []string{"--server", "ws://127.0.0.1:1", "--device", "probe-1"}, env, io.Discard, logWriter)
		logWriter.Close()
	})
	in := bufio.NewReader(logs)
	line, err := in.ReadString('\n') // the first attempt has failed
	if err != nil || !strings.Contains(line, "refused") || strings.Contains(line, "secret") {
		t.Errorf("log: %q, %v", line, err)
	}
	wg.Go(func() { _, _ = io.Copy(io.Discard, in) }) // until run has closed its end
	cancel(errors.New("interrupt"))                  // signals have a cause, too
	wg.Wait()
	if status != exitOK {
		t.Errorf("status %d", status)
	}
}
