package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// yearly is a server of TLS whose certificate is good from an hour ago and for a year,
// and whose answers bear a date.
func yearly(t *testing.T, date string) (url string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && r.Header.Get("Authorization") != "" {
			t.Error("the question for the date carries a credential")
		}
		if date != "" {
			w.Header().Set("Date", date)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"device":"cam-17","token":"s3cret"}`))
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.URL, roots
}

// A device whose clock was never set reaches an edge whose certificate is younger than
// the program, if the edge tells a date that fits, and only then.
func TestClockBehindTheBuild(t *testing.T) {
	never := time.Date(1970, 1, 1, 0, 5, 0, 0, time.UTC)
	built := time.Now().Add(-2 * time.Hour)
	for _, test := range []struct {
		name  string
		date  string // of the edge; empty: the right one
		clock time.Time
		good  bool
	}{
		{"right clock", "", time.Now(), true},
		{"clock never set", "", never, true},
		{"a date before the build", "Thu, 01 Jan 2015 00:00:00 GMT", never, false},
		{"a date when the certificate has expired", "Thu, 01 Jan 2099 00:00:00 GMT", never, false},
		{"no date", "soon", never, false},
		{"a clock behind, but not behind the build", "", built.Add(time.Minute), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			url, roots := yearly(t, test.date)
			var said bytes.Buffer
			k, err := newCaller(Config{
				Servers: []string{url}, Device: "cam-17", TLS: &tls.Config{RootCAs: roots}, Built: built,
				Logger: slog.New(slog.NewTextHandler(&said, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			k.dialer.clock.now = func() time.Time { return test.clock }
			tcp := k.dialer.tcp
			k.dialer.tcp = func(ctx context.Context, keepAlive time.Duration, addr string) (net.Conn, error) {
				if strings.HasSuffix(addr, ":80") {
					return nil, errors.New("port 80 is filtered")
				}
				return tcp(ctx, keepAlive, addr)
			}
			_, err = k.enroll(t.Context(), k.servers[0], "code")
			var invalid x509.CertificateInvalidError
			if good := err == nil; good != test.good || !good && !(errors.As(err, &invalid) && invalid.Reason == x509.Expired) {
				t.Errorf("%v", err)
			}
			if warned := strings.Contains(said.String(), "this device's clock is behind"); warned != (test.clock == never && (test.good || strings.HasSuffix(test.name, "has expired"))) {
				t.Errorf("said %q", said.String())
			}
		})
	}
}

// What the edge says over plain HTTP counts, and is asked for once a minute at most.
func TestDateOverPlainHTTP(t *testing.T) {
	url, roots := yearly(t, "soon")
	asked := 0
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.WriteHeader(http.StatusPermanentRedirect)
	}))
	t.Cleanup(plain.Close)
	k, err := newCaller(Config{Servers: []string{url}, Device: "cam-17", TLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		t.Fatal(err)
	}
	k.dialer.clock.now = func() time.Time { return time.Unix(0, 0) }
	tcp := k.dialer.tcp
	open := false
	k.dialer.tcp = func(ctx context.Context, keepAlive time.Duration, addr string) (net.Conn, error) {
		switch {
		case !open:
			return nil, errors.New("no network yet")
		case strings.HasSuffix(addr, ":80"):
			addr = strings.TrimPrefix(plain.URL, "http://")
		}
		return tcp(ctx, keepAlive, addr)
	}
	if _, err := k.enroll(t.Context(), k.servers[0], "code"); err == nil {
		t.Error("without a network")
	}
	open = true // from now on, not after a minute
	for range 2 {
		if _, err := k.enroll(t.Context(), k.servers[0], "code"); err != nil {
			t.Error(err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	if apart := time.Since(k.dialer.clock.judge()).Abs(); apart > time.Minute {
		t.Errorf("the clock for certificates is off by %v", apart)
	}
}
