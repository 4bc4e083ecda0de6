package check

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// proxyLocal is a header of version 2 of the PROXY protocol that says: this is no
// visitor, but a check (§2.2 of its text).
const proxyLocal = "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"

// target sees whether the service of a forward answers as its kind wants.
func (c *checker) target(ctx context.Context, f agent.Forward) {
	if f.Kind == "" {
		f.Kind = agent.Kind(wire.DefaultKind(f.Port))
	}
	found := c.service(ctx, f)
	found.Hop = fmt.Sprintf("port %d/%s", f.Port, f.Kind)
	c.report(found)
}

// service asks the service behind a forward for as much as its kind lets it answer.
func (c *checker) service(ctx context.Context, f agent.Forward) Finding {
	ctx, cancel := context.WithTimeout(ctx, targetTime)
	defer cancel()
	began := c.now()
	conn, err := c.dial(ctx, f)
	if err != nil {
		return deaf(f, err)
	}
	defer conn.Close()
	found := Finding{Verdict: OK, Text: f.Target + " answers"}
	switch f.Kind {
	case agent.HTTP:
		var status int
		if found, status = speaksHTTP(conn, f); status != 400 {
			break
		}
		// So answer servers of TLS, among others.
		again, err := c.dial(ctx, f)
		if err != nil {
			break
		}
		defer again.Close()
		if speaksTLS(ctx, again, f).Verdict == OK {
			found = Finding{Verdict: Warning, Text: fmt.Sprintf("%s speaks TLS", f.Target), Cure: fmt.Sprintf("write --forward %d/https=%s", f.Port, f.Target)}
		}
	case agent.HTTPS:
		found = speaksTLS(ctx, conn, f)
	}
	if found.Verdict == OK {
		found.Text += " (" + took(began, c.now()) + ")"
	}
	return found
}

// dial connects to the service of f, as for a visitor.
func (c *checker) dial(ctx context.Context, f agent.Forward) (net.Conn, error) {
	dial := f.Dial
	if dial == nil {
		dial = func(ctx context.Context) (net.Conn, error) {
			d := net.Dialer{Resolver: c.Config.Resolver}
			return d.DialContext(ctx, "tcp", f.Target)
		}
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	limit, _ := ctx.Deadline()
	_ = conn.SetDeadline(limit) // if it fails, so does the next call
	if f.ProxyProtocol {
		_, _ = io.WriteString(conn, proxyLocal) // likewise
	}
	return conn, nil
}

// deaf says why a service cannot be reached.
func deaf(f agent.Forward, err error) Finding {
	var dns *net.DNSError
	var timeout net.Error
	text := f.Target + " " + because(err)
	switch {
	case errors.As(err, &dns):
		return failure(fmt.Sprintf("check the host of --forward %d=HOST:PORT", f.Port), "%s: no such host", f.Target)
	case errors.Is(err, syscall.ECONNREFUSED):
		return failure(fmt.Sprintf("start the service; or correct where it listens: --forward %d=HOST:PORT", f.Port), "%s", text)
	case errors.As(err, &timeout) && timeout.Timeout():
		return failure(fmt.Sprintf("check host and port of --forward %d=HOST:PORT, and a firewall there", f.Port), "%s", text)
	}
	return failure(fmt.Sprintf("check --forward %d=HOST:PORT", f.Port), "%s", text)
}

// speaksHTTP asks for the head of the start page, as a visitor could. It returns
// the status of the answer as well.
func speaksHTTP(conn net.Conn, f agent.Forward) (Finding, int) {
	host := f.Host
	if host == "" {
		host = f.Target
	}
	_, err := fmt.Fprintf(conn, "HEAD / HTTP/1.1\r\nHost: %s\r\nUser-Agent: iottunnel-agent check\r\nConnection: close\r\n\r\n", host)
	var a answer
	if err == nil {
		a, err = readAnswer(bufio.NewReader(conn), true)
	}
	if err != nil {
		return Finding{
			Verdict: Warning, Text: fmt.Sprintf("%s takes connections, but does not answer HEAD / in HTTP: %v", f.Target, err),
			Cure: fmt.Sprintf("if it speaks TLS there, write --forward %[1]d/https=%[2]s; if no HTTP, --forward %[1]d/tcp=%[2]s", f.Port, f.Target),
		}, 0
	}
	return Finding{Verdict: OK, Text: fmt.Sprintf("%s answers %s", f.Target, a.line)}, a.status
}

// speaksTLS makes a handshake, as the edge will. No certificate is checked there
// either.
func speaksTLS(ctx context.Context, conn net.Conn, f agent.Forward) Finding {
	began := time.Now()
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err := c.HandshakeContext(ctx); err != nil {
		return Finding{
			Verdict: Warning, Text: fmt.Sprintf("%s takes connections, but no TLS: %v", f.Target, err),
			Cure: fmt.Sprintf("if it speaks plain HTTP there, write --forward %[1]d/http=%[2]s", f.Port, f.Target),
		}
	}
	leaf := c.ConnectionState().PeerCertificates[0]
	found := Finding{Verdict: OK, Text: fmt.Sprintf("%s speaks %s, certificate for %s", f.Target, tls.VersionName(c.ConnectionState().Version), subject(leaf))}
	if began.After(leaf.NotAfter) {
		found.Text += fmt.Sprintf(", expired %s (nobody minds: it is not checked)", leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	return found
}
