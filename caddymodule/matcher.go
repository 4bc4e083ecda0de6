package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"path"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func init() {
	caddy.RegisterModule(Matcher{})
}

// Matcher matches requests by the device that their Host names, connected or
// not, and whatever port it names beside. It sets the placeholders of the handler
// `iottunnel`, so that handlers in front of it can use them.
type Matcher struct {
	// Device ids, as patterns: `*` stands for any characters, `?` for one, and
	// `[a-c]` for one of these.
	Device []string `json:"device,omitempty"`

	app *App
}

// CaddyModule returns the Caddy module information.
func (Matcher) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.matchers.iottunnel",
		New: func() caddy.Module { return new(Matcher) },
	}
}

// Provision sets up the matcher.
func (m *Matcher) Provision(ctx caddy.Context) error {
	app, err := appOf(ctx)
	m.app = app
	return err
}

// Validate refuses malformed patterns.
func (m *Matcher) Validate() error {
	if len(m.Device) == 0 {
		return errors.New("iottunnel: the matcher has no device: write `iottunnel device PATTERN…`")
	}
	for _, pattern := range m.Device {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("iottunnel device: %q is not a pattern: * for any characters, ? for one, [a-c] for one of these", pattern)
		}
	}
	return nil
}

// MatchWithError reports whether r is for one of the devices.
func (m *Matcher) MatchWithError(r *http.Request) (bool, error) {
	e := m.app.await(r.Context())
	if e == nil {
		return false, caddyhttp.Error(http.StatusServiceUnavailable, &answers.Error{Code: wire.Unavailable})
	}
	target, err := e.hub.Lookup(r.Context(), r.Host)
	if target.Device == "" { // else it is that device, also where it does not offer the port
		if notOurs(err) {
			return false, nil
		}
		answer := answers.From(err)
		return false, caddyhttp.Error(answer.Status(), answer)
	}
	setPlaceholders(r, target)
	for _, pattern := range m.Device {
		// Validate has seen the pattern: the error can only be nil.
		if ok, _ := path.Match(pattern, target.Device); ok {
			return true, nil
		}
	}
	return false, nil
}

// notOurs reports whether err says that a host is no device's.
func notOurs(err error) bool {
	var answer *answers.Error
	return errors.Is(err, tunnelcore.ErrOtherHost) || errors.As(err, &answer) && answer.Code == wire.UnknownDevice
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	iottunnel device <patterns...>
func (m *Matcher) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() {
		if !d.NextArg() || d.Val() != "device" {
			return d.Err("matcher iottunnel: write `iottunnel device PATTERN…`")
		}
		patterns := d.RemainingArgs()
		if len(patterns) == 0 {
			return d.Err("matcher iottunnel: device takes one or more patterns, as in `iottunnel device lyon-*`")
		}
		m.Device = append(m.Device, patterns...)
		if d.NextBlock(0) {
			return d.Errf("matcher iottunnel: takes no block, given %q", d.Val())
		}
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner                 = (*Matcher)(nil)
	_ caddy.Validator                   = (*Matcher)(nil)
	_ caddyfile.Unmarshaler             = (*Matcher)(nil)
	_ caddyhttp.RequestMatcherWithError = (*Matcher)(nil)
)
