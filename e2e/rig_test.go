package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// rig is one Caddy with a configuration of the test's own: where what operators
// write is the subject, and not how bytes pass.
type rig struct {
	*harness.Proc
	dir   string
	port  int // for the one site
	inner int // for another one
	admin string
	file  string
	env   []string
	vary  *strings.Replacer
}

// startRig runs Caddy with a Caddyfile. In it PORT and INNER are free ports, DIR a folder
// of the test's own, ADMIN the address of the admin endpoint.
func startRig(t *testing.T, caddyfile string, env ...string) *rig {
	t.Helper()
	return startRigOf(t, harness.Binary(t, "caddy"), caddyfile, env...)
}

// startRigOf is startRig with another Caddy.
func startRigOf(t *testing.T, caddy, caddyfile string, env ...string) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir(), port: harness.FreePort(t, 1), inner: harness.FreePort(t, 1), admin: fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t, 1))}
	r.file = filepath.Join(r.dir, "Caddyfile")
	r.env = append(env, "HOME="+r.dir, "XDG_DATA_HOME="+r.dir, "XDG_CONFIG_HOME="+r.dir)
	r.vary = strings.NewReplacer("PORT", fmt.Sprint(r.port), "INNER", fmt.Sprint(r.inner), "DIR", r.dir, "ADMIN", r.admin)
	r.write(t, caddyfile)
	r.Proc = harness.Run(t, harness.Command{
		Name: "caddy", Dir: r.dir, Env: r.env,
		Args: []string{caddy, "run", "--config", r.file, "--adapter", "caddyfile"},
	})
	harness.Eventually(t, harness.Patience, "Caddy serves", func() error {
		res, err := http.Get("http://" + r.admin + "/iottunnel/devices")
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", res.Status)
		}
		return nil
	})
	return r
}

func (r *rig) write(t *testing.T, caddyfile string) {
	t.Helper()
	if err := os.WriteFile(r.file, []byte(r.vary.Replace(caddyfile)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// reload has Caddy take another configuration.
func (r *rig) reload(t *testing.T, caddyfile string) {
	t.Helper()
	r.write(t, caddyfile)
	status, _, errs := harness.RunToEnd(t, harness.Patience, harness.Command{
		Name: "caddy reload", Dir: r.dir, Env: r.env,
		Args: []string{harness.Binary(t, "caddy"), "reload", "--config", r.file, "--adapter", "caddyfile", "--address", r.admin},
	})
	if status != 0 {
		t.Fatalf("reload: %s", errs)
	}
}

// agent runs an agent of a device whose port 80 is target, and returns it when it is
// up, with its hostname.
func (r *rig) agent(t *testing.T, device, token, target string, flags ...string) (*harness.Agent, string) {
	t.Helper()
	a := r.start(t, device, token, append(flags, "--forward", "80="+target)...)
	a.Device.ID = device
	line := a.WaitStdout(t, 0, harness.UpTime, "80/http ")
	host := strings.TrimPrefix(line[strings.Index(line, "://")+3:], "")
	host, _, _ = strings.Cut(host, "/")
	host, _, _ = strings.Cut(host, ":")
	return a, host
}

// start runs an agent.
func (r *rig) start(t *testing.T, device, token string, flags ...string) *harness.Agent {
	t.Helper()
	args := []string{harness.Binary(t, "iottunnel-agent"), "run", "--device", device, "--max-backoff", "1s"}
	if token != "" {
		file := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--token-file", file)
	}
	if !strings.Contains(strings.Join(flags, " "), "--server") {
		flags = append(flags, "--server", fmt.Sprintf("ws://127.0.0.1:%d", r.port))
	}
	return &harness.Agent{Proc: harness.Run(t, harness.Command{Name: "agent " + device, Args: append(args, flags...)})}
}

// client reaches the rig under every name, from an address of loopback.
func (r *rig) client(from string, config *tls.Config) *http.Client {
	return &http.Client{
		Timeout:       harness.Patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: config,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
				return d.DialContext(ctx, "tcp4", fmt.Sprintf("127.0.0.1:%d", r.port))
			},
		},
	}
}

// get asks a host of the rig.
func (r *rig) get(t *testing.T, host, path string, header ...string) reply {
	t.Helper()
	return do(t, r.client("127.0.0.1", nil), request(t, "GET", fmt.Sprintf("http://%s:%d%s", host, r.port, path), nil, header...))
}

// metrics are what Prometheus would read.
func (r *rig) metrics(t *testing.T) string {
	t.Helper()
	res, err := http.Get("http://" + r.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// ask is the admin API: it decodes the answer into to.
func (r *rig) ask(t *testing.T, method, path, body string, to any) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+r.admin+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s %v", method, path, res.Status, b, err)
	}
	if to != nil {
		if err := json.Unmarshal(b, to); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, b)
		}
	}
}

// command runs caddy iottunnel against the rig, and returns what it writes for scripts.
func (r *rig) command(t *testing.T, args ...string) string {
	t.Helper()
	status, out, errs := harness.RunToEnd(t, harness.Patience, harness.Command{
		Name: "caddy iottunnel", Args: append(append([]string{harness.Binary(t, "caddy"), "iottunnel"}, args...), "--address", r.admin),
	})
	if status != 0 {
		t.Fatalf("%q: %s%s", args, out, errs)
	}
	return strings.TrimSpace(out)
}

// clientAuthority issues certificates for clients.
type clientAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
	n    int64
}

func newClientAuthority(t *testing.T) *clientAuthority {
	t.Helper()
	a := &clientAuthority{dir: t.TempDir()}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Devices"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file(), "CERTIFICATE", der)
	return a
}

func (a *clientAuthority) file() string { return filepath.Join(a.dir, "ca.pem") }

// issue writes a certificate with a DNS name, and its key.
func (a *clientAuthority) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.n), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	stem := filepath.Join(a.dir, fmt.Sprintf("%s-%d", name, a.n))
	writePEM(t, stem+".pem", "CERTIFICATE", der)
	writePEM(t, stem+".key", "PRIVATE KEY", pkcs8)
	return stem + ".pem", stem + ".key"
}

func writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
