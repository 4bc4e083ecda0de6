package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// farEcho is an edge whose devices send back what they get until its end; one that is
// called silent breaks off, and one that is called offline is.
func farEcho(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		device := r.URL.Query().Get("device")
		refuse := func(status int, code string) {
			w.WriteHeader(status)
			io.WriteString(w, `{"error":"`+code+`","message":"as it says"}`)
		}
		switch {
		case r.Header.Get("Authorization") != "Bearer gr4nt":
			refuse(401, "unauthorized")
			return
		case device == "offline":
			refuse(503, "device_offline")
			return
		}
		sock, err := accept.Upgrade(w, r, "iottunnel.v1", socket.LargeBuffer, nil)
		if err != nil {
			t.Error(err)
			return
		}
		c := stream.New(sock, stream.Options{})
		if device == "broken" {
			io.WriteString(c, "hel")
			c.Abort()
			return
		}
		io.Copy(c, c)
		c.CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestConnectOnStandardInput(t *testing.T) {
	url := farEcho(t)
	for _, test := range []struct {
		device, out, errs string
		code              int
	}{
		{"cam-17", "hello", "", exitOK},
		{"broken", "hel", "connect broken:22: cut off", exitFailed},
		{"offline", "", "device_offline: as it says\nThe device is not connected now", exitUnreachable},
	} {
		c := start(t, "connect", test.device+":22", "--server", url)
		var out, errs strings.Builder
		c.Stdin, c.Stdout, c.Stderr = strings.NewReader("hello"), &out, &errs
		c.Env = append(c.Env, "IOTTUNNEL_TOKEN=gr4nt")
		if test.device == "broken" { // so that it is not what ends it
			c.Stdin = nil
			in, err := c.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // its status is below
		if code := c.ProcessState.ExitCode(); code != test.code || out.String() != test.out || !strings.Contains(errs.String(), test.errs) {
			t.Errorf("%s: status %d, %q, %q", test.device, code, out.String(), errs.String())
		}
	}
}

func TestConnectEndsBySignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		c := start(t, "connect", "cam-17:22", "--server", farEcho(t))
		c.Env = append(c.Env, "IOTTUNNEL_TOKEN=gr4nt")
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		io.WriteString(in, "a")
		if _, err := out.Read(make([]byte, 1)); err != nil { // it is connected
			t.Error(err)
		}
		c.Process.Signal(sig)
		if err := c.Wait(); err != nil {
			t.Errorf("after %v: %v", sig, err)
		}
	}
}

func TestConnectListens(t *testing.T) {
	token := filepath.Join(t.TempDir(), "grant")
	if err := os.WriteFile(token, []byte("gr4nt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, "connect", "cam-17:22", "--server", farEcho(t), "--token-file", token, "--listen", "127.0.0.1:0")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		conn, err := net.Dial("tcp", strings.TrimSpace(addr))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "hello")
		conn.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(conn); string(b) != "hello" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		conn.Close()
	}
	if err := os.WriteFile(token, []byte("other\n"), 0o600); err != nil { // it counts from now on
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", strings.TrimSpace(addr))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); len(b) > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", b, err)
	}
	conn.Close()
	c.Process.Signal(os.Interrupt)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

func TestConnectRefuses(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"connect"}, exitUsage, `"" is not DEVICE:PORT, such as cam-17:22`},
		{[]string{"connect", "cam-17"}, exitUsage, `"cam-17" is not DEVICE:PORT`},
		{[]string{"connect", "cam-17:0"}, exitUsage, `"cam-17:0" is not DEVICE:PORT`},
		{[]string{"connect", "cam-17:65536"}, exitUsage, `is not DEVICE:PORT`},
		{[]string{"connect", "CAM:22", "--server", "wss://a"}, exitUsage, `"CAM:22": device id: `},
		{[]string{"connect", "a:22", "b:22"}, exitUsage, `connect: unexpected argument "b:22"`},
		{[]string{"connect", "a:22", "--device", "b"}, exitUsage, "connect takes no --device"},
		{[]string{"connect", "a:22", "--forward", "80"}, exitUsage, "connect takes no --forward: it makes no tunnel"},
		{[]string{"connect", "a:22"}, exitUsage, "--server is needed"},
		{[]string{"connect", "a:22", "--server", "wss://a", "--listen", "x"}, exitUsage, "--listen: "},
		{[]string{"ssh-config", "a:22", "--listen", "x"}, exitUsage, "--listen belongs to connect"},
		{[]string{"ssh-config", "a", "--server", "wss://a"}, exitUsage, "ssh does not pass IOTTUNNEL_TOKEN on"},
		{[]string{"connect", "cam-17:22", "--server", farEcho(t)}, exitRefused, "The grant is unknown, has expired"},
	} {
		var stderr strings.Builder
		if code := command(test.args, []string{"IOTTUNNEL_TOKEN=t0ken"}, io.Discard, &stderr); code != test.code || !strings.Contains(stderr.String(), test.says) {
			t.Errorf("%v: status %d, %q, want %d, %q", test.args, code, stderr.String(), test.code, test.says)
		}
	}
	var stderr strings.Builder
	if code := command([]string{"connect", "a:22", "--server", "wss://a"}, nil, io.Discard, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "--token-file is needed") {
		t.Errorf("status %d, %q", code, stderr.String())
	}
}

func TestSSHConfig(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's 100%")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "grant")
	if err := os.WriteFile(file, []byte("gr4nt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if code := command([]string{"ssh-config", "cam-17", "--server", "wss://a", "--token-file", file}, nil, &out, io.Discard); code != exitOK {
		t.Fatal(code)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	quoted := "'" + strings.NewReplacer("'", `'\''`, "%", "%%").Replace(file) + "'"
	want := "Host cam-17\n\tHostName cam-17\n\tPort 22\n\tHostKeyAlias cam-17\n\tProxyCommand " + program + " connect cam-17:22 --server wss://a --token-file " + quoted + "\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	// The shell that ssh calls takes it apart as it was meant.
	words, err := exec.Command("sh", "-c", "printf '%s' "+strings.ReplaceAll(quoted, "%%", "%")).Output()
	if string(words) != file || err != nil {
		t.Errorf("%q, %v", words, err)
	}
}
