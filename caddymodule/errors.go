package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
)

// respond answers a visitor with e, or returns it for the operator's error
// routes, if some are going to answer.
func respond(w http.ResponseWriter, r *http.Request, e *answers.Error) error {
	// As reverse_proxy does for who has left. What this node has given up while it
	// stops is Canceled, too.
	if errors.Is(e, context.Canceled) && r.Context().Err() != nil {
		return caddyhttp.Error(499, e)
	}
	withoutBody(w, r)
	err := caddyhttp.Error(e.Status(), e)
	if !operatorAnswers(r, err) {
		e.WriteHTTP(w, r)
		return nil
	}
	w.Header().Set(answers.Header, string(e.Code))
	w.Header().Set("X-Robots-Tag", "noindex")
	if e.RetryAfter > 0 {
		seconds := (e.RetryAfter + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	return err
}

// operatorAnswers reports whether an error route of the server would handle err.
// Caddy cannot be asked afterwards: where no route matches, it has sent an empty
// page by then, and sites of one port share a server with each other's routes.
func operatorAnswers(r *http.Request, err error) bool {
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || srv == nil || srv.Errors == nil || len(srv.Errors.Routes) == 0 {
		return false
	}
	r = srv.Errors.WithError(r, err)
	if orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		r.Method, r.RequestURI, r.URL = orig.Method, orig.RequestURI, orig.URL
	}
	return anyMatches(srv.Errors.Routes, r)
}

// anyMatches reports whether a handler in routes would run, other than a
// subroute in which none would.
func anyMatches(routes caddyhttp.RouteList, r *http.Request) bool {
	for _, route := range routes {
		matches, err := route.MatcherSets.AnyMatchWithError(r)
		if err != nil {
			return true // Caddy reports it
		}
		if !matches {
			continue
		}
		for _, handler := range route.Handlers {
			sub, ok := handler.(*caddyhttp.Subroute)
			if !ok || anyMatches(sub.Routes, r) {
				return true
			}
		}
	}
	return false
}
