// Package redistest starts private Redis servers for tests: plain, behind TLS or
// a Unix socket, with passwords, replicated under Sentinel, and as a cluster.
//
// The servers listen on loopback, keep what they write below a directory of the
// test, and are killed when the test ends.
package redistest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is one redis-server process.
type Server struct {
	Dir    string // working directory; the dump is dump.rdb in it
	Addr   string // host:port; empty when it listens on a Unix socket only
	Port   int
	Socket string // path of the Unix socket, when it was asked for
	CA     string // file of the certificate authority, when TLS was asked for

	tb    testing.TB
	args  []string
	auth  []string // flags by which redis-cli logs in
	clock *Clock   // nil: the machine's

	mu  sync.Mutex // guards cmd
	cmd *exec.Cmd
	log *bytes.Buffer // of cmd; read after it has ended
}

// Options say what server Start starts. The zero value is a plain one.
type Options struct {
	TLS   bool     // listen with TLS only
	Unix  bool     // listen on a Unix socket only
	Clock *Clock   // nil: the machine's; needs Linux
	Args  []string // more arguments of redis-server
	CLI   []string // more arguments of redis-cli, such as --user and --pass
}

const (
	patience = 20 * time.Second
	pause    = 5 * time.Millisecond
)

// Need fails the test, naming the cure, when Redis is not installed.
func Need(tb testing.TB) {
	tb.Helper()
	for _, name := range []string{"redis-server", "redis-cli"} {
		if _, err := exec.LookPath(name); err != nil {
			tb.Fatalf("%s is not installed, and these tests need a real one: apt-get install redis-server", name)
		}
	}
}

// Start starts a server and returns when it answers.
func Start(tb testing.TB, o Options) *Server {
	tb.Helper()
	Need(tb)
	s := prepare(tb, o)
	s.Start()
	return s
}

// prepare chooses directory, address and arguments.
func prepare(tb testing.TB, o Options) *Server {
	tb.Helper()
	s := &Server{Dir: tempDir(tb), tb: tb, auth: o.CLI, clock: o.Clock}
	s.args = []string{
		"--dir", s.Dir, "--save", "", "--appendonly", "no", "--daemonize", "no",
		"--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0", "--loglevel", "notice",
	}
	switch {
	case o.Unix:
		s.Socket = filepath.Join(s.Dir, "redis.sock")
		s.args = append(s.args, "--port", "0", "--unixsocket", s.Socket)
	case o.TLS:
		s.choosePort()
		s.CA = filepath.Join(s.Dir, "ca.pem")
		cert, key := filepath.Join(s.Dir, "server.pem"), filepath.Join(s.Dir, "server.key")
		if err := writeCertificates(s.CA, cert, key); err != nil {
			tb.Fatal(err)
		}
		s.args = append(s.args, "--port", "0", "--tls-port", strconv.Itoa(s.Port),
			"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", s.CA, "--tls-auth-clients", "no")
	default:
		s.choosePort()
		s.args = append(s.args, "--port", strconv.Itoa(s.Port))
	}
	s.args = append(s.args, o.Args...)
	tb.Cleanup(func() {
		s.Kill()
		if tb.Failed() {
			tb.Logf("redis-server %s said:\n%s", s.Addr, tail(s.log, 30))
		}
	})
	return s
}

// tempDir is a directory with a path that is short enough for a Unix socket.
func tempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove the server's directory: %v", err)
		}
	})
	return dir
}

func (s *Server) choosePort() {
	s.Port = freePort(s.tb)
	s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port))
}

// Start starts the server (again), with what is in its directory, and returns when
// it answers.
func (s *Server) Start() {
	s.tb.Helper()
	s.launch("redis-server", s.args...)
	s.await()
}

func (s *Server) launch(name string, args ...string) {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		s.tb.Fatal("redistest: the server is running")
	}
	// It ends in Kill, not with a context: it may be killed and started again.
	cmd := exec.Command(name, args...)
	s.log = new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.Dir = s.Dir
	if s.clock != nil {
		cmd.Env = s.clock.environ()
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		s.tb.Fatalf("start %s: %v", name, err)
	}
	s.cmd = cmd
}

// await returns when the server answers and has loaded its data.
func (s *Server) await() {
	s.tb.Helper()
	var out string
	var err error
	if !poll(patience, func() bool {
		out, err = s.cli("PING")
		return err == nil && out == "PONG"
	}) {
		s.Kill()
		s.tb.Fatalf("redis-server does not answer: %q, %v; it said:\n%s", out, err, tail(s.log, 30))
	}
}

// Kill is kill -9, and returns when the process has ended. A server that is not
// running is let be.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	// Killed or ended by itself: both are as wanted.
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Stop has the process stand still (SIGSTOP): connections stay, and nothing is
// answered. Continue lets it go on. Kill ends it in either state.
func (s *Server) Stop() { s.tb.Helper(); s.signal(syscall.SIGSTOP) }

// Continue ends Stop.
func (s *Server) Continue() { s.tb.Helper(); s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.tb.Fatal("redistest: the server is not running")
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.tb.Fatal(err)
	}
}

// Do runs a command by redis-cli and returns its raw output; an error reply fails
// the test.
func (s *Server) Do(args ...string) string {
	s.tb.Helper()
	out, err := s.cli(args...)
	if err != nil {
		s.tb.Fatalf("redis-cli %v: %v: %s", args, err, out)
	}
	return out
}

func (s *Server) cli(args ...string) (string, error) {
	flags := []string{"-e", "--no-auth-warning"}
	if s.Socket != "" {
		flags = append(flags, "-s", s.Socket)
	} else {
		flags = append(flags, "-p", strconv.Itoa(s.Port))
	}
	if s.CA != "" {
		flags = append(flags, "--tls", "--cacert", s.CA)
	}
	flags = append(flags, s.auth...)
	return run("redis-cli", append(flags, args...)...)
}

// run runs a command to its end and returns what it wrote, without the last newline.
func run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return strings.TrimSuffix(string(out), "\n"), err
}

// Commands returns how often each command ran since the last ResetCommands, those
// of scripts included.
func (s *Server) Commands() map[string]int {
	s.tb.Helper()
	calls := map[string]int{}
	for line := range strings.Lines(s.Do("INFO", "commandstats")) {
		name, stats, ok := strings.Cut(strings.TrimSpace(line), ":calls=")
		if !ok {
			continue
		}
		n, _, _ := strings.Cut(stats, ",")
		count, err := strconv.Atoi(n)
		if err != nil {
			s.tb.Fatalf("INFO commandstats: %q: %v", line, err)
		}
		calls[strings.TrimPrefix(name, "cmdstat_")] = count
	}
	return calls
}

// ResetCommands starts the counts of Commands anew.
func (s *Server) ResetCommands() { s.tb.Helper(); s.Do("CONFIG", "RESETSTAT") }

// Eventually fails the test unless ok becomes true within the time that a slow
// machine may take.
func Eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	if !poll(patience, ok) {
		tb.Fatalf("did not happen within %v: %s", patience, what)
	}
}

// poll asks ok until it is true, or for the given time.
func poll(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(pause) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

var ports struct {
	sync.Mutex
	next int
}

// freePort returns a port on which nobody listens. It is below those that systems
// hand out by themselves, and leaves room for a cluster's bus 10,000 above.
func freePort(tb testing.TB) int {
	tb.Helper()
	const first, count = 20000, 2700
	ports.Lock()
	defer ports.Unlock()
	if ports.next == 0 {
		ports.next = os.Getpid() * 61 // processes start at different places
	}
	for range count {
		ports.next++
		port := first + ports.next%count
		if listens(port) && listens(port+10000) {
			return port
		}
	}
	tb.Fatal("redistest: no free port")
	return 0
}

// listens says whether a server could listen on the port.
func listens(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func tail(log *bytes.Buffer, lines int) string {
	if log == nil {
		return ""
	}
	all := strings.Split(strings.TrimSpace(log.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// never is a timeout, in milliseconds, of what a moved clock must not end; its 24 days
// are as much as Redis takes.
const never = "2147483647"

// Cluster starts three masters that share the slots, and returns when each knows. With a
// clock, which may be nil, none finds out that another has died.
func Cluster(tb testing.TB, clock *Clock) []*Server {
	tb.Helper()
	Need(tb)
	var nodes []*Server
	create := []string{"--cluster", "create"}
	timeout := "2000"
	if clock != nil {
		timeout = never
	}
	for range 3 {
		s := prepare(tb, Options{Clock: clock, Args: []string{
			"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", timeout,
		}})
		s.Start()
		nodes = append(nodes, s)
		create = append(create, s.Addr)
	}
	if out, err := run("redis-cli", append(create, "--cluster-yes")...); err != nil {
		tb.Fatalf("make the cluster: %v\n%s", err, out)
	}
	for _, s := range nodes {
		Eventually(tb, "the cluster is complete", func() bool {
			return strings.Contains(s.Do("CLUSTER", "INFO"), "cluster_state:ok")
		})
	}
	return nodes
}

// Sentinels is a master with a replica, watched by three sentinels.
type Sentinels struct {
	Name            string // of the master, as sentinels know it
	Master, Replica *Server
	Sentinels       []*Server
}

// Addrs returns the addresses of the sentinels.
func (s *Sentinels) Addrs() []string {
	var addrs []string
	for _, sentinel := range s.Sentinels {
		addrs = append(addrs, sentinel.Addr)
	}
	return addrs
}

// WithSentinels starts a master, a replica and three sentinels that need a
// password, and returns when a failover would succeed. The clock, which may be nil, is
// that of master and replica.
func WithSentinels(tb testing.TB, sentinelPassword string, clock *Clock) *Sentinels {
	tb.Helper()
	Need(tb)
	unhurried := []string{"--repl-timeout", "86400"} // replicas stay while the clock moves
	g := &Sentinels{Name: "edge", Master: Start(tb, Options{Clock: clock, Args: unhurried})}
	g.Replica = Start(tb, Options{Clock: clock, Args: append(unhurried, "--replicaof", "127.0.0.1 "+strconv.Itoa(g.Master.Port))})
	Eventually(tb, "the replica follows", func() bool {
		return strings.Contains(g.Replica.Do("INFO", "replication"), "master_link_status:up")
	})
	for range 3 {
		s := prepare(tb, Options{CLI: []string{"--pass", sentinelPassword}})
		conf := filepath.Join(s.Dir, "sentinel.conf")
		text := fmt.Sprintf(`port %d
bind 127.0.0.1
dir %s
requirepass %s
sentinel sentinel-pass %s
sentinel monitor %s 127.0.0.1 %d 2
sentinel down-after-milliseconds %s 500
sentinel failover-timeout %s 2000
`, s.Port, s.Dir, sentinelPassword, sentinelPassword, g.Name, g.Master.Port, g.Name, g.Name)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		s.args = []string{conf, "--sentinel"}
		s.Start()
		g.Sentinels = append(g.Sentinels, s)
	}
	for _, s := range g.Sentinels {
		Eventually(tb, "the sentinels know each other and the replica", func() bool {
			out, err := s.cli("SENTINEL", "CKQUORUM", g.Name)
			return err == nil && strings.Contains(out, "3 usable") &&
				strings.Contains(s.Do("SENTINEL", "REPLICAS", g.Name), strconv.Itoa(g.Replica.Port))
		})
	}
	return g
}

// AwaitFailover returns when the replica is the master.
func (s *Sentinels) AwaitFailover() {
	s.Replica.tb.Helper()
	Eventually(s.Replica.tb, "the replica takes over", func() bool {
		out, err := s.Replica.cli("INFO", "replication") // it may end connections when it does
		return err == nil && strings.Contains(out, "role:master")
	})
}
