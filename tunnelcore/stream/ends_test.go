package stream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
)

// patience is how long a test waits for what should come at once.
const patience = 20 * time.Second

// within fails the test, with all stacks, when f does not return.
func within(t testing.TB, what string, f func()) {
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

// transports are what a transfer socket may lie on.
var transports = []string{"pipe", "tcp", "tls"}

// conns returns two ends of a new connection, closed when the test ends.
func conns(t testing.TB, transport string) (client, server net.Conn) {
	t.Helper()
	if transport == "pipe" {
		client, server = net.Pipe()
	} else {
		client, server = loopback(t)
	}
	c, s := client, server
	t.Cleanup(func() { c.Close(); s.Close() })
	if transport == "tls" {
		client = tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "edge.test"})
		server = tls.Server(s, &tls.Config{Certificates: []tls.Certificate{certificate}})
		failed := make(chan error, 1)
		go func() { failed <- server.(*tls.Conn).Handshake() }()
		if err := errors.Join(client.(*tls.Conn).Handshake(), <-failed); err != nil {
			t.Fatal(err)
		}
	}
	return client, server
}

func loopback(t testing.TB) (client, server *net.TCPConn) {
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
		t.Fatal(err)
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// hijacker is the ResponseWriter of a request that was read from conn.
type hijacker struct {
	http.ResponseWriter // never called
	conn                net.Conn
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// sockets makes the handshake on two connected ends.
func sockets(t testing.TB, client, server net.Conn) (a, b *socket.Socket) {
	t.Helper()
	const protocol = "test"
	accepted := make(chan error, 1)
	go func() {
		r, err := http.ReadRequest(bufio.NewReader(server))
		if err == nil {
			b, err = accept.Upgrade(hijacker{conn: server}, r, protocol, socket.LargeBuffer, nil)
		}
		accepted <- err
	}()
	a, err := socket.Dial(context.Background(), client, &url.URL{Scheme: "ws", Host: "edge.test"}, nil, protocol, socket.LargeBuffer)
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// pair returns the two ends of a stream. What they leave behind is waited for.
func pair(t testing.TB, transport string, opts Options) (client, server *Stream) {
	t.Helper()
	c, s := conns(t, transport)
	a, b := sockets(t, c, s)
	owner := new(sync.WaitGroup)
	opts.Owner = owner
	client, server = New(a, opts), New(b, opts)
	t.Cleanup(func() {
		client.Abort()
		server.Abort()
		owner.Wait()
	})
	return client, server
}

// bothWays runs body with each transport, and each end in both roles.
func bothWays(t *testing.T, body func(t *testing.T, a, b *Stream)) {
	for _, transport := range transports {
		t.Run(transport+"/client first", func(t *testing.T) {
			a, b := pair(t, transport, Options{})
			body(t, a, b)
		})
		t.Run(transport+"/server first", func(t *testing.T) {
			b, a := pair(t, transport, Options{})
			body(t, a, b)
		})
	}
}

// result is what was read from a connection until it failed; io.EOF is nil.
type result struct {
	data string
	err  error
}

func readAll(c net.Conn) result {
	b, err := io.ReadAll(c)
	return result{string(b), err}
}

// reading reads c to its end in the background.
func reading(c net.Conn) <-chan result {
	done := make(chan result, 1)
	go func() { done <- readAll(c) }()
	return done
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
