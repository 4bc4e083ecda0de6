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
	name = strings.TrimPrefix(name, http.TrailerPrefix)
	return len(name) >= len(ourPrefix) && strings.EqualFold(name[:len(ourPrefix)], ourPrefix)
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

// cleanRequest takes from a request, the proxy's copy, what its visitor must not
// tell the device.
func (v *visit) cleanRequest(r *http.Request) {
	ctx := r.Context()
	repl, _ := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	trusted, _ := caddyhttp.GetVar(ctx, caddyhttp.TrustedProxyVarKey).(bool)
	for name, values := range r.Header {
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

// cleanResponse takes from the header of an answer what a device must not tell
// its visitor.
func (v *visit) cleanResponse(h http.Header) {
	for name := range h {
		if ours(name) {
			delete(h, name)
		}
	}
	cookies, ok := h["Set-Cookie"]
	if !ok {
		return
	}
	own := cookies[:0:0]
	for _, c := range cookies {
		if !strays(c, v.hostname) {
			own = append(own, c)
		}
	}
	if len(own) == 0 {
		delete(h, "Set-Cookie")
		return
	}
	h["Set-Cookie"] = own
}

// cleanTrailers does the same to trailers. The header has been sent by then.
func (v *visit) cleanTrailers(h http.Header) {
	for name := range h {
		if ours(name) {
			delete(h, name)
		}
	}
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
