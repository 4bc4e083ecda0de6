package caddymodule

import (
	"testing"

	"github.com/iottunnel/iottunnel/internal/leak"
)

// TestMain lets be what Caddy starts once per process, or ends in its own time.
func TestMain(m *testing.M) {
	leak.Main(m,
		"github.com/caddyserver/certmagic.",
		"github.com/caddyserver/caddy/v2/modules/caddytls.",
		"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*metricsUpstreamsHealthyUpdater)",
		"github.com/golang/glog.",
		"go.opencensus.io/stats/view.",
	)
}
