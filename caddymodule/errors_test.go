package caddymodule

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Who is still there gets an answer, also to what this node has given up as it stops.
func TestRespondToWhatWasGivenUp(t *testing.T) {
	given := answers.From(context.Canceled)
	r := httptest.NewRequest("GET", "/", nil)
	w := httptest.NewRecorder()
	if err := respond(w, r, given); err != nil || w.Code != 503 || w.Header().Get(answers.Header) != string(wire.Unavailable) {
		t.Errorf("the visitor is there: %v, status %d, %q", err, w.Code, w.Header().Get(answers.Header))
	}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	var left caddyhttp.HandlerError
	if err := respond(httptest.NewRecorder(), r.WithContext(ctx), given); !errors.As(err, &left) || left.StatusCode != 499 {
		t.Errorf("the visitor has left: %v", err)
	}
}
