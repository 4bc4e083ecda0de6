package caddymodule

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// Policy is what an authenticator may let devices do. A reload of the configuration
// closes tunnels that a new policy does not allow.
type Policy struct {
	// Devices that it speaks for: ids, or patterns as in `lyon-*`. It does not decide
	// about others. With `hostname device` these are the hostnames that it can give
	// away. Default: all.
	AllowDevices []string `json:"allow_devices,omitempty"`

	// Ports that the devices may forward, and ranges of them, as in `80` and
	// `8000-8999`. A device that forwards another one is refused as a whole, so that
	// the mistake is noticed. Default: all.
	AllowPorts []string `json:"allow_ports,omitempty"`

	ports []portRange
}

// portRange is ports from first to last, both included.
type portRange struct{ first, last uint16 }

// restricted is an authenticator with a policy.
type restricted interface {
	tunnelcore.Authenticator
	policy() *Policy
}

func (p *Policy) policy() *Policy { return p }

// compile refuses what is no pattern or no port, and prepares for the rest.
func (p *Policy) compile() error {
	for _, pattern := range p.AllowDevices {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return fmt.Errorf("allow_devices: %q is not a pattern: * for any characters, ? for one, [a-c] for one of these", pattern)
		}
	}
	p.ports = nil
	for _, text := range p.AllowPorts {
		whole := text
		if !strings.Contains(text, "-") {
			whole = text + "-" + text
		}
		first, last, err := parseRange(whole)
		if err != nil {
			return fmt.Errorf("allow_ports: %q is neither a port nor a range of ports such as 8000-8999", text)
		}
		p.ports = append(p.ports, portRange{first, last})
	}
	return nil
}

// speaksFor reports whether the authenticator may decide about a device.
func (p *Policy) speaksFor(device string) bool {
	return len(p.AllowDevices) == 0 || slices.ContainsFunc(p.AllowDevices, func(pattern string) bool {
		ok, _ := path.Match(pattern, device) // compile has seen the pattern
		return ok
	})
}

// checkPorts refuses what a device forwards beyond its ports.
func (p *Policy) checkPorts(c tunnelcore.Credential) error {
	if len(p.ports) == 0 {
		return nil
	}
	for _, port := range c.Ports {
		if !slices.ContainsFunc(p.ports, func(r portRange) bool { return r.first <= port.Number && port.Number <= r.last }) {
			return fmt.Errorf("%w: port %d is not in allow_ports", tunnelcore.ErrNotEntitled, port.Number)
		}
	}
	return nil
}

// policed asks an authenticator within its policy.
type policed struct {
	tunnelcore.Authenticator
	allow *Policy
}

// Authenticate implements tunnelcore.Authenticator.
func (p policed) Authenticate(ctx context.Context, c tunnelcore.Credential) error {
	if !p.allow.speaksFor(c.Device) {
		return tunnelcore.ErrNotMine
	}
	if err := p.Authenticator.Authenticate(ctx, c); err != nil {
		return err
	}
	return p.allow.checkPorts(c)
}

// compilePolicies refuses what can never work in the policies of authenticators.
func (a *App) compilePolicies() error {
	for _, auth := range a.authenticators {
		if r, ok := auth.(restricted); ok {
			if err := r.policy().compile(); err != nil {
				return fmt.Errorf("auth: %w", err)
			}
		}
	}
	return nil
}

// asked returns the authenticators as the hub asks them: each within its policy, and
// whether a device is revoked before one that would not look.
func asked(all []tunnelcore.Authenticator) []tunnelcore.Authenticator {
	var first, rest []tunnelcore.Authenticator
	for i, auth := range all {
		e, ok := auth.(*EnrolledAuth)
		if ok && len(first) == 0 && (i > 0 || len(e.AllowDevices) > 0) {
			first = append(first, revocations{e})
		}
		if r, ok := auth.(restricted); ok {
			auth = policed{auth, r.policy()}
		}
		rest = append(rest, auth)
	}
	return append(first, rest...)
}

// policySettings are the settings of a policy in the block of an authenticator.
func policySettings[T restricted](block string) []setting[T] {
	return []setting[T]{
		textsSetting(block+": allow_devices", func(to T) *[]string { return &to.policy().AllowDevices }, "ids or patterns, as in `lyon-*`"),
		textsSetting(block+": allow_ports", func(to T) *[]string { return &to.policy().AllowPorts }, "ports or ranges, as in `80 8000-8999`"),
	}
}

// Interface guards
var (
	_ restricted = (*StaticAuth)(nil)
	_ restricted = (*EnrolledAuth)(nil)
	_ restricted = (*JWTAuth)(nil)
	_ restricted = (*MTLSAuth)(nil)

	_ tunnelcore.Authenticator = policed{}
)
