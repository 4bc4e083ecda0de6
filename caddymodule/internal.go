package caddymodule

import (
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// ownerHeader tells a router the node that a device is connected to, when it has
// asked another one. It stands on answers of sites with `iottunnel internal` alone.
const ownerHeader = ourPrefix + "Owner"

// serveInternal serves other nodes, which prove who they are, and routers, which
// are known by their address and trusted to say where visitors and agents come
// from. A hostname of a device is a visitor's, whatever the path: visitors write
// it.
func (h *Handler) serveInternal(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, e *edge) error {
	streamBody(w, r) // nobody is refused only after the rest of the body has come
	visitor := directlyUnder(r.Host, h.app.Domain)
	if !visitor && r.URL.Path == cluster.Path {
		servePeer(w, r, e)
		return nil
	}
	if !visitor && r.URL.Path == healthPath {
		serveHealth(w, r, e)
		return nil
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !h.app.node.isRouter(peer.Addr().Unmap()) {
		refuseStranger(w, r)
		return nil
	}
	switch {
	case visitor:
		r, err := routed(r)
		if err != nil {
			return respond(w, r, err)
		}
		return h.serveTarget(w, r, e, true)
	case strings.HasPrefix(r.URL.Path, wire.Root) && !under(r.Host, h.app.Domain):
		r, err := routed(r)
		if err != nil {
			err.WriteJSON(w)
			return nil
		}
		if refusal := checkTarget(r); refusal != nil {
			refusal.WriteJSON(w)
			return nil
		}
		serveAgent(w, r, e, tunnelcore.Arrival{
			From: clientIP(r), Secure: strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https"), Routed: true,
		})
		return nil
	}
	return next.ServeHTTP(w, r)
}

// refuseStranger answers who is neither another node nor a router.
func refuseStranger(w http.ResponseWriter, r *http.Request) {
	withoutBody(w, r)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusForbidden)
	// There is nothing to do when who asked has left.
	_, _ = io.WriteString(w, "403: this address serves the nodes and routers of an iottunnel edge, and yours is not among the\n"+
		"`routers` in its configuration. Visitors and agents are served at its public addresses.\n")
}

// routed returns r as the router says that it came: from its visitor or agent, not
// from the router. The last address in X-Forwarded-For is the one that the router
// has seen itself; those before it are what it was told, and pass on.
func routed(r *http.Request) (*http.Request, *answers.Error) {
	header := r.Header.Clone()
	forwarded := strings.Join(header["X-Forwarded-For"], ",")
	before, last := "", forwarded
	if i := strings.LastIndexByte(forwarded, ','); i >= 0 {
		before, last = strings.Trim(forwarded[:i], ", \t"), forwarded[i+1:]
	}
	last = strings.TrimSpace(last)
	if last == "" {
		last = strings.TrimSpace(header.Get("X-Real-Ip"))
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r, &answers.Error{Code: wire.Unavailable, Cause: err}
	}
	from := netip.AddrPortFrom(peer.Addr().Unmap(), 0) // a router that says nothing speaks for itself
	if last != "" {
		if from, err = forwardedAddr(last); err != nil {
			return r, &answers.Error{Code: wire.BadRequest, Message: "the router's X-Forwarded-For or X-Real-IP does not end with an IP address", Cause: err}
		}
	}
	if before == "" {
		delete(header, "X-Forwarded-For")
	} else {
		header["X-Forwarded-For"] = []string{before} // the proxy adds from, once
	}
	r = r.WithContext(r.Context()) // no Clone, see guardConnection
	r.Header = header
	r.RemoteAddr = from.String()
	caddyhttp.SetVar(r.Context(), caddyhttp.ClientIPVarKey, from.Addr().String())
	caddyhttp.SetVar(r.Context(), caddyhttp.TrustedProxyVarKey, true)
	return r, nil
}

// forwardedAddr reads an address with or without a port, as proxies write it.
func forwardedAddr(text string) (netip.AddrPort, error) {
	if from, err := netip.ParseAddrPort(text); err == nil {
		return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), nil
	}
	addr, err := netip.ParseAddr(strings.Trim(text, "[]"))
	return netip.AddrPortFrom(addr.Unmap().WithZone(""), 0), err
}
