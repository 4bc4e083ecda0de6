package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// TestAgain lets nothing be done twice that may not be.
func TestAgain(t *testing.T) {
	lost := fmt.Errorf("%w", tunnelcore.ErrLost)
	unsent := fmt.Errorf("%w: %w", tunnelcore.ErrLost, tunnelcore.ErrUnsent)
	for _, c := range []struct {
		method string
		body   bool
		err    error
		want   bool
	}{
		{"GET", false, lost, true},
		{"HEAD", false, lost, true},
		{"GET", true, lost, false},
		{"POST", false, lost, false},
		{"DELETE", false, lost, false},
		{"POST", true, unsent, true},
		{"GET", false, unsent, true},
		{"GET", false, errors.New("another"), false},
	} {
		r := &http.Request{Method: c.method}
		if got := new(visit).Again(r, c.body, c.err); got != c.want {
			t.Errorf("%s, body %t, %v: %t", c.method, c.body, c.err, got)
		}
	}
}
