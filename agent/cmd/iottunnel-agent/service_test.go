//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a service runs with: flags and environment as flags, files by absolute paths,
// and the rest left to the file.
func TestServiceArguments(t *testing.T) {
	dir := t.TempDir()
	token, file := filepath.Join(dir, "token"), filepath.Join(dir, "agent.yaml")
	for name, text := range map[string]string{token: "t0ken", file: "server: wss://a\nmax_backoff: 10s\ntoken_file: " + token + "\nforward: [80, 22]\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	var stdout, stderr strings.Builder
	code := command([]string{"service", "install", "--print", "--manager=procd", "-c", "agent.yaml", "--device", "cam-{hostname}", "--log-level=debug"},
		[]string{"IOTTUNNEL_HEARTBEAT=1m", "IOTTUNNEL_REDIRECT_TO=a.example.com b.example.com"}, &stdout, &stderr)
	if want := "/etc/init.d/iottunnel-agent:\n"; code != exitOK || stderr.String() != want {
		t.Fatalf("status %d, %s", code, stderr.String())
	}
	_, rest, _ := strings.Cut(stdout.String(), "procd_set_param command ")
	got, _, _ := strings.Cut(rest, "\n\tprocd_set_param")
	words := strings.Fields(strings.ReplaceAll(got, "\\\n", ""))
	want := []string{"run", "--config=" + file, "'--device=cam-{hostname}'", "--heartbeat=1m0s", "--log-level=DEBUG", "--redirect-to=a.example.com", "--redirect-to=b.example.com", "--token-file=" + token}
	if strings.Join(words[1:], "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", words)
	}
	if strings.Contains(stdout.String(), "t0ken") {
		t.Error("the token is in it")
	}
}

func TestServiceRefuses(t *testing.T) {
	good := []string{"service", "install", "--print", "--manager=procd", "--server=wss://a", "--device=cam-17", "--forward=80"}
	for _, c := range []struct {
		args []string
		env  string
		want string
	}{
		{append(good, "--once"), "", "--once: a service is there to try again"},
		{good, "IOTTUNNEL_TOKEN=t0ken", "a service does not have this IOTTUNNEL_TOKEN: write the secret into a file"},
		{append(good, "--proxy=http://u:t0ken@proxy:1"), "", "--proxy: everybody on this device could read the password"},
		{append(good, "--server=ftp://a"), "", `--server: "ftp://a"`},
		{good[:4], "", "--server is needed"},
		{append(good, "--manager=systemd"), "", "which the service does not see: copy the program to /usr/local/bin"},
	} {
		var stdout, stderr strings.Builder
		code := command(c.args, []string{c.env}, &stdout, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), c.want) || strings.Contains(stderr.String(), "t0ken") || stdout.Len() > 0 {
			t.Errorf("%q: status %d, %q, %q; want %s", c.args, code, stdout.String(), stderr.String(), c.want)
		}
	}
}
