package e2e

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
		if !lacks(k, "trailers") && r.Trailer.Get("X-Late") != "fine" {
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

// TestSpoofing has visitors say by every name and in every way who they are, over
// each version of HTTP: the device is told by the edge alone.
func TestSpoofing(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		names := []string{
			"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Prefix",
			"X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Client-Cert", "Forwarded", "X-Real-Ip",
			"Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email",
			"Iottunnel-Error", "Iottunnel-Owner", "Iottunnel-Device", "Iottunnel-Versions", "Iottunnel-", "Iottunnel-Any-Thing",
		}
		clean := func(t *testing.T, seen harness.Seen) {
			t.Helper()
			for name, values := range seen.Header {
				plain := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
				truth := map[string]string{
					"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": s.hostPort(), "X-Forwarded-Proto": strings.SplitN(s.url(""), ":", 2)[0],
				}[plain]
				if slices.Contains(names, plain) && (truth == "" || len(values) != 1 || values[0] != truth) || strings.Contains(strings.Join(values, " "), "evil") {
					t.Errorf("the device was told %s: %q", name, values)
				}
			}
		}
		for _, h1 := range []bool{true, false} {
			c := harness.Visitor(t, s.face, h1)
			t.Run(fmt.Sprintf("by a client, HTTP/1.1 %t", h1), func(t *testing.T) {
				var spoof []string
				for _, name := range names {
					spoof = append(spoof, name, "evil", strings.ToUpper(name), "evil", strings.ToLower(name), "evil, evil")
				}
				clean(t, echo(t, do(t, c, request(t, "GET", s.url("/echo"), nil, spoof...))))
				// As hop-by-hop headers they would be lost on the way, and with them what the
				// edge says.
				spoof = append(spoof, "Connection", strings.Join(names, ", "), "Connection", "close")
				req := request(t, "GET", s.url("/echo"), nil, spoof...)
				if h1 {
					seen := echo(t, do(t, c, req))
					clean(t, seen)
					if seen.Header.Get("X-Forwarded-For") != "127.0.0.1" {
						t.Errorf("the device was not told who visits: %v", seen.Header)
					}
				}
			})
		}
		for _, odd := range []struct{ name, lines string }{
			{"underscores", "X_Forwarded_For: evil\r\nRemote_User: evil\r\nIottunnel_Owner: evil\r\nX-Forwarded_User: evil\r\n"},
			{"capitals", "X-FORWARDED-FOR: evil\r\nREMOTE-USER: evil\r\nIOTTUNNEL-OWNER: evil\r\n"},
			{"a tab before the value", "Remote-User:\tevil\r\nIottunnel-Owner:\t\tevil\r\n"},
			{"folded", "Remote-User:\r\n evil\r\nIottunnel-Owner:\r\n\tevil\r\n"},
			{"twice, one empty", "Remote-User: \r\nRemote-User: evil\r\nX-Forwarded-For:\r\nX-Forwarded-For: evil\r\n"},
			{"Connection names what handlers set", "Connection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, Remote-User, close\r\nRemote-User: evil\r\n"},
			{"Connection twice", "Connection: keep-alive\r\nConnection: x-forwarded-for\r\n"},
		} {
			t.Run(odd.name, func(t *testing.T) {
				r := s.raw(t, "GET /echo HTTP/1.1\r\nHost: "+s.hostPort()+"\r\n"+odd.lines+"\r\n")
				if r.StatusCode >= 400 && r.StatusCode < 500 {
					t.Logf("refused with %d", r.StatusCode)
					return
				}
				seen := echo(t, r)
				clean(t, seen)
				if got := seen.Header.Get("X-Forwarded-For"); got != "127.0.0.1" {
					t.Errorf("X-Forwarded-For is %q", got)
				}
			})
		}
	})
}

// TestCookiesFromDevice has a device set cookies for its siblings in every way that
// some browser understands: none reaches the visitor, and its own do, in the answer,
// in an informational one, in the trailer, and with a WebSocket.
func TestCookiesFromDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s, device := newRecorded(t, harness.Shared(t, k))
		_, parent, _ := strings.Cut(s.host, ".")
		label, _, _ := strings.Cut(s.host, ".")
		_, top, nested := strings.Cut(parent, ".")
		strays := []string{
			"Domain=" + parent, "Domain=." + parent, "domain=" + parent, "DOMAIN=" + strings.ToUpper(parent), "Domain=\"" + parent + "\"", "Domain=\"." + parent + "\"",
			"Domain = " + parent, "Domain\t=\t" + parent, "  Domain=" + parent + "  ", "Domain=" + parent + ".", "Domain=." + parent + ".",
			"Domain=" + s.host + "; Domain=" + parent, "Domain=" + parent + "; Domain=" + s.host, "Domain=; Domain=" + parent, "Domain=" + parent + "; Domain=",
			"Secure;Domain=" + parent, "Path=/;domain=" + parent + ";HttpOnly", "Max-Age=1; Expires=Mon, 01 Jan 2035 00:00:00 GMT; Domain=" + parent,
			"Domain=" + label + "--80." + parent, "Domain=other." + parent, "Domain=%6c" + parent[1:], "Domain=:" + parent, "Domain=" + parent + ":80", "Domain=" + parent + ",x",
		}
		if nested {
			strays = append(strays, "Domain="+top)
		}
		own := []string{"Path=/", "Domain=" + s.host, "Domain=." + s.host, "domain=" + strings.ToUpper(s.host), "HttpOnly; Secure; SameSite=Lax", ""}
		var lines strings.Builder
		var want []string
		for i, attributes := range strays {
			fmt.Fprintf(&lines, "%s: stray%d=1; %s\r\n", []string{"Set-Cookie", "set-cookie", "SET-COOKIE"}[i%3], i, attributes)
		}
		for i, attributes := range own {
			cookie := strings.TrimSuffix(fmt.Sprintf("own%d=1; %s", i, attributes), "; ")
			want = append(want, cookie)
			fmt.Fprintf(&lines, "Set-Cookie: %s\r\n", cookie)
		}
		cookies := func(m message) (found []string) { return m.get("Set-Cookie") }
		ask := func(t *testing.T, path, more string) (message, []message) {
			t.Helper()
			c, err := s.face.DialVisitor(t.Context(), s.host)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nTE: trailers\r\n%s\r\n", path, s.hostPort(), more)
			raw, err := io.ReadAll(c)
			if err != nil {
				t.Fatal(err)
			}
			if more != "Connection: close\r\n" { // an upgrade: its answer is all
				m, _, err := strictMessage(string(raw), func(string) bool { return true }, false)
				if err != nil {
					t.Fatal(err)
				}
				return m, nil
			}
			final, early, err := strictAnswer(string(raw), "GET")
			if err != nil {
				t.Fatalf("%v\n%q", err, raw)
			}
			return final, early
		}
		only := func(t *testing.T, got, want []string) {
			t.Helper()
			if !slices.Equal(got, want) {
				t.Errorf("the visitor got cookies %q, want %q", got, want)
			}
		}
		t.Run("answer", func(t *testing.T) {
			device.answer("/cookies", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n"+lines.String()+"\r\nbody")
			final, _ := ask(t, "/cookies", "Connection: close\r\n")
			only(t, cookies(final), want)
		})
		t.Run("only strays", func(t *testing.T) {
			device.answer("/strays", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nSet-Cookie: a=1; Domain="+parent+"\r\n\r\nbody")
			final, _ := ask(t, "/strays", "Connection: close\r\n")
			only(t, cookies(final), nil)
		})
		t.Run("informational answer", func(t *testing.T) {
			if lacks(k, "informational answers") {
				return
			}
			device.answer("/early", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n"+lines.String()+"Iottunnel-Error: evil\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
			final, early := ask(t, "/early", "Connection: close\r\n")
			if len(early) != 1 || len(early[0].get("Link")) != 1 || len(early[0].get("Iottunnel-Error")) != 0 {
				t.Fatalf("informational answers %q", early)
			}
			only(t, cookies(early[0]), want)
			only(t, cookies(final), nil)
		})
		for _, announced := range []string{"", "Trailer: Set-Cookie, X-Sum, Iottunnel-Error\r\n"} {
			t.Run("trailer, announced: "+announced, func(t *testing.T) {
				device.answer("/trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"+announced+"\r\n4\r\nbody\r\n0\r\n"+lines.String()+
					"Iottunnel-Error: evil\r\nIottunnel-Owner: evil\r\nX-Sum: 1\r\n\r\n")
				c := harness.Visitor(t, s.face, true)
				r := do(t, c, request(t, "GET", s.url("/trailer"), nil, "TE", "trailers"))
				if r.body != "body" || !lacks(k, "trailers") && r.Trailer.Get("X-Sum") != "1" {
					t.Errorf("%v, trailer %q", r, r.Trailer)
				}
				for name := range r.Trailer { // browsers take no cookies from there
					if strings.HasPrefix(name, "Iottunnel") {
						t.Errorf("the visitor got %s in the trailer", name)
					}
				}
			})
		}
		t.Run("WebSocket", func(t *testing.T) {
			device.answer("/upgrade", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+lines.String()+
				"Iottunnel-Error: evil\r\n\r\n"+endOfConn)
			final, _ := ask(t, "/upgrade", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
			if !strings.HasPrefix(final.first, "HTTP/1.1 101 ") || len(final.get("Iottunnel-Error")) != 0 {
				t.Fatalf("%q", final)
			}
			only(t, cookies(final), want)
		})
	})
}

// TestBasicAuth has basic_auth in front of the devices, and reads what the device
// really received.
func TestBasicAuth(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Handlers: []string{
			"@devices not host localhost 127.0.0.1",
			"basic_auth @devices {",
			"\tvisitor " + hashOf(t, "secret"),
			"}",
		}})
		s, device := newRecorded(t, f)
		ask := func(t *testing.T, want int, header ...string) (received string) {
			t.Helper()
			device.take()
			for _, h1 := range []bool{true, slices.Contains(header, "Connection")} { // which HTTP/2 clients refuse to send
				if r := do(t, harness.Visitor(t, f, h1), request(t, "GET", s.url("/secret"), nil, header...)); r.StatusCode != want {
					t.Errorf("%q: status %d, want %d", header, r.StatusCode, want)
				}
			}
			return strings.Join(device.take(), "")
		}
		basic := func(user, password string) string {
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
		}
		for _, header := range [][]string{
			{},
			{"Authorization", basic("visitor", "wrong")},
			{"Authorization", basic("nobody", "secret")},
			{"Authorization", "Bearer secret"},
			{"Remote-User", "visitor"},
			{"Authorization", "Basic"},
			{"Authorization", basic("visitor", "")},
		} {
			if received := ask(t, 401, header...); received != "" {
				t.Errorf("%q: the device received %q", header, received)
			}
		}
		good := basic("visitor", "secret")
		received := ask(t, 200, "Authorization", good, "X-Kept", "kept", "Remote-User", "admin", "X-Forwarded-User", "admin")
		if !strings.Contains(received, "X-Kept: kept") || strings.Count(received, "GET /secret") != 2 {
			t.Errorf("the device received %q", received)
		}
		for _, part := range []string{"authorization", strings.ToLower(good[6:]), "secret:", "admin"} {
			if strings.Contains(strings.ToLower(received), part) {
				t.Errorf("the device received %q: %q", part, received)
			}
		}
		// By another path the password does not come through either.
		received = ask(t, 200, "Authorization", good, "Proxy-Authorization", good, "Connection", "Authorization")
		if strings.Contains(received, good[6:]) {
			t.Errorf("the device received the password: %q", received)
		}
	})
}

// TestForwardAuth has a service of the operator's authenticate visitors, and reads
// what the device really received: what that service said of the visitor, and not
// what the visitor said.
func TestForwardAuth(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.Header.Get("X-Ticket") {
			case "valid":
				w.Header().Set("Remote-User", "alice")
				w.Header().Set("Remote-Groups", "technicians, visitors")
				w.Header().Set("X-Tenant", "seven")
				w.Header().Set("Remote-Email", "not-copied@example.com")
			case "anonymous": // let in without a name
			default:
				http.Error(w, "who are you", http.StatusForbidden)
			}
		}))
		defer gate.Close()
		f := harness.Own(t, k, harness.Setup{Handlers: []string{
			"@devices not host localhost 127.0.0.1",
			"forward_auth @devices " + gate.Listener.Addr().String() + " {",
			"\turi /verify",
			"\tcopy_headers Remote-User Remote-Groups X-Tenant",
			"}",
		}})
		s, device := newRecorded(t, f)
		spoof := []string{
			"Remote-User", "admin", "Remote-Groups", "admins", "Remote-Name", "Admin", "Remote-Email", "admin@evil.example", "X-Tenant", "666",
			"X-Forwarded-User", "admin", "X-Forwarded-For", "6.6.6.6", "X-Real-Ip", "6.6.6.6", "Forwarded", "for=6.6.6.6", "Iottunnel-Owner", "evil",
		}
		ask := func(t *testing.T, ticket string, want int, header ...string) (told []http.Header) {
			t.Helper()
			device.take()
			for _, h1 := range []bool{true, slices.Contains(header, "Connection")} {
				r := do(t, harness.Visitor(t, f, h1), request(t, "GET", s.url("/secret"), nil, append([]string{"X-Ticket", ticket}, header...)...))
				if r.StatusCode != want {
					t.Errorf("ticket %q: %v", ticket, r)
				}
			}
			for _, raw := range device.take() {
				for raw != "" {
					m, after, err := strictMessage(raw, func(string) bool { return false }, false)
					if err != nil {
						t.Fatalf("%v: %q", err, raw)
					}
					h := make(http.Header)
					for _, f := range m.fields {
						h.Add(f.name, f.value)
					}
					told, raw = append(told, h), after
				}
			}
			return told
		}
		if told := ask(t, "", 403, spoof...); told != nil {
			t.Errorf("the device received %v", told)
		}
		for _, header := range [][]string{nil, spoof, {"Connection", "Remote-User, Remote-Groups, X-Tenant", "Remote-User", "admin"}} {
			told := ask(t, "valid", 200, header...)
			if len(told) != 2 {
				t.Fatalf("the device received %d requests", len(told))
			}
			for _, h := range told {
				for name, want := range map[string]string{
					"Remote-User": "alice", "Remote-Groups": "technicians, visitors", "X-Tenant": "seven", "X-Forwarded-For": "127.0.0.1",
					"Remote-Name": "", "Remote-Email": "", "X-Forwarded-User": "", "X-Real-Ip": "", "Forwarded": "", "Iottunnel-Owner": "",
				} {
					if got := strings.Join(h.Values(name), " | "); got != want {
						t.Errorf("with %q the device was told %s: %q, want %q", header, name, got, want)
					}
				}
			}
		}
		// Whom the service lets in without a name is nobody, whatever he says.
		for _, h := range ask(t, "anonymous", 200, spoof...) {
			for _, name := range []string{"Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email", "X-Forwarded-User", "X-Real-Ip", "Forwarded", "X-Tenant"} {
				if got := h.Values(name); len(got) > 0 {
					t.Errorf("a nameless visitor: the device was told %s: %q", name, got)
				}
			}
		}
	})
}
