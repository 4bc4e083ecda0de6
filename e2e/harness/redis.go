package harness

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Redis is a real redis-server on loopback, for one test alone. It may be stopped,
// killed, held in its tracks and started again, on the same address.
type Redis struct {
	*Proc
	Dir    string // where its files are
	Port   int    // 0 with a socket
	Socket string // path of its Unix socket; empty: TCP
	args   []string
	login  []string // of redis-cli
	host   *Host
}

// RedisSetup says what a Redis is like. The zero value keeps nothing over a restart.
type RedisSetup struct {
	Durable bool     // each write is on disk before it is answered
	Socket  bool     // a Unix socket instead of TCP
	Args    []string // more for redis-server
	CLI     []string // how redis-cli logs in
	Later   bool     // Start is called by the test
	Host    *Host    // where it runs; nil: here, on loopback
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
	r := &Redis{login: s.CLI, host: s.Host, Dir: dir}
	r.args = []string{"redis-server", "--bind", "127.0.0.1", "--dir", dir, "--daemonize", "no", "--save", "", "--repl-diskless-sync-delay", "0"}
	if s.Host != nil {
		r.args[2] = "127.0.0.1 " + s.Host.Addr
		r.args = append(s.Host.Args(r.args...), "--protected-mode", "no")
	}
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
		// A Redis that is new keeps nodes from giving names for a moment. What it says is of
		// no matter: where it cannot be told yet, nodes wait.
		r.Do(tb, "SET", "iottunnel:schema", "1")
	}
	return r
}

// settleRedis is what StartRedis does, for one on a socket that has just been started.
func settleRedis(socket string) error {
	return eventually(UpTime, "Redis answers", func() error {
		c, err := net.DialTimeout("unix", socket, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second)) // of an error the next line tells
		if _, err := io.WriteString(c, "SET iottunnel:schema 1\r\n"); err != nil {
			return err
		}
		answer, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && answer != "+OK\r\n" {
			err = errors.New(answer)
		}
		return err
	})
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
	return "redis://" + user + r.Addr() + "/0"
}

// Addr is where it listens, without a socket.
func (r *Redis) Addr() string {
	if r.host != nil {
		return net.JoinHostPort(r.host.Addr, strconv.Itoa(r.Port))
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.Port))
}

// Do runs a command by redis-cli and returns what it prints, a value per line.
func (r *Redis) Do(tb testing.TB, command ...string) string {
	tb.Helper()
	args := []string{"redis-cli", "--raw", "-h", "127.0.0.1", "-p", strconv.Itoa(r.Port)}
	if r.Socket != "" {
		args = []string{"redis-cli", "--raw", "-s", r.Socket}
	}
	args = append(append(args, r.login...), command...)
	if r.host != nil {
		args = r.host.Args(args...)
	}
	_, out, errs := RunToEnd(tb, UpTime, Command{Name: "redis-cli", Args: args})
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

// StartSentinels starts a master, a replica of it, and three sentinels that put the
// replica in its place within seconds. registry is what an edge is told of them.
func StartSentinels(tb testing.TB) (master, replica *Redis, registry []string) {
	tb.Helper()
	const name = "edge"
	master = StartRedis(tb, RedisSetup{})
	replica = StartRedis(tb, RedisSetup{Args: []string{"--replicaof", "127.0.0.1 " + strconv.Itoa(master.Port)}})
	Eventually(tb, UpTime, "the replica follows", func() error {
		if info := replica.Do(tb, "INFO", "replication"); !strings.Contains(info, "master_link_status:up") {
			return errors.New("not yet")
		}
		return nil
	})
	line := "sentinel " + name
	var all []*Redis
	for range 3 {
		s := &Redis{Dir: shortTemp(tb), Port: FreePort(tb, 1)}
		conf := filepath.Join(s.Dir, "sentinel.conf")
		text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nsentinel monitor %s 127.0.0.1 %d 2\n"+
			"sentinel down-after-milliseconds %s 500\nsentinel failover-timeout %s 2000\n", s.Port, s.Dir, name, master.Port, name, name)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		s.args = []string{"redis-server", conf, "--sentinel"}
		s.Start(tb)
		all = append(all, s)
		line += " " + s.Addr()
	}
	for _, s := range all {
		Eventually(tb, UpTime, "the sentinels know each other and the replica", func() error {
			if out := s.Do(tb, "SENTINEL", "CKQUORUM", name); !strings.Contains(out, "3 usable") {
				return errors.New(out)
			}
			if !strings.Contains(s.Do(tb, "SENTINEL", "REPLICAS", name), strconv.Itoa(replica.Port)) {
				return errors.New("no replica")
			}
			return nil
		})
	}
	return master, replica, []string{"registry redis {", "\t" + line, "}"}
}

// StartRedisCluster starts three masters, each with a replica, that share the slots.
// registry is what an edge is told of them.
func StartRedisCluster(tb testing.TB) (masters []*Redis, registry []string) {
	tb.Helper()
	var all []*Redis
	create, line := []string{"redis-cli", "--cluster", "create"}, "cluster"
	for range 6 {
		r := StartRedis(tb, RedisSetup{Args: []string{
			"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "1000", "--cluster-port", strconv.Itoa(FreePort(tb, 1)),
		}})
		all = append(all, r)
		create, line = append(create, r.Addr()), line+" "+r.Addr()
	}
	if status, out, errs := RunToEnd(tb, time.Minute, Command{Name: "redis-cli", Args: append(create, "--cluster-replicas", "1", "--cluster-yes")}); status != 0 {
		tb.Fatalf("redis-cli --cluster create: %s%s", out, errs)
	}
	for _, r := range all {
		Eventually(tb, UpTime, "the cluster is complete", func() error {
			switch info, role := r.Do(tb, "CLUSTER", "INFO"), r.Do(tb, "INFO", "replication"); {
			case !strings.Contains(info, "cluster_state:ok"):
				return errors.New(info)
			case strings.Contains(role, "role:slave") && !strings.Contains(role, "master_link_status:up"):
				return errors.New(role)
			}
			return nil
		})
	}
	return all[:3], []string{"registry redis {", "\t" + line, "}"}
}
