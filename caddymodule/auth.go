package caddymodule

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
)

func init() {
	caddy.RegisterModule(StaticAuth{})
	caddy.RegisterModule(NoAuth{})
}

// StaticAuth knows the secret of each device from the configuration, or from
// files. It does not decide about devices that it does not list.
type StaticAuth struct {
	// Devices and their secrets.
	Devices []StaticDevice `json:"devices,omitempty"`

	// Files with a device and its secret on each line, `ID SECRET`. Lines that
	// begin with # are comments. They are read again whenever the configuration
	// is loaded (`caddy reload --force`).
	Files []string `json:"files,omitempty"`

	Policy

	digests map[string]digest
}

// StaticDevice is a device and its secret.
type StaticDevice struct {
	ID string `json:"id,omitempty"`
	// The secret, or `sha256:` and the 64 hex digits of its SHA-256. It may be a
	// placeholder such as `{env.CAM17_TOKEN}`.
	Secret string `json:"secret,omitempty"`
}

// digest is the SHA-256 of a secret.
type digest [sha256.Size]byte

// CaddyModule returns the Caddy module information.
func (StaticAuth) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel.authenticators.static",
		New: func() caddy.Module { return new(StaticAuth) },
	}
}

// Provision expands placeholders and reads the files.
func (s *StaticAuth) Provision(ctx caddy.Context) error {
	s.digests = make(map[string]digest, len(s.Devices))
	repl, logger := caddy.NewReplacer(), ctx.Slogger()
	for _, d := range s.Devices {
		secret, err := repl.ReplaceOrErr(d.Secret, true, true)
		if err != nil {
			return fmt.Errorf("static: device %s: secret: %w", d.ID, err) // it names the placeholder
		}
		if err := s.add(d.ID, secret, logger); err != nil {
			return fmt.Errorf("static: %w", err)
		}
	}
	for _, name := range s.Files {
		name, err := repl.ReplaceOrErr(name, true, true)
		if err != nil {
			return fmt.Errorf("static: file: %w", err)
		}
		if err := s.readFile(name, logger); err != nil {
			return fmt.Errorf("static: file: %w", err)
		}
	}
	if len(s.digests) == 0 {
		return errors.New("static: no device is listed: write `device ID SECRET`, or `file FILE`")
	}
	return nil
}

// maxLine bounds a line of a file of secrets, in bytes.
const maxLine = 4096

func (s *StaticAuth) readFile(name string, logger *slog.Logger) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, maxLine), maxLine)
	n := 0
	for lines.Scan() {
		n++
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return fmt.Errorf("%s:%d: %d words where a device and its secret are expected", name, n, len(fields))
		}
		if err := s.add(fields[0], fields[1], logger); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", name, n+1, err)
	}
	return nil
}

// shortSecret is the length in characters below which a secret is called short.
const shortSecret = 16

// add lists a device. No error holds the secret.
func (s *StaticAuth) add(id, secret string, logger *slog.Logger) error {
	if err := names.CheckDevice(id); err != nil {
		return fmt.Errorf("%q: %w", id, err)
	}
	if _, ok := s.digests[id]; ok {
		return fmt.Errorf("device %s is listed more than once", id)
	}
	if secret == "" {
		return fmt.Errorf("device %s: the secret is empty", id)
	}
	if sum, ok := strings.CutPrefix(secret, "sha256:"); ok {
		b, err := hex.DecodeString(sum)
		if err != nil || len(b) != sha256.Size {
			return fmt.Errorf("device %s: sha256: is not followed by 64 hex digits", id)
		}
		s.digests[id] = digest(b)
		return nil
	}
	if len(secret) < shortSecret {
		logger.Warn("the secret of a device is short and may be guessed",
			slog.String("device", id), slog.Int("recommended", shortSecret))
	}
	s.digests[id] = sha256.Sum256([]byte(secret))
	return nil
}

var errSecret = errors.New("static: the secret is wrong")

// Authenticate implements tunnelcore.Authenticator.
func (s *StaticAuth) Authenticate(_ context.Context, c tunnelcore.Credential) error {
	want, ok := s.digests[c.Device]
	if !ok {
		return tunnelcore.ErrNotMine
	}
	got := sha256.Sum256([]byte(c.Token))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return errSecret
	}
	return nil
}

// UnmarshalCaddyfile sets up the authenticator from Caddyfile tokens. Syntax:
//
//	auth static {
//		device        <id> <secret>|sha256:<hex>
//		file          <file>
//		allow_devices <patterns...>
//		allow_ports   <ports...>
//	}
func (s *StaticAuth) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the provider's name
	if d.NextArg() {
		return d.Errf("auth static: takes no value, given %q; devices are listed in a block", d.Val())
	}
	return parseBlock(d, "auth static", s, staticSettings, "device", "file")
}

var staticSettings = append([]setting[*StaticAuth]{
	{"device", func(s *StaticAuth, d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) != 2 {
			return d.Errf("auth static: device: takes an id and a secret, given %d values", len(args))
		}
		s.Devices = append(s.Devices, StaticDevice{ID: args[0], Secret: args[1]})
		return nil
	}},
	{"file", func(s *StaticAuth, d *caddyfile.Dispenser) error {
		file, err := oneValue(d, "auth static: file", "a file")
		s.Files = append(s.Files, file)
		return err
	}},
}, policySettings[*StaticAuth]("auth static")...)

// NoAuth lets everybody in, as any device. It is for tests on a network of your
// own, and must be written out.
type NoAuth struct{}

// CaddyModule returns the Caddy module information.
func (NoAuth) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel.authenticators.none",
		New: func() caddy.Module { return new(NoAuth) },
	}
}

// Authenticate implements tunnelcore.Authenticator.
func (*NoAuth) Authenticate(context.Context, tunnelcore.Credential) error { return nil }

// UnmarshalCaddyfile sets up the authenticator from Caddyfile tokens. Syntax:
//
//	auth none
func (*NoAuth) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the provider's name
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.Errf("auth none: takes no value and no block, given %q", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner        = (*StaticAuth)(nil)
	_ caddyfile.Unmarshaler    = (*StaticAuth)(nil)
	_ tunnelcore.Authenticator = (*StaticAuth)(nil)
	_ caddyfile.Unmarshaler    = (*NoAuth)(nil)
	_ tunnelcore.Authenticator = (*NoAuth)(nil)
)
