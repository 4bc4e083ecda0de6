package e2e

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestHeadersToDevice spoofs what only the edge may say of a visitor, and wants the
// device to see the truth.
func TestHeadersToDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		seen := echo(t, s.get(t, "/echo",
			"X-Forwarded-For", "6.6.6.6",
			"X-Forwarded-For", "7.7.7.7",
			"X-Forwarded-Proto", "gopher",
			"X-Forwarded-Host", "evil.example",
			"X-Forwarded-Port", "666",
			"X-Forwarded-Prefix", "/evil",
			"Forwarded", "for=6.6.6.6;host=evil.example",
			"X-Real-Ip", "6.6.6.6",
			"Remote-User", "admin",
			"Remote-Groups", "admins",
			"Remote-Email", "admin@evil.example",
			"Iottunnel-Error", "evil",
			"Iottunnel-Owner", "evil",
			"iottunnel-anything", "evil",
			"X-Kept", "kept",
			"Authorization", "Bearer the-device's-own",
			"Cookie", "session=1",
		))
		for name, values := range seen.Header {
			if slices.ContainsFunc(values, func(v string) bool {
				return strings.Contains(v, "evil") || strings.Contains(v, "6.6.6.6") || strings.Contains(v, "7.7.7.7") ||
					v == "admin" || v == "admins" || v == "gopher" || v == "666"
			}) {
				t.Errorf("the device was told %s: %q", name, values)
			}
		}
		scheme, hostPort, _ := strings.Cut(s.url(""), "://")
		for name, want := range map[string]string{
			"X-Forwarded-For":   "127.0.0.1",
			"X-Forwarded-Proto": scheme,
			"X-Forwarded-Host":  hostPort,
			"X-Kept":            "kept",
			"Authorization":     "Bearer the-device's-own",
			"Cookie":            "session=1",
		} {
			if got := seen.Header.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("the device saw %s: %q, want %q", name, got, want)
			}
		}
		if seen.Host != hostPort {
			t.Errorf("the device saw Host %q, want %q", seen.Host, hostPort)
		}
	})
}

// TestHeadersOfWebSocket is the same for an upgrade.
func TestHeadersOfWebSocket(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		c, err := s.face.DialVisitor(t.Context(), s.host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
		fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Forwarded-For: 6.6.6.6\r\nIottunnel-Owner: evil\r\nRemote-User: admin\r\n\r\n", s.hostPort())
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("upgrade: %v %v", resp, err)
		}
		seen := s.origin.Seen("/ws")
		if len(seen) != 1 {
			t.Fatalf("the device saw %d upgrades", len(seen))
		}
		h := seen[0].Header
		if h.Get("Iottunnel-Owner") != "" || h.Get("Remote-User") != "" || h.Get("X-Forwarded-For") != "127.0.0.1" {
			t.Errorf("the device saw %v", h)
		}
	})
}

// TestOperatorsHeaders has a Caddy handler in front of the devices authenticate
// visitors: what it says of them reaches the device, their password does not.
func TestOperatorsHeaders(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Handlers: []string{
			"@devices not host localhost 127.0.0.1",
			"basic_auth @devices {",
			"\tvisitor " + hashOf(t, "secret"),
			"}",
			"request_header @devices Remote-User {http.auth.user.id}",
		}})
		s := newSite(t, f)
		if r := s.get(t, "/echo"); r.StatusCode != 401 {
			t.Fatalf("without a password: %v", r)
		}
		req := request(t, "GET", s.url("/echo"), nil, "Remote-User", "admin")
		req.SetBasicAuth("visitor", "secret")
		seen := echo(t, do(t, s.client, req))
		if got := seen.Header.Values("Remote-User"); len(got) != 1 || got[0] != "visitor" {
			t.Errorf("the device saw Remote-User %q", got)
		}
		if got := seen.Header.Get("Authorization"); got != "" {
			t.Errorf("the device saw the visitor's password for the edge: %q", got)
		}
	})
}

// TestHeadersFromDevice has a device forge what only the edge may say, and set
// cookies for the domain that it shares with other devices.
func TestHeadersFromDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		var early []textproto.MIMEHeader
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			early = append(early, h)
			return nil
		}}
		req := request(t, "GET", s.url("/forge"), nil)
		r := do(t, s.client, req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		if r.body != "forged\n" {
			t.Fatalf("%v", r)
		}
		for _, h := range append([]http.Header{r.Header, r.Trailer}, asHeaders(early)...) {
			for name := range h {
				if strings.HasPrefix(http.CanonicalHeaderKey(name), "Iottunnel-") {
					t.Errorf("the visitor saw the device's %s", name)
				}
			}
		}
		if r.Trailer.Get("X-Late") != "fine" {
			t.Errorf("the device's own trailer: %v", r.Trailer)
		}
		var cookies []string
		for _, c := range r.Cookies() {
			cookies = append(cookies, c.Name)
		}
		slices.Sort(cookies)
		if !slices.Equal(cookies, []string{"own", "self"}) {
			t.Errorf("the visitor got cookies %v, want own and self", cookies)
		}
	})
}

func asHeaders(hs []textproto.MIMEHeader) []http.Header {
	var out []http.Header
	for _, h := range hs {
		out = append(out, http.Header(h))
	}
	return out
}

// hashOf asks the built Caddy for the hash of a password.
func hashOf(t *testing.T, password string) string {
	t.Helper()
	status, out, errs := harness.RunToEnd(t, harness.UpTime, harness.Command{
		Name: "caddy hash-password",
		Args: []string{harness.Binary(t, "caddy"), "hash-password", "--bcrypt-cost", "4", "--plaintext", password},
	})
	if status != 0 {
		t.Fatalf("caddy hash-password: %d %s", status, errs)
	}
	return strings.TrimSpace(out)
}
