package e2e

import (
	"context"
	"crypto/tls"

	"github.com/quic-go/quic-go"
)

// dialQUIC dials addr whatever the hostname, as a resolver that knows it would do.
func dialQUIC(addr string) func(context.Context, string, *tls.Config, *quic.Config) (*quic.Conn, error) {
	return func(ctx context.Context, _ string, t *tls.Config, c *quic.Config) (*quic.Conn, error) {
		return quic.DialAddrEarly(ctx, addr, t, c)
	}
}
