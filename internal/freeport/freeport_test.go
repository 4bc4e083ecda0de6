package freeport

import (
	"net"
	"net/netip"
	"testing"
)

// A port is nobody's, can be listened on, and is free again after that.
func TestOne(t *testing.T) {
	addr := One(t)
	for range 3 {
		if c, err := net.Dial("tcp", addr.String()); err == nil {
			c.Close()
			t.Fatal("somebody listens")
		}
		l, err := net.Listen("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		c.Close()
		l.Close()
	}
}

// Ports in a row are different from each other and from others that are held.
func TestRow(t *testing.T) {
	seen := make(map[uint16]bool)
	for range 20 {
		first := Row(t, 3)
		for port := first; port < first+3; port++ {
			if seen[port] {
				t.Errorf("port %d is held twice", port)
			}
			seen[port] = true
			l, err := net.Listen("tcp", netip.AddrPortFrom(loopback, port).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
		}
	}
}
