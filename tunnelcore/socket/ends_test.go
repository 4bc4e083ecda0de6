package socket

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what should come at once.
const patience = 20 * time.Second

// within fails the test, with all stacks, when f does not return.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s: does not return\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// transports are what a socket may lie on.
var transports = []string{"pipe", "tcp", "tls"}

// conns returns two ends of a new connection, closed when the test ends.
func conns(t testing.TB, transport string) (client, server net.Conn) {
	t.Helper()
	switch transport {
	case "pipe":
		client, server = net.Pipe()
	case "tcp":
		client, server = loopback(t)
	case "tls":
		c, s := loopback(t)
		tc := tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "edge.test"})
		ts := tls.Server(s, &tls.Config{Certificates: []tls.Certificate{certificate}})
		failed := make(chan error, 1)
		go func() { failed <- ts.Handshake() }()
		if err := errors.Join(tc.Handshake(), <-failed); err != nil {
			t.Fatal(err)
		}
		client, server = tc, ts
		t.Cleanup(func() { c.Close(); s.Close() })
		return client, server
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func loopback(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// pair returns the two ends of a socket whose handshake is over.
func pair(t testing.TB, transport string) (client, server *Socket) {
	t.Helper()
	c, s := conns(t, transport)
	return on(c, true), on(s, false)
}

// on makes a socket of a connection, without a handshake.
func on(c net.Conn, client bool) *Socket {
	return newSocket(c, newReader(c, SmallBuffer), client)
}

// bothWays runs body with each transport, and each end in both roles.
func bothWays(t *testing.T, body func(t *testing.T, a, b *Socket)) {
	for _, transport := range transports {
		t.Run(transport+"/client first", func(t *testing.T) {
			a, b := pair(t, transport)
			body(t, a, b)
		})
		t.Run(transport+"/server first", func(t *testing.T) {
			b, a := pair(t, transport)
			body(t, a, b)
		})
	}
}

// script is a net.Conn that gives in, a step at a time, and keeps what is
// written. With stutter a deadline passes before every step.
type script struct {
	net.Conn
	in      []byte
	step    int // bytes per read; 0: all
	stutter bool
	late    bool // the deadline before the next step has passed
	after   error

	mu  sync.Mutex
	out bytes.Buffer
}

func (c *script) Read(p []byte) (int, error) {
	if c.stutter && !c.late {
		c.late = true
		return 0, os.ErrDeadlineExceeded
	}
	c.late = false
	if len(c.in) == 0 {
		if c.after != nil {
			return 0, c.after
		}
		return 0, io.EOF
	}
	if c.step > 0 {
		p = p[:min(len(p), c.step)]
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *script) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *script) written() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.out.Bytes())
}

func (c *script) Close() error                     { return nil }
func (c *script) SetDeadline(time.Time) error      { return nil }
func (c *script) SetReadDeadline(time.Time) error  { return nil }
func (c *script) SetWriteDeadline(time.Time) error { return nil }

// settle waits for the reply that s may be sending.
func settle(s *Socket) {
	s.lock(urgent)
	defer s.unlock()
}

var (
	certificate tls.Certificate
	roots       = x509.NewCertPool()
)

func init() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		DNSNames:              []string{"edge.test"},
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
	roots.AddCert(leaf)
	certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
