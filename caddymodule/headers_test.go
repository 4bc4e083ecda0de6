package caddymodule

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func TestCleanRequest(t *testing.T) {
	const basicAlice = "Basic YWxpY2U6c2VjcmV0" // alice:secret
	const basicDevice = "Basic ZGV2aWNlOng="    // device:x
	for _, c := range []struct {
		name    string
		sent    http.Header
		vars    map[string]any // placeholders that handlers in front have set
		trusted bool
		keep    []string
		gone    []string // the others stay
	}{
		{
			name: "what a visitor may send",
			sent: http.Header{"Accept": {"*/*"}, "Authorization": {"Bearer x"}, "Cookie": {"a=b"}, "X-Custom": {"y"}},
		},
		{
			name: "what it may not",
			sent: http.Header{
				"Iottunnel-Error": {"x"}, "Iottunnel-Owner": {"x"}, "Forwarded": {"for=1.2.3.4"}, "X-Real-Ip": {"1.2.3.4"},
				"Remote-User": {"admin"}, "Remote-Groups": {"x"}, "X-Forwarded-User": {"admin"}, "X-Forwarded-Prefix": {"/"},
			},
			gone: []string{
				"Iottunnel-Error", "Iottunnel-Owner", "Forwarded", "X-Real-Ip",
				"Remote-User", "Remote-Groups", "X-Forwarded-User", "X-Forwarded-Prefix",
			},
		},
		{
			name: "what the proxy has set stays",
			sent: http.Header{"X-Forwarded-For": {"192.0.2.7"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"h"}},
		},
		{
			name:    "a trusted proxy",
			sent:    http.Header{"Iottunnel-Error": {"x"}, "Forwarded": {"for=1.2.3.4"}, "Remote-User": {"bob"}, "X-Real-Ip": {"1.2.3.4"}},
			trusted: true,
			gone:    []string{"Iottunnel-Error"},
		},
		{
			name: "the true address",
			sent: http.Header{"X-Real-Ip": {"192.0.2.7"}},
		},
		{
			name: "kept by name",
			sent: http.Header{"X-Real-Ip": {"1.2.3.4"}, "Remote-User": {"bob"}, "Iottunnel-Error": {"x"}},
			keep: []string{"X-Real-Ip", "Iottunnel-Error"},
			gone: []string{"Remote-User", "Iottunnel-Error"},
		},
		{
			name: "who has logged in",
			sent: http.Header{"Remote-User": {"alice"}, "Authorization": {basicAlice}},
			vars: map[string]any{"http.auth.user.id": "alice"},
			gone: []string{"Authorization"},
		},
		{
			name: "who has logged in as somebody else",
			sent: http.Header{"Remote-User": {"admin"}},
			vars: map[string]any{"http.auth.user.id": "alice"},
			gone: []string{"Remote-User"},
		},
		{
			name: "two users, one of them true",
			sent: http.Header{"Remote-User": {"alice", "admin"}},
			vars: map[string]any{"http.auth.user.id": "alice"},
			gone: []string{"Remote-User"},
		},
		{
			name: "a token that a handler has used",
			sent: http.Header{"Authorization": {"Bearer x"}},
			vars: map[string]any{"http.auth.user.id": "alice"},
			gone: []string{"Authorization"},
		},
		{
			name: "the device's own login, put there by the operator",
			sent: http.Header{"Authorization": {basicDevice}},
			vars: map[string]any{"http.auth.user.id": "alice"},
		},
		{
			name: "what forward_auth was told",
			sent: http.Header{"Remote-User": {"carol"}, "Remote-Groups": {"x"}, "Remote-Email": {"spoofed"}},
			vars: map[string]any{
				"http.reverse_proxy.header.Remote-User":   "carol",
				"http.reverse_proxy.header.Remote-Groups": "x",
			},
			gone: []string{"Remote-Email"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			repl := caddy.NewReplacer()
			for k, v := range c.vars {
				repl.Set(k, v)
			}
			v := &visit{from: netip.MustParseAddrPort("192.0.2.7:4711"), keep: map[string]bool{}}
			for _, name := range c.keep {
				v.keep[name] = true
			}
			r := httptest.NewRequest("GET", "/", nil)
			r.Header = c.sent.Clone()
			ctx := context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl)
			ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{caddyhttp.TrustedProxyVarKey: c.trusted})
			v.cleanRequest(r.WithContext(ctx))
			var gone []string
			for name := range c.sent {
				if _, ok := r.Header[name]; !ok {
					gone = append(gone, name)
				}
			}
			slices.Sort(gone)
			slices.Sort(c.gone)
			if !slices.Equal(gone, c.gone) {
				t.Errorf("dropped %v, want %v", gone, c.gone)
			}
		})
	}
}

func TestCleanResponse(t *testing.T) {
	v := &visit{hostname: "abc.devices.example.net"}
	h := http.Header{
		"Content-Type":    {"text/html"},
		"Iottunnel-Error": {"device_offline"},
		"Iottunnel-X":     {"y"},
		// nginx and others in front act on these.
		"X-Accel-Redirect":   {"/internal/"},
		"X-Accel-Expires":    {"1"},
		"x-accel-limit-rate": {"1"},
		"X-Sendfile":         {"/etc/passwd"},
		"X-Accelerated":      {"1"},
		"Set-Cookie": {
			"own=1",
			"self=1; Path=/; Domain=abc.devices.example.net",
			"parent=1; domain=devices.example.net; Secure",
		},
	}
	v.cleanResponse(h)
	if got := slices.Sorted(maps.Keys(h)); !slices.Equal(got, []string{"Content-Type", "Set-Cookie", "X-Accelerated"}) {
		t.Errorf("left: %v", got)
	}
	if got := h["Set-Cookie"]; len(got) != 2 {
		t.Errorf("cookies left: %q", got)
	}
	// Browsers send a cookie without a name as its value alone.
	h = http.Header{"Set-Cookie": {shareCookie + "=x", "=" + shareCookie + "=x; Path=/", " = " + shareCookieSecure + "=x", shareCookie + "; Path=/"}}
	if v.cleanResponse(h); len(h) != 0 {
		t.Errorf("left: %v", h)
	}
	h = http.Header{"Set-Cookie": {"a=b; Domain=example.net"}}
	if v.cleanResponse(h); len(h) != 0 {
		t.Errorf("left: %v", h)
	}
	trailers := http.Header{"X-Sum": {"1"}, "Iottunnel-Error": {"x"}, "Trailer:Iottunnel-Error": {"x"}, "Trailer:Set-Cookie": {"a=1; Domain=devices.example.net"}, "Trailer:X-Late": {"1"}, "X-Accel-Redirect": {"/"}, "Trailer:X-Sendfile": {"/"}}
	v.cleanResponse(trailers)
	if got := slices.Sorted(maps.Keys(trailers)); !slices.Equal(got, []string{"Trailer:X-Late", "X-Sum"}) {
		t.Errorf("trailers left: %v", got)
	}
}

func TestStrays(t *testing.T) {
	const host = "abc.devices.example.net"
	for cookie, want := range map[string]bool{
		"a=b":                                 false,
		"":                                    false,
		";":                                   false,
		"a=b; Domain":                         false,
		"a=b; Domain=":                        false,
		"a=b; Domain=" + host:                 false,
		"a=b; Domain=." + host:                false,
		"a=b; Domain=ABC.Devices.Example.NET": false,
		"a=b; Domain=devices.example.net":     true,
		"a=b; Domain=.devices.example.net":    true,
		"a=b;DOMAIN = devices.example.net ;":  true,
		"a=b; Domain=example.net":             true,
		"a=b; Domain=net":                     true,
		"a=b; Domain=x." + host:               true,
		"a=b; Domain=xyz.devices.example.net": true,
		"a=b; Domain=" + host + "; Domain=devices.example.net": true,
		"a=b; Domain=devices.example.net; Domain=" + host:      true,
		"domain=devices.example.net":                           false, // the name of the cookie
		"a=b; Domain\t=\tdevices.example.net":                  true,
		"a=b; Domain=\"devices.example.net\"":                  true,
	} {
		if got := strays(cookie, host); got != want {
			t.Errorf("%q: %t, want %t", cookie, got, want)
		}
	}
}

// TestSuspect wants every header that is looked at to be suspect.
func TestSuspect(t *testing.T) {
	for name := range speaksFor {
		if !suspect(name) {
			t.Errorf("%s is not", name)
		}
	}
	for _, name := range []string{"Iottunnel-Error", "iottunnel-error", "X-Forwarded-For", "Authorization", "x-real-ip", ""} {
		if !suspect(name) {
			t.Errorf("%q is not", name)
		}
	}
	for _, name := range []string{"Cookie", "Host", "Via"} {
		if suspect(name) {
			t.Errorf("%q is", name)
		}
	}
}
