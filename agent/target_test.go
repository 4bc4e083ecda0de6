package agent

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestProxyHeader(t *testing.T) {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	for _, test := range []struct{ from, want string }{
		{"203.0.113.9:51234", signature + "\x21\x11\x00\x0c" + "\xcb\x00\x71\x09" + "\x00\x00\x00\x00" + "\xc8\x22" + "\x00\x16"},
		{"[2001:db8::9]:40000", signature + "\x21\x21\x00\x24" +
			"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09" +
			"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + "\x9c\x40" + "\x00\x16"},
		{"[::ffff:203.0.113.9]:51234", signature + "\x21\x11\x00\x0c" + "\xcb\x00\x71\x09" + "\x00\x00\x00\x00" + "\xc8\x22" + "\x00\x16"},
		{"", signature + "\x20\x00\x00\x00"},
		{"somebody", signature + "\x20\x00\x00\x00"},
	} {
		if got := proxyHeader(visitor(test.from), 22); string(got) != test.want {
			t.Errorf("%s: % x, want % x", test.from, got, test.want)
		}
	}
}

func TestProxyHeaderComesFirst(t *testing.T) {
	l, f := Listen(22, TCP)
	f.ProxyProtocol = true
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
	s := e.open(tunnel, "22")
	io.WriteString(s, "SSH-2.0")
	s.CloseWrite()
	want := append(proxyHeader(visitor("203.0.113.9:51234"), 22), "SSH-2.0"...)
	if b := receive(t, got); !bytes.Equal(b, want) {
		t.Errorf("service read %q", b)
	}
}

func TestVisitor(t *testing.T) {
	e := startEdge(t)
	from := make(chan netip.AddrPort, 1)
	start(t, mustNew(t, config(e, Forward{Port: 80, Dial: func(ctx context.Context) (net.Conn, error) {
		from <- Visitor(ctx)
		return nil, io.EOF
	}})))
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	tunnel.say(`{"type":"open","stream":1,"id":"` + testID + `","port":80,"from":"[2001:db8::9]:40000"}`)
	if got := receive(t, from).String(); got != "[2001:db8::9]:40000" {
		t.Errorf("visitor %s", got)
	}
	if got := Visitor(t.Context()); got.IsValid() {
		t.Errorf("outside: %v", got)
	}
}
