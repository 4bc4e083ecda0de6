package caddymodule

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func init() {
	caddy.RegisterModule(new(EnrolledAuth))
}

// EnrolledAuth knows each device by a secret of its own, which the operator gives it
// (`caddy iottunnel enroll ID`) or it gets for a claim code. Only the SHA-256 of a
// secret is kept, in the registry. A device can have two at once while it changes
// them: when it first uses the new one, the old one ends.
//
// A device that is revoked is cut off within 5 seconds on any node, and let in by no
// other authenticator either, wherever this one stands among them.
type EnrolledAuth struct {
	Policy

	registry atomic.Pointer[registry.Credentials]
}

// CaddyModule returns the Caddy module information.
func (*EnrolledAuth) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel.authenticators.enrolled",
		New: func() caddy.Module { return new(EnrolledAuth) },
	}
}

var (
	errEnrolledSecret = errors.New("enrolled: the secret is wrong")
	errRevoked        = errors.New("enrolled: the device is revoked")
)

// useRegistry says where the secrets are. Until then nothing can be decided.
func (e *EnrolledAuth) useRegistry(r registry.Credentials) { e.registry.Store(&r) }

// credential returns what is recorded of a device; errRevoked if it is revoked.
func (e *EnrolledAuth) credential(ctx context.Context, device string) (registry.Credential, error) {
	r := e.registry.Load()
	if r == nil {
		return registry.Credential{}, fmt.Errorf("enrolled: %w: starting", tunnelcore.ErrUndecided)
	}
	c, err := (*r).Credential(ctx, device)
	switch {
	case errors.Is(err, registry.ErrUnknown):
		return c, tunnelcore.ErrNotMine
	case err != nil:
		return c, fmt.Errorf("enrolled: %w: %w", tunnelcore.ErrUndecided, err)
	case c.Revoked():
		return c, errRevoked
	}
	return c, nil
}

// Authenticate implements tunnelcore.Authenticator.
func (e *EnrolledAuth) Authenticate(ctx context.Context, cred tunnelcore.Credential) error {
	c, err := e.credential(ctx, cred.Device)
	if err != nil {
		return err
	}
	got := registry.HashSecret(cred.Token)
	current := subtle.ConstantTimeCompare(got[:], c.Current[:]) == 1
	next := subtle.ConstantTimeCompare(got[:], c.Next[:]) == 1
	switch {
	case current:
		return nil
	case !next:
		return errEnrolledSecret
	}
	err = registry.Promote(ctx, *e.registry.Load(), cred.Device, got)
	switch {
	case errors.Is(err, registry.ErrUnknown): // it has been replaced meanwhile
		return errEnrolledSecret
	case err != nil:
		return fmt.Errorf("enrolled: %w: %w", tunnelcore.ErrUndecided, err)
	}
	return nil
}

// revocations is asked before all authenticators: it refuses devices that are
// revoked, and knows no other.
type revocations struct{ *EnrolledAuth }

// Authenticate implements tunnelcore.Authenticator.
func (r revocations) Authenticate(ctx context.Context, cred tunnelcore.Credential) error {
	if _, err := r.credential(ctx, cred.Device); err != nil {
		return err
	}
	return tunnelcore.ErrNotMine
}

// enrolls reports whether devices can be enrolled.
func (a *App) enrolls() bool {
	for _, auth := range a.authenticators {
		if _, ok := auth.(*EnrolledAuth); ok {
			return true
		}
	}
	return false
}

// bindAuth gives the authenticators that go by the registry the one that is open.
func (a *App) bindAuth(r registry.Registry) {
	for _, auth := range a.authenticators {
		if e, ok := auth.(*EnrolledAuth); ok {
			e.useRegistry(r)
		}
	}
}

// UnmarshalCaddyfile sets up the authenticator from Caddyfile tokens. Syntax:
//
//	auth enrolled {
//		allow_devices <patterns...>
//		allow_ports   <ports...>
//	}
//
// The block may be left out.
func (e *EnrolledAuth) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the provider's name
	if d.NextArg() {
		return d.Errf("auth enrolled: takes no value, given %q: devices are enrolled with `caddy iottunnel enroll ID`", d.Val())
	}
	return parseBlock(d, "auth enrolled", e, policySettings[*EnrolledAuth]("auth enrolled"))
}

// Interface guards
var (
	_ caddyfile.Unmarshaler    = (*EnrolledAuth)(nil)
	_ tunnelcore.Authenticator = (*EnrolledAuth)(nil)
	_ tunnelcore.Authenticator = revocations{}
)
