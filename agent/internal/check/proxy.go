package check

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
)

// tunnelThrough asks the proxy for a connection to the edge.
func (w *way) tunnelThrough(ctx context.Context) (Finding, bool) {
	if w.proxy == nil {
		return Finding{}, false
	}
	w.limited(handshakeTime)
	began := w.now()
	if w.proxy.Scheme == "https" {
		template := w.template()
		template.Certificates, template.GetClientCertificate, template.ServerName = nil, nil, ""
		conn, f := w.handshake(ctx, w.conn, template, w.proxy.Hostname(), w.proxy.Hostname())
		if f.Verdict == Failed {
			f.Text = "TLS to the proxy: " + f.Text
			return f, true
		}
		w.conn = conn
	}
	addr := hostPort(w.url)
	request := fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: iottunnel-agent\r\n", addr, addr)
	if user := w.proxy.User; user != nil {
		password, _ := user.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(w.conn, request+"\r\n"); err != nil {
		return failure("check that --proxy names a proxy", "%s: %v", w.proxy.Host, err), true
	}
	answer, err := readAnswer(bufio.NewReader(w.conn), true)
	how := printable(answer.header["proxy-authenticate"], 80)
	switch {
	case err != nil:
		return failure("check that --proxy names a proxy, with its scheme (http:// or https://) and port", "%s gives no answer to CONNECT %s: %v", w.proxy.Host, addr, err), true
	case answer.status == 407 && w.proxy.User == nil:
		return failure("give --proxy http://USER:PASSWORD@HOST:PORT, better in a file (-c) than on the command line", "%s wants user and password (%s)", w.proxy.Host, how), true
	case answer.status == 407:
		return failure("check user and password in --proxy; only Basic is spoken", "%s does not accept user and password (%s)", w.proxy.Host, how), true
	case answer.status == 403 || answer.status == 405:
		return failure("ask the proxy's keeper to allow CONNECT to "+addr, "%s forbids it: %s", w.proxy.Host, answer.line), true
	case answer.status/100 != 2:
		return failure("see whether the proxy can reach "+addr, "%s answers CONNECT %s with %s", w.proxy.Host, addr, answer.line), true
	}
	return Finding{Verdict: OK, Text: fmt.Sprintf("%s connects to %s (%s)", w.proxy.Host, addr, took(began, w.now()))}, true
}

// template is the configuration of TLS, to be changed.
func (w *way) template() *tls.Config {
	template := w.Config.TLS.Clone()
	if template == nil {
		template = new(tls.Config)
	}
	return template
}
