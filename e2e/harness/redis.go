package harness

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Redis is a real redis-server on loopback, for one test alone. It may be stopped,
// killed, held in its tracks and started again, on the same address.
type Redis struct {
	*Proc
	Port   int    // 0 with a socket
	Socket string // path of its Unix socket; empty: TCP
	args   []string
	login  []string // of redis-cli
}

// RedisSetup says what a Redis is like. The zero value keeps nothing over a restart.
type RedisSetup struct {
	Durable bool     // each write is on disk before it is answered
	Socket  bool     // a Unix socket instead of TCP
	Args    []string // more for redis-server
	CLI     []string // how redis-cli logs in
	Later   bool     // Start is called by the test
}

// StartRedis starts a Redis for the length of the test.
func StartRedis(tb testing.TB, s RedisSetup) *Redis {
	tb.Helper()
	for _, program := range []string{"redis-server", "redis-cli"} {
		if _, err := exec.LookPath(program); err != nil {
			tb.Fatalf("%s is not installed, and this test needs a real one: apt-get install redis-server", program)
		}
	}
	dir := shortTemp(tb)
	r := &Redis{login: s.CLI, args: []string{"redis-server", "--bind", "127.0.0.1", "--dir", dir, "--daemonize", "no", "--save", ""}}
	if s.Socket {
		r.Socket = filepath.Join(dir, "redis.sock")
		r.args = append(r.args, "--unixsocket", r.Socket)
	} else {
		r.Port = FreePort(tb, 1)
	}
	r.args = append(r.args, "--port", strconv.Itoa(r.Port))
	if s.Durable {
		r.args = append(r.args, "--appendonly", "yes", "--appendfsync", "always")
	}
	r.args = append(r.args, s.Args...)
	if !s.Later {
		r.Start(tb)
	}
	return r
}

// Start starts it, again or for the first time, and waits until it answers.
func (r *Redis) Start(tb testing.TB) {
	tb.Helper()
	r.Proc = Run(tb, Command{Name: "redis-server", Args: r.args})
	Eventually(tb, UpTime, "Redis answers", func() error {
		if !r.Running() {
			tb.Fatalf("redis-server has ended\n%s", tail(r.Stdout.Since(0), 20))
		}
		if out := r.Do(tb, "PING"); out != "PONG" {
			return errors.New(out)
		}
		return nil
	})
}

// Hold stops it in its tracks: connections stay, and nothing is answered.
func (r *Redis) Hold() { r.Signal(syscall.SIGSTOP) }

// Go on after Hold.
func (r *Redis) Go() { r.Signal(syscall.SIGCONT) }

// URL is how an edge is told of it; user is empty or NAME:PASSWORD.
func (r *Redis) URL(user string) string {
	if user != "" {
		user += "@"
	}
	if r.Socket != "" {
		return "unix://" + user + r.Socket
	}
	return fmt.Sprintf("redis://%s127.0.0.1:%d/0", user, r.Port)
}

// Do runs a command by redis-cli and returns what it prints, a value per line.
func (r *Redis) Do(tb testing.TB, command ...string) string {
	tb.Helper()
	args := []string{"redis-cli", "--raw", "-h", "127.0.0.1", "-p", strconv.Itoa(r.Port)}
	if r.Socket != "" {
		args = []string{"redis-cli", "--raw", "-s", r.Socket}
	}
	_, out, errs := RunToEnd(tb, UpTime, Command{Name: "redis-cli", Args: append(append(args, r.login...), command...)})
	return strings.TrimSpace(out + errs)
}

// Hash reads a hash; one that is not there is empty.
func (r *Redis) Hash(tb testing.TB, key string) map[string]string {
	tb.Helper()
	fields := make(map[string]string)
	lines := strings.Split(r.Do(tb, "HGETALL", key), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		fields[lines[i]] = lines[i+1]
	}
	return fields
}
