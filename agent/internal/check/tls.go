package check

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

// secure speaks TLS to the edge.
func (w *way) secure(ctx context.Context) (Finding, bool) {
	if !secureURL(w.url) {
		return Finding{Verdict: OK, Text: "not spoken: the scheme is " + w.url.Scheme}, true
	}
	host := w.url.Hostname()
	name := host
	template := w.template()
	if template.ServerName != "" {
		name = template.ServerName
	}
	conn, f := w.handshake(ctx, w.conn, template, name, host)
	if conn == nil {
		w.conn = nil
		return f, true
	}
	w.conn = conn
	if f.Verdict == Failed && w.aboutTime(conn) {
		f.Cure = w.timeCure(conn)
		f = w.byTheirDate(conn, name, f)
	}
	return f, true
}

// handshake makes TLS of conn, and judges the certificates for name. It returns nil
// and closes conn when there is none; else the finding may still be a failure.
func (w *way) handshake(ctx context.Context, conn net.Conn, template *tls.Config, name, host string) (*tls.Conn, Finding) {
	trusting := template.InsecureSkipVerify
	roots := template.RootCAs
	template.InsecureSkipVerify = true // judged below, with words
	template.ServerName = name
	template.NextProtos = []string{"http/1.1"}
	template.MinVersion = max(template.MinVersion, tls.VersionTLS12)
	began := w.now()
	c := tls.Client(conn, template)
	w.conn = conn
	w.limited(handshakeTime)
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, noTLS(host, err)
	}
	state := c.ConnectionState()
	text := fmt.Sprintf("%s, certificate for %s by %s until %s (%s)", tls.VersionName(state.Version), subject(state.PeerCertificates[0]),
		issuer(state.PeerCertificates), state.PeerCertificates[0].NotAfter.UTC().Format(time.DateOnly), took(began, w.now()))
	err := verify(state.PeerCertificates, roots, name, w.moment())
	switch {
	case err == nil:
		return c, Finding{Verdict: OK, Text: text}
	case trusting:
		return c, Finding{
			Verdict: Warning, Text: text + ", which is not trusted: " + err.Error(),
			Cure: "--insecure-skip-verify lets anyone on the way be the edge, and take the token: use --ca instead",
		}
	}
	return c, distrust(state.PeerCertificates, roots, name, err, w.now())
}

// noTLS says why a handshake failed.
func noTLS(host string, err error) Finding {
	var record tls.RecordHeaderError
	var remote *net.OpError
	var timeout net.Error
	switch {
	case errors.As(err, &record):
		return failure("check port and scheme: wss:// and https:// need a port that speaks TLS", "%s does not speak TLS at this port", host)
	case errors.As(err, &remote) && remote.Op == alertOp:
		return failure("the edge, or something on the way, refuses: its log says why; if it asks for a client certificate, check --client-cert", "%s refuses: %v", host, remote.Err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return failure("a firewall cuts TLS to this name, or the edge has no certificate for it: ask the network's keeper to let "+host+" through, and look at the edge's log",
			"the connection is cut during the handshake")
	case errors.As(err, &timeout) && timeout.Timeout():
		return failure("something on the way swallows TLS, or large packets (MTU): try another network to tell them apart", "no answer to the handshake")
	}
	return failure("see the edge's log", "%v", err)
}

// alertOp is the Op of an error that the peer told by an alert.
const alertOp = "remote error"

// verify is what package tls does unless it is told not to.
func verify(chain []*x509.Certificate, roots *x509.CertPool, name string, now time.Time) error {
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), DNSName: strings.TrimSuffix(name, "."), CurrentTime: now}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(options)
	return err
}

// distrust says why certificates are not trusted.
func distrust(chain []*x509.Certificate, roots *x509.CertPool, name string, err error, now time.Time) Finding {
	leaf := chain[0]
	var unknown x509.UnknownAuthorityError
	var other x509.HostnameError
	var invalid x509.CertificateInvalidError
	var noRoots x509.SystemRootsError
	switch {
	case errors.As(err, &noRoots), errors.As(err, &unknown) && roots == nil && emptySystem():
		return failure("install the system's certificates (OpenWrt: opkg install ca-bundle; Debian, Alpine: ca-certificates), or name a file of them with --ca",
			"this device trusts nobody: it has no certificates of authorities")
	case errors.As(err, &unknown) && roots != nil:
		return failure("put the authority that signed it into the file of --ca; if that is a stranger's, something on the way inspects TLS",
			"the certificate is signed by %s, which is not in the file of --ca", issuer(chain))
	case errors.As(err, &unknown):
		return failure("if that is your company's proxy, which inspects TLS: save its authority's certificate and name it with --ca, or have "+name+" excepted; "+
			"if it is the edge's own authority: name that with --ca; else somebody poses as the edge",
			"the certificate is signed by %s, whom this device does not trust", issuer(chain))
	case errors.As(err, &other):
		return failure("check the host of --server; a certificate of somebody else is also what a login page of a Wi-Fi, or a filter, shows",
			"the certificate is for %s, not for %s", names(leaf), name)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		at := invalid.Cert
		if at == nil {
			at = leaf
		}
		return failure("", "the certificate for %s is valid from %s to %s; this device's clock says %s", subject(at),
			at.NotBefore.UTC().Format(time.DateTime), at.NotAfter.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
	}
	return failure("have the edge's certificate mended", "%v", err)
}

// emptySystem reports whether the system trusts nobody. Where it is asked itself
// (Windows, macOS) nobody knows.
func emptySystem() bool {
	pool, err := x509.SystemCertPool()
	return err != nil || pool.Equal(x509.NewCertPool())
}

func subject(c *x509.Certificate) string {
	if len(c.DNSNames) > 0 {
		return printable(c.DNSNames[0], 80)
	}
	return printable(c.Subject.String(), 80)
}

// names are those that a certificate is good for.
func names(c *x509.Certificate) string {
	const most = 4
	all := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return printable(c.Subject.String(), 80) + " (no host)"
	}
	more := ""
	if len(all) > most {
		more = fmt.Sprintf(" and %d more", len(all)-most)
		all = all[:most]
	}
	return printable(strings.Join(all, ", "), 200) + more
}

// issuer is who signed the last certificate of a chain.
func issuer(chain []*x509.Certificate) string {
	name := chain[len(chain)-1].Issuer
	switch {
	case name.CommonName != "" && len(name.Organization) > 0:
		return fmt.Sprintf("%q of %q", printable(name.CommonName, 60), printable(name.Organization[0], 60))
	case name.CommonName != "":
		return fmt.Sprintf("%q", printable(name.CommonName, 60))
	}
	return fmt.Sprintf("%q", printable(name.String(), 80))
}
