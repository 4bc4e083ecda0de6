package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// token signs claims by EdDSA.
func token(t *testing.T, key ed25519.PrivateKey, claims map[string]any) string {
	t.Helper()
	return tokenBy(t, map[string]string{"alg": "EdDSA", "typ": "JWT"}, claims, func(signed []byte) []byte { return ed25519.Sign(key, signed) })
}

// tokenBy makes a token with a signature over its first two parts (RFC 7515 §5.1).
func tokenBy(t *testing.T, header map[string]string, claims map[string]any, sign func(signed []byte) []byte) string {
	t.Helper()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := part(header) + "." + part(claims)
	return signed + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(signed)))
}

// newIssuer is the key of an issuer of tokens, and the file by which an edge checks them.
func newIssuer(t *testing.T) (key ed25519.PrivateKey, keyFile string) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(t.TempDir(), "issuer.pem")
	writePEM(t, keyFile, "PUBLIC KEY", der)
	return key, keyFile
}

// TestJWT has devices come with tokens of an issuer of their own, which also says
// what each may forward.
func TestJWT(t *testing.T) {
	t.Parallel()
	key, keyFile := newIssuer(t)
	r := startRig(t, oneSite{auth: "auth jwt {\nkey_file " + keyFile + "\naudience edge.example.com\nports_claim ports\n}"}.caddyfile())
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
	other, _ := newIssuer(t)
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

// issuer publishes keys as a JSON Web Key Set (RFC 7517) on loopback.
type issuer struct {
	url  string
	keys atomic.Value // []map[string]string
}

func startIssuer(t *testing.T) *issuer {
	t.Helper()
	i := new(issuer)
	i.keys.Store([]map[string]string{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"keys": i.keys.Load()})
	}))
	t.Cleanup(server.Close)
	i.url = server.URL + "/jwks.json"
	return i
}

// jwk is a public key as it is published.
func jwk(id string, key crypto.PublicKey) map[string]string {
	text := base64.RawURLEncoding.EncodeToString
	switch key := key.(type) {
	case ed25519.PublicKey:
		return map[string]string{"kid": id, "kty": "OKP", "crv": "Ed25519", "x": text(key)}
	case *ecdsa.PublicKey:
		point, err := key.Bytes() // 4, x, y
		if err != nil {
			panic(err)
		}
		return map[string]string{"kid": id, "kty": "EC", "crv": "P-256", "x": text(point[1:33]), "y": text(point[33:])}
	case *rsa.PublicKey:
		return map[string]string{"kid": id, "kty": "RSA", "n": text(key.N.Bytes()), "e": text(big.NewInt(int64(key.E)).Bytes())}
	}
	panic("no such key")
}

// TestJWTByURL has devices come with tokens of each algorithm, by keys that the edge
// fetches; the issuer changes its key, and for a while both count.
func TestJWTByURL(t *testing.T) {
	t.Parallel()
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(alg, id, device string) string {
		t.Helper()
		claims := map[string]any{"sub": device, "aud": "edge.example.com", "exp": time.Now().Add(time.Hour).Unix()}
		return tokenBy(t, map[string]string{"alg": alg, "kid": id}, claims, func(signed []byte) []byte {
			sum := sha256.Sum256(signed)
			switch alg {
			case "ES256": // RFC 7518 §3.4
				r, s, err := ecdsa.Sign(rand.Reader, ec, sum[:])
				if err != nil {
					t.Fatal(err)
				}
				return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
			case "RS256":
				b, err := rsa.SignPKCS1v15(nil, rs, crypto.SHA256, sum[:])
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			return ed25519.Sign(ed, signed)
		})
	}
	keys := startIssuer(t)
	keys.keys.Store([]map[string]string{jwk("ec", &ec.PublicKey), jwk("rs", &rs.PublicKey)})
	config := func(allowed string) string {
		return `{
	admin ADMIN
	persist_config off
	auto_https off
	grace_period 2s
	iottunnel {
		domain devices.test
		visitors http PORT
		auth jwt {
			jwks_url ` + keys.url + `
			audience edge.example.com
			allow_devices ` + allowed + `
		}
	}
}
http://:PORT {
	bind 127.0.0.1
	iottunnel
}
`
	}
	r := startRig(t, config("cam-1 cam-2"))
	origin := harness.StartOrigin(t)
	serves := func(device, token string) *harness.Agent {
		t.Helper()
		a, host := r.agent(t, device, token, origin.Addr)
		if got := r.get(t, host, "/echo"); got.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", device, got)
		}
		return a
	}
	serves("cam-1", sign("ES256", "ec", "cam-1"))
	old := sign("RS256", "rs", "cam-2")
	a := serves("cam-2", old)

	// Keys are read anew when the configuration is.
	keys.keys.Store([]map[string]string{jwk("rs", &rs.PublicKey), jwk("ed", edPublic)})
	r.reload(t, config("cam-*"))
	serves("cam-3", sign("EdDSA", "ed", "cam-3"))
	a.Stop(t, harness.Patience)
	a = serves("cam-2", old) // by the old key, which counts, too
	a.Stop(t, harness.Patience)
	keys.keys.Store([]map[string]string{jwk("ed", edPublic)})
	r.reload(t, config("*"))
	serves("cam-4", sign("EdDSA", "ed", "cam-4"))
	refused := r.start(t, "cam-2", old, "--forward", "80="+origin.Addr, "--once")
	if status := refused.Wait(t, harness.Patience); status != 3 {
		t.Errorf("by a key that is published no more: status %d", status)
	}
}

// TestTwoSecrets changes a device's secret: both count until the new one is used.
func TestTwoSecrets(t *testing.T) {
	t.Parallel()
	r := startRig(t, plainRig("auth enrolled"))
	origin := harness.StartOrigin(t)
	ask := func(do string) string {
		t.Helper()
		var v struct{ Token string }
		r.ask(t, "POST", "/iottunnel/devices/door-1/"+do, "", &v)
		return v.Token
	}
	old := ask("enroll")
	a, host := r.agent(t, "door-1", old, origin.Addr)
	next := ask("rotate")
	if next == old {
		t.Fatal("the secret is the old one")
	}
	if got := r.get(t, host, "/echo"); got.StatusCode != http.StatusOK {
		t.Errorf("while its secret changes: %s", got)
	}
	a.Stop(t, harness.Patience)
	a, again := r.agent(t, "door-1", old, origin.Addr) // restarted before the new one has come
	a.Stop(t, harness.Patience)
	a, then := r.agent(t, "door-1", next, origin.Addr)
	if again != host || then != host {
		t.Errorf("its hostnames are %s, %s, %s", host, again, then)
	}
	a.Stop(t, harness.Patience)
	refused := r.start(t, "door-1", old, "--forward", "80="+origin.Addr, "--once")
	if status := refused.Wait(t, harness.Patience); status != 3 {
		t.Errorf("with the old one, when the new one was used: status %d", status)
	}
}

// TestPolicies has authenticators let in some devices only, and some ports of theirs.
func TestPolicies(t *testing.T) {
	t.Parallel()
	key, keyFile := newIssuer(t)
	config := func(ports string) string {
		return oneSite{app: "hostname device", auth: "auth enrolled {\nallow_devices field-*\nallow_ports " + ports + "\n}\n" +
			"auth jwt {\nkey_file " + keyFile + "\naudience edge.example.com\nallow_devices lyon-*\nallow_ports 80 8000-8010\n}"}.caddyfile()
	}
	r := startRig(t, config("80"))
	secrets := make(map[string]string)
	for _, device := range []string{"field-1", "field-2", "cam-9"} {
		var v struct{ Token string }
		r.ask(t, "POST", "/iottunnel/devices/"+device+"/enroll", "", &v)
		secrets[device] = v.Token
	}
	for _, device := range []string{"lyon-1", "lyon-2", "field-3"} {
		secrets[device] = token(t, key, map[string]any{"sub": device, "aud": "edge.example.com", "exp": time.Now().Add(time.Hour).Unix()})
	}
	origin := harness.StartOrigin(t)
	field, host := r.agent(t, "field-1", secrets["field-1"], origin.Addr)
	if host != "field-1.devices.test" {
		t.Errorf("its hostname is %s", host)
	}
	if _, host := r.agent(t, "lyon-1", secrets["lyon-1"], origin.Addr, "--forward", "8010="+origin.Addr); host != "lyon-1.devices.test" {
		t.Errorf("its hostname is %s", host)
	}
	for _, c := range []struct{ name, device, forward, says string }{
		{"a secret, where secrets do not count", "cam-9", "80", "device or token is wrong"},
		{"a hostname that is not the issuer's to give", "field-3", "80", "device or token is wrong"},
		{"another port", "field-2", "22", "does not entitle"},
		{"another port of a token's", "lyon-2", "8011", "does not entitle"},
	} {
		a := r.start(t, c.device, secrets[c.device], "--forward", c.forward+"="+origin.Addr, "--once")
		if status := a.Wait(t, harness.Patience); status != 3 {
			t.Errorf("%s: status %d, want 3 for a refusal", c.name, status)
		}
		if errs := strings.Join(a.Stderr.Since(0), "\n"); !strings.Contains(errs, c.says) {
			t.Errorf("%s: the agent says %s", c.name, errs)
		}
	}
	mark := field.Stderr.Mark()
	r.reload(t, config("8080"))
	field.WaitStderr(t, mark, harness.Patience, "4003") // its agent need not hurry back
}

// TestCredentialsAreHidden uses every kind of credential, with all that can be logged
// logged, and looks for them wherever somebody could who has no business with them.
func TestCredentialsAreHidden(t *testing.T) {
	t.Parallel()
	redis := harness.StartRedis(t, harness.RedisSetup{})
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "issuer.pem")
	writePEM(t, keyFile, "PUBLIC KEY", der)
	hooks := startHooked(t)
	secrets := map[string]string{
		"static": "static-credential-0123456789", "cluster": "cluster-credential-0123456789",
		"webhook": "webhook-path-0123456789", "jwt": token(t, key, map[string]any{"sub": "lyon-1", "aud": "edge.test", "exp": time.Now().Add(time.Hour).Unix()}),
	}
	config := oneSite{
		global: "debug",
		auth:   "auth static {\ndevice cam-1 {env.STATIC}\n}\nauth enrolled\nauth jwt {\nkey_file " + keyFile + "\naudience edge.test\n}",
		app:    "registry redis " + redis.URL("") + "\nnode {\nid edge-1\nsecret {env.CLUSTER}\n}\nwebhook " + hooks.URL + "/{env.HOOK} {\nsecret " + hookSecret + "\n}",
	}.caddyfile()
	r := startRig(t, config, "STATIC="+secrets["static"], "CLUSTER="+secrets["cluster"], "HOOK="+secrets["webhook"])
	secrets["webhook's"] = hookSecret
	origin := harness.StartOrigin(t)
	var procs []*harness.Proc
	connect := func(device, secret string) *harness.Agent {
		t.Helper()
		a, host := r.agent(t, device, secret, origin.Addr, "--log-level", "debug")
		procs = append(procs, a.Proc)
		if got := r.get(t, host, "/echo"); got.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", device, got)
		}
		return a
	}
	connect("cam-1", secrets["static"])
	connect("lyon-1", secrets["jwt"])
	var v struct{ Token, Code string }
	r.ask(t, "POST", "/iottunnel/devices/door-1/enroll", "", &v)
	secrets["enrolled"] = v.Token
	door := connect("door-1", v.Token)
	r.ask(t, "POST", "/iottunnel/devices/door-1/rotate", "", &v)
	secrets["rotated"] = v.Token
	door.Stop(t, harness.Patience)
	connect("door-1", v.Token)
	r.ask(t, "POST", "/iottunnel/codes", "{}", &v)
	secrets["code"] = v.Code
	file := filepath.Join(t.TempDir(), "token")
	status, out, errs := harness.RunToEnd(t, time.Minute, harness.Command{
		Name: "enroll", Env: []string{"IOTTUNNEL_CODE=" + v.Code},
		Args: []string{harness.Binary(t, "iottunnel-agent"), "enroll", "--server", fmt.Sprintf("ws://127.0.0.1:%d", r.port), "--device", "door-2", "--code", v.Code, "--token-file", file},
	})
	if status != 0 {
		t.Fatalf("enroll: %s%s", out, errs)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	secrets["made of a code"] = strings.TrimSpace(string(text))
	connect("door-2", secrets["made of a code"])
	wrong := r.start(t, "cam-1", "wrong-credential-0123456789", "--forward", "80="+origin.Addr, "--once", "--log-level", "debug")
	secrets["wrong"] = "wrong-credential-0123456789"
	wrong.Wait(t, harness.Patience)
	procs = append(procs, wrong.Proc)
	hooks.wait(t, 1, "online", "door-2")

	places := map[string]string{"the edge's log": strings.Join(append(r.Stdout.Since(0), r.Stderr.Since(0)...), "\n"), "the metrics": r.metrics(t)}
	for _, p := range procs {
		places["an agent's output"] += strings.Join(append(p.Stdout.Since(0), p.Stderr.Since(0)...), "\n")
	}
	for _, path := range []string{"devices", "devices/door-1", "codes", "nodes", "export"} {
		res, err := http.Get("http://" + r.admin + "/iottunnel/" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || len(b) < 3 {
			t.Fatalf("%s: %q %v", path, b, err)
		}
		places["the admin API"] += string(b)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(lines) == 0 {
		t.Fatal(lines, err)
	}
	for _, line := range lines {
		b, _ := os.ReadFile(line) // the process may be gone
		places["the list of processes"] += string(b) + "\n"
	}
	if b, err := os.ReadFile(filepath.Join(r.dir, "access.log")); err != nil {
		t.Error(err)
	} else {
		places["the access log"] = string(b)
	}
	redis.Do(t, "CONFIG", "SET", "rdbcompression", "no")
	redis.Do(t, "SAVE")
	dump, err := os.ReadFile(filepath.Join(redis.Dir, "dump.rdb"))
	if err != nil || !strings.Contains(string(dump), "door-1") {
		t.Fatalf("Redis' dump has no device: %v", err)
	}
	places["Redis"] = string(dump)
	for what, secret := range secrets {
		if len(secret) < 16 {
			t.Errorf("%s: %q is no secret", what, secret)
		}
		for where, text := range places {
			if strings.Contains(text, secret) {
				t.Errorf("the %s secret is in %s", what, where)
			}
		}
	}
	for where, text := range places {
		if !strings.Contains(text, "cam-1") && where != "the metrics" {
			t.Errorf("%s has no device: %.300s", where, text)
		}
	}
}

// TestMoveToRedis moves a fleet from the registry of one process to Redis: each device
// keeps its secret and its hostname.
func TestMoveToRedis(t *testing.T) {
	t.Parallel()
	config := func(registry string) string {
		return oneSite{app: registry, auth: "auth enrolled"}.caddyfile()
	}
	old := startRig(t, config(""))
	origin := harness.StartOrigin(t)
	secrets, hosts := make(map[string]string), make(map[string]string)
	for i := range 3 {
		device := fmt.Sprintf("door-%d", i)
		var v struct{ Token string }
		old.ask(t, "POST", "/iottunnel/devices/"+device+"/enroll", "", &v)
		secrets[device] = v.Token
		_, hosts[device] = old.agent(t, device, v.Token, origin.Addr)
	}
	file := filepath.Join(t.TempDir(), "devices.jsonl")
	if err := os.WriteFile(file, []byte(old.command(t, "export")), 0o600); err != nil {
		t.Fatal(err)
	}
	redis := harness.StartRedis(t, harness.RedisSetup{})
	redis.Do(t, "FLUSHALL") // as new as it mostly is
	next := startRig(t, config("registry redis "+redis.URL("")))
	if out := next.command(t, "import", file); !strings.HasPrefix(out, "Devices imported: 3;") {
		t.Errorf("import: %s", out)
	}
	for device, secret := range secrets {
		if _, host := next.agent(t, device, secret, origin.Addr); host != hosts[device] {
			t.Errorf("%s was %s and is %s", device, hosts[device], host)
		}
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
			allow_ports 80
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
		name    string
		of      *clientAuthority
		cn      string
		forward string
	}{
		{"of another device", devices, "cam-9", "80"}, {"of another authority", strangers, "cam-1", "80"},
		{"for another port", devices, "cam-1", "22"},
	} {
		cert, key := c.of.issue(t, c.cn)
		a := r.start(t, "cam-1", "", append(flags(cert, key), "--forward", c.forward+"="+origin.Addr, "--once")...)
		if status := a.Wait(t, harness.Patience); status != 3 {
			t.Errorf("%s: status %d: %s", c.name, status, a.Stderr.Since(0))
		}
	}
	// Who says a visitors' hostname to TLS, where no certificate is asked for, does not get
	// to the agents' site behind it.
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	visitor := r.client("127.0.0.1", &tls.Config{RootCAs: roots, ServerName: host})
	for site, status := range map[string]int{fmt.Sprintf("localhost:%d", r.port): http.StatusMisdirectedRequest, host: http.StatusOK} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/status", r.port), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = site
		resp, err := visitor.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("by the hostname of a device, the site %s answers %s, want %d", site, resp.Status, status)
		}
	}
}
