package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

func init() {
	caddy.RegisterModule(new(JWTAuth))
}

// JWTAuth knows devices by JSON Web Tokens that somebody else has signed: fleets
// that are provisioned without asking the edge. A token is signed with EdDSA (Ed25519),
// ES256 or RS256, names its device, has this edge in its audience, and expires. It is
// checked when the device connects, and again when the configuration is reloaded: a
// tunnel that is up outlives its token until then.
//
// It does not decide about credentials that are no JWT.
type JWTAuth struct {
	// Where the public keys are, as a JSON Web Key Set. HTTPS, or loopback. Fetched when
	// first needed, then every 10 minutes, and when a token names another key.
	JWKSURL string `json:"jwks_url,omitempty"`

	// A file with the public keys instead: a JSON Web Key Set, or keys in PEM. Read
	// again whenever the configuration is loaded.
	KeyFile string `json:"key_file,omitempty"`

	// What must be in the claim `aud`. Required: a token for something else must not
	// open tunnels.
	Audience string `json:"audience,omitempty"`

	// What the claim `iss` must be. Default: anything.
	Issuer string `json:"issuer,omitempty"`

	// The claim that is the device id. Default: `sub`.
	DeviceClaim string `json:"device_claim,omitempty"`

	// The claim that lists the ports that the device may forward, as numbers. A token
	// without it may forward none. Default: every token may forward all.
	PortsClaim string `json:"ports_claim,omitempty"`

	Policy

	keys keySource
}

// CaddyModule returns the Caddy module information.
func (*JWTAuth) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel.authenticators.jwt",
		New: func() caddy.Module { return new(JWTAuth) },
	}
}

// Provision expands placeholders and reads the file. It fetches nothing.
func (j *JWTAuth) Provision(caddy.Context) error {
	repl := caddy.NewReplacer()
	for _, f := range []struct {
		name string
		to   *string
	}{{"jwks_url", &j.JWKSURL}, {"key_file", &j.KeyFile}, {"audience", &j.Audience}, {"issuer", &j.Issuer}} {
		value, err := repl.ReplaceOrErr(*f.to, true, true)
		if err != nil {
			return fmt.Errorf("jwt: %s: %w", f.name, err)
		}
		*f.to = value
	}
	if j.DeviceClaim == "" {
		j.DeviceClaim = "sub"
	}
	switch {
	case (j.JWKSURL == "") == (j.KeyFile == ""):
		return errors.New("jwt: write one of jwks_url and key_file: where the public keys are")
	case j.Audience == "":
		return errors.New("jwt: audience is missing: what tokens for this edge have in `aud`; without it a token for something else would open tunnels")
	case j.KeyFile != "":
		keys, err := readKeyFile(j.KeyFile)
		if err != nil {
			return fmt.Errorf("jwt: key_file: %w", err)
		}
		j.keys = keys
		return nil
	}
	keys, err := newRemoteKeys(j.JWKSURL)
	if err != nil {
		return fmt.Errorf("jwt: jwks_url: %w", err)
	}
	j.keys = keys
	return nil
}

var jwtAlgorithms = []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.RS256}

// jwtLeeway is how far the clocks of edge and issuer may differ.
const jwtLeeway = time.Minute

// Authenticate implements tunnelcore.Authenticator.
func (j *JWTAuth) Authenticate(ctx context.Context, c tunnelcore.Credential) error {
	if strings.Count(c.Token, ".") != 2 {
		return tunnelcore.ErrNotMine
	}
	token, err := jwt.ParseSigned(c.Token, jwtAlgorithms)
	if err != nil {
		return fmt.Errorf("jwt: %w", err)
	}
	var claims jwt.Claims
	more := make(map[string]json.RawMessage)
	if err := j.verify(ctx, token, &claims, &more); err != nil {
		return err
	}
	if claims.Expiry == nil {
		return errors.New("jwt: the token never expires: it needs the claim exp")
	}
	err = claims.ValidateWithLeeway(jwt.Expected{Issuer: j.Issuer, AnyAudience: jwt.Audience{j.Audience}}, jwtLeeway)
	if errors.Is(err, jwt.ErrExpired) {
		return fmt.Errorf("jwt: %w", tunnelcore.ErrExpired)
	}
	if err != nil {
		return fmt.Errorf("jwt: %w", err)
	}
	var device string
	if err := json.Unmarshal(more[j.DeviceClaim], &device); err != nil {
		return fmt.Errorf("jwt: the claim %s, which is to name the device, is no text", j.DeviceClaim)
	}
	if device != c.Device {
		return errors.New("jwt: the token is another device's")
	}
	return j.checkClaim(more, c)
}

// verify checks the signature and decodes the claims.
func (j *JWTAuth) verify(ctx context.Context, token *jwt.JSONWebToken, into ...any) error {
	keys, err := j.keys.find(ctx, token.Headers[0].KeyID)
	if err != nil {
		return fmt.Errorf("jwt: %w: keys: %w", tunnelcore.ErrUndecided, err)
	}
	for _, key := range keys {
		if key.Algorithm != "" && key.Algorithm != token.Headers[0].Algorithm {
			continue
		}
		if token.Claims(key.Key, into...) == nil {
			return nil
		}
	}
	return errors.New("jwt: signed by none of the keys that are known")
}

// checkClaim refuses ports that the token does not list.
func (j *JWTAuth) checkClaim(claims map[string]json.RawMessage, c tunnelcore.Credential) error {
	if j.PortsClaim == "" {
		return nil
	}
	var allowed []uint16
	if raw, ok := claims[j.PortsClaim]; ok {
		if err := json.Unmarshal(raw, &allowed); err != nil {
			return fmt.Errorf("jwt: the claim %s is no list of port numbers", j.PortsClaim)
		}
	}
	for _, p := range c.Ports {
		if !slices.Contains(allowed, p.Number) {
			return fmt.Errorf("jwt: %w: port %d is not in the claim %s", tunnelcore.ErrNotEntitled, p.Number, j.PortsClaim)
		}
	}
	return nil
}

var jwtSettings = append([]setting[*JWTAuth]{
	textSetting("auth jwt: jwks_url", func(j *JWTAuth) *string { return &j.JWKSURL }, "a URL"),
	textSetting("auth jwt: key_file", func(j *JWTAuth) *string { return &j.KeyFile }, "a file"),
	textSetting("auth jwt: audience", func(j *JWTAuth) *string { return &j.Audience }, "a name"),
	textSetting("auth jwt: issuer", func(j *JWTAuth) *string { return &j.Issuer }, "a name"),
	textSetting("auth jwt: device_claim", func(j *JWTAuth) *string { return &j.DeviceClaim }, "the name of a claim"),
	textSetting("auth jwt: ports_claim", func(j *JWTAuth) *string { return &j.PortsClaim }, "the name of a claim"),
}, policySettings[*JWTAuth]("auth jwt")...)

// UnmarshalCaddyfile sets up the authenticator from Caddyfile tokens. Syntax:
//
//	auth jwt {
//		jwks_url      <url>
//		key_file      <file>
//		audience      <name>
//		issuer        <name>
//		device_claim  <claim>
//		ports_claim   <claim>
//		allow_devices <patterns...>
//		allow_ports   <ports...>
//	}
//
// audience is required, and one of jwks_url and key_file.
func (j *JWTAuth) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the provider's name
	if err := noValue(d, "auth jwt"); err != nil {
		return err
	}
	return parseBlock(d, "auth jwt", j, jwtSettings)
}

// Interface guards
var (
	_ caddy.Provisioner        = (*JWTAuth)(nil)
	_ caddyfile.Unmarshaler    = (*JWTAuth)(nil)
	_ tunnelcore.Authenticator = (*JWTAuth)(nil)
)
