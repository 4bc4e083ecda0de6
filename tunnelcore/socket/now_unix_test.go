//go:build unix

package socket

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// What has come of a frame is returned at once, and together.
func TestFillDoesNotWait(t *testing.T) {
	for _, part := range []int{1, 4 << 10, 5000, 40 << 10} {
		client, conn := ends.Conns(t, "tcp")
		s := on(client, true)
		frame := append([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}, make([]byte, part)...)
		if _, err := conn.Write(frame); err != nil {
			t.Fatal(err)
		}
		ends.Within(t, "fill", func() {
			if _, err := s.Next(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64<<10+Headroom)
			n, err := s.Fill(buf, 64<<10) // loopback has brought it all
			if n != part || err != nil {
				t.Errorf("%d bytes, %v; want %d", n, err, part)
			}
			if n := s.FillNow(buf, 64<<10); n != 0 {
				t.Errorf("%d bytes out of nowhere", n)
			}
		})
	}
}

// An error that a read without waiting was told of is the next read's.
func TestFillTellsErrors(t *testing.T) {
	client, conn := ends.Conns(t, "tcp")
	s := on(client, true)
	conn.Write(append([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 20<<10)...))
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	if n, err := s.Fill(buf, 64<<10); n != 20<<10 || err != nil {
		t.Fatal(n, err)
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	ends.Within(t, "reset", func() {
		for s.feed.err == nil {
			if n := s.FillNow(buf, 64<<10); n != 0 {
				t.Fatal(n)
			}
		}
	})
	for range 2 {
		if _, err := s.Fill(buf, 64<<10); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	}
}
