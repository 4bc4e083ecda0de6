package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// token signs claims by EdDSA.
func token(t *testing.T, key ed25519.PrivateKey, claims map[string]any) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(map[string]string{"alg": "EdDSA", "typ": "JWT"}) + "." + part(claims)
	return signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(signed)))
}

// TestJWT has devices come with tokens of an issuer of their own, which also says
// what each may forward.
func TestJWT(t *testing.T) {
	t.Parallel()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "issuer.pem")
	writePEM(t, keyFile, "PUBLIC KEY", der)
	r := startRig(t, untraced(strings.Replace(plainRig(""), "auth static {\n\t\t\tdevice cam-1 token-of-cam-1\n\t\t\tdevice cam-2 token-of-cam-2\n\t\t}",
		"auth jwt {\n\t\t\tkey_file "+keyFile+"\n\t\t\taudience edge.example.com\n\t\t\tports_claim ports\n\t\t}", 1)))
	claims := func(device string, change ...any) map[string]any {
		c := map[string]any{"sub": device, "aud": "edge.example.com", "exp": time.Now().Add(time.Hour).Unix(), "ports": []int{80}}
		for i := 0; i < len(change); i += 2 {
			c[change[i].(string)] = change[i+1]
		}
		return c
	}
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", token(t, key, claims("cam-1")), origin.Addr)
	if got := r.get(t, host, "/echo"); got.StatusCode != http.StatusOK {
		t.Errorf("%s", got)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, token, forward, says string }{
		{"of another device", token(t, key, claims("cam-2")), "80", "device or token is wrong"},
		{"of another issuer", token(t, other, claims("cam-3")), "80", ""},
		{"for somebody else", token(t, key, claims("cam-3", "aud", "others")), "80", ""},
		{"expired", token(t, key, claims("cam-3", "exp", time.Now().Add(-time.Hour).Unix())), "80", ""},
		{"without an end", token(t, key, claims("cam-3", "exp", nil)), "80", ""},
		{"for another port", token(t, key, claims("cam-3")), "22", "does not entitle"},
	} {
		a := r.start(t, "cam-3", c.token, "--forward", c.forward+"="+origin.Addr, "--once")
		if status := a.Wait(t, harness.Patience); status != 3 {
			t.Errorf("%s: status %d, want 3 for a refusal", c.name, status)
		}
		if errs := strings.Join(a.Stderr.Since(0), "\n"); c.says != "" && !strings.Contains(errs, c.says) {
			t.Errorf("%s: the agent says %s", c.name, errs)
		}
	}
	if log := strings.Join(r.Stderr.Since(0), "\n"); strings.Contains(log, "eyJ") {
		t.Errorf("a token is in the log:\n%s", log)
	}
}

// TestMTLS has devices prove themselves by certificates.
func TestMTLS(t *testing.T) {
	t.Parallel()
	devices, strangers := newClientAuthority(t), newClientAuthority(t)
	r := startRig(t, `{
	admin ADMIN
	persist_config off
	auto_https disable_redirects
	skip_install_trust
	local_certs
	grace_period 2s
	iottunnel {
		domain devices.test
		visitors https PORT
		auth mtls {
			ca `+devices.file()+`
		}
	}
}
https://localhost:PORT {
	bind 127.0.0.1
	tls {
		client_auth {
			mode request
		}
	}
	iottunnel agents
}
https://*.devices.test:PORT {
	bind 127.0.0.1
	iottunnel devices
}
`)
	ca := filepath.Join(r.dir, "caddy", "pki", "authorities", "local", "root.crt")
	origin := harness.StartOrigin(t)
	flags := func(cert, key string) []string {
		return []string{"--server", fmt.Sprintf("wss://localhost:%d", r.port), "--ca", ca, "--client-cert", cert, "--client-key", key}
	}
	harness.Eventually(t, harness.Patience, "the authority of the edge is written", func() error { return fileExists(ca) })
	cert, key := devices.issue(t, "cam-1")
	_, host := r.agent(t, "cam-1", "", origin.Addr, flags(cert, key)...)
	if !strings.HasSuffix(host, ".devices.test") {
		t.Errorf("hostname %s", host)
	}
	for _, c := range []struct {
		name string
		of   *clientAuthority
		cn   string
	}{{"of another device", devices, "cam-9"}, {"of another authority", strangers, "cam-1"}} {
		cert, key := c.of.issue(t, c.cn)
		a := r.start(t, "cam-1", "", append(flags(cert, key), "--forward", "80="+origin.Addr, "--once")...)
		if status := a.Wait(t, harness.Patience); status != 3 {
			t.Errorf("%s: status %d: %s", c.name, status, a.Stderr.Since(0))
		}
	}
}
