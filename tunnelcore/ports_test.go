package tunnelcore

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/iottunnel/iottunnel/internal/freeport"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// freePorts returns n ports in a row that nobody listens on.
func freePorts(t *testing.T, n int) (first, last uint16) {
	t.Helper()
	first = freeport.Row(t, n)
	return first, first + uint16(n) - 1
}

// startPorts starts an edge with n public ports on loopback.
func startPorts(t *testing.T, n int, change func(*Settings)) *edge {
	first, last := freePorts(t, n)
	return startEdge(t, func(s *Settings) {
		s.TCP = &TCPPorts{First: first, Last: last, Bind: []string{"127.0.0.1"}, Host: "127.0.0.1"}
		if change != nil {
			change(s)
		}
	})
}

// public is the address of port 22 that the agent was told.
func (a *fakeAgent) public() string {
	for _, p := range a.ports {
		if p.Port == 22 {
			return p.Addr
		}
	}
	return ""
}

// knock connects to the public port 22 of a device, and plays the agent.
func (a *fakeAgent) knock() (visitor *net.TCPConn, agent *stream.Stream) {
	a.e.t.Helper()
	c, err := net.Dial("tcp", a.public())
	if err != nil {
		a.e.t.Fatal(err)
	}
	a.e.t.Cleanup(func() { c.Close() })
	o := a.receive().(*wire.Open)
	if o.Port != 22 || o.From != c.LocalAddr().String() {
		a.e.t.Errorf("open: %+v", o)
	}
	return c.(*net.TCPConn), a.transfer(o)
}

func TestPublicPort(t *testing.T) {
	e := startPorts(t, 2, nil)
	h := hello("cam-17")
	a := e.connect(h)
	if a.public() == "" {
		t.Fatal("no public port")
	}
	v, c := a.knock()
	carries(t, v, c)
	// The visitor ends, and then reads the whole answer.
	if err := v.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.Repeat("x", 100000)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(v); err != nil || len(all) != 100000 {
		t.Fatalf("read %d bytes, %v", len(all), err)
	}
	// An abort is no end.
	v, c = a.knock()
	carries(t, v, c)
	c.Abort()
	if _, err := io.ReadAll(v); err == nil {
		t.Error("the visitor took an abort for an end")
	}
	// The port stays the device's over a reconnect, and its listener open.
	address := a.public()
	a.sock.Close()
	e.event("offline cam-17")
	v2, err := net.Dial("tcp", address) // waits for the device
	if err != nil {
		t.Fatal(err)
	}
	defer v2.Close()
	a = e.connect(h)
	if a.public() != address {
		t.Errorf("port changed: %s, %s", address, a.public())
	}
	carries(t, v2, a.transfer(a.receive().(*wire.Open)))
}

func TestPublicPortRefusesVisitors(t *testing.T) {
	e := startPorts(t, 1, func(s *Settings) { s.Limits.StreamsPerAddress = 1 })
	a := e.connect(hello("cam-17"))
	a.knock()
	gone := func() {
		t.Helper()
		c, err := net.Dial("tcp", a.public())
		if err == nil {
			defer c.Close()
			_, err = c.Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	}
	gone() // a second stream of this address
	s := *e.hub.settings.Load()
	tcp := *s.TCP
	tcp.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	s.TCP, s.Limits.StreamsPerAddress = &tcp, 100
	e.hub.Update(s)
	gone() // an address that is not allowed
}

func TestPublicPortsRunOut(t *testing.T) {
	e := startPorts(t, 1, nil)
	e.connect(hello("cam-17"))
	if a := e.connect(hello("cam-18")); a.public() != "" {
		t.Errorf("public port %s of a range that is full", a.public())
	}
	if !strings.Contains(e.log.String(), "tcp_ports") {
		t.Error("the log does not say what to widen")
	}
}

func TestPublicPortTakenByAStranger(t *testing.T) {
	first, last := freePorts(t, 1)
	stranger, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(first)})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	e := startEdge(t, func(s *Settings) { s.TCP = &TCPPorts{First: first, Last: last, Bind: []string{"127.0.0.1"}} })
	if a := e.connect(hello("cam-17")); a.public() != "" {
		t.Errorf("public port %s, which a stranger has", a.public())
	}
	if !strings.Contains(e.log.String(), "another program") {
		t.Error("the log does not say why")
	}
}

// A released port leads nowhere, and is not the next device's at once.
func TestPublicPortRests(t *testing.T) {
	e := startPorts(t, 1, nil)
	h := hello("cam-17")
	a := e.connect(h)
	address := a.public()
	a.sock.Close()
	e.event("offline cam-17")
	h.Ports = []wire.Port{{Number: 80, Kind: wire.HTTP}} // no tcp port any more
	e.connect(h)
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
	if b := e.connect(hello("cam-18")); b.public() != "" {
		t.Errorf("the port went to another device within %v", registry.PortRest)
	}
}
