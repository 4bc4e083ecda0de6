//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/freeport"
)

// The test binary plays the programs that the demo starts, under their names.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "caddy":
		playEdge()
	case "thermometer":
		playDevice()
	default:
		os.Exit(m.Run())
	}
}

// playEdge listens where its Caddyfile says.
func playEdge() {
	text, err := os.ReadFile("Caddyfile")
	if err != nil {
		panic(err)
	}
	port := regexp.MustCompile(`(?m)^http://:(\d+)`).FindStringSubmatch(string(text))[1]
	stop := present("edge")
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		panic(err)
	}
	defer l.Close()
	untilTerminated(stop)
}

// playDevice says its name, which is that of its secret.
func playDevice() {
	secret, err := os.ReadFile(os.Args[len(os.Args)-1])
	if err != nil {
		panic(err)
	}
	stop := present("device")
	fmt.Printf("80/http http://%s.localhost/\n", strings.ToLower(string(secret[:8])))
	untilTerminated(stop)
}

// present leaves the process id for the test.
func present(name string) (stop chan os.Signal) {
	stop = make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if err := os.WriteFile(name+".new", []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(name+".new", name+".pid"); err != nil {
		panic(err)
	}
	return stop
}

func untilTerminated(stop chan os.Signal) {
	if _, err := os.Stat("stubborn"); err == nil {
		select {}
	}
	<-stop
}

// stage is a demo under test.
type stage struct {
	port  string
	dir   string
	enter io.Writer
	lines chan string
	stop  context.CancelFunc
	ended chan error
}

// play starts a demo with the programs in bin, and waits until its device is
// online; it returns the device's URL.
func play(t *testing.T, bin, data string) (s *stage, url string) {
	t.Helper()
	port := freePort(t)
	in, enter := io.Pipe()
	read, out := io.Pipe()
	ctx, stop := context.WithCancel(context.Background())
	s = &stage{
		port: port, dir: filepath.Join(data, port), enter: enter, stop: stop,
		lines: make(chan string, 100), ended: make(chan error, 1),
	}
	go func() { // ends with the demo
		for text := bufio.NewScanner(read); text.Scan(); {
			s.lines <- text.Text()
		}
		close(s.lines)
	}()
	go func() { // ends when ctx does
		s.ended <- run(ctx, options{port: port, bin: bin, data: data, in: in, out: out})
		out.Close()
	}()
	t.Cleanup(func() {
		stop()
		in.Close()
		for range s.lines {
		}
	})
	url = strings.TrimSpace(s.line(t, "    http://"))
	s.line(t, "Ctrl-C")
	return s, url
}

func freePort(t *testing.T) string { return strconv.Itoa(int(freeport.One(t).Port())) }

// line waits for a line that holds text.
func (s *stage) line(t *testing.T, text string) string {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case line, open := <-s.lines:
			if !open {
				t.Fatalf("the demo ended before it said %q: %v", text, <-s.ended)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-deadline:
			t.Fatalf("the demo does not say %q", text)
		}
	}
}

// press enters a line until the demo says text: what comes right after the
// start is taken for typed ahead.
func (s *stage) press(t *testing.T, text string) string {
	t.Helper()
	time.AfterFunc(2*typedAhead, func() { s.enter.Write([]byte("\n")) })
	return s.line(t, text)
}

// end waits for the demo's end.
func (s *stage) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(time.Minute):
		t.Fatal("the demo does not end")
		return nil
	}
}

func (s *stage) pid(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func mustBeGone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d is still there (%v)", pid, err)
		}
	}
}

// actors is a folder with the played programs.
func actors(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"caddy", "thermometer"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

func TestStopEndsBoth(t *testing.T) {
	s, _ := play(t, actors(t), t.TempDir())
	edge, device := s.pid(t, "edge"), s.pid(t, "device")
	s.stop()
	if err := s.end(t); err != nil {
		t.Error(err)
	}
	mustBeGone(t, edge, device)
}

func TestStopEndsTheStubborn(t *testing.T) {
	s, _ := play(t, actors(t), t.TempDir())
	if err := os.WriteFile(filepath.Join(s.dir, "stubborn"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.press(t, "is stopped")
	s.press(t, "online again")
	device := s.pid(t, "device")
	s.stop()
	if err := s.end(t); err != nil {
		t.Error(err)
	}
	mustBeGone(t, device)
}

func TestEdgeThatDiesEndsTheDemo(t *testing.T) {
	s, _ := play(t, actors(t), t.TempDir())
	device := s.pid(t, "device")
	syscall.Kill(s.pid(t, "edge"), syscall.SIGKILL)
	if err := s.end(t); err == nil || !strings.Contains(err.Error(), "the edge has ended (signal: killed)") {
		t.Errorf("the demo ends with %v", err)
	}
	mustBeGone(t, device)
}

func TestDeviceThatDiesCanBeStarted(t *testing.T) {
	s, url := play(t, actors(t), t.TempDir())
	syscall.Kill(s.pid(t, "device"), syscall.SIGKILL)
	s.line(t, "The device has ended (signal: killed)")
	if line := s.press(t, "online again"); !strings.Contains(line, "under the same name: "+url) {
		t.Errorf("the device that was %s is back: %s", url, line)
	}
}

func TestFilesAreTheUsersAlone(t *testing.T) {
	data := filepath.Join(t.TempDir(), "demo")
	f, err := prepare(data, "8080", []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(f.token)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{f.token, filepath.Join(f.dir, "devices.txt"), filepath.Join(f.dir, "Caddyfile")} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o", path, mode)
		}
	}
	if _, err := prepare(data, "8080", []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(f.token); string(again) != string(first) {
		t.Error("the next start draws another secret: the device would lose its name")
	}
	if other, _ := prepare(t.TempDir(), "8080", nil); other.token != "" {
		if text, _ := os.ReadFile(other.token); string(text) == string(first) {
			t.Error("two demos share a secret")
		}
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	err = run(t.Context(), options{port: port, bin: t.TempDir(), data: t.TempDir(), in: strings.NewReader(""), out: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "port "+port+" is in use") || !strings.Contains(err.Error(), "DEMO_PORT") {
		t.Errorf("the demo on a port in use ends with %v", err)
	}
}

func TestPortThatIsNone(t *testing.T) {
	for _, port := range []string{"", "0", "65536", "http", "../8080"} {
		if _, err := freeLoopback(port); err == nil || !strings.Contains(err.Error(), "DEMO_PORT") {
			t.Errorf("port %q: %v", port, err)
		}
	}
}

func TestMissingProgram(t *testing.T) {
	err := run(t.Context(), options{port: freePort(t), bin: t.TempDir(), data: t.TempDir(), in: strings.NewReader(""), out: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "caddy") {
		t.Errorf("the demo without programs ends with %v", err)
	}
}

// The demo as a user sees it, with the real programs.
func TestVisitorSeesTheDeviceLeaveAndReturn(t *testing.T) {
	bin := os.Getenv("IOTTUNNEL_BIN")
	if bin == "" {
		t.Skip("IOTTUNNEL_BIN does not name the folder of the built programs (make build)")
	}
	s, url := play(t, bin, t.TempDir())
	if status, code, body := s.visit(t, url); status != 200 || code != "" || !strings.Contains(body, "<html") {
		t.Errorf("the device's page: %d %q\n%s", status, code, body)
	}
	s.press(t, "is stopped")
	if status, code, _ := s.visit(t, url); status != 503 || code != "device_offline" {
		t.Errorf("without the device: %d %q", status, code)
	}
	if line := s.press(t, "online again"); !strings.Contains(line, "under the same name: "+url) {
		t.Errorf("the device that was %s is back: %s", url, line)
	}
	if status, code, _ := s.visit(t, url); status != 200 || code != "" {
		t.Errorf("the device's page, again: %d %q", status, code)
	}
	s.stop()
	if err := s.end(t); err != nil {
		t.Error(err)
	}
	if hosts, err := freeLoopback(s.port); err != nil {
		t.Errorf("after the demo only %v are free: %v", hosts, err)
	}
}

// visit asks for url by its Host on loopback, as the demo's curl line does.
func (s *stage) visit(t *testing.T, url string) (status int, code, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://127.0.0.1:"+s.port+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	req.Header.Set("Accept", "text/html")
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("Iottunnel-Error"), string(text)
}
