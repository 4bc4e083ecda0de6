package harness

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// single is one Caddy with the in-process registry. Without TLS it is the demo's
// shape: agents and visitors on one site by a bare `iottunnel`. With TLS agents and
// visitors have sites of their own, certificates come from Caddy's internal CA, and
// visitors may speak HTTP/1.1, HTTP/2 and HTTP/3.
type single struct {
	name string
	tls  bool
}

func (k single) Name() string { return k.name }

// edge is the Face of a single, and a node of a Cluster.
type edge struct {
	kind   single
	dir    string
	addr   string // where it listens, unless it runs on a Host
	port   int
	secure int    // port of a site for agents alone, by TLS; 0: it has none
	ranges [2]int // public ports, first and last
	setup  Setup
	fleet  *fleet
	node   *membership // nil: it is alone

	proc *Proc
	out  *Log
	log  *Log
	ca   *x509.CertPool // nil without TLS
}

// fleet is the devices that an edge knows.
type fleet struct {
	devices []Device
	handed  atomic.Int64
}

// newFleet makes n devices; 0: as many as most cases need.
func newFleet(n int) *fleet {
	if n == 0 {
		n = devices
	}
	f := new(fleet)
	for i := range n {
		f.devices = append(f.devices, Device{ID: fmt.Sprintf("dev-%03d", i+1), Token: newSecret()})
	}
	return f
}

func (f *fleet) next(tb testing.TB) Device {
	tb.Helper()
	n := int(f.handed.Add(1))
	if n > len(f.devices) {
		tb.Fatalf("all %d devices of the edge are handed out", len(f.devices))
	}
	return f.devices[n-1]
}

const (
	startTime = 2 * time.Minute // of Caddy, on a busy machine
	stopTime  = Patience        // its grace period is shorter
	devices   = 200
)

func (k single) Launch(dir string, s Setup) (Face, error) {
	e := &edge{kind: k, dir: dir, addr: "127.0.0.1", setup: s, fleet: newFleet(0), out: NewLog(), log: NewLog()}
	var err error
	if e.port, err = freePort(1); err != nil {
		return nil, err
	}
	if e.ranges, err = freeRange(s.TCPPorts); err != nil {
		return nil, err
	}
	if err := e.launch(); err != nil {
		return nil, err
	}
	return e, nil
}

// freeRange finds n public ports, first and last; none of none.
func freeRange(n int) (ports [2]int, err error) {
	if n > 0 {
		ports[0], err = freePort(n)
		ports[1] = ports[0] + n - 1
	}
	return ports, err
}

func (e *edge) Domain() string {
	if e.setup.Domain != "" {
		return e.setup.Domain
	}
	if e.kind.tls || e.node != nil {
		return "devices.localhost"
	}
	return "localhost"
}

func (e *edge) scheme() string {
	if e.kind.tls {
		return "https"
	}
	return "http"
}

func (e *edge) URL(hostname, path string) string {
	return fmt.Sprintf("%s://%s:%d%s", e.scheme(), hostname, e.port, path)
}

func (e *edge) VisitorAddr() string { return net.JoinHostPort(e.address(), strconv.Itoa(e.port)) }

// address is where the edge listens.
func (e *edge) address() string {
	if e.setup.Host != nil {
		return e.setup.Host.Addr
	}
	return e.addr
}

// connect opens a connection from where the edge runs.
func (e *edge) connect(ctx context.Context, addr string) (net.Conn, error) {
	if e.setup.Host != nil {
		return e.setup.Host.Dial(ctx, addr)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

func (e *edge) TCPPorts() (first, last int) { return e.ranges[0], e.ranges[1] }

func (e *edge) VisitorTLS() *tls.Config {
	if !e.kind.tls {
		return nil
	}
	return e.AgentTLS()
}

func (e *edge) AgentAddr() string {
	if e.secure != 0 {
		host := e.address()
		if e.node != nil && e.node.Local {
			host = "127.0.0.1"
		}
		return net.JoinHostPort(host, strconv.Itoa(e.secure))
	}
	return e.VisitorAddr()
}

func (e *edge) AgentTLS() *tls.Config {
	if e.ca == nil {
		return nil
	}
	return &tls.Config{RootCAs: e.ca}
}

func (e *edge) DialVisitor(ctx context.Context, hostname string) (net.Conn, error) {
	return e.dial(ctx, e.VisitorAddr(), e.kind.tls, hostname)
}

func (e *edge) DialAgent(ctx context.Context) (net.Conn, string, error) {
	host := "localhost"
	_, port, _ := net.SplitHostPort(e.AgentAddr()) // made by us
	c, err := e.dial(ctx, e.AgentAddr(), e.tls(), host)
	return c, net.JoinHostPort(host, port), err
}

// tls says whether agents come by TLS.
func (e *edge) tls() bool { return e.kind.tls || e.secure != 0 }

func (e *edge) dial(ctx context.Context, addr string, secure bool, name string) (net.Conn, error) {
	c, err := e.connect(ctx, addr)
	if err != nil || !secure {
		return c, err
	}
	over := tls.Client(c, &tls.Config{RootCAs: e.ca, ServerName: name, NextProtos: []string{"http/1.1"}})
	if err := over.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return over, nil
}

func (e *edge) Servers() []string {
	switch {
	case e.tls() && e.setup.Host == nil && (e.node == nil || e.node.Local):
		_, port, _ := net.SplitHostPort(e.AgentAddr()) // made by us
		return []string{"wss://localhost:" + port}
	case e.tls():
		return []string{"wss://" + e.AgentAddr()}
	}
	return []string{"ws://" + e.AgentAddr()}
}

func (e *edge) CAFile() string {
	if !e.tls() {
		return ""
	}
	return filepath.Join(e.dataDir(), "caddy", "pki", "authorities", "local", "root.crt")
}

func (e *edge) NewDevice(tb testing.TB) Device {
	tb.Helper()
	return e.fleet.next(tb)
}

// caddyfile writes the configuration of the setup.
func (e *edge) caddyfile() string {
	var b strings.Builder
	block := func(indent, head string, lines []string) {
		fmt.Fprintf(&b, "%s%s {\n", indent, head)
		for _, line := range lines {
			fmt.Fprintf(&b, "%s\t%s\n", indent, line)
		}
		fmt.Fprintf(&b, "%s}\n", indent)
	}
	b.WriteString("{\n")
	fmt.Fprintf(&b, "\tadmin unix/%s\n\tpersist_config off\n\tskip_install_trust\n\tgrace_period %s\n", e.adminSocket(), cmp.Or(e.setup.Grace, "3s"))
	block("\t", "log default", []string{"exclude admin.api"}) // its own questions
	if !e.tls() {
		b.WriteString("\tauto_https off\n")
	} else {
		b.WriteString("\tauto_https disable_redirects\n\tlocal_certs\n") // port 80 stays alone
	}
	servers := e.setup.Servers
	if !e.kind.tls {
		servers = append([]string{"protocols h1 h2c"}, servers...)
	}
	if servers != nil {
		block("\t", "servers", servers)
	}
	tunnel := []string{"domain " + e.Domain(), "auth static {", "\tfile " + e.devicesFile(), "}"}
	if e.node != nil {
		tunnel = append(tunnel, e.node.lines(e.setup)...)
	}
	if e.setup.TCPPorts > 0 {
		bind, host := e.address(), e.address()
		if e.node != nil {
			bind, host = e.node.ports, e.node.portsHost
		}
		tunnel = append(tunnel, fmt.Sprintf("tcp_ports %d-%d {", e.ranges[0], e.ranges[1]), "\tbind "+bind, "\thost "+host)
		if e.setup.TCPAllow != "" {
			tunnel = append(tunnel, "\tallow "+e.setup.TCPAllow)
		}
		tunnel = append(tunnel, "}")
	}
	if !e.tls() && (e.setup.Host != nil || e.node != nil) && !e.setup.Strict {
		tunnel = append(tunnel, "allow_plaintext")
	}
	tunnel = append(tunnel, "limits {")
	for name, line := range map[string]string{ // one address plays everybody
		"streams_per_address":         "streams_per_address 1024",
		"unauthenticated_per_address": "unauthenticated_per_address 100000",
	} {
		if !slices.ContainsFunc(e.setup.Limits, func(l string) bool { return strings.HasPrefix(l, name) }) {
			tunnel = append(tunnel, "\t"+line)
		}
	}
	for _, line := range e.setup.Limits {
		tunnel = append(tunnel, "\t"+line)
	}
	tunnel = append(tunnel, "}")
	block("\t", "iottunnel", append(tunnel, e.setup.Tunnel...))
	b.WriteString("}\n\n")

	b.WriteString(e.setup.Sites)
	if e.node != nil && e.node.Internal != "" {
		host, port, _ := net.SplitHostPort(e.node.internal) // made by us
		block("", "http://:"+port, []string{"bind " + host, "iottunnel internal"})
	}
	site := []string{"bind " + e.address()}
	if e.setup.AccessLog {
		site = append(site, "log")
	}
	if e.setup.Errors != nil {
		site = append(site, "handle_errors {")
		site = append(site, e.setup.Errors...)
		site = append(site, "}")
	}
	site = append(site, e.setup.Handlers...)
	if e.tls() {
		host, port, _ := net.SplitHostPort(e.AgentAddr()) // made by us
		var agents []string
		for _, name := range e.agentNames() {
			agents = append(agents, "https://"+name+":"+port)
		}
		block("", strings.Join(agents, ", "), []string{"bind " + host, "iottunnel agents"})
	}
	if !e.kind.tls {
		block("", fmt.Sprintf("http://:%d", e.port), append(site, "route {", "\tiottunnel", "\trespond \"the operator's own site\"", "}"))
		return b.String()
	}
	block("", fmt.Sprintf("https://*.%s:%d", e.Domain(), e.port), append(site, "iottunnel devices"))
	return b.String()
}

// dataDir is where Caddy keeps certificates: nodes share it.
func (e *edge) dataDir() string {
	if e.node != nil {
		return filepath.Join(filepath.Dir(e.dir), "data")
	}
	return filepath.Join(e.dir, "data")
}

func (e *edge) adminSocket() string { return filepath.Join(e.dir, "admin.sock") }
func (e *edge) configFile() string  { return filepath.Join(e.dir, "Caddyfile") }
func (e *edge) devicesFile() string { return filepath.Join(e.dir, "devices.txt") }

func (e *edge) writeFiles() error {
	var list strings.Builder
	for i, d := range e.fleet.devices {
		if slices.Contains(e.setup.Without, d.ID) {
			continue
		}
		secret := d.Token
		if i%2 == 1 { // both forms of the file
			sum := sha256.Sum256([]byte(d.Token))
			secret = "sha256:" + hex.EncodeToString(sum[:])
		}
		fmt.Fprintf(&list, "%s %s\n", d.ID, secret)
	}
	return errors.Join(
		os.WriteFile(e.devicesFile(), []byte(list.String()), 0o600),
		os.WriteFile(e.configFile(), []byte(e.caddyfile()), 0o600),
	)
}

func (e *edge) launch() error {
	caddy, err := e.program()
	if err != nil {
		return err
	}
	if err := e.writeFiles(); err != nil {
		return err
	}
	mark := e.log.Mark()
	args := []string{caddy, "run", "--config", e.configFile(), "--adapter", "caddyfile"}
	if e.setup.Host != nil {
		args = e.setup.Host.Args(args...)
	}
	e.proc, err = startInto(Command{
		Name: "edge " + e.kind.name,
		Args: args,
		Env:  e.env(),
		Dir:  e.dir,
	}, e.out, e.log)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), startTime, fmt.Errorf("the edge does not start in %v", startTime))
	defer cancel()
	go func() { // ends with the process or with launch
		select {
		case <-e.proc.Done():
			e.log.Write([]byte("(the edge has ended)\n"))
		case <-ctx.Done():
		}
	}()
	line, _, err := e.log.Wait(ctx, mark, func(line string) bool {
		return strings.Contains(line, "serving initial configuration") || line == "(the edge has ended)"
	})
	if err == nil && line == "(the edge has ended)" {
		err = errors.New("the edge ended at its start")
	}
	if err == nil && e.tls() && e.ca == nil {
		err = e.loadCA()
	}
	for err == nil && e.tls() && !e.certified() {
		time.Sleep(10 * time.Millisecond) // polling: certificates come after the start
		err = context.Cause(ctx)
	}
	if err != nil {
		e.proc.Kill()
		return fmt.Errorf("%w\n%s\n%s", err, e.proc.dump(0, mark, 40), e.caddyfile())
	}
	return nil
}

// program is the Caddy that it runs.
func (e *edge) program() (string, error) {
	if e.node != nil && e.node.program != "" {
		return e.node.program, nil
	}
	return FindBinary("caddy")
}

// agentNames are the names by which agents know an edge with TLS.
func (e *edge) agentNames() []string {
	names := []string{"localhost"}
	if e.setup.Host != nil || e.node != nil {
		host, _, _ := net.SplitHostPort(e.AgentAddr()) // made by us
		names = append(names, host, HostedName)
	}
	if e.node != nil {
		names = append(names, e.node.Names...)
	}
	return names
}

// certified says whether all sites have their certificates.
func (e *edge) certified() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, name := range e.agentNames() {
		c, err := e.dial(ctx, e.AgentAddr(), true, name)
		if err != nil {
			return false
		}
		c.Close()
	}
	if !e.kind.tls {
		return true
	}
	c, err := e.DialVisitor(ctx, "any."+e.Domain())
	if err == nil {
		c.Close()
	}
	return err == nil
}

func (e *edge) loadCA() error {
	pem, err := os.ReadFile(e.CAFile())
	if err != nil {
		return err
	}
	e.ca = x509.NewCertPool()
	if !e.ca.AppendCertsFromPEM(pem) {
		return errors.New("no certificate in " + e.CAFile())
	}
	return nil
}

func (e *edge) env() []string {
	return []string{
		"HOME=" + e.dir,
		"XDG_DATA_HOME=" + e.dataDir(),
		"XDG_CONFIG_HOME=" + filepath.Join(e.dir, "config"),
	}
}

func (e *edge) Start(tb testing.TB) {
	tb.Helper()
	if e.proc.Running() {
		tb.Fatal("the edge runs already")
	}
	if err := e.launch(); err != nil {
		tb.Fatal(err)
	}
}

func (e *edge) Stop(tb testing.TB) {
	tb.Helper()
	if status := e.proc.Stop(tb, stopTime); status != 0 {
		tb.Errorf("the edge ended with status %d after SIGTERM", status)
	}
}

func (e *edge) Kill(testing.TB) { e.proc.Kill() }

func (e *edge) Pause(_ testing.TB, d time.Duration) {
	e.proc.Signal(syscall.SIGSTOP)
	time.Sleep(d) // what it is about
	e.proc.Signal(syscall.SIGCONT)
}

func (e *edge) Reload(tb testing.TB, s Setup) {
	tb.Helper()
	if s.TCPPorts != 0 && s.TCPPorts != e.ranges[1]-e.ranges[0]+1 {
		tb.Fatal("a reload keeps the number of public ports, or takes them away")
	}
	if status, said := e.reload(tb, s); status != 0 {
		tb.Fatalf("caddy reload ended with %d\n%s", status, said)
	}
	if e.kind.tls && s.Domain != "" {
		Eventually(tb, startTime, "certificates for the domain", func() error {
			if !e.certified() {
				return errors.New("not yet")
			}
			return nil
		})
	}
}

func (e *edge) ReloadFails(tb testing.TB, s Setup) string {
	tb.Helper()
	was := e.setup
	status, said := e.reload(tb, s)
	if status == 0 {
		tb.Fatal("caddy reload took what should fail")
	}
	e.setup = was
	if err := e.writeFiles(); err != nil {
		tb.Fatal(err)
	}
	return said
}

// reload writes the files of s and has Caddy read them.
func (e *edge) reload(tb testing.TB, s Setup) (status int, said string) {
	tb.Helper()
	e.setup = s
	if err := e.writeFiles(); err != nil {
		tb.Fatal(err)
	}
	caddy, err := e.program()
	if err != nil {
		tb.Fatal(err)
	}
	status, out, errs := RunToEnd(tb, startTime, Command{
		Name: "caddy reload",
		Args: []string{caddy, "reload", "--force", "--config", e.configFile(), "--adapter", "caddyfile", "--address", "unix/" + e.adminSocket()},
		Env:  e.env(),
	})
	return status, out + errs
}

func (e *edge) Log() *Log { return e.log }

func (e *edge) Close() (faults []string) {
	if e.proc.Running() {
		e.proc.Signal(syscall.SIGTERM)
		select {
		case <-e.proc.Done():
		case <-time.After(stopTime):
			faults = append(faults, fmt.Sprintf("still runs %v after SIGTERM", stopTime))
			e.proc.Kill()
		}
	}
	return append(faults, e.proc.Faults()...) // its logs hold every start
}

func (e *edge) Dump(mark int) string {
	return e.proc.dump(0, mark, 60) + "  Caddyfile:\n" + e.caddyfile()
}

var (
	goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)
	heapAlloc      = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)`)
	stackInUse     = regexp.MustCompile(`(?m)^# Stack = (\d+) /`)
)

func (e *edge) Footprint(tb testing.TB) Footprint {
	tb.Helper()
	memory := e.adminNumbers(tb, "/debug/pprof/heap?debug=1&gc=1", heapAlloc, stackInUse)
	routines := e.adminNumbers(tb, "/debug/pprof/goroutine?debug=1", goroutineTotal)
	descriptors, anonymous := e.proc.Holds(tb)
	return Footprint{Edges: 1, Goroutines: int(routines[0]), Descriptors: descriptors, Heap: memory[0], Stack: memory[1], Anonymous: anonymous}
}

// adminNumbers asks the admin API once, and finds a number for each pattern.
func (e *edge) adminNumbers(tb testing.TB, path string, find ...*regexp.Regexp) (found []int64) {
	tb.Helper()
	status, body := e.Admin(tb, "GET", path, nil)
	for _, pattern := range find {
		m := pattern.FindSubmatch(body)
		if status != http.StatusOK || m == nil {
			tb.Fatalf("admin %s: status %d, no %v", path, status, pattern)
		}
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		found = append(found, n)
	}
	return found
}

// Admin asks the admin API of the edge.
func (e *edge) Admin(tb testing.TB, method, path string, body []byte) (status int, answer []byte) {
	tb.Helper()
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.adminSocket())
		},
	}
	req, err := http.NewRequestWithContext(tb.Context(), method, "http://127.0.0.1"+path, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	resp, err := (&http.Client{Transport: t, Timeout: VisitorTimeout}).Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp.StatusCode, answer
}
