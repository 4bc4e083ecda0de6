package caddymodule

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// signer signs tokens with one key.
type signer struct {
	id  string
	alg jose.SignatureAlgorithm
	key crypto.Signer
}

func newSigners(t *testing.T) []signer {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	ec, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	rs, err3 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err, err2, err3); err != nil {
		t.Fatal(err)
	}
	return []signer{{"ed", jose.EdDSA, ed}, {"ec", jose.ES256, ec}, {"rs", jose.RS256, rs}}
}

func (s signer) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.key.Public(), KeyID: s.id, Algorithm: string(s.alg), Use: "sig"}
}

func (s signer) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: jose.JSONWebKey{Key: s.key, KeyID: s.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(made).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func goodClaims() map[string]any {
	return map[string]any{"sub": "cam-1", "aud": "edge", "iss": "factory", "exp": time.Now().Add(time.Hour).Unix()}
}

func keySetJSON(t *testing.T, signers ...signer) []byte {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range signers {
		set.Keys = append(set.Keys, s.public())
	}
	text, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func provisionJWT(t *testing.T, j *JWTAuth) *JWTAuth {
	t.Helper()
	if err := j.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJWTAuth(t *testing.T) {
	signers := newSigners(t)
	j := provisionJWT(t, &JWTAuth{KeyFile: writeFile(t, string(keySetJSON(t, signers...))), Audience: "edge", Issuer: "factory", PortsClaim: "ports"})
	ask := func(token string, ports ...uint16) error {
		c := tunnelcore.Credential{Device: "cam-1", Token: token}
		for _, p := range ports {
			c.Ports = append(c.Ports, wire.Port{Number: p})
		}
		return j.Authenticate(t.Context(), c)
	}
	for _, s := range signers {
		if err := ask(s.sign(t, goodClaims())); err != nil {
			t.Errorf("%s: %v", s.alg, err)
		}
	}
	with := func(name string, value any) string {
		claims := goodClaims()
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
		return signers[0].sign(t, claims)
	}
	good := signers[0].sign(t, goodClaims())
	part := strings.Split(good, ".")
	stranger := newSigners(t)[0]
	hmac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("k", 32))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	symmetric, err := jwt.Signed(hmac).Claims(goodClaims()).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		token string
		says  string
	}{
		"another device":        {with("sub", "cam-2"), "another device's"},
		"no device":             {with("sub", nil), "no text"},
		"a number for a device": {with("sub", 17), ""},
		"another audience":      {with("aud", "mail"), "audience"},
		"no audience":           {with("aud", nil), "audience"},
		"another issuer":        {with("iss", "stranger"), "issuer"},
		"no expiry":             {with("exp", nil), "never expires"},
		"not yet valid":         {with("nbf", time.Now().Add(time.Hour).Unix()), "nbf"},
		"a stranger's key":      {stranger.sign(t, goodClaims()), "none of the keys"},
		"a changed payload":     {part[0] + "." + strings.Split(with("sub", "cam-9"), ".")[1] + "." + part[2], "none of the keys"},
		"alg none":              {"eyJhbGciOiJub25lIn0." + part[1] + ".", "jwt"},
		"a shared secret":       {symmetric, "jwt"},
		"no JWT":                {"a.b.c", "jwt"},
	} {
		if err := ask(c.token); err == nil || errors.Is(err, tunnelcore.ErrNotMine) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := ask(with("exp", time.Now().Add(-time.Hour).Unix())); !errors.Is(err, tunnelcore.ErrExpired) {
		t.Errorf("expired: %v", err)
	}
	for _, token := range []string{"", "a-secret", "iott_abc"} {
		if err := ask(token); !errors.Is(err, tunnelcore.ErrNotMine) {
			t.Errorf("%q: %v", token, err)
		}
	}
	if err := ask(with("ports", []int{80, 22}), 22, 80); err != nil {
		t.Errorf("ports: %v", err)
	}
	for _, ports := range []any{[]int{80}, nil} {
		if err := ask(with("ports", ports), 22, 80); !errors.Is(err, tunnelcore.ErrNotEntitled) {
			t.Errorf("ports %v: %v", ports, err)
		}
	}
}

func TestJWTKeys(t *testing.T) {
	signers := newSigners(t)
	var served atomic.Pointer[[]byte]
	var fetched atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fetched.Add(1)
		text := served.Load()
		if text == nil {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		w.Write(*text)
	}))
	defer server.Close()
	j := provisionJWT(t, &JWTAuth{JWKSURL: server.URL, Audience: "edge"})
	keys := j.keys.(*remoteKeys)
	var now atomic.Int64
	keys.now = func() time.Time { return time.Unix(now.Load(), 0) }
	now.Store(1_800_000_000)
	ask := func(s signer) error {
		return j.Authenticate(t.Context(), tunnelcore.Credential{Device: "cam-1", Token: s.sign(t, goodClaims())})
	}
	count := func(want int32) {
		t.Helper()
		if n := fetched.Load(); n != want {
			t.Errorf("fetched %d times, want %d", n, want)
		}
	}
	for range 3 {
		if err := ask(signers[0]); !errors.Is(err, tunnelcore.ErrUndecided) {
			t.Errorf("without keys: %v", err)
		}
	}
	count(1)
	text := keySetJSON(t, signers[0])
	served.Store(&text)
	now.Add(11)
	for range 3 {
		if err := ask(signers[0]); err != nil {
			t.Errorf("a key of the set: %v", err)
		}
	}
	count(2)
	for range 3 { // one that is not in the set has it fetched again, now and then
		if err := ask(signers[1]); err == nil || errors.Is(err, tunnelcore.ErrUndecided) {
			t.Errorf("a key that is not there: %v", err)
		}
	}
	count(2)
	text = keySetJSON(t, signers[1])
	served.Store(&text)
	now.Add(11)
	if err := ask(signers[1]); err != nil {
		t.Errorf("a new key: %v", err)
	}
	if err := ask(signers[0]); err == nil {
		t.Error("a key that was taken out still counts")
	}
	count(3)
	served.Store(nil) // away
	now.Add(3600)
	if err := ask(signers[1]); err != nil {
		t.Errorf("while the issuer is away: %v", err)
	}
	count(4)
}

func TestJWTKeyFiles(t *testing.T) {
	signers := newSigners(t)
	var text []byte
	for _, s := range signers {
		der, err := x509.MarshalPKIXPublicKey(s.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
	}
	j := provisionJWT(t, &JWTAuth{KeyFile: writeFile(t, string(text)), Audience: "edge"})
	for _, s := range signers {
		if err := j.Authenticate(t.Context(), tunnelcore.Credential{Device: "cam-1", Token: s.sign(t, goodClaims())}); err != nil {
			t.Errorf("%s: %v", s.alg, err)
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip("this Go makes no weak keys:", err)
	}
	der, err := x509.MarshalPKIXPublicKey(weak.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "weak.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&JWTAuth{KeyFile: file, Audience: "edge"}).Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), "2048") {
		t.Errorf("a weak key: %v", err)
	}
}

func TestJWTSettings(t *testing.T) {
	for _, c := range []struct {
		j    JWTAuth
		want string
	}{
		{JWTAuth{Audience: "edge"}, "one of jwks_url and key_file"},
		{JWTAuth{Audience: "edge", JWKSURL: "https://x", KeyFile: "y"}, "one of jwks_url and key_file"},
		{JWTAuth{JWKSURL: "https://x"}, "audience is missing"},
		{JWTAuth{Audience: "edge", JWKSURL: "http://issuer.example.com/"}, "not HTTPS"},
		{JWTAuth{Audience: "edge", JWKSURL: "nonsense"}, "not a URL"},
		{JWTAuth{Audience: "edge", KeyFile: "/nowhere"}, "nowhere"},
		{JWTAuth{Audience: "edge", KeyFile: writeFile(t, "{}")}, "no public key"},
		{JWTAuth{Audience: "{env.NOT_SET_AT_ALL}", KeyFile: "x"}, "NOT_SET_AT_ALL"},
	} {
		if err := c.j.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.j, err, c.want)
		}
	}
}
