package harness

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serveConns calls serve for each connection until the test ends, and closes
// those that are open then.
func serveConns(tb testing.TB, l net.Listener, serve func(ctx context.Context, c net.Conn)) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed below
			}
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				defer c.Close()
				serve(ctx, c)
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
}

// join relays between a and b, an end of either direction as an end, until both
// have ended, either breaks, or ctx ends. r reads what comes from a.
func join(ctx context.Context, a net.Conn, r io.Reader, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { b.Close() })
	defer stop()
	defer b.Close()
	var wg sync.WaitGroup
	one := func(dst net.Conn, src io.Reader) {
		wg.Go(func() {
			_, err := io.Copy(dst, src)
			half, ok := dst.(interface{ CloseWrite() error })
			if err != nil || !ok {
				a.Close()
				b.Close()
				return
			}
			_ = half.CloseWrite() // its peer may be gone
		})
	}
	one(b, r)
	one(a, b)
	wg.Wait()
}

// Proxy is an HTTP proxy that answers CONNECT alone.
type Proxy struct {
	Addr    string
	Tunnels atomic.Int64 // that it made
	Refused atomic.Int64 // for want of the password
}

// StartProxy starts a proxy on a host. With a user it asks for Basic
// authentication.
func StartProxy(tb testing.TB, h *Host, user, password string) *Proxy {
	tb.Helper()
	l := h.Listen(tb, 0)
	p := &Proxy{Addr: fmt.Sprintf("%s:%d", h.Addr, l.Addr().(*net.TCPAddr).Port)}
	want := ""
	if user != "" {
		want = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	serveConns(tb, l, func(ctx context.Context, c net.Conn) {
		br := bufio.NewReader(c)
		r, err := http.ReadRequest(br)
		switch {
		case err != nil:
			return
		case r.Method != http.MethodConnect:
			io.WriteString(c, "HTTP/1.1 405 Method Not Allowed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			return
		case r.Header.Get("Proxy-Authorization") != want:
			p.Refused.Add(1)
			io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"the company's proxy\"\r\n"+
				"Connection: close\r\nContent-Length: 6\r\n\r\nno way")
			return
		}
		up, err := h.Dial(ctx, r.RequestURI)
		if err != nil {
			io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			return
		}
		p.Tunnels.Add(1)
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
		join(ctx, c, br, up)
	})
	return p
}

// Middlebox sits on a network's router and terminates all TCP connections to an
// address, without anybody having asked it to.
type Middlebox struct {
	Addr string // of the edge
	// Authority, if set, makes it read what is inside TLS: it shows clients
	// certificates of its own, and trusts the edge's by Trust.
	Authority *Authority
	Trust     *tls.Config
	// Head, if set, may change the head of each connection's first request, or
	// answer it.
	Head func(head []byte) (forward, answer []byte)

	Conns atomic.Int64 // that it took
}

// Start puts the box to work, for the length of the test.
func (b *Middlebox) Start(tb testing.TB, n *Network) {
	tb.Helper()
	host, port, err := net.SplitHostPort(b.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	const own = 8888
	l := n.Router.Listen(tb, own)
	n.Router.Nft(tb, fmt.Sprintf(`table ip box {
	chain prerouting { type nat hook prerouting priority -100; ip daddr %s tcp dport %s redirect to :%d; }
}`, host, port, own))
	serveConns(tb, l, func(ctx context.Context, c net.Conn) {
		b.Conns.Add(1)
		b.serve(ctx, n, c, host)
	})
}

func (b *Middlebox) serve(ctx context.Context, n *Network, c net.Conn, host string) {
	c.SetDeadline(time.Now().Add(VisitorTimeout)) // of the beginning
	if b.Authority != nil {
		secure := tls.Server(c, &tls.Config{
			NextProtos: []string{"http/1.1"},
			GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				name := hello.ServerName
				if name == "" {
					name = host
				}
				return b.Authority.Certify(name)
			},
		})
		if secure.HandshakeContext(ctx) != nil {
			return // clients that do not trust it leave
		}
		c = secure
	}
	var first io.Reader = c
	if b.Head != nil {
		br := bufio.NewReader(c)
		head, err := readHead(br)
		if err != nil {
			return
		}
		forward, answer := b.Head(head)
		if answer != nil {
			c.Write(answer)
			return
		}
		first = io.MultiReader(bytes.NewReader(forward), br)
	}
	up, err := n.Router.Dial(ctx, b.Addr)
	if err != nil {
		return
	}
	if b.Trust != nil {
		trust := b.Trust.Clone()
		trust.ServerName, trust.NextProtos = host, []string{"http/1.1"}
		up = tls.Client(up, trust)
	}
	c.SetDeadline(time.Time{})
	join(ctx, c, first, up)
}

// readHead reads lines up to and with the first empty one.
func readHead(br *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := br.ReadSlice('\n')
		head = append(head, line...)
		if err != nil || len(head) > 64<<10 {
			return nil, fmt.Errorf("no head: %w", err)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			return head, nil
		}
	}
}

// WithoutUpgrade is a Head of boxes that know HTTP and not WebSocket: they pass on
// neither Upgrade nor Connection, as RFC 9110 §7.6.1 asks of proxies.
func WithoutUpgrade(head []byte) (forward, answer []byte) {
	var kept []byte
	for line := range bytes.Lines(head) {
		name, _, _ := strings.Cut(strings.ToLower(string(line)), ":")
		if name != "upgrade" && name != "connection" {
			kept = append(kept, line...)
		}
	}
	return kept, nil
}

// Authority makes certificates.
type Authority struct {
	File string // PEM

	mu    sync.Mutex // guards made
	made  map[string]*tls.Certificate
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	count int64 // of certificates; guarded by mu
}

// NewAuthority makes an authority that nobody trusts who is not given its File.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	a, err := newAuthority(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// newAuthority is NewAuthority for callers without a test; dir is for its file.
func newAuthority(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &Authority{File: filepath.Join(dir, "authority.pem"), made: make(map[string]*tls.Certificate), key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the company's inspection"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, os.WriteFile(a.File, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

// Certify returns a certificate for a name or an IP address.
func (a *Authority) Certify(name string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.made[name]; c != nil {
		return c, nil
	}
	a.count++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 + a.count),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	a.made[name] = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return a.made[name], nil
}
