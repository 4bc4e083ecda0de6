package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// NginxSetup says what an nginx with the Lua router is like. Where an nginx.conf
// could be wrong on purpose, Omit leaves a part out.
type NginxSetup struct {
	Settings string // of setup{ }: redis, domain and the like
	Main     string // lines of the main context
	HTTP     string // lines of http { }
	Server   string // lines of the devices' server { }, before the include
	Agents   string // lines of the agents' server { }, before the include
	Sites    string // whole servers
	Domain   string // of the devices; devices.test if empty
	Workers  int    // 1 if zero
	Omit     string // http.conf or setup: is not in nginx.conf
	Stream   string // the whole of stream { }
	Host     *Host  // where it runs; nil: here, on loopback

	secure func(name string) (certFile, keyFile string) // nil: without TLS
}

// Nginx is a real nginx with the Lua router of this repository, on loopback.
type Nginx struct {
	*Proc
	Dir   string
	Port  int // visitors and agents
	Other int // for NginxSetup.Sites

	log   *Log
	setup NginxSetup
}

// nginxModules is where Debian keeps nginx' modules.
const nginxModules = "/usr/lib/nginx/modules"

// nginxUpTime bounds the start of an nginx.
const nginxUpTime = Patience

// NewNginx lays an nginx out in dir, and does not start it.
func NewNginx(dir string, s NginxSetup) (*Nginx, error) {
	if _, err := exec.LookPath("nginx"); err != nil {
		return nil, errors.New("nginx is not installed, and this needs a real one: apt-get install nginx libnginx-mod-http-lua libnginx-mod-stream lua-resty-core lua-resty-lrucache")
	}
	n := &Nginx{Dir: dir, log: NewLog()}
	var err error
	if n.Port, err = freePort(1); err != nil {
		return nil, err
	}
	if n.Other, err = freePort(1); err != nil {
		return nil, err
	}
	return n, n.Write(s)
}

// StartNginx starts an nginx for the length of the test. Lines of its error log
// that speak of a mistake in Lua fail the test.
func StartNginx(tb testing.TB, s NginxSetup) *Nginx {
	tb.Helper()
	n, err := NewNginx(shortTemp(tb), s)
	if err == nil {
		err = n.Launch()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		for _, fault := range n.Close() {
			tb.Errorf("nginx: %s", fault)
		}
		if tb.Failed() {
			tb.Log(n.Dump(0))
		}
	})
	return n
}

// Domain is the devices' domain.
func (n *Nginx) Domain() string {
	if n.setup.Domain != "" {
		return n.setup.Domain
	}
	return "devices.test"
}

// Addr is where visitors and agents connect.
func (n *Nginx) Addr() string {
	address := "127.0.0.1"
	if n.setup.Host != nil {
		address = n.setup.Host.Addr
	}
	return net.JoinHostPort(address, strconv.Itoa(n.Port))
}

// OtherAddr is what NginxSetup.Sites listen on as OTHER.
func (n *Nginx) OtherAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.Other)) }

// Log is its error log, over all starts.
func (n *Nginx) Log() *Log { return n.log }

// Write writes nginx.conf anew; Reload has nginx read it.
func (n *Nginx) Write(s NginxSetup) error {
	n.setup = s
	return os.WriteFile(filepath.Join(n.Dir, "nginx.conf"), []byte(n.config()), 0o600)
}

// agentNames are the hosts that agents ask for.
func (n *Nginx) agentNames() []string {
	if n.setup.Host != nil {
		return []string{"localhost", n.setup.Host.Addr, HostedName}
	}
	return []string{"localhost", "127.0.0.1"}
}

// luaDir is the folder of the Lua router.
func luaDir() string {
	dir, err := filepath.Abs(filepath.Join("..", "lua"))
	if err != nil {
		panic(err) // the working directory is gone
	}
	return dir
}

func (n *Nginx) config() string {
	s := n.setup
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	part := func(name, text string) string {
		if s.Omit == name {
			return ""
		}
		return text
	}
	line("load_module %s/ndk_http_module.so;", nginxModules)
	line("load_module %s/ngx_http_lua_module.so;", nginxModules)
	line("load_module %s/ngx_stream_module.so;", nginxModules)
	line("daemon off;\nuser root;\npid nginx.pid;\nerror_log stderr info;")
	line("worker_processes %d;\nworker_shutdown_timeout 20s;", max(1, s.Workers))
	line("%s", s.Main)
	line("events { worker_connections 8000; }\nhttp {")
	line("\taccess_log off;\n\tlua_package_path \"%s/?.lua;;\";", luaDir())
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "scgi", "uwsgi"} {
		line("\t%s_temp_path %s_temp;", kind, kind)
	}
	line("%s", part("http.conf", "\tinclude "+luaDir()+"/http.conf;"))
	line("%s", part("setup", "\tinit_by_lua_block {\n\t\trequire(\"iottunnel\").setup{\n\t\t\tdomain = \""+n.Domain()+"\",\n\t\t\t"+s.Settings+"\n\t\t}\n\t}"))
	line("%s", s.HTTP)
	listen := func(name string) string {
		if s.secure == nil {
			return "listen " + n.Addr() + ";"
		}
		cert, key := s.secure(name)
		more := ""
		if net.ParseIP(name) != nil {
			more = " default_server" // who asks for an address names no server in TLS
		} else if strings.HasPrefix(name, "*.") {
			more = " so_keepalive=15s:5s:3" // options of an address stand once
		}
		return "listen " + n.Addr() + " ssl http2" + more + ";\n\t\tssl_certificate " + cert + ";\n\t\tssl_certificate_key " + key + ";"
	}
	line("\tserver {\n\t\t%s\n\t\tserver_name *.%s;\n%s\n\t\tinclude %s/server.conf;\n\t}", listen("*."+n.Domain()), n.Domain(), s.Server, luaDir())
	for _, name := range n.agentNames() {
		line("\tserver {\n\t\t%s\n\t\tserver_name %s;\n%s\n\t\tinclude %s/agents.conf;", listen(name), name, s.Agents, luaDir())
		line("\t\tlocation / { return 200 \"the operator's own site\"; }\n\t}")
	}
	line("%s\n}", strings.ReplaceAll(s.Sites, "OTHER", n.OtherAddr()))
	if s.Stream != "" {
		line("stream {\n%s\n}", s.Stream)
	}
	return b.String()
}

// Launch starts it, and waits until it takes connections.
func (n *Nginx) Launch() error {
	mark := n.log.Mark()
	var err error
	args := []string{"nginx", "-p", n.Dir + "/", "-c", filepath.Join(n.Dir, "nginx.conf"), "-e", "stderr"}
	if n.setup.Host != nil {
		args = n.setup.Host.Args(args...)
	}
	n.Proc, err = startInto(Command{Name: "nginx", Args: args, Dir: n.Dir}, NewLog(), n.log)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(nginxUpTime)
	for {
		c, err := n.connect(time.Second)
		if err == nil {
			return c.Close()
		}
		if !n.Running() || time.Now().After(deadline) {
			n.Kill()
			return fmt.Errorf("nginx does not start: %w\n%s", err, tail(n.log.Since(mark), 20))
		}
		time.Sleep(5 * time.Millisecond) // polling: nginx does not say that it is up
	}
}

// connect opens a connection from where it runs.
func (n *Nginx) connect(within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if n.setup.Host != nil {
		return n.setup.Host.Dial(ctx, n.Addr())
	}
	return new(net.Dialer).DialContext(ctx, "tcp", n.Addr())
}

// Reload has the running nginx read its files again, and waits until it has new
// workers and the old ones accept nobody any more.
func (n *Nginx) Reload(tb testing.TB) {
	tb.Helper()
	mark := n.log.Mark()
	n.Signal(syscall.SIGHUP)
	n.WaitStderr(tb, mark, nginxUpTime, "start worker process")
	ctx, cancel := context.WithTimeoutCause(tb.Context(), nginxUpTime, errors.New("old workers of nginx accept visitors still"))
	defer cancel()
	for range max(n.setup.Workers, 1) {
		_, next, err := n.log.Wait(ctx, mark, func(line string) bool { return strings.Contains(line, "gracefully shutting down") })
		if err != nil {
			tb.Fatal(err)
		}
		mark = next
	}
}

// luaFaults are signs of a mistake in the router, which no request may cause.
var luaFaults = []string{"lua entry thread aborted", "failed to run ", "attempt to ", "stack traceback", "no node was chosen", "[emerg]", "[alert]", "[crit]"}

// Close ends it for good and returns what its log holds against it.
func (n *Nginx) Close() (faults []string) {
	if n.Running() {
		n.Signal(syscall.SIGTERM)
		select {
		case <-n.Done():
		case <-time.After(stopTime):
			faults = append(faults, fmt.Sprintf("still runs %v after SIGTERM", stopTime))
			n.Kill()
		}
	}
	for _, line := range n.log.Since(0) {
		for _, sign := range luaFaults {
			if strings.Contains(line, sign) && !endedEarly(line) {
				faults = append(faults, line)
				break
			}
		}
	}
	return faults
}

// endedEarly reports whether a line is what a worker says that is told to end while
// it waits for its last connections to end, or of a client in Go that was cancelled in
// a write: crypto/tls says goodbye by a record that counts the one that was not sent.
func endedEarly(line string) bool {
	return strings.Contains(line, "open socket #") || strings.HasSuffix(line, ": aborting") ||
		strings.Contains(line, "bad record mac) while waiting for request")
}

// Dump shows the last of the log after mark, for a failed test.
func (n *Nginx) Dump(mark int) string {
	return n.dump(0, mark, 60) + "  nginx.conf:\n" + n.config()
}

// Client is an HTTP client that finds every host name at this nginx, follows no
// redirect, and gives up after VisitorTimeout.
func (n *Nginx) Client(tb testing.TB) *http.Client {
	t := &http.Transport{
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, n.Addr())
		},
	}
	tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{
		Transport:     t,
		Timeout:       VisitorTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
