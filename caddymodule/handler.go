package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// The modes of the handler.
const (
	modeBoth     = ""
	modeAgents   = "agents"
	modeDevices  = "devices"
	modeInternal = "internal"
)

// Handler is where agents connect, and where visitors reach their devices. What
// is neither goes to the next handler.
//
// A request is a visitor's when its Host is a hostname of the domain of the
// devices: `LABEL.domain`, or `LABEL--PORT.domain` for another port than the
// usual one. It is an agent's when its path begins with `/.iottunnel/` on any
// other host, where `/.iottunnel/health` tells load balancers with 200 or 503
// whether to send anybody here.
//
// Of what visitors send, headers that speak for a proxy or an authenticator
// (Forwarded, X-Forwarded-*, X-Real-IP, Remote-User and their like) do not reach
// the device unless the visitor is one of the server's `trusted_proxies`, a
// handler in front has made them (`forward_auth` with `copy_headers`,
// `basic_auth`), or `keep_headers` names them. X-Forwarded-For, -Proto and -Host
// are set as `reverse_proxy` sets them. The Authorization that a handler such as
// `basic_auth` has used stays here. The same names in trailers never pass. Of
// protocols that a visitor asks to switch to, WebSocket alone passes. Of what
// devices send, cookies for any other hostname than their own are dropped, and
// headers that servers in front act on (X-Accel-*, X-Sendfile).
//
// Visitors are told apart by their address (`limits`). Behind another proxy
// configure `trusted_proxies`, and `trusted_proxies_unix` where it comes through a
// socket file: otherwise all of its visitors count as one.
//
// Connections to a device are kept and serve one visitor after another. Where an
// agent announces visitors to a local service with the PROXY protocol, such a
// connection tells the address of the first: for HTTP use X-Forwarded-For. A
// request whose Authorization is not Basic, Bearer or Digest has a connection of
// its own, so logins that hold for a connection (NTLM, Negotiate) do not work.
//
// What the edge answers itself carries the header Iottunnel-Error. It is a page,
// JSON or text, as the visitor's Accept asks; where the site has `handle_errors`
// that matches, it is the operator's answer. In JSON configurations only the
// error routes of the server are looked at, not those of subroutes.
//
// Placeholder | Description
// ------------|-------------
// `{http.iottunnel.device}` | The device id
// `{http.iottunnel.label}` | The label in its hostname
// `{http.iottunnel.node}` | The node that the device is connected to, if it is
// `{http.iottunnel.port}` | The port of the device, if it is connected
type Handler struct {
	// What to serve: `agents`, `devices`, or, if empty, both. `internal` serves the
	// other nodes of a cluster, which prove who they are, and visitors and agents
	// that the app's `node.routers` pass on.
	Mode string `json:"mode,omitempty"`

	// Headers of requests that reach the device although they speak for a proxy
	// or an authenticator. Name those that a handler in front sets on each
	// request: otherwise visitors can send what they like in them.
	KeepHeaders []string `json:"keep_headers,omitempty"`

	// Who may visit devices here: `shared`, those who have followed a link that `share`
	// has made, and nobody else. Handlers in front count besides. Default: all whom
	// those let in.
	Access string `json:"access,omitempty"`

	app     *App
	proxy   *reverseproxy.Handler
	keep    map[string]bool // KeepHeaders, canonical
	logger  *slog.Logger
	holding bool
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.iottunnel",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler.
func (h *Handler) Provision(ctx caddy.Context) error {
	app, err := appOf(ctx)
	if err != nil {
		return err
	}
	h.app = app
	h.logger = ctx.Slogger()
	h.keep = make(map[string]bool, len(h.KeepHeaders))
	for _, name := range h.KeepHeaders {
		h.keep[http.CanonicalHeaderKey(name)] = true
	}
	srv, onServer := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if h.Mode == modeInternal {
		app.serveNodes(srv)
	}
	if onServer && (h.Mode == modeBoth || h.Mode == modeDevices) {
		app.serve(srv)
	}
	if h.Mode != modeAgents {
		proxy := newProxy()
		if err := proxy.Provision(ctx); err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
		h.proxy = proxy
	}
	if h.Access == accessShared {
		app.close()
	}
	app.hold()
	h.holding = true
	return nil
}

// Validate refuses modes that do not exist.
func (h *Handler) Validate() error {
	if h.Access != "" && (h.Access != accessShared || h.Mode == modeAgents) {
		return fmt.Errorf("iottunnel %s: access: %q is not `shared`, or no device is served here", h.Mode, h.Access)
	}
	switch h.Mode {
	case modeBoth, modeAgents, modeDevices:
	case modeInternal:
		if n := h.app.Node; n == nil || len(n.Secrets) == 0 && len(n.Routers) == 0 {
			return errors.New("iottunnel internal: would serve nobody: write `node { secret … }` into the global option iottunnel for other nodes, or `routers` for routers")
		}
	default:
		return fmt.Errorf("iottunnel: %q is not a mode: agents, devices, internal, or none for agents and devices", h.Mode)
	}
	return nil
}

// Cleanup says goodbye to visitors' WebSockets if Caddy exits. On a reload they
// go on.
func (h *Handler) Cleanup() error {
	var err error
	if h.proxy != nil {
		if exiting() {
			h.proxy.StreamCloseDelay = 0
		}
		err = h.proxy.Cleanup()
	}
	if h.holding {
		h.holding = false
		err = errors.Join(err, h.app.release())
	}
	return err
}

// ServeHTTP serves agents and visitors.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	holdBody(r)
	e := h.app.await(r.Context())
	if e == nil {
		return respond(w, r, &answers.Error{Code: wire.Unavailable})
	}
	if h.Mode == modeInternal {
		return h.serveInternal(w, r, next, e)
	}
	if h.Mode != modeAgents && directlyUnder(r.Host, h.app.Domain) {
		return h.serveTarget(w, r, e, false)
	}
	if h.Mode != modeDevices && strings.HasPrefix(r.URL.Path, wire.Root) && !under(r.Host, h.app.Domain) {
		if refusal := checkTarget(r); refusal != nil {
			refusal.WriteJSON(w)
			return nil
		}
		if r.URL.Path == healthPath {
			serveHealth(w, r, e)
			return nil
		}
		serveAgent(w, r, e, tunnelcore.Arrival{From: clientIP(r), Secure: r.TLS != nil})
		return nil
	}
	return next.ServeHTTP(w, r)
}

// serveTarget serves a visitor of the device that the Host names. One who comes
// through a router is not kept waiting for a device that is connected nowhere: the
// router is told, and knows whether to wait.
func (h *Handler) serveTarget(w http.ResponseWriter, r *http.Request, e *edge, routed bool) error {
	streamBody(w, r) // a refusal, too, does not wait for the rest of the body
	if refusal := checkTarget(r); refusal != nil {
		return respond(w, r, refusal)
	}
	if h.Access == accessShared {
		return h.serveShared(w, r, e, routed)
	}
	target, err := h.find(e.hub, r, !routed)
	switch {
	case err != nil:
		return respond(w, r, answers.From(err))
	case !target.Online:
		return respond(w, r, &answers.Error{Code: wire.NotHere, Message: "the device is connected to no node"})
	}
	return h.serveVisitor(w, r, e, target, routed, false)
}

// under reports whether host is a name under domain, leased or not: agents are
// never served there.
func under(host, domain string) bool {
	return strings.HasSuffix(names.Normal(host), "."+domain)
}

// directlyUnder reports whether host is domain with one more label.
func directlyUnder(host, domain string) bool {
	label, rest, _ := strings.Cut(names.Normal(host), ".")
	return label != "" && rest == domain
}

// find resolves the Host of a visitor, a name under the domain. Placeholders are set for devices that are
// offline, too: error pages use them.
// With wait, a device that is offline is waited for, or an error.
func (h *Handler) find(hub *tunnelcore.Hub, r *http.Request, wait bool) (tunnelcore.Target, error) {
	target, err := hub.Lookup(r.Context(), r.Host)
	if errors.Is(err, tunnelcore.ErrOtherHost) {
		// A name that is never leased, such as a--b: it is under the domain all the
		// same.
		return target, &answers.Error{Code: wire.UnknownDevice}
	}
	if err != nil {
		return target, err
	}
	setPlaceholders(r, target)
	if target.Online || !wait {
		return target, nil
	}
	target, err = hub.Await(r.Context(), r.Host)
	if err == nil {
		setPlaceholders(r, target)
	}
	return target, err
}

func setPlaceholders(r *http.Request, t tunnelcore.Target) {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Set("http.iottunnel.device", t.Device)
	repl.Set("http.iottunnel.label", t.Label)
	if t.Online {
		repl.Set("http.iottunnel.node", t.Node)
		repl.Set("http.iottunnel.port", t.Port)
	}
}

// clientIP is the address of whoever sent r, behind trusted proxies. It is the
// zero Addr for what comes through a socket file from a proxy that is not trusted:
// all of that counts as one address.
func clientIP(r *http.Request) netip.Addr { return visitorOf(r.Context()) }

// visitorOf is clientIP by the context of a request.
func visitorOf(ctx context.Context) netip.Addr {
	if s, ok := caddyhttp.GetVar(ctx, caddyhttp.ClientIPVarKey).(string); ok {
		if addr, err := netip.ParseAddr(s); err == nil {
			return addr.Unmap()
		}
	}
	return netip.Addr{}
}

// clientAddr is clientIP with its port where that is known: a proxy in between
// tells the address alone.
func clientAddr(r *http.Request) netip.AddrPort {
	ip := clientIP(r)
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && remote.Addr().Unmap() == ip {
		return netip.AddrPortFrom(ip, remote.Port())
	}
	return netip.AddrPortFrom(ip, 0)
}

// addLogField adds a field to the access log of r.
func addLogField(r *http.Request, field zap.Field) {
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Add(field)
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
