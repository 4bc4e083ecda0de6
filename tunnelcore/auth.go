package tunnelcore

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Credential is what an agent shows to prove that it is a device.
type Credential struct {
	Device string               // the id it claims
	Token  string               // of `Authorization: Bearer`; empty when there was none
	TLS    *tls.ConnectionState // nil unless a certificate was shown
	Remote netip.Addr
	Ports  []wire.Port // that it forwards; not to be changed
}

// Authenticator decides whether an agent is the device it says it is.
type Authenticator interface {
	// Authenticate returns nil when c proves the device, ErrNotMine when another
	// authenticator should be asked, and another error when c is wrong: that one
	// ends the search, and its text is logged, never shown. It compares secrets
	// in constant time and may be called concurrently.
	Authenticate(ctx context.Context, c Credential) error
}

var (
	// ErrNotMine is an authenticator's answer about a device or a kind of
	// credential that it does not know.
	ErrNotMine = errors.New("not known to this authenticator")
	// ErrUndecided: what it has to ask does not answer. The agent is to come again,
	// and a tunnel that is there stays, and is authorised once it does answer.
	ErrUndecided = errors.New("cannot be decided now")
	// ErrExpired: the credential was good, and is too old. A tunnel that is up is
	// closed with 4102: its agent may have another by now.
	ErrExpired = errors.New("the credential has expired")
	// ErrNotEntitled: the device is proved, but may not do what it wants to.
	ErrNotEntitled = errors.New("not entitled to this")
)

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
