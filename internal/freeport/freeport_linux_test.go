package freeport

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
)

// The system gives a held port to nobody who asks for any: not where it is the only one.
func TestHeldPortIsNotGivenAway(t *testing.T) {
	const localPortRange = 51 // IP_LOCAL_PORT_RANGE, since Linux 6.3
	addr := One(t)
	only := func(port uint16) (net.Listener, error) {
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) {
				failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, localPortRange, int(port)|int(port)<<16)
			})
			return errors.Join(err, failed)
		}}
		return config.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	}
	l, err := only(addr.Port())
	switch {
	case errors.Is(err, syscall.ENOPROTOOPT):
		t.Skip("this kernel has no IP_LOCAL_PORT_RANGE, by which a test sees that")
	case err == nil:
		l.Close()
		t.Errorf("%v was given away", l.Addr())
	case !errors.Is(err, syscall.EADDRINUSE):
		t.Error(err)
	}
}
