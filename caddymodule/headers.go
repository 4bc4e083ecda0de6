package caddymodule

import (
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore/names"
)

// ourPrefix begins the headers that the edge alone may send.
const ourPrefix = "Iottunnel-"

// ours reports whether a header, or a trailer as net/http marks them, has a name
// that devices and visitors must not use.
func ours(name string) bool {
	if name == "" || name[0] != 'I' && name[0] != 'i' && name[0] != http.TrailerPrefix[0] {
		return false // quickly
	}
	name = strings.TrimPrefix(name, http.TrailerPrefix)
	return len(name) >= len(ourPrefix) && strings.EqualFold(name[:len(ourPrefix)], ourPrefix)
}

// steers reports whether a header of an answer, or a trailer as net/http marks it,
// has a name that servers in front act on: nginx serves another of its locations for
// X-Accel-Redirect, and some serve any file for X-Sendfile.
func steers(name string) bool {
	if name == "" || name[0] != 'X' && name[0] != 'x' && name[0] != http.TrailerPrefix[0] {
		return false // quickly
	}
	name = strings.TrimPrefix(name, http.TrailerPrefix)
	const accel = "X-Accel-"
	return len(name) >= len(accel) && strings.EqualFold(name[:len(accel)], accel) || strings.EqualFold(name, "X-Sendfile")
}

// speaksFor lists the headers by which proxies and authenticators tell a service
// who the visitor is. X-Forwarded-* are beside it.
var speaksFor = map[string]bool{
	"Forwarded":     true,
	"X-Real-Ip":     true,
	"Remote-User":   true,
	"Remote-Groups": true,
	"Remote-Name":   true,
	"Remote-Email":  true,
}

// ofProxy lists those that the proxy sets itself, from what it trusts.
var ofProxy = map[string]bool{
	"X-Forwarded-For":   true,
	"X-Forwarded-Proto": true,
	"X-Forwarded-Host":  true,
}

// reserved reports whether a header says who the visitor is, or what the edge
// has found out: the visitor's word for it does not count.
func (v *visit) reserved(name string) bool {
	return ours(name) || v.keep[name] || name == "Authorization" || speaksFor[name] || strings.HasPrefix(name, "X-Forwarded-")
}

// guardConnection returns r without those names in its Connection header that
// belong to headers which handlers in front have set or will vouch for: listed
// there, they would be dropped as hop-by-hop, and the device would serve somebody
// as nobody. r itself is not changed.
func (v *visit) guardConnection(r *http.Request) *http.Request {
	lines := r.Header["Connection"]
	if len(lines) == 0 || len(lines) == 1 && (lines[0] == "keep-alive" || lines[0] == "Upgrade") {
		return r // what browsers send: no header is named so
	}
	repl, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	var rest []string
	guarded := false
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			option = strings.Trim(option, " \t")
			name := http.CanonicalHeaderKey(option)
			if values := r.Header[name]; v.reserved(name) || v.madeHere(name, values, repl) {
				guarded = true
			} else if option != "" {
				rest = append(rest, option)
			}
		}
	}
	if !guarded {
		return r
	}
	r = r.WithContext(r.Context()) // no Clone: net/http fills in the trailer that the copies share
	r.Header = r.Header.Clone()
	r.Header["Connection"] = []string{strings.Join(rest, ", ")}
	return r
}

// cleanUpgrade lets visitors switch to the WebSocket protocol and to no other.
// Once a device has switched, nothing of what crosses is looked at: with h2c
// whole requests would pass beside every rule. A request with a body does not
// switch: the rest of the body would be read beside the other protocol.
func cleanUpgrade(r *http.Request) {
	h := r.Header
	delete(h, "Http2-Settings")
	body := r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
	if upgrade, ok := h["Upgrade"]; ok && (body || len(upgrade) != 1 || upgrade[0] != "websocket") { // the proxy writes it in lower case
		delete(h, "Upgrade")
		delete(h, "Connection")
	}
}

// cleanRequest takes from a request, the proxy's copy, what its visitor must not
// tell the device.
func (v *visit) cleanRequest(r *http.Request) {
	ctx := r.Context()
	repl, _ := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	trusted, _ := caddyhttp.GetVar(ctx, caddyhttp.TrustedProxyVarKey).(bool)
	cleanUpgrade(r)
	hideShareCookie(r.Header)
	for name, values := range r.Header {
		if !suspect(name) {
			continue
		}
		switch {
		case ours(name):
		case v.keep[name]:
			continue
		case name == "Authorization":
			if !usedHere(values, repl) {
				continue
			}
		case speaksFor[name] || strings.HasPrefix(name, "X-Forwarded-") && !ofProxy[name]:
			if trusted || v.madeHere(name, values, repl) {
				continue
			}
		default:
			continue
		}
		delete(r.Header, name)
	}
}

// suspect is a quick look at a header: what it lets through nobody minds.
func suspect(name string) bool {
	if name == "" {
		return true
	}
	switch name[0] {
	case 'A', 'F', 'I', 'R', 'X': // those below begin with one of them
		return true
	}
	return name[0] >= 'a' // not canonical
}

// cleanTrailer does so with the trailer of a request. No proxy or authenticator
// speaks there: what does is the visitor. Caddy refuses names with an underscore,
// which some servers take for a hyphen, in headers alone.
func (v *visit) cleanTrailer(h http.Header) {
	for name := range h {
		if v.reserved(http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))) {
			delete(h, name)
		}
	}
}

// madeHere reports whether a handler in front vouches for a header: what a
// request held at first is not known any more, but what such handlers found out
// is.
func (v *visit) madeHere(name string, values []string, repl *caddy.Replacer) bool {
	if len(values) != 1 || repl == nil {
		return false
	}
	switch name {
	case "X-Real-Ip":
		if v.from.Addr().IsValid() && values[0] == v.from.Addr().String() {
			return true
		}
	case "Remote-User":
		if id, ok := repl.GetString("http.auth.user.id"); ok && id == values[0] {
			return true
		}
	}
	// The answer of the service that forward_auth has asked.
	answered, ok := repl.GetString("http.reverse_proxy.header." + name)
	return ok && answered == values[0]
}

// usedHere reports whether an authentication handler in front has used the
// Authorization of a request. It has not used one that the operator has put
// there for the device: Basic, for another user.
func usedHere(values []string, repl *caddy.Replacer) bool {
	if repl == nil {
		return false
	}
	id, ok := repl.GetString("http.auth.user.id")
	if !ok {
		return false
	}
	r := http.Request{Header: http.Header{"Authorization": values}}
	user, _, basic := r.BasicAuth()
	return !basic || user == id
}

// cleanResponse takes from the header of an answer, or from its trailer, what a
// device must not tell its visitor.
func (v *visit) cleanResponse(h http.Header) {
	for name := range h {
		if ours(name) || steers(name) {
			delete(h, name)
		}
	}
	delete(h, http.TrailerPrefix+"Set-Cookie") // browsers take none from there (RFC 9110 §6.5.1)
	cookies, ok := h["Set-Cookie"]
	if !ok {
		return
	}
	own := cookies[:0:0]
	for _, c := range cookies {
		pair, _, _ := strings.Cut(c, ";")
		name, _, _ := strings.Cut(strings.TrimLeft(pair, "= \t"), "=") // without a name the value comes back as one
		if !strays(c, v.hostname) && !isShareCookie(name) {
			own = append(own, c)
		}
	}
	if len(own) == 0 {
		delete(h, "Set-Cookie")
		return
	}
	h["Set-Cookie"] = own
}

// strays reports whether a Set-Cookie names another domain than hostname: every
// device under the parent domain would get the cookie. Browsers go by the last
// Domain (RFC 6265 §5.3); here any will do.
func strays(setCookie, hostname string) bool {
	_, attributes, _ := strings.Cut(setCookie, ";")
	for attribute := range strings.SplitSeq(attributes, ";") {
		name, value, _ := strings.Cut(attribute, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "domain") {
			continue
		}
		value = strings.TrimPrefix(strings.TrimSpace(value), ".")
		if value != "" && names.Normal(value) != hostname {
			return true
		}
	}
	return false
}
