package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

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
// nothing else: of devices that have a hostname, connected or not.
//
// Names of ports (`LABEL--PORT`) get none unless their port is listed: a device
// can say that it serves whatever ports it likes, and use up what a certificate
// authority issues for the domain. With a wildcard certificate all ports can be
// reached. It is the better choice where it can be had: no device's hostname is
// published in certificate transparency logs, and no visitor waits for a
// certificate.
type Permission struct {
	// Ports whose names (`LABEL--PORT`) get certificates, while the device is
	// connected and serves them. Each allows one more certificate per device.
	// Default: none.
	Ports []uint16 `json:"ports,omitempty"`

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
	host, _ := names.ParseHost(name, p.app.Domain)
	switch {
	case host.Port == 0:
		return nil
	case !slices.Contains(p.Ports, host.Port):
		return fmt.Errorf("%w: the permission does not list port %d", caddytls.ErrPermissionDenied, host.Port)
	case !target.Online:
		// Which ports a device has is known while it is connected.
		return fmt.Errorf("%w: %s may not have that port: it is offline", caddytls.ErrPermissionDenied, target.Device)
	}
	return nil
}

var permissionSettings = []setting[*Permission]{
	{"ports", func(p *Permission, d *caddyfile.Dispenser) error {
		values, err := someValues(d, "permission iottunnel: ports", "port numbers")
		for _, value := range values {
			port, err := strconv.ParseUint(value, 10, 16)
			if err != nil || port == 0 {
				return d.Errf("permission iottunnel: ports: %q is not a port between 1 and 65535", value)
			}
			p.Ports = append(p.Ports, uint16(port))
		}
		return err
	}},
}

// UnmarshalCaddyfile sets up the permission from Caddyfile tokens. Syntax:
//
//	on_demand_tls {
//		permission iottunnel {
//			ports <ports...>
//		}
//	}
func (p *Permission) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the module's name
	if d.NextArg() {
		return d.Errf("permission iottunnel: takes no value, given %q", d.Val())
	}
	return parseBlock(d, "permission iottunnel", p, permissionSettings)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Permission)(nil)
	_ caddyfile.Unmarshaler       = (*Permission)(nil)
	_ caddytls.OnDemandPermission = (*Permission)(nil)
)
