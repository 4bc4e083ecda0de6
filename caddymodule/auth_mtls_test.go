package caddymodule

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (a *authority) issue(template *x509.Certificate) *authority {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return &authority{a.t, cert, key}
}

func (a *authority) file() string {
	return writeFile(a.t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})))
}

func newAuthority(t *testing.T, name string) *authority {
	return (&authority{t: t}).issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

func leaf(device string) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: device}, DNSNames: []string{device},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func TestMTLSAuth(t *testing.T) {
	ca, other := newAuthority(t, "ours"), newAuthority(t, "theirs")
	between := ca.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "between"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	server := leaf("cam-1")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	old := leaf("cam-1")
	old.NotBefore, old.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	only := leaf("cam-1")
	only.DNSNames = nil
	wild := leaf("*.example.com")
	for _, c := range []struct {
		what  string
		name  string
		shown []*x509.Certificate
		ok    bool
	}{
		{"ours", "san", []*x509.Certificate{ca.issue(leaf("cam-1")).cert}, true},
		{"ours, by common name", "cn", []*x509.Certificate{ca.issue(leaf("cam-1")).cert}, true},
		{"through another", "san", []*x509.Certificate{between.issue(leaf("cam-1")).cert, between.cert}, true},
		{"through another that is not shown", "san", []*x509.Certificate{between.issue(leaf("cam-1")).cert}, false},
		{"another device's", "san", []*x509.Certificate{ca.issue(leaf("cam-2")).cert}, false},
		{"another device's, by common name", "cn", []*x509.Certificate{ca.issue(leaf("cam-2")).cert}, false},
		{"a common name alone", "san", []*x509.Certificate{ca.issue(only).cert}, false},
		{"a common name alone, by it", "cn", []*x509.Certificate{ca.issue(only).cert}, true},
		{"a wildcard", "san", []*x509.Certificate{ca.issue(wild).cert}, false},
		{"theirs", "san", []*x509.Certificate{other.issue(leaf("cam-1")).cert}, false},
		{"theirs, with our authority beside", "san", []*x509.Certificate{other.issue(leaf("cam-1")).cert, ca.cert}, false},
		{"theirs, with theirs beside", "san", []*x509.Certificate{other.issue(leaf("cam-1")).cert, other.cert}, false},
		{"a server's", "san", []*x509.Certificate{ca.issue(server).cert}, false},
		{"expired", "san", []*x509.Certificate{ca.issue(old).cert}, false},
	} {
		m := &MTLSAuth{CA: []string{ca.file()}, Name: c.name}
		if err := m.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		err := m.Authenticate(t.Context(), tunnelcore.Credential{Device: "cam-1", TLS: &tls.ConnectionState{PeerCertificates: c.shown}})
		if (err == nil) != c.ok || errors.Is(err, tunnelcore.ErrNotMine) {
			t.Errorf("%s: %v", c.what, err)
		}
		for _, none := range []*tls.ConnectionState{nil, {}} {
			if err := m.Authenticate(t.Context(), tunnelcore.Credential{Device: "cam-1", TLS: none}); !errors.Is(err, tunnelcore.ErrNotMine) {
				t.Errorf("without a certificate: %v", err)
			}
		}
	}
}

func TestMTLSSettings(t *testing.T) {
	for _, c := range []struct {
		m    MTLSAuth
		want string
	}{
		{MTLSAuth{}, "ca is missing"},
		{MTLSAuth{CA: []string{"/nowhere"}}, "nowhere"},
		{MTLSAuth{CA: []string{writeFile(t, "no pem")}}, "no certificate in PEM"},
		{MTLSAuth{CA: []string{"x"}, Name: "uri"}, "neither san nor cn"},
	} {
		if err := c.m.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.m, err, c.want)
		}
	}
}
