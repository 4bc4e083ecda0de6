// Package ends makes connections with both ends in one test, on each transport that a
// tunnel may lie on.
package ends

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Patience is how long a test waits for what should come at once.
const Patience = 20 * time.Second

// Within fails the test, with all stacks, when f takes longer than Patience.
func Within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(Patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s: does not return\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// Transports are what Conns knows.
var Transports = []string{"pipe", "tcp", "tls"}

// Conns returns the two ends of a new connection on a transport: both *tls.Conn, with the
// handshake done, on "tls". They are closed when the test ends.
func Conns(t testing.TB, transport string) (client, server net.Conn) {
	t.Helper()
	if transport == "pipe" {
		client, server = net.Pipe()
	} else {
		client, server = Loopback(t)
	}
	c, s := client, server
	t.Cleanup(func() { c.Close(); s.Close() })
	if transport != "tls" {
		return client, server
	}
	ours, theirs := tls.Client(c, ClientTLS()), tls.Server(s, ServerTLS())
	failed := make(chan error, 1)
	go func() { failed <- theirs.Handshake() }()
	if err := errors.Join(ours.Handshake(), <-failed); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// Loopback returns the two ends of a TCP connection, which the caller closes.
func Loopback(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		c.Close()
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// Name is the server that ServerTLS has a certificate for.
const Name = "edge.test"

// ClientTLS trusts Name, and nobody else.
func ClientTLS() *tls.Config { return &tls.Config{RootCAs: authority().roots, ServerName: Name} }

// ServerTLS shows a certificate for Name.
func ServerTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{authority().certificate}}
}

type identity struct {
	certificate tls.Certificate
	roots       *x509.CertPool
}

// authority is made when the first test asks for TLS.
var authority = sync.OnceValue(func() identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		DNSNames:              []string{Name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots}
})
