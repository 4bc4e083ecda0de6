package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// routed is an nginx with the Lua router before two edges and their Redis. Agents
// and visitors meet the nginx alone, by TLS, and public ports through its stream
// module.
type routed struct{}

func (routed) Name() string { return "nginx" }

// Routed is the kind of face that has an nginx in front.
func Routed() Kind { return routed{} }

// ReloadRouter has the nginx of a face that has one read its files again, and waits
// until it has new workers.
func ReloadRouter(tb testing.TB, f Face) {
	tb.Helper()
	f.(*routedFace).nginx.Reload(tb)
}

// routedFace is a cluster that nobody sees but nginx.
type routedFace struct {
	*between
	redis *Proc
	nginx *Nginx
	ca    *Authority
	pool  *x509.CertPool
	dir   string
}

func (k routed) Launch(dir string, s Setup) (Face, error) {
	socket := filepath.Join(dir, "redis.sock")
	redis, err := startInto(Command{Name: "redis-server", Args: []string{
		"redis-server", "--port", "0", "--unixsocket", socket, "--dir", dir, "--daemonize", "no", "--save", "",
	}}, NewLog(), NewLog())
	if err != nil {
		return nil, err
	}
	if err := settleRedis(socket); err != nil {
		redis.Kill()
		return nil, err
	}
	f := &routedFace{redis: redis, dir: dir}
	if err := f.launch(socket, s); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *routedFace) launch(socket string, s Setup) error {
	var err error
	if f.ca, err = newAuthority(f.dir); err != nil {
		return err
	}
	f.pool = x509.NewCertPool()
	f.pool.AddCert(f.ca.cert)
	dir := filepath.Join(f.dir, "nginx")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	setup := NginxSetup{Settings: redisSettings(s, socket), Host: s.Host, Workers: 2, secure: f.certificate, Omit: "setup",
		HTTP: "\tclient_header_timeout 10s;"}
	if f.nginx, err = NewNginx(dir, setup); err != nil {
		return err
	}
	public := "127.0.0.1" // where nginx has the public ports
	cluster := ClusterSetup{
		Setup: f.behind(s), Nodes: 2,
		Registry: []string{"registry redis unix://" + socket},
	}
	if s.Host != nil {
		cluster.Host = func(int) *Host { return s.Host }
		public = s.Host.Addr
	}
	cluster.Each = func(_ int, m *Member) { m.PortsHost, m.URL = public, "" }
	c, err := newCluster(f.dir, cluster)
	if err != nil {
		return err
	}
	log := NewLog()
	for i, n := range c.Nodes {
		n.log.also = log
		n.node.ports = fmt.Sprintf("127.0.0.%d", 11+i)
	}
	f.between = &between{Node: c.Nodes[0], agents: c.Nodes[1], all: c, log: log}
	setup.Domain, setup.Omit = f.Domain(), ""
	if setup.Stream, err = f.streams(public); err != nil {
		return err
	}
	if err := f.nginx.Write(setup); err != nil {
		return err
	}
	if err := c.launch(); err != nil {
		return err
	}
	return f.nginx.Launch()
}

// behind is a setup for nodes that visitors reach through the nginx.
func (f *routedFace) behind(s Setup) Setup {
	s.Tunnel = append([]string{fmt.Sprintf("visitors https %d", f.nginx.Port)}, s.Tunnel...)
	return s
}

// redisSettings has the router read the Redis that the edges are told of.
func redisSettings(s Setup, socket string) string {
	settings := `redis = "unix://` + socket + `",`
	for _, line := range s.Tunnel {
		if url, ok := strings.CutPrefix(line, "registry redis "); ok {
			settings = `redis = "` + strings.TrimSuffix(url, " {") + `",`
		}
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "username" || name == "password" {
			settings += fmt.Sprintf(" %s = [[%s]],", name, strings.Trim(value, `"`))
		}
	}
	return settings
}

// certificate returns the files of a certificate; an error shows when nginx reads
// them.
func (f *routedFace) certificate(name string) (certFile, keyFile string) {
	certFile, keyFile, _ = f.ca.write(f.dir, name)
	return certFile, keyFile
}

// PortsOf are the addresses at which the nodes of a face have a public port, behind what
// visitors meet; none where they meet the nodes themselves.
func PortsOf(f Face, port string) (all []string) {
	if r, ok := f.(*routedFace); ok {
		for _, n := range r.all.Nodes {
			all = append(all, net.JoinHostPort(n.node.ports, port))
		}
	}
	return all
}

// streams has every public port lead to both nodes.
func (f *routedFace) streams(public string) (string, error) {
	first, last := f.TCPPorts()
	if first == 0 {
		return "", nil
	}
	args := []string{"-l", public, fmt.Sprintf("%d-%d", first, last)}
	for _, n := range f.all.Nodes {
		args = append(args, n.node.ports)
	}
	out, err := exec.Command(filepath.Join(luaDir(), "stream-ports"), args...).Output()
	return string(out), err
}

func (f *routedFace) Domain() string {
	if s := f.setup.Domain; s != "" {
		return s
	}
	return "devices.localhost"
}

func (f *routedFace) URL(hostname, path string) string {
	return fmt.Sprintf("https://%s:%d%s", hostname, f.nginx.Port, path)
}

func (f *routedFace) VisitorAddr() string     { return f.nginx.Addr() }
func (f *routedFace) AgentAddr() string       { return f.nginx.Addr() }
func (f *routedFace) VisitorTLS() *tls.Config { return &tls.Config{RootCAs: f.pool} }
func (f *routedFace) AgentTLS() *tls.Config   { return &tls.Config{RootCAs: f.pool} }
func (f *routedFace) CAFile() string          { return f.ca.File }

func (f *routedFace) Servers() []string {
	if f.setup.Host != nil {
		return []string{"wss://" + f.AgentAddr()}
	}
	return []string{fmt.Sprintf("wss://localhost:%d", f.nginx.Port)}
}

func (f *routedFace) DialVisitor(ctx context.Context, hostname string) (net.Conn, error) {
	return f.dial(ctx, hostname)
}

func (f *routedFace) DialAgent(ctx context.Context) (net.Conn, string, error) {
	c, err := f.dial(ctx, "localhost")
	return c, net.JoinHostPort("localhost", strconv.Itoa(f.nginx.Port)), err
}

func (f *routedFace) dial(ctx context.Context, name string) (net.Conn, error) {
	c, err := f.nginx.connect(UpTime)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(c, &tls.Config{RootCAs: f.pool, ServerName: name, NextProtos: []string{"http/1.1"}})
	if err := secure.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return secure, nil
}

// Reload reloads the nodes, and nginx where the domain changes.
func (f *routedFace) Reload(tb testing.TB, s Setup) {
	tb.Helper()
	before := f.Domain()
	f.between.Reload(tb, f.behind(s))
	if f.Domain() == before {
		return
	}
	setup := f.nginx.setup
	setup.Domain = f.Domain()
	if err := f.nginx.Write(setup); err != nil {
		tb.Fatal(err)
	}
	f.nginx.Reload(tb)
}

func (f *routedFace) ReloadFails(tb testing.TB, s Setup) string {
	tb.Helper()
	return f.between.ReloadFails(tb, f.behind(s))
}

func (f *routedFace) Close() (faults []string) {
	if f.nginx != nil && f.nginx.Proc != nil {
		faults = f.nginx.Close()
	}
	if f.between != nil {
		faults = append(faults, f.between.Close()...)
	}
	f.redis.Signal(syscall.SIGTERM)
	f.redis.Kill()
	return faults
}

func (f *routedFace) Dump(mark int) string { return f.between.Dump(mark) + f.nginx.Dump(0) }
