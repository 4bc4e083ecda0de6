package caddymodule

import (
	"bufio"
	"net"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// serveAgent hands the request to the hub.
func serveAgent(w http.ResponseWriter, r *http.Request, e *edge) {
	aw := &agentWriter{ResponseWriter: w}
	e.hub.ServeAgent(aw, r, clientIP(r))
	if aw.hijacked {
		// Caddy would log and count a request that was never answered. The hub
		// logs what becomes of the tunnel.
		caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	}
}

// agentWriter can be hijacked, through whatever Caddy has wrapped around the
// connection: only the innermost writer gives it up without staying attached. It
// has no Unwrap, so that nobody passes it by.
type agentWriter struct {
	http.ResponseWriter
	hijacked bool
}

// Hijack takes the connection from the innermost writer. It fails with
// http.ErrNotSupported where there is none to take, as with HTTP/2.
func (w *agentWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	inner := w.ResponseWriter
	for {
		u, ok := inner.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		inner = u.Unwrap()
	}
	hijacker, ok := inner.(http.Hijacker)
	if !ok {
		return nil, nil, http.ErrNotSupported
	}
	conn, rw, err := hijacker.Hijack()
	w.hijacked = err == nil
	return conn, rw, err
}

// Interface guards
var _ http.Hijacker = (*agentWriter)(nil)
