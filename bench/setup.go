package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// setup is the running programs: service, edge and agent.
type setup struct {
	dir     string
	service string // its address
	port    string // of the edge
	tunnel  string // the device's hostname
	edge    *exec.Cmd
	agent   *exec.Cmd
	all     []*exec.Cmd
}

const startTime = 30 * time.Second

// setUp starts all; what it started before it failed is ended.
func setUp(ctx context.Context, bin string) (s *setup, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	s = &setup{}
	defer func() {
		if err != nil {
			s.tearDown()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "iottunnel-bench"); err != nil {
		return nil, err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if _, s.service, err = s.start(ctx, self, "-serve"); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if err := s.startEdge(ctx, filepath.Join(bin, "caddy")); err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	var line string
	s.agent, line, err = s.start(ctx, filepath.Join(bin, "iottunnel-agent"), "run",
		"--server", "ws://127.0.0.1:"+s.port, "--device", "bench", "--token-file", filepath.Join(s.dir, "token"),
		"--forward", "80="+s.service)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	// 80/http http://LABEL.localhost:PORT/
	_, url, _ := strings.Cut(line, "//")
	s.tunnel = strings.TrimSuffix(url, "/")
	return s, nil
}

// caddyfile wants the port and the address of the service. The proxy that the
// tunnel is compared with may keep as many connections as there are visitors; by
// default it would close half of 64 after each request.
const caddyfile = `{
	admin off
	persist_config off
	auto_https off
	grace_period 1s
	iottunnel {
		domain localhost
		auth static {
			file devices.txt
		}
	}
}

http://proxied.test:%[1]s {
	bind 127.0.0.1
	reverse_proxy %[2]s {
		transport http {
			keepalive_idle_conns_per_host 256
		}
	}
}

http://:%[1]s {
	bind 127.0.0.1
	iottunnel
}
`

func (s *setup) startEdge(ctx context.Context, caddy string) (err error) {
	if s.port, err = freePort(); err != nil {
		return err
	}
	token := rand.Text()
	for name, text := range map[string]string{
		"token":       token,
		"devices.txt": "bench " + token + "\n",
		"Caddyfile":   fmt.Sprintf(caddyfile, s.port, s.service),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if s.edge, _, err = s.start(ctx, caddy, "run", "--config", "Caddyfile", "--adapter", "caddyfile"); err != nil {
		return err
	}
	for {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+s.port, time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not listening: %w (its log: %s)", ctx.Err(), s.log(s.edge))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// start starts a program and, if it is not the edge, waits for its first line.
// Its standard error is a file in dir.
func (s *setup) start(ctx context.Context, path string, args ...string) (*exec.Cmd, string, error) {
	cmd := exec.Command(path, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir)
	log, err := os.Create(s.logName(cmd))
	if err != nil {
		return nil, "", err
	}
	defer log.Close() // the child has its own
	cmd.Stderr = log
	if filepath.Base(path) == "caddy" {
		return cmd, "", s.started(cmd)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := s.started(cmd); err != nil {
		return nil, "", err
	}
	first := make(chan string, 1)
	go func() { // ends with the program's output
		line, _ := bufio.NewReader(out).ReadString('\n')
		first <- strings.TrimSpace(line)
	}()
	select {
	case line := <-first:
		if line == "" {
			return nil, "", fmt.Errorf("ended at once: %s", s.log(cmd))
		}
		return cmd, line, nil
	case <-ctx.Done():
		return nil, "", fmt.Errorf("%w: %s", ctx.Err(), s.log(cmd))
	}
}

func (s *setup) started(cmd *exec.Cmd) error {
	err := cmd.Start()
	if err == nil {
		s.all = append(s.all, cmd)
	}
	return err
}

func (s *setup) logName(cmd *exec.Cmd) string {
	return filepath.Join(s.dir, filepath.Base(cmd.Path)+".log")
}

func (s *setup) log(cmd *exec.Cmd) string {
	text, _ := os.ReadFile(s.logName(cmd)) // a message without it is still one
	return string(bytes.TrimSpace(text))
}

func (s *setup) routes() []route {
	edge := "127.0.0.1:" + s.port
	return []route{
		{name: "direct", addr: s.service, host: s.service},
		{name: "Caddy reverse_proxy", addr: edge, host: "proxied.test", procs: []int{s.edge.Process.Pid}},
		{name: "iottunnel", addr: edge, host: s.tunnel, procs: []int{s.edge.Process.Pid, s.agent.Process.Pid}},
	}
}

// tearDown ends what runs, the last one first.
func (s *setup) tearDown() {
	for i := len(s.all) - 1; i >= 0; i-- {
		cmd := s.all[i]
		// Errors mean that it has ended already, or how it ended: either is fine.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	}
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// cpuTime is the CPU time that processes have used; 0 where /proc does not tell.
func cpuTime(pids []int) (total time.Duration) {
	for _, pid := range pids {
		used, err := procTime(pid)
		if err != nil {
			return 0
		}
		total += used
	}
	return total
}

// procTime reads /proc/PID/stat: utime and stime are the 14th and 15th field,
// in ticks, of which Linux counts 100 a second on every platform of Go's
// (proc(5)). The second field, in parentheses, may hold spaces.
func procTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !found || len(fields) < 13 {
		return 0, errors.New("stat: too few fields")
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	if err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}
