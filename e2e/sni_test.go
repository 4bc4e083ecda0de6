package e2e

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// sniVisitor opens a TLS connection that asks for a name, and for protocols by ALPN.
func sniVisitor(t *testing.T, f harness.Face, name string, protocols ...string) (*tls.Conn, error) {
	t.Helper()
	config := f.VisitorTLS().Clone()
	config.ServerName, config.NextProtos = name, protocols
	raw, err := net.DialTimeout("tcp", f.VisitorAddr(), harness.VisitorTimeout)
	if err != nil {
		t.Fatal(err)
	}
	raw.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	c := tls.Client(raw, config)
	t.Cleanup(func() { c.Close() })
	return c, c.HandshakeContext(t.Context())
}

// TestSNI reaches services that do not speak HTTP on the port of HTTPS, and everything
// else there as before.
func TestSNI(t *testing.T) {
	t.Parallel()
	tlsFace := harness.Kinds[slices.IndexFunc(harness.Kinds, func(k harness.Kind) bool { return k.Name() == "tls" })]
	wrapped := func(lines ...string) harness.Setup {
		return harness.Setup{TCPPorts: 4, Servers: slices.Concat([]string{"listener_wrappers {", "\tiottunnel {"}, lines, []string{"\t}", "}"})}
	}
	f := harness.Own(t, tlsFace, wrapped())
	o := harness.StartOrigin(t)
	banner := harness.ServeTCP(t, func(c *net.TCPConn) {
		io.WriteString(c, "SSH-2.0-device\r\n")
		harness.Echo(c)
	})
	a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr, "22=" + banner, "8080/http=" + o.Addr}})
	host := a.Up(t).Hostname(t, 80)
	label, domain, _ := strings.Cut(host, ".")
	name := label + "--22." + domain
	s := &site{face: f, origin: o, agent: a, host: host, client: harness.Visitor(t, f, false)}

	// talk is a whole conversation, to its end on both sides.
	talk := func(c *tls.Conn) {
		t.Helper()
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); line != "SSH-2.0-device\r\n" {
			t.Fatalf("%q, %v: want the device's banner", line, err)
		}
		want := strings.Repeat("hello ", 50_000)
		var wrote sync.WaitGroup
		wrote.Go(func() {
			io.WriteString(c, want)
			c.CloseWrite()
		})
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("%d bytes came back, %v; want %d", len(got), err, len(want))
		}
		wrote.Wait()
	}
	c, err := sniVisitor(t, f, name)
	if err != nil {
		t.Fatal(err)
	}
	talk(c)

	// HTTP is as it was: on the same listener, also under such names.
	wholeVisit(t, tlsFace, s, s.client, 2)
	for _, protocol := range []string{"", "http/1.1"} {
		for path, want := range map[string]int{label + "--8080." + domain: 200, host: 200, label + "--9." + domain: 404} {
			var protocols []string
			if protocol != "" {
				protocols = []string{protocol}
			}
			c, err := sniVisitor(t, f, path, protocols...)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "GET /page HTTP/1.1\r\nHost: "+path+"\r\nConnection: close\r\n\r\n")
			r, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || r.StatusCode != want {
				t.Errorf("ALPN %q, %s: %v, %v; want %d", protocol, path, r, err, want)
			}
		}
	}
	// Who speaks HTTP is not let into what does not: no page can have a browser do it.
	h1, err := sniVisitor(t, f, name, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(h1, "GET / HTTP/1.1\r\nHost: "+name+"\r\nConnection: close\r\n\r\n")
	if r, err := http.ReadResponse(bufio.NewReader(h1), nil); err != nil || r.StatusCode != 404 || r.Header.Get("Iottunnel-Error") != "unknown_device" {
		t.Errorf("HTTP to a port that does not speak it: %v, %v", r, err)
	}

	// Handshakes that do not end hold up nobody.
	for range 50 {
		slow, err := net.Dial("tcp", f.VisitorAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		slow.Write([]byte{0x16, 3, 1})
	}
	if c, err = sniVisitor(t, f, name); err != nil {
		t.Fatal(err)
	}

	// A conversation goes on over a reload, which changes who may begin one.
	held := bufio.NewReader(c)
	if line, err := held.ReadString('\n'); line != "SSH-2.0-device\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	f.Reload(t, wrapped("\t\tports 23"))
	if other, err := sniVisitor(t, f, name); err == nil {
		if b, err := io.ReadAll(other); err == nil || len(b) > 0 {
			t.Errorf("a port that is not among those: %q, %v; want an abort", b, err)
		}
	}
	f.Reload(t, wrapped("\t\tallow 10.0.0.0/8"))
	if other, err := sniVisitor(t, f, name); err == nil {
		if b, err := io.ReadAll(other); err == nil || len(b) > 0 {
			t.Errorf("an address that may not: %q, %v; want an abort", b, err)
		}
	}
	io.WriteString(c, "still there\n")
	if line, err := held.ReadString('\n'); line != "still there\n" {
		t.Errorf("after reloads: %q, %v", line, err)
	}
}
