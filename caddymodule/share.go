package caddymodule

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// accessShared is the Handler.Access that lets in who has followed a share link.
const accessShared = "shared"

// sharePath is where a share link leads, on the hostname of its device. The token is
// the link's fragment, which browsers do not send: a page there posts it. So it is in
// no access log, no Referer, and no history.
const sharePath = wire.Root + "share"

// The cookie that has the token. With https its name has the prefix by which browsers
// let no other hostname set it, and no page without TLS (RFC 6265bis §4.1.3.2).
const (
	shareCookie       = "iottunnel-share"
	shareCookieSecure = "__Host-" + shareCookie
)

const (
	// shareBody bounds what is posted, shareTime how long that takes, and shareCookies
	// the cookies that are tried.
	shareBody    = 1 << 10
	shareTime    = 10 * time.Second
	shareCookies = 4
)

//go:embed share.html
var sharePage string

// sharePolicy lets the page run its own script, and nothing else.
var sharePolicy = "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; script-src " +
	hashOf("script") + "; style-src " + hashOf("style")

// hashOf is the hash of an element of sharePage, as a policy names it.
func hashOf(element string) string {
	inner := regexp.MustCompile("(?s)<" + element + ">(.*)</" + element + ">").FindStringSubmatch(sharePage)[1]
	sum := sha256.Sum256([]byte(inner))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// bySecure reports whether the visitor came by TLS, here or at a proxy or router that
// is trusted.
func bySecure(r *http.Request, routed bool) bool {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	return r.TLS != nil || (routed || trusted) && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// cookieName is the name of the cookie where visitors come by TLS or not.
func cookieName(secure bool) string {
	if secure {
		return shareCookieSecure
	}
	return shareCookie
}

// forbidden is the one answer to who has no grant for what was asked for.
var forbidden = &answers.Error{Code: wire.Forbidden, Message: "this device is open to those who were given a link to it"}

// serveShared serves a visitor of a site with `access shared`.
func (h *Handler) serveShared(w http.ResponseWriter, r *http.Request, e *edge, routed bool) error {
	if r.URL.Path == sharePath {
		return h.serveShare(w, r, e, routed)
	}
	grants, err := grantsOf(r, e, routed)
	if err != nil {
		return refuseShared(w, r, err)
	}
	target, err := h.find(e.hub, r, false)
	i := slices.IndexFunc(grants, func(g registry.Grant) bool { return covers(g, target) })
	switch {
	case i < 0: // whatever there is behind that name
		return refuseShared(w, r, forbidden)
	case err != nil:
		return refuseShared(w, r, err)
	}
	return h.serveGranted(w, r, e, target, routed, grants[i])
}

// refuseShared answers a visitor, for nobody else to see.
func refuseShared(w http.ResponseWriter, r *http.Request, err error) error {
	w.Header().Set("Cache-Control", "no-store")
	return respond(w, r, answers.From(err))
}

// covers reports whether a grant is for what a hostname leads to. The port of a device
// that is offline may not be known.
func covers(g registry.Grant, t tunnelcore.Target) bool {
	return t.Device == g.Device && (t.Port == g.Port || t.Port == 0 && !t.Online)
}

// grantsOf returns the grants whose tokens are in the cookies of r. There can be more
// than one cookie where there is no TLS: other hostnames may set some.
func grantsOf(r *http.Request, e *edge, routed bool) ([]registry.Grant, error) {
	var grants []registry.Grant
	cookies := r.CookiesNamed(cookieName(bySecure(r, routed)))
	var refused error = forbidden
	for _, c := range cookies[:min(len(cookies), shareCookies)] {
		g, err := e.hub.CheckGrant(r.Context(), c.Value, registry.GrantShare, "", 0, clientIP(r))
		if err == nil {
			grants = append(grants, g)
		} else if answers.From(err).Code != wire.Unauthorized {
			refused = err
		}
	}
	if len(grants) == 0 {
		return nil, refused
	}
	return grants, nil
}

// serveGranted serves a visitor for as long as the grant lasts, waiting for the device
// included, and tells the audit log.
func (h *Handler) serveGranted(w http.ResponseWriter, r *http.Request, e *edge, target tunnelcore.Target, routed bool, g registry.Grant) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer e.hub.HoldGrant(g.ID, cancel)()
	r = r.WithContext(ctx) // no Clone, see guardConnection
	if !target.Online {
		// It may come back as something else: another port, or under its name another device.
		var err error
		target, err = h.find(e.hub, r, !routed)
		switch {
		case errors.Is(context.Cause(ctx), tunnelcore.ErrGrantEnded), !covers(g, target):
			return refuseShared(w, r, forbidden)
		case err != nil:
			return refuseShared(w, r, err)
		case !target.Online:
			return refuseShared(w, r, &answers.Error{Code: wire.NotHere, Message: "the device is connected to no node"})
		}
	}
	aw := &auditWriter{ResponseWriter: w}
	aw.countBody(r)
	v := tunnelcore.Visit{
		Kind: visitShare, Device: target.Device, Port: target.Port, From: clientAddr(r),
		Grant: g.ID, By: g.By, Began: time.Now(),
	}
	broken := true // by a panic, as reverse_proxy breaks an answer off
	var err error
	defer func() {
		v.In, v.Out, v.Err = aw.in.Load(), aw.out.Load(), err
		if cause := context.Cause(ctx); errors.Is(cause, tunnelcore.ErrGrantEnded) || errors.Is(cause, tunnelcore.ErrGrantUnconfirmed) {
			v.Err = cause
		} else if v.Err == nil && broken {
			v.Err = errors.New("broken off")
		}
		user := ""
		if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
			user, _ = repl.GetString("http.auth.user.id")
		}
		h.app.audit.write(v, zap.String("user", user), zap.String("method", r.Method), zap.String("path", r.URL.Path), zap.Int("status", aw.status))
	}()
	err = h.serveVisitor(aw, r, e, target, routed, true)
	broken = false
	return err
}

// serveShare turns the token of a link into a cookie for this hostname alone.
func (h *Handler) serveShare(w http.ResponseWriter, r *http.Request, e *edge, routed bool) error {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("X-Robots-Tag", "noindex")
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		withoutBody(w, r)
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", sharePolicy)
		if r.Method == http.MethodGet {
			// Who has left reads nothing.
			_, _ = io.WriteString(w, sharePage)
		}
		return nil
	case http.MethodPost:
	default:
		return refuseShared(w, r, &answers.Error{Code: wire.BadRequest, Message: "method is none of GET and POST"})
	}
	if !fromOwnPage(r) {
		return refuseShared(w, r, &answers.Error{Code: wire.Forbidden, Message: "another site may not open devices, and this browser does not say that it was the link's own page"})
	}
	// A stranger may send a byte now and then; not all writers have deadlines.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(shareTime))
	body, err := io.ReadAll(io.LimitReader(r.Body, shareBody+1))
	form, err2 := url.ParseQuery(string(body))
	if err := errors.Join(err, err2); err != nil || len(body) > shareBody {
		return refuseShared(w, r, &answers.Error{Code: wire.BadRequest, Message: "not a form with a token", Cause: err})
	}
	token := strings.TrimSpace(form.Get("token"))
	g, err := e.hub.CheckGrant(r.Context(), token, registry.GrantShare, "", 0, clientIP(r))
	if err == nil {
		target, failed := e.hub.Lookup(r.Context(), r.Host)
		if !covers(g, target) {
			err = forbidden
			if failed != nil && answers.From(failed).Code == wire.Unavailable {
				err = failed
			}
		}
	}
	switch {
	case err != nil && answers.From(err).Code == wire.Unauthorized, errors.Is(err, forbidden):
		return refuseShared(w, r, &answers.Error{Code: wire.Forbidden, Message: "the link is wrong, was revoked, has expired, or is for something else"})
	case err != nil:
		return refuseShared(w, r, err)
	}
	secure := bySecure(r, routed)
	http.SetCookie(w, &http.Cookie{
		Name: cookieName(secure), Value: token, Path: "/", Secure: secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
		MaxAge: max(1, int(time.Until(g.Until).Seconds())),
	})
	withoutBody(w, r)
	header.Set("Location", "/")
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// fromOwnPage reports whether a browser says that a page of this very hostname has
// posted a token: another site could give its visitors a cookie of its own choice, whose
// use is then in the audit log under the wrong grant. Old browsers send no
// Sec-Fetch-Site, and older ones no Origin, but the Referer, for which the page asks. One
// who sends none of them cannot be told from another site's visitor.
func fromOwnPage(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		return false
	}
	for _, name := range []string{"Origin", "Referer"} {
		if from := r.Header[name]; len(from) > 0 {
			// By name alone: cookies do not tell ports apart, and proxies change both.
			page, err := url.Parse(from[0])
			return len(from) == 1 && err == nil && page.Host != "" && names.Normal(page.Host) == names.Normal(r.Host)
		}
	}
	return r.Header.Get("Sec-Fetch-Site") != ""
}

// hideShareCookie takes the cookies of links from a request: devices are not to have
// them.
func hideShareCookie(h http.Header) {
	lines := h["Cookie"]
	if !slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, shareCookie) }) {
		return
	}
	var rest []string
	for _, line := range lines {
		var kept []string
		for one := range strings.SplitSeq(line, ";") {
			name, _, _ := strings.Cut(one, "=")
			if one = strings.TrimSpace(one); one != "" && !isShareCookie(name) {
				kept = append(kept, one)
			}
		}
		if len(kept) > 0 {
			rest = append(rest, strings.Join(kept, "; "))
		}
	}
	if len(rest) == 0 {
		delete(h, "Cookie")
		return
	}
	h["Cookie"] = rest
}

// isShareCookie reports whether a cookie has a name that devices must not use, in
// whatever case.
func isShareCookie(name string) bool {
	name = strings.TrimSpace(name)
	return strings.EqualFold(name, shareCookie) || strings.EqualFold(name, shareCookieSecure)
}

// keepPrivate has an answer kept by nobody but the visitor's own browser: caches in
// between do not know of grants.
func keepPrivate(h http.Header) {
	directives := []string{"private"}
	for _, line := range h["Cache-Control"] {
		for d := range strings.SplitSeq(line, ",") {
			d = strings.TrimSpace(d)
			name, _, _ := strings.Cut(d, "=")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "", "public", "private", "s-maxage":
			default:
				directives = append(directives, d)
			}
		}
	}
	h["Cache-Control"] = []string{strings.Join(directives, ", ")}
	// What CDNs read before Cache-Control (RFC 9213), by whatever name of theirs.
	for name := range h {
		if strings.HasSuffix(name, "Cdn-Cache-Control") || name == "Surrogate-Control" || name == "Edge-Control" {
			delete(h, name)
		}
	}
}
