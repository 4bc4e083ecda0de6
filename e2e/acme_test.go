package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// ca is a certificate authority that speaks ACME, and the DNS by which it sees the
// world: every name is 127.0.0.1.
type ca struct {
	*harness.Proc
	directory  string // its URL
	trust      string // a file with what vouches for its own server
	dns        string // host:port
	management string // URL where DNS records are written
	root       string // a file with what vouches for its certificates
}

// startCA runs Pebble. It looks at challenges by TLS at tlsPort.
func startCA(t *testing.T, tlsPort int) *ca {
	t.Helper()
	dir := t.TempDir()
	build(t, ".", "-o", dir+"/", "github.com/letsencrypt/pebble/v2/cmd/pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv")
	authority := harness.NewAuthority(t)
	cert, err := authority.Certify("localhost")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "cert.pem"), "CERTIFICATE", cert.Certificate[0])
	writePEM(t, filepath.Join(dir, "key.pem"), "PRIVATE KEY", key)
	port := harness.FreePort(t, 4)
	c := &ca{
		directory: fmt.Sprintf("https://localhost:%d/dir", port), trust: authority.File,
		dns: fmt.Sprintf("127.0.0.1:%d", port+2), management: fmt.Sprintf("http://127.0.0.1:%d", port+3),
		root: filepath.Join(dir, "root.pem"),
	}
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", port), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", port+1),
		"certificate": filepath.Join(dir, "cert.pem"), "privateKey": filepath.Join(dir, "key.pem"),
		"httpPort": 1, "tlsPort": tlsPort, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "usual", "validityPeriod": 7776000}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	harness.Run(t, harness.Command{Name: "pebble-challtestsrv", Args: []string{
		filepath.Join(dir, "pebble-challtestsrv"), "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv6", "",
		"-dnsserver", c.dns, "-management", strings.TrimPrefix(c.management, "http://"),
	}})
	c.Proc = harness.Run(t, harness.Command{
		Name: "pebble", Args: []string{filepath.Join(dir, "pebble"), "-config", file, "-dnsserver", c.dns},
		Env: []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"},
	})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	harness.Eventually(t, harness.Patience, "Pebble tells its root", func() error {
		res, err := client.Get(fmt.Sprintf("https://localhost:%d/roots/0", port+1))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		pem, err := io.ReadAll(res.Body)
		if err != nil {
			return err
		}
		return os.WriteFile(c.root, pem, 0o600)
	})
	return c
}

// serveZone is a name server that knows of the devices' zone, and of nothing else: what
// Caddy asks before it writes a record. It returns its address.
func serveZone(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	zone := dnsmessage.MustNewName("devices.test.")
	go func() { // ends with conn
		defer close(done)
		p := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(p)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(p[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			m.RCode = dnsmessage.RCodeNameError
			if q := m.Questions[0]; strings.EqualFold(q.Name.String(), zone.String()) {
				m.RCode = dnsmessage.RCodeSuccess
				if q.Type == dnsmessage.TypeSOA {
					m.Answers = []dnsmessage.Resource{{
						Header: dnsmessage.ResourceHeader{Name: zone, Type: dnsmessage.TypeSOA, Class: dnsmessage.ClassINET, TTL: 60},
						Body:   &dnsmessage.SOAResource{NS: zone, MBox: zone, Serial: 1, Refresh: 60, Retry: 60, Expire: 60, MinTTL: 60},
					}}
				}
			}
			if b, err := m.Pack(); err == nil {
				conn.WriteTo(b, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

// build compiles programs with the flags of `make build`, so that little is compiled
// twice.
func build(t *testing.T, dir string, args ...string) {
	t.Helper()
	goTool, err := filepath.Abs("../scripts/go")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), goTool, append([]string{"build", "-trimpath", "-ldflags=-s -w"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", args, err, out)
	}
}

// leaf is the certificate that a host of the rig shows, if the CA vouches for it.
func (c *ca) leaf(t *testing.T, r *rig, host string) (*x509.Certificate, error) {
	t.Helper()
	pem, err := os.ReadFile(c.root)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	res, err := r.client("127.0.0.1", &tls.Config{RootCAs: pool}).Get(fmt.Sprintf("https://%s:%d/echo", host, r.port))
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", res.Status)
	}
	return res.TLS.PeerCertificates[0], nil
}

// config is the configuration of an edge that gets its certificates from c.
func (c *ca) config(storage, devices string) string {
	return `{
	admin ADMIN
	persist_config off
	auto_https disable_redirects
	https_port PORT
	grace_period 2s
	storage file_system ` + storage + `
	cert_issuer acme {
		dir ` + c.directory + `
		trusted_roots ` + c.trust + `
		disable_http_challenge
		alt_tlsalpn_port PORT
	}
	on_demand_tls {
		permission iottunnel
	}
	iottunnel {
		domain devices.test
		auth static {
			device cam-1 token-of-cam-1
			device cam-2 token-of-cam-2
			device cam-3 token-of-cam-3
		}
	}
}
https://edge.test:PORT {
	bind 127.0.0.1
	iottunnel agents
}
https://*.devices.test:PORT {
	bind 127.0.0.1
	tls {
		` + devices + `
	}
	iottunnel devices
}
`
}

// connect runs an agent that finds the edge by its name, and trusts its certificate
// because the CA made it.
func (c *ca) connect(t *testing.T, r *rig, device string) (host string) {
	t.Helper()
	_, host = r.agent(t, device, "token-of-"+device, harness.StartOrigin(t).Addr,
		"--server", fmt.Sprintf("wss://edge.test:%d", r.port), "--dns", c.dns, "--ca", c.root)
	return host
}

// TestCertificatesOnDemand has the names of devices certified as visitors come, and
// those of nobody never asked for.
func TestCertificatesOnDemand(t *testing.T) {
	t.Parallel()
	port := harness.FreePort(t, 1)
	c := startCA(t, port)
	r := startRig(t, strings.ReplaceAll(c.config("DIR/storage", "on_demand"), "PORT", fmt.Sprint(port)))
	r.port = port
	host := c.connect(t, r, "cam-1")
	var leaf *x509.Certificate
	harness.Eventually(t, 2*harness.Patience, "the device has a certificate", func() (err error) {
		leaf, err = c.leaf(t, r, host)
		return err
	})
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != host {
		t.Errorf("it is for %q, not %s alone", leaf.DNSNames, host)
	}
	// Many who come at once for devices without a certificate have one order per name made.
	orders := c.orders()
	hosts := []string{c.connect(t, r, "cam-2"), c.connect(t, r, "cam-3")}
	var visitors sync.WaitGroup
	for i := range 24 {
		visitors.Go(func() {
			harness.Eventually(t, 2*harness.Patience, "a device that many come to has a certificate", func() error {
				_, err := c.leaf(t, r, hosts[i%len(hosts)])
				return err
			})
		})
	}
	visitors.Wait()
	if n := c.orders() - orders; n != len(hosts) {
		t.Errorf("%d orders for %d names", n, len(hosts))
	}
	orders = c.orders()
	for _, stranger := range []string{"aaaaaaaaaaaaaaaa.devices.test", host[:16] + "--8080.devices.test", "www.devices.test", "elsewhere.test"} {
		if _, err := c.leaf(t, r, stranger); err == nil {
			t.Errorf("%s has a certificate", stranger)
		}
	}
	for range 200 { // a burst of names that nobody has
		if _, err := c.leaf(t, r, strings.ToLower(harness.NewInstance())[:16]+".devices.test"); err == nil {
			t.Error("an unknown name has a certificate")
		}
	}
	if n := c.orders(); n != orders {
		t.Errorf("the authority was asked %d times for names that no device has", n-orders)
	}
}

// orders is how many certificates were asked for.
func (c *ca) orders() int {
	n := 0
	for _, line := range append(c.Stdout.Since(0), c.Stderr.Since(0)...) {
		if strings.Contains(line, "order-place") || strings.Contains(line, "/order-plz") {
			n++
		}
	}
	return n
}

// TestWildcardCertificate has one certificate made for all devices by a DNS
// challenge; a second node, with the same storage, does not ask for another.
func TestWildcardCertificate(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	build(t, "..", "-tags=nobadger,nomysql,nopgx,iottunnel_testdns", "-o", filepath.Join(bin, "caddy"), "./caddymodule/cmd/caddy")
	port := harness.FreePort(t, 1)
	c := startCA(t, port)
	shared := t.TempDir()
	dns := fmt.Sprintf("dns testdns %s\n\t\tresolvers %s\n\t\tpropagation_timeout -1", c.management, serveZone(t))
	config := strings.ReplaceAll(c.config(shared, dns), "PORT", fmt.Sprint(port))
	r := startRigOf(t, filepath.Join(bin, "caddy"), config)
	r.port = port
	host, other := c.connect(t, r, "cam-1"), c.connect(t, r, "cam-2")
	var leaf *x509.Certificate
	harness.Eventually(t, 2*harness.Patience, "the wildcard certificate is there", func() (err error) {
		leaf, err = c.leaf(t, r, host)
		return err
	})
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "*.devices.test" {
		t.Errorf("it is for %q", leaf.DNSNames)
	}
	if second, err := c.leaf(t, r, other); err != nil || second.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
		t.Errorf("another device: %v", err)
	}
	orders := c.orders()
	if orders == 0 {
		t.Fatal("orders are not seen in Pebble's log")
	}
	r.Stop(t, harness.Patience)

	port = harness.FreePort(t, 1)
	next := startRigOf(t, filepath.Join(bin, "caddy"), strings.ReplaceAll(c.config(shared, dns), "PORT", fmt.Sprint(port)))
	next.port = port
	host = c.connect(t, next, "cam-1")
	again, err := c.leaf(t, next, host)
	if err != nil || again.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
		t.Errorf("the second node shows another certificate: %v", err)
	}
	if n := c.orders(); n != orders {
		t.Errorf("the second node asked for %d more certificates", n-orders)
	}
	if leaf.NotAfter.Before(time.Now()) {
		t.Error("the certificate has ended")
	}
}
