package agent

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

// Each request of a connection gets the other Host, behind a PROXY header that
// stays as it is.
func TestHost(t *testing.T) {
	l, f := Listen(80, HTTP)
	f.ProxyProtocol, f.Host = true, "cam.lan:8080"
	e := startEdge(t)
	start(t, mustNew(t, config(e, f)))
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.SetReadDeadline(time.Now().Add(patience))
		b, _ := io.ReadAll(c)
		c.Close()
		got <- b
	}()
	const requests = "GET /a HTTP/1.1\r\nHost: l4bel\r\n\r\nPOST /b HTTP/1.1\r\nHost: l4bel\r\nContent-Length: 2\r\n\r\nhiGET /c HTTP/1.1\r\nHost: l4bel\r\n\r\n"
	s := e.open(tunnel, "80")
	io.WriteString(s, requests)
	s.CloseWrite()
	want := append(proxyHeader(visitor("203.0.113.9:51234"), 80), strings.ReplaceAll(requests, "l4bel", "cam.lan:8080")...)
	if b := receive(t, got); !bytes.Equal(b, want) {
		t.Errorf("service read %q", b)
	}
}

func TestHostRefuses(t *testing.T) {
	for want, f := range map[string]Forward{
		"port 443: another Host is possible on kind http alone, not on https": {Port: 443, Host: "cam.lan"},
		"port 22: another Host is possible on kind http alone, not on tcp":    {Port: 22, Host: "cam.lan"},
		`port 80: host: "a b" is not a name or an address`:                    {Port: 80, Host: "a b"},
	} {
		f.Target = "127.0.0.1:80"
		_, err := New(Config{Servers: []string{"wss://a"}, Device: "cam-17", Forwards: []Forward{f}})
		if err == nil || !strings.HasPrefix(err.Error(), "agent: Forwards: "+want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
