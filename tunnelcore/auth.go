package tunnelcore

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
)

// Credential is what an agent shows to prove that it is a device.
type Credential struct {
	Device string               // the id it claims
	Token  string               // of `Authorization: Bearer`; empty when there was none
	TLS    *tls.ConnectionState // nil on plain connections
	Remote netip.Addr
}

// Authenticator decides whether an agent is the device it says it is.
type Authenticator interface {
	// Authenticate returns nil when c proves the device, ErrNotMine when another
	// authenticator should be asked, and another error when c is wrong: that one
	// ends the search, and its text is logged, never shown. It compares secrets
	// in constant time and may be called concurrently.
	Authenticate(ctx context.Context, c Credential) error
}

// ErrNotMine is an authenticator's answer about a device or a kind of
// credential that it does not know.
var ErrNotMine = errors.New("not known to this authenticator")

// AuthenticatorFunc makes an Authenticator of a function.
type AuthenticatorFunc func(ctx context.Context, c Credential) error

// Authenticate calls f.
func (f AuthenticatorFunc) Authenticate(ctx context.Context, c Credential) error { return f(ctx, c) }

func authenticate(ctx context.Context, all []Authenticator, c Credential) error {
	for _, a := range all {
		if err := a.Authenticate(ctx, c); !errors.Is(err, ErrNotMine) {
			return err
		}
	}
	return errors.New("no authenticator knows this device")
}
