package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// enrolling answers requests to enrol, and counts them.
func enrolling(t *testing.T, asked *int, status int, body string, header ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		*asked++
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestEnrollKeepsTheSecret(t *testing.T) {
	dir, asked := t.TempDir(), 0
	file := filepath.Join(dir, "token")
	url := enrolling(t, &asked, 200, `{"device":"cam-17","token":"iott_s3cret"}`)
	enroll := func(more ...string) (int, string, string) {
		var stdout, stderr strings.Builder
		args := append([]string{"enroll", "--server", url, "--device", "cam-17", "--code", "7KQ2M", "--token-file", file}, more...)
		return command(args, nil, &stdout, &stderr), stdout.String(), stderr.String()
	}
	code, stdout, stderr := enroll()
	if code != exitOK || stdout != "cam-17 is enrolled; its secret is in "+file+"\n" || stderr != "" {
		t.Errorf("status %d, %q, %q", code, stdout, stderr)
	}
	text, err := os.ReadFile(file)
	info, statErr := os.Stat(file)
	if string(text) != "iott_s3cret\n" || err != nil || statErr != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%q, %v, %v, %v", text, err, info, statErr)
	}
	// It stays, and no code is used for nothing.
	if code, _, stderr := enroll(); code != exitUsage || !strings.Contains(stderr, "--token-file: "+file+" is there already") || asked != 1 {
		t.Errorf("status %d, %q, asked %d times", code, stderr, asked)
	}
	url = enrolling(t, &asked, 200, `{"device":"cam-17","token":"iott_other"}`)
	if code, _, stderr := enroll("--force"); code != exitOK {
		t.Errorf("status %d, %q", code, stderr)
	}
	if text, err := os.ReadFile(file); string(text) != "iott_other\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if left, err := os.ReadDir(dir); len(left) != 1 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A file that appears while the edge is asked is nobody's to replace.
func TestEnrollIsNeverOverAnotherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	k, err := newKeeping(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := k.store("s3cret"); err == nil {
		t.Error("it was stored")
	}
	k.drop()
	if text, err := os.ReadFile(path); string(text) != "mine" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

func TestEnrollFails(t *testing.T) {
	dir, asked := t.TempDir(), 0
	file := filepath.Join(dir, "token")
	refusing := func(status int, code string, header ...string) string {
		return enrolling(t, &asked, status, `{"error":"`+code+`","message":"as it says"}`, header...)
	}
	for _, test := range []struct {
		args []string
		code int
		says string // on standard error
	}{
		{[]string{"--server", refusing(401, "unauthorized")}, exitRefused, "answered 401 unauthorized: as it says\nA code serves once"},
		{[]string{"--server", refusing(429, "too_many", "Retry-After", "40")}, exitUnreachable, "Try again in 40s, with the same code."},
		{[]string{"--server", refusing(503, "unavailable", "Retry-After", "5")}, exitUnreachable, "Try again in 5s, with the same code."},
		{[]string{"--server", refusing(403, "forbidden")}, exitRefused, "Use wss://"},
		{[]string{"--server", "wss://127.0.0.1:1"}, exitUnreachable, "No edge was reached: iottunnel-agent check"},
		{[]string{"--server", "wss://a", "--token-file", dir}, exitUsage, "is a folder"},
		{[]string{"--server", "wss://a", "--token-file", "/nowhere/token"}, exitUsage, "--token-file: a secret cannot be kept there"},
		{[]string{"--server", "wss://a", "--device", "CAM"}, exitUsage, "--device: "},
		{[]string{"--server", "wss://a", "--device", "cam-{max}"}, exitUsage, "--device: {max}: there is no such placeholder"},
		{[]string{"--server", "wss://a", "--code", ""}, exitUsage, "--code is needed"},
		{[]string{"--server", "wss://a", "--once"}, exitUsage, "enroll takes no --once"},
		{[]string{"--server", "ws://192.0.2.1"}, exitUsage, "would send the token unencrypted"},
		{nil, exitUsage, "--server is needed"},
	} {
		var stderr strings.Builder
		args := []string{"enroll", "--device", "cam-17", "--code", "7KQ2M", "--token-file", file}
		if code := command(append(args, test.args...), nil, io.Discard, &stderr); code != test.code || !strings.Contains(stderr.String(), test.says) {
			t.Errorf("%v: status %d, %q, want %d, %q", test.args, code, stderr.String(), test.code, test.says)
		}
	}
	if left, err := os.ReadDir(dir); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

// What says how an edge is reached may stand in the file of run.
func TestEnrollReadsTheConfiguration(t *testing.T) {
	dir, asked := t.TempDir(), 0
	file, token := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "token")
	url := enrolling(t, &asked, 200, `{"device":"cam-17","token":"iott_s3cret"}`)
	if err := os.WriteFile(file, []byte("server: "+url+"\ndevice: cam-17\ntoken_file: "+token+"\nforward: 80\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	if code := command([]string{"enroll", "-c", file, "--code", "7KQ2M"}, nil, io.Discard, &stderr); code != exitOK {
		t.Errorf("status %d, %q", code, stderr.String())
	}
	if text, err := os.ReadFile(token); string(text) != "iott_s3cret\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if !slices.Contains(strings.Fields(commands), "enroll,") {
		t.Error("enroll is not among the commands that errors list")
	}
}
