//go:build unix

package stream

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// The system reports a reset once: when a write has taken the report, a read
// returns an end that is none.
func TestWasReset(t *testing.T) {
	visitor, a := ends.Loopback(t)
	defer a.Close()
	visitor.SetLinger(0)
	visitor.Close()
	ends.Within(t, "write", func() {
		for {
			if _, err := a.Write([]byte("x")); err != nil {
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Error(err)
				}
				return
			}
		}
	})
	if n, err := a.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Skipf("this system goes on to report a reset: %d, %v", n, err)
	}
	if !wasReset(a) {
		t.Error("taken for an end")
	}
	a.Close() // by whoever was told of the reset
	if !wasReset(a) {
		t.Error("taken for an end once it is closed")
	}
}

func TestWasNotReset(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn) error{"half-closed": (*net.TCPConn).CloseWrite, "closed": (*net.TCPConn).Close} {
		visitor, a := ends.Loopback(t)
		io.WriteString(visitor, "all")
		end(visitor)
		if got := readAll(a); got != (result{"all", nil}) || wasReset(a) {
			t.Errorf("%s: %+v, taken for a reset: %v", name, got, wasReset(a))
		}
		a.Close()
		visitor.Close()
	}
	s, _ := pair(t, "tcp", Options{})
	if wasReset(s) {
		t.Error("a stream was taken for a TCP connection that was reset")
	}
}
