package agent

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// errNoProxy does not repeat the URL: a password may stand anywhere in what is
// malformed.
var errNoProxy = errors.New("its URL is not http://HOST:PORT or https://HOST:PORT")

// warnOfProxies tells which variables of the environment are ignored because they
// make no sense: the attempts then fail for no visible reason.
func warnOfProxies(log *slog.Logger, environ func(string) string) {
	for _, names := range [][]string{{"HTTPS_PROXY", "https_proxy"}, {"HTTP_PROXY", "http_proxy"}} {
		i := slices.IndexFunc(names, func(n string) bool { return environ(n) != "" })
		if i < 0 {
			continue
		}
		value := environ(names[i])
		if !strings.Contains(value, "://") {
			value = "http://" + value
		}
		if u, err := url.Parse(value); err != nil || u.Host == "" {
			log.Warn("proxy of the environment is not http://[USER:PASSWORD@]HOST:PORT or https://…", "variable", names[i])
		}
	}
}

// throughProxy asks the proxy at the other end of conn for a connection to addr
// (RFC 9110 §9.3.6). It closes conn if that fails.
func (d *dialer) throughProxy(ctx context.Context, conn net.Conn, proxy *url.URL, addr string) (net.Conn, error) {
	if proxy.Scheme == "https" {
		template := d.tls.Clone()
		template.ServerName = ""
		template.Certificates, template.GetClientCertificate = nil, nil // the edge's business
		var err error
		if conn, err = d.secure(ctx, conn, template, proxy.Hostname()); err != nil {
			return nil, fmt.Errorf("%s: tls: %w", proxy.Host, err)
		}
	}
	// The deadline in the past ends calls under way.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := connectTo(conn, proxy, addr)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: CONNECT %s: %w", proxy.Host, addr, err)
	}
	return conn, nil
}

// connectTo has an HTTP proxy at the other end of conn connect it with addr, HOST:PORT. The
// caller bounds its time, and closes conn after an error.
func connectTo(conn net.Conn, proxy *url.URL, addr string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: iottunnel-agent\r\n", addr, addr)
	if user := proxy.User; user != nil {
		password, _ := user.Password()
		credentials := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", credentials)
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return err
	}
	br := bufio.NewReaderSize(conn, 512)
	answer, err := socket.ReadAnswer(br)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("closed without an answer")
	}
	if err != nil {
		return err
	}
	switch {
	case answer.Status == 407:
		how := strings.Join(answer.Header["Proxy-Authenticate"], ", ")
		if proxy.User == nil {
			return fmt.Errorf("answered 407: the proxy's URL needs user:password@ (it asks for %s)", printable(how, 80))
		}
		return fmt.Errorf("answered 407: user and password are not accepted (it asks for %s; only Basic is spoken)", printable(how, 80))
	case answer.Status/100 != 2:
		return fmt.Errorf("answered %d %s", answer.Status, printable(answer.Reason, 80))
	case br.Buffered() > 0:
		// Neither TLS nor HTTP lets the server speak first.
		return errors.New("answered with more than a header")
	}
	return nil
}
