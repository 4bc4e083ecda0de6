package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func init() {
	caddy.RegisterModule(Permission{})
}

// Permission allows on-demand certificates for the hostnames of devices, and for
// nothing else: of devices that have a hostname, connected or not, and of those
// ports (`LABEL--PORT`) that a connected device serves.
//
// A wildcard certificate is the better choice where it can be had: no device's
// hostname is published in certificate transparency logs, and no visitor waits
// for a certificate.
type Permission struct {
	app *App
}

// CaddyModule returns the Caddy module information.
func (Permission) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "tls.permission.iottunnel",
		New: func() caddy.Module { return new(Permission) },
	}
}

// Provision sets up the permission.
func (p *Permission) Provision(ctx caddy.Context) error {
	app, err := appOf(ctx)
	p.app = app
	return err
}

// CertificateAllowed implements caddytls.OnDemandPermission.
func (p *Permission) CertificateAllowed(ctx context.Context, name string) error {
	e := p.app.await(ctx)
	if e == nil {
		return errors.New("iottunnel is not running")
	}
	target, err := e.hub.Lookup(ctx, name)
	var answer *answers.Error
	switch {
	case errors.Is(err, tunnelcore.ErrOtherHost):
		return fmt.Errorf("%w: %s is not a hostname of a device", caddytls.ErrPermissionDenied, name)
	case errors.As(err, &answer) && answer.Code == wire.UnknownDevice:
		return fmt.Errorf("%w: no device has the hostname %s", caddytls.ErrPermissionDenied, name)
	case err != nil:
		return err
	}
	// Any port can be written into a hostname, and each would cost a certificate.
	// Which ports a device has is known while it is connected.
	if label, _, _ := strings.Cut(names.Normal(name), "."); label != target.Label && !target.Online {
		return fmt.Errorf("%w: %s may not have that port: it is offline", caddytls.ErrPermissionDenied, target.Device)
	}
	return nil
}

// UnmarshalCaddyfile sets up the permission from Caddyfile tokens. Syntax:
//
//	on_demand_tls {
//		permission iottunnel
//	}
func (p *Permission) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	if d.NextArg() {
		return d.Errf("permission iottunnel: takes no value, given %q", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Permission)(nil)
	_ caddyfile.Unmarshaler       = (*Permission)(nil)
	_ caddytls.OnDemandPermission = (*Permission)(nil)
)
