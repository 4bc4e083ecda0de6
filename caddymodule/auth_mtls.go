package caddymodule

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

func init() {
	caddy.RegisterModule(new(MTLSAuth))
}

// MTLSAuth knows devices by the client certificate that they show in TLS. It must lead
// to one of the authorities named here, whatever the site itself asks of
// certificates, be for client authentication, and name the device.
//
// Agents show a certificate only where they are asked for one: on the site of the
// agents write `tls { client_auth { mode request } }`. Not on the hostnames of devices,
// where browsers would ask their users for one.
//
// It does not decide about agents that show no certificate.
type MTLSAuth struct {
	// Files with the certificates of authorities, in PEM. Required. They are read again
	// whenever the configuration is loaded. The system's are never trusted.
	CA []string `json:"ca,omitempty"`

	// Where the certificate names the device: `san`, a DNS name that is the device
	// id, or `cn`, the common name. Default: `san`.
	Name string `json:"name,omitempty"`

	Policy

	roots *x509.CertPool
}

// CaddyModule returns the Caddy module information.
func (*MTLSAuth) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel.authenticators.mtls",
		New: func() caddy.Module { return new(MTLSAuth) },
	}
}

// Provision reads the authorities.
func (m *MTLSAuth) Provision(caddy.Context) error {
	if m.Name == "" {
		m.Name = "san"
	}
	if m.Name != "san" && m.Name != "cn" {
		return fmt.Errorf("mtls: name: %q is neither san nor cn", m.Name)
	}
	if len(m.CA) == 0 {
		return errors.New("mtls: ca is missing: the file with the authority that signs the certificates of your devices")
	}
	m.roots = x509.NewCertPool()
	repl := caddy.NewReplacer()
	for _, name := range m.CA {
		name, err := repl.ReplaceOrErr(name, true, true)
		if err != nil {
			return fmt.Errorf("mtls: ca: %w", err)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("mtls: ca: %w", err)
		}
		if !m.roots.AppendCertsFromPEM(text) {
			return fmt.Errorf("mtls: ca: %s holds no certificate in PEM", name)
		}
	}
	return nil
}

// Authenticate implements tunnelcore.Authenticator.
func (m *MTLSAuth) Authenticate(_ context.Context, c tunnelcore.Credential) error {
	if c.TLS == nil || len(c.TLS.PeerCertificates) == 0 {
		return tunnelcore.ErrNotMine
	}
	cert := c.TLS.PeerCertificates[0]
	options := x509.VerifyOptions{
		Roots: m.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, one := range c.TLS.PeerCertificates[1:] {
		options.Intermediates.AddCert(one)
	}
	chains, err := cert.Verify(options)
	if err != nil || len(chains) == 0 {
		return fmt.Errorf("mtls: the certificate does not lead to an authority of `ca`: %w", err)
	}
	named := m.Name == "cn" && cert.Subject.CommonName == c.Device ||
		m.Name == "san" && slices.Contains(cert.DNSNames, c.Device)
	if !named {
		return errors.New("mtls: the certificate is another device's")
	}
	return nil
}

var mtlsSettings = append([]setting[*MTLSAuth]{
	{"ca", func(m *MTLSAuth, d *caddyfile.Dispenser) error {
		files, err := someValues(d, "auth mtls: ca", "files")
		m.CA = append(m.CA, files...)
		return err
	}},
	wordSetting("auth mtls: name", func(m *MTLSAuth) *string { return &m.Name }, "san", "cn"),
}, policySettings[*MTLSAuth]("auth mtls")...)

// UnmarshalCaddyfile sets up the authenticator from Caddyfile tokens. Syntax:
//
//	auth mtls {
//		ca            <files...>
//		name          san|cn
//		allow_devices <patterns...>
//		allow_ports   <ports...>
//	}
//
// ca is required, and may repeat.
func (m *MTLSAuth) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the provider's name
	if err := noValue(d, "auth mtls"); err != nil {
		return err
	}
	return parseBlock(d, "auth mtls", m, mtlsSettings, "ca")
}

// Interface guards
var (
	_ caddy.Provisioner        = (*MTLSAuth)(nil)
	_ caddyfile.Unmarshaler    = (*MTLSAuth)(nil)
	_ tunnelcore.Authenticator = (*MTLSAuth)(nil)
)
