package caddymodule

import (
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// serveAgent hands the request to the hub.
func serveAgent(w http.ResponseWriter, r *http.Request, e *edge, a tunnelcore.Arrival) {
	handOver(w, r, func(w http.ResponseWriter) { e.hub.ServeAgent(w, r, a) })
}

// servePeer does so with another node's.
func servePeer(w http.ResponseWriter, r *http.Request, e *edge) {
	handOver(w, r, func(w http.ResponseWriter) { e.hub.ServePeer(w, r) })
}

// handOver calls serve, which may take the connection.
func handOver(w http.ResponseWriter, r *http.Request, serve func(w http.ResponseWriter)) {
	aw := &agentWriter{ResponseWriter: w}
	serve(aw)
	if !aw.answered {
		// The hub has taken the connection: Caddy would log and count a request that
		// was never answered. The hub logs what becomes of the tunnel.
		caddyhttp.SetVar(r.Context(), caddyhttp.LogSkipVar, true)
	}
}

// agentWriter notes whether a request is answered over HTTP.
type agentWriter struct {
	http.ResponseWriter
	answered bool
}

// WriteHeader notes the answer.
func (w *agentWriter) WriteHeader(status int) {
	w.answered = true
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for whoever takes the connection.
func (w *agentWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
