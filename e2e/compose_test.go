package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// compose is what of a compose file is carried out here. Fields that it does not have
// are of images, which are not made here.
type compose struct {
	Services map[string]*service
}

type service struct {
	Command     words
	Entrypoint  words
	Environment map[string]string
	Networks    struct{ Default struct{ Aliases []string } }
	NetworkMode string `yaml:"network_mode"`
}

// words is a command line, written as a list or as a string.
type words []string

func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]string)(w))
	}
	*w = strings.Fields(n.Value)
	return nil
}

// composed is the services of the example of a cluster, as real processes: each on a host
// of its own, with the names that compose gives it, and the volumes in folders.
type composed struct {
	compose
	dir   string
	bin   string // what images have and Debian has not
	hosts map[string]*harness.Host
	procs map[string]*harness.Proc
}

func startComposed(t *testing.T) *composed {
	t.Helper()
	text, err := os.ReadFile("../examples/cluster/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := &composed{dir: t.TempDir(), hosts: make(map[string]*harness.Host), procs: make(map[string]*harness.Proc)}
	if err := yaml.Unmarshal(text, &c.compose); err != nil {
		t.Fatal(err)
	}
	c.bin = filepath.Join(c.dir, "bin")
	redis, err := exec.LookPath("redis-server")
	if err == nil {
		err = errors.Join(os.Mkdir(c.bin, 0o755), os.Symlink(redis, filepath.Join(c.bin, "redis-sentinel")))
	}
	for program, as := range map[string]string{"caddy": "caddy", "iottunnel-agent": "iottunnel-agent", "thermometer": "thermometer"} {
		err = errors.Join(err, os.Symlink(harness.Binary(t, program), filepath.Join(c.bin, as)))
	}
	if err != nil {
		t.Fatal(err)
	}
	net := harness.NewNetwork(t)
	var names []string
	for name, s := range c.Services {
		if s.NetworkMode != "" {
			continue
		}
		h := net.Host(t, name)
		c.hosts[name] = h
		for _, known := range append(s.Networks.Default.Aliases, name) {
			names = append(names, h.Addr+" "+known)
		}
	}
	for name, s := range c.Services {
		if of, ok := strings.CutPrefix(s.NetworkMode, "service:"); ok {
			c.hosts[name] = c.hosts[of]
		}
	}
	for name := range c.Services {
		c.hosts[name].Names(t, names)
	}
	c.hosts["visitor"] = net.Host(t, "visitor")
	return c
}

// folder is what is /data in a service: edges and the agent share one.
func (c *composed) folder(name string) string {
	if strings.HasPrefix(name, "edge-") || name == "agent" {
		name = "shared"
	}
	return filepath.Join(c.dir, name)
}

// start runs a service as its image would: an edge by the command of Caddy's.
func (c *composed) start(t *testing.T, name string) {
	t.Helper()
	s := c.Services[name]
	args := append(append([]string{}, s.Entrypoint...), s.Command...)
	switch {
	case strings.HasPrefix(name, "edge-"):
		config, err := filepath.Abs("../examples/cluster/Caddyfile")
		if err != nil {
			t.Fatal(err)
		}
		args = []string{"caddy", "run", "--config", config, "--adapter", "caddyfile"}
	case name == "agent":
		args = append([]string{"iottunnel-agent"}, args...)
	}
	folder := c.folder(name)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	here := func(text string) string { return strings.ReplaceAll(text, "/data/", folder+"/") }
	env := []string{"PATH=" + c.bin + ":" + os.Getenv("PATH"), "XDG_DATA_HOME=" + folder, "XDG_CONFIG_HOME=" + filepath.Join(c.dir, name+"-config")}
	for key, value := range s.Environment {
		if key == "MORE_OPTIONS" { // the image's user cannot; root would trust the nodes on this machine
			value += "\nskip_install_trust"
		}
		env = append(env, key+"="+here(value))
	}
	for i, arg := range args {
		args[i] = strings.ReplaceAll(here(arg), "$$", "$")
	}
	args = append([]string{"env"}, append(env, args...)...) // its own PATH finds the program
	c.procs[name] = harness.Run(t, harness.Command{Name: name, Args: c.hosts[name].Args(args...), Dir: folder})
}

// healthy waits for what compose calls so: a command that succeeds in the service.
func (c *composed) healthy(t *testing.T, name string, command ...string) {
	t.Helper()
	harness.Eventually(t, harness.Patience, name+" is healthy", func() error {
		if !c.procs[name].Running() {
			t.Fatalf("%s has ended", name)
		}
		if status, out, errs := harness.RunToEnd(t, harness.Patience, harness.Command{Name: name, Args: c.hosts[name].Args(command...)}); status != 0 || strings.Contains(out, "NOAUTH") {
			return errors.New(out + errs)
		}
		return nil
	})
}

// page asks a node for the device's page, as a visitor who trusts the nodes' authority.
func (c *composed) page(node, hostname string) error {
	pem, err := os.ReadFile(filepath.Join(c.folder("agent"), "caddy/pki/authorities/local/root.crt"))
	if err != nil {
		return err
	}
	trust := x509.NewCertPool()
	trust.AppendCertsFromPEM(pem)
	t := &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: trust},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.hosts["visitor"].Dial(ctx, net.JoinHostPort(c.hosts[node].Addr, "443"))
		},
	}
	resp, err := (&http.Client{Transport: t, Timeout: harness.VisitorTimeout}).Get("https://" + hostname + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "°C") {
		return errors.Join(err, fmt.Errorf("status %d, %.200q", resp.StatusCode, body))
	}
	return err
}

// TestComposeExample carries out the example of a cluster with real processes: its
// commands, its environment and its Caddyfile. The device is served at every node, and
// goes on being served when a node and the master of Redis are killed.
func TestComposeExample(t *testing.T) {
	onCluster(t, func(t *testing.T) {
		c := startComposed(t)
		for _, name := range []string{"redis-1", "redis-2"} {
			c.start(t, name)
		}
		for _, name := range []string{"redis-1", "redis-2"} {
			c.healthy(t, name, "redis-cli", "-a", "no-secret-of-redis", "--no-auth-warning", "ping")
		}
		for _, name := range []string{"sentinel-1", "sentinel-2", "sentinel-3"} {
			c.start(t, name)
		}
		c.healthy(t, "sentinel-1", "sh", "-c", "redis-cli -p 26379 SENTINEL CKQUORUM iottunnel | grep '3 usable' && redis-cli -p 26379 SENTINEL REPLICAS iottunnel | grep redis-2")
		for _, name := range []string{"edge-1", "edge-2", "edge-3"} {
			c.start(t, name)
			c.healthy(t, name, "curl", "-fsS", c.Services[name].Environment["HEALTH_URL"])
		}
		c.start(t, "thermometer")
		c.start(t, "agent")
		line := c.procs["agent"].WaitStdout(t, 0, harness.UpTime, "80/http https://")
		rest, ok := strings.CutSuffix(line, ":"+c.Services["edge-1"].Environment["VISITORS_PORT"]+"/")
		if !ok {
			t.Fatalf("the address is %q", line)
		}
		hostname := strings.TrimPrefix(rest, "80/http https://")
		served := func(nodes ...string) {
			t.Helper()
			for _, n := range nodes {
				harness.Eventually(t, harness.Patience, "the page at "+n, func() error { return c.page(n, hostname) })
			}
		}
		served("edge-1", "edge-2", "edge-3")
		status, out, errs := harness.RunToEnd(t, harness.UpTime, harness.Command{Name: "nodes", Args: c.hosts["edge-2"].Args(harness.Binary(t, "caddy"), "iottunnel", "nodes")})
		if status != 0 || !strings.Contains(out, "edge-1") || !strings.Contains(out, "edge-3") {
			t.Errorf("caddy iottunnel nodes: %d %s%s", status, out, errs)
		}
		// What the replica has not got yet would be lost, and the device's name with it.
		c.healthy(t, "redis-1", "sh", "-c", "redis-cli -a no-secret-of-redis --no-auth-warning WAIT 1 5000 | grep 1")
		c.procs["redis-1"].Kill()
		c.procs["edge-1"].Kill()
		c.healthy(t, "sentinel-2", "sh", "-c", "redis-cli -p 26379 SENTINEL GET-MASTER-ADDR-BY-NAME iottunnel | grep redis-2")
		served("edge-2", "edge-3")
		// A new device comes in over the new master.
		c.procs["agent"].Kill()
		c.start(t, "agent")
		if again := c.procs["agent"].WaitStdout(t, 0, harness.UpTime, "80/http https://"); again != line {
			t.Errorf("the address became %q, was %q", again, line)
		}
		served("edge-3", "edge-2")
	})
}
