package caddymodule

import (
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// checkTarget refuses requests whose target has no path, or not one alone: what
// reaches a device must be what matchers in front have looked at, and they look
// at the path. net/http sends a target such as `x:http://host/admin` as it is,
// and an empty one as /; `*` and CONNECT are for the edge itself, which offers
// neither (RFC 9112 §3.2). Only WebSockets come by CONNECT over HTTP/2 and
// HTTP/3, with a path (RFC 8441, RFC 9220).
func checkTarget(r *http.Request) *answers.Error {
	if r.Method == http.MethodConnect && !extendedConnect(r) {
		return &answers.Error{Code: wire.BadRequest, Message: "CONNECT is not served here"}
	}
	u := r.URL
	if orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		u = orig.URL // a handler in front may have stripped all of the path
	}
	if u.Opaque != "" || r.URL.Opaque != "" || !strings.HasPrefix(u.Path, "/") {
		return &answers.Error{Code: wire.BadRequest, Message: "the request's target must begin with a slash"}
	}
	return nil
}

// extendedConnect reports whether r opens a WebSocket by CONNECT, as
// reverse_proxy tells it.
func extendedConnect(r *http.Request) bool {
	return r.ProtoMajor == 2 && r.Header.Get(":protocol") == "websocket" ||
		r.ProtoMajor == 3 && r.Proto == "websocket"
}
