package caddymodule

import (
	"io"
	"net/http"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// healthPath is what load balancers ask, on sites that serve agents, routers or
// other nodes.
const healthPath = wire.Root + "health"

// serveHealth tells whether new visitors and agents should come to this node. It
// tells nothing else: anybody may ask.
func serveHealth(w http.ResponseWriter, r *http.Request, e *edge) {
	withoutBody(w, r)
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	state := "ok"
	switch {
	case e.ending.Load():
		state = "stopping"
	case e.hub.Stats().Draining:
		state = "draining"
	}
	if state != "ok" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = io.WriteString(w, state+"\n") // there is nothing to do when who asked has left
}
