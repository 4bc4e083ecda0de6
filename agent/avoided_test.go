package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func addrs(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func TestAvoidedAreLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a avoided
		if a.any() {
			t.Error("there is one to avoid")
		}
		a.add(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}) // of 16 bytes
		a.add(&net.UnixAddr{Name: "/tmp/socket"})
		name := addrs("192.0.2.1", "2001:db8::1", "192.0.2.2")
		want := addrs("2001:db8::1", "192.0.2.2", "192.0.2.1")
		if got, some := a.last(name); !some || !slices.Equal(got, want) {
			t.Errorf("tried in the order %v, want %v", got, want)
		}
		a.add(&net.TCPAddr{IP: net.ParseIP("2001:db8::1")})
		a.add(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 2)})
		if got, some := a.last(name); !some || !slices.Equal(got, name) {
			t.Errorf("where all are to be avoided the order is %v, want %v", got, name)
		}
		for i := range 2 * maxAvoided {
			a.add(&net.TCPAddr{IP: net.IPv4(198, 51, 100, byte(i))})
		}
		if len(a.until) != maxAvoided {
			t.Errorf("%d are remembered, want %d", len(a.until), maxAvoided)
		}
		time.Sleep(avoidTime + time.Second)
		if a.any() {
			t.Error("an address is avoided for ever")
		}
	})
}

// A name's address that is to be avoided is dialled when no other one answers, and what
// is said then names them all.
func TestAvoidedIsDialled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Listen("tcp", "127.0.0.2:"+port(t, l))
	if err != nil {
		t.Skipf("this system has no second address of loopback: %v", err)
	}
	var a avoided
	a.add(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	asked := 0
	find := func(_ context.Context, network, host string) ([]netip.Addr, error) {
		if asked++; network != "ip" || host != "edge.example" {
			t.Errorf("asked for %s of %s", network, host)
		}
		if asked == 1 { // name servers take turns: it is not asked again
			return addrs("127.0.0.2", "127.0.0.1"), nil
		}
		return addrs("127.0.0.1", "127.0.0.2"), nil
	}
	dial := func() (string, error) {
		c, err := a.dial(t.Context(), new(net.Dialer), find, "edge.example:"+port(t, l))
		if err != nil {
			return "", err
		}
		defer c.Close()
		return c.RemoteAddr().(*net.TCPAddr).IP.String(), nil
	}
	if to, err := dial(); to != "127.0.0.2" {
		t.Errorf("dialled %q, %v; want the one that is not avoided", to, err)
	}
	other.Close()
	if to, err := dial(); to != "127.0.0.1" {
		t.Errorf("dialled %q, %v; want the one that answers", to, err)
	}
	l.Close()
	var refused *net.OpError
	if _, err := dial(); !errors.As(err, &refused) || len(err.(interface{ Unwrap() []error }).Unwrap()) != 2 {
		t.Errorf("nobody answers: %v", err)
	}
	if asked != 3 {
		t.Errorf("the name was looked up %d times", asked)
	}
}

func port(t *testing.T, l net.Listener) string {
	_, p, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// An edge that takes connections and says nothing is tried last from then on, through
// no proxy.
func TestSilentEdgeIsAvoided(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	l0, f := Listen(80, HTTP)
	defer l0.Close()
	a := mustNew(t, Config{Servers: []string{"ws://" + l.Addr().String()}, Device: "cam-17", Token: "t", Forwards: []Forward{f}, Once: true})
	if err := a.Run(t.Context()); err == nil {
		t.Fatal("a tunnel without an edge")
	}
	if _, ok := a.dialer.avoid.until[netip.MustParseAddr("127.0.0.1")]; !ok {
		t.Errorf("avoided are %v", a.dialer.avoid.until)
	}
}
