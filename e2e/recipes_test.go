package e2e

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

func fileExists(name string) error {
	_, err := os.Stat(name)
	return err
}

// recipe is the site of devices with something in front, as docs/security.md has it.
func recipe(site string) string {
	return `{
	admin ADMIN
	persist_config off
	auto_https off
	grace_period 2s
	iottunnel {
		domain devices.test
		visitors http PORT
		auth static {
			device cam-1 token-of-cam-1
			device lyon-1 token-of-lyon-1
		}
	}
}
http://127.0.0.1:PORT {
	bind 127.0.0.1
	iottunnel agents
}
http://*.devices.test:PORT {
	bind 127.0.0.1
` + site + `
}
`
}

// TestVisitorsPasswords lets visitors in by name and password, and keeps both from devices.
func TestVisitorsPasswords(t *testing.T) {
	t.Parallel()
	status, out, errs := harness.RunToEnd(t, harness.Patience, harness.Command{
		Name: "caddy hash-password", Args: []string{harness.Binary(t, "caddy"), "hash-password", "--plaintext", "secret"},
	})
	if status != 0 {
		t.Fatal(errs)
	}
	r := startRig(t, recipe("basic_auth {\nalice "+strings.TrimSpace(out)+"\n}\niottunnel devices"))
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	if got := r.get(t, host, "/echo"); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a password: %s", got)
	}
	req := request(t, "GET", fmt.Sprintf("http://%s:%d/echo", host, r.port), nil)
	req.SetBasicAuth("alice", "secret")
	got := do(t, r.client("127.0.0.1", nil), req)
	if got.StatusCode != http.StatusOK {
		t.Fatalf("with it: %s", got)
	}
	if seen := echo(t, got); seen.Header.Get("Authorization") != "" {
		t.Errorf("the device sees %q", seen.Header)
	}
}

// TestVisitorsOfAnotherService asks another service about each visitor, and tells the device who
// that says it is.
func TestVisitorsOfAnotherService(t *testing.T) {
	t.Parallel()
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cookie, err := r.Cookie("session"); err != nil || cookie.Value != "good" {
			http.Redirect(w, r, "https://login.example.com/?to="+r.Header.Get("X-Forwarded-Uri"), http.StatusFound)
			return
		}
		w.Header().Set("Remote-User", "alice")
	}))
	t.Cleanup(gate.Close)
	r := startRig(t, recipe("forward_auth "+strings.TrimPrefix(gate.URL, "http://")+" {\nuri /verify\ncopy_headers Remote-User\n}\niottunnel devices"))
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	if got := r.get(t, host, "/echo", "Remote-User", "mallory"); got.StatusCode != http.StatusFound || !strings.Contains(got.Header.Get("Location"), "login.example.com") {
		t.Errorf("a stranger: %s", got)
	}
	got := r.get(t, host, "/echo", "Cookie", "session=good", "Remote-User", "mallory")
	if got.StatusCode != http.StatusOK {
		t.Fatalf("a user: %s", got)
	}
	if seen := echo(t, got); seen.Header.Get("Remote-User") != "alice" {
		t.Errorf("the device sees %q", seen.Header["Remote-User"])
	}
}

// TestAddressRanges lets in who comes from certain addresses.
func TestAddressRanges(t *testing.T) {
	t.Parallel()
	r := startRig(t, recipe("@outside not remote_ip 127.0.0.2/32\nerror @outside 403\niottunnel devices"))
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	for from, want := range map[string]int{"127.0.0.1": 403, "127.0.0.2": 200} {
		got := do(t, r.client(from, nil), request(t, "GET", fmt.Sprintf("http://%s:%d/echo", host, r.port), nil))
		if got.StatusCode != want {
			t.Errorf("from %s: %s", from, got)
		}
	}
}

// TestRulesPerDevice has a rule for some devices alone.
func TestRulesPerDevice(t *testing.T) {
	t.Parallel()
	r := startRig(t, recipe("@lyon {\niottunnel device lyon-*\npath /admin/*\n}\nerror @lyon 403\niottunnel devices"))
	origin := harness.StartOrigin(t)
	_, lyon := r.agent(t, "lyon-1", "token-of-lyon-1", origin.Addr)
	_, cam := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	for _, c := range []struct {
		host, path string
		want       bool
	}{{lyon, "/admin/x", false}, {lyon, "/echo", true}, {cam, "/admin/x", true}} {
		if got := r.get(t, c.host, c.path); (got.StatusCode != http.StatusForbidden) != c.want {
			t.Errorf("%s%s: %s", c.host, c.path, got)
		}
	}
}

// TestVisitorsCertificates lets in who has a certificate of an authority, on the
// devices' site alone: agents have none.
func TestVisitorsCertificates(t *testing.T) {
	t.Parallel()
	authority := newClientAuthority(t)
	config := strings.NewReplacer("auto_https off", "auto_https disable_redirects\nskip_install_trust\nlocal_certs", "visitors http", "visitors https",
		"http://127.0.0.1:PORT", "https://localhost:PORT", "http://*.devices.test", "https://*.devices.test").
		Replace(recipe("tls {\nclient_auth {\nmode require_and_verify\ntrust_pool file " + authority.file() + "\n}\n}\niottunnel devices"))
	r := startRig(t, config)
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr, "--server", fmt.Sprintf("wss://localhost:%d", r.port), "--insecure-skip-verify")
	url := fmt.Sprintf("https://%s:%d/echo", host, r.port)
	if res, err := r.client("127.0.0.1", &tls.Config{InsecureSkipVerify: true}).Get(url); err == nil {
		res.Body.Close()
		t.Errorf("without a certificate: %s", res.Status)
	}
	cert, err := tls.LoadX509KeyPair(authority.issue(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	got := do(t, r.client("127.0.0.1", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}), request(t, "GET", url, nil))
	if got.StatusCode != http.StatusOK {
		t.Errorf("with one: %s", got)
	}
}
