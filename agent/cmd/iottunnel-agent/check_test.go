package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/agent/internal/check"
	"github.com/iottunnel/iottunnel/internal/freeport"
	"github.com/iottunnel/iottunnel/internal/golden"
)

func TestHelpGolden(t *testing.T) {
	for _, name := range []string{"", "run", "check", "enroll", "service", "connect", "version"} {
		var out strings.Builder
		if code := command([]string{name, "--help"}[map[bool]int{true: 1}[name == ""]:], nil, &out, io.Discard); code != exitOK {
			t.Errorf("%s: status %d", name, code)
		}
		golden.Check(t, "help-"+name+".txt", out.String())
	}
}

// runOnce is a command with a clean environment, whose output is made the same on
// every machine.
func runOnce(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var stdout, stderr strings.Builder
	code = command(args, []string{"IOTTUNNEL_TOKEN=t0ken"}, &stdout, &stderr)
	out = stdout.String()
	for _, r := range []struct{ old, new string }{
		{`127\.0\.0\.1:\d{4,}`, "127.0.0.1:PORT"},
		{`\d+ ms`, "N ms"},
		{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`, "NOW UTC"},
	} {
		out = regexp.MustCompile(r.old).ReplaceAllString(out, r.new)
	}
	if stderr.Len() > 0 {
		t.Errorf("standard error: %s", stderr.String())
	}
	if strings.Contains(out, "t0ken") {
		t.Errorf("the token is in it: %s", out)
	}
	return code, out
}

func TestCheck(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(name, "")
	}
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, text := 400, `{"error":"bad_request","message":"parameter ports: missing"}`
		if r.Header.Get("Authorization") != "" {
			code, text = 401, `{"error":"unauthorized","message":"device or token is wrong"}`
		}
		w.WriteHeader(code)
		io.WriteString(w, text)
	}))
	defer refusing.Close()
	service := httptest.NewServer(http.NotFoundHandler())
	defer service.Close()
	target := strings.TrimPrefix(service.URL, "http://")
	args := []string{"check", "--server", refusing.URL, "--device", "cam-17", "--forward", "80=" + target}
	code, out := runOnce(t, args...)
	if code != exitRefused {
		t.Errorf("status %d", code)
	}
	golden.Check(t, "check-refused.txt", out)
	code, out = runOnce(t, append(args, "--output=json")...)
	if code != exitRefused || !json.Valid([]byte(out)) {
		t.Errorf("status %d", code)
	}
	golden.Check(t, "check-refused.json", out)
	code, out = runOnce(t, "check", "--server", "ws://127.0.0.1:1", "--device", "cam-17", "--forward", "80="+target)
	if code != exitUnreachable {
		t.Errorf("status %d", code)
	}
	golden.Check(t, "check-unreachable.txt", out)
}

// An agent that runs with the same --status is asked, and not disturbed.
func TestCheckAsksTheAgentThatRuns(t *testing.T) {
	addr := freeport.One(t).String()
	if _, ok := askRunning(t.Context(), addr); ok {
		t.Error("nobody is asked, and answers")
	}
	c := start(t, "run", "--server", edge(t, 0), "--device", "cam-17", "--forward", "80", "--forward", "22", "--forward", "2222", "--status", addr)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 10)); err != nil { // it is up
		t.Fatal(err)
	}
	want := check.Running{Device: "cam-17", State: "up", Name: "l4bel.devices.example.net"}
	got, ok := askRunning(t.Context(), addr)
	if want.Server = got.Server; !ok || got != want || !strings.HasPrefix(got.Server, "ws://127.0.0.1:") {
		t.Errorf("%+v, %v", got, ok)
	}
	c.Process.Signal(os.Interrupt)
	_, _ = io.Copy(io.Discard, out)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}
