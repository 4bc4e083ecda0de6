// Package freeport finds TCP ports of loopback that stay free until a test's own program
// listens on them.
package freeport

import (
	"net/netip"
	"testing"
)

// tries is how often ports in a row are looked for.
const tries = 100

// One returns an address of 127.0.0.1, with its port, where nobody listens: who dials it
// is refused. On Linux the system gives the port to nobody who asks for any, until the
// test has ended, while Go's listeners may have it by its number, and again after they
// have closed it. Elsewhere somebody else may be quicker.
func One(t testing.TB) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(loopback, Row(t, 1))
}

// Row is One for n ports in a row, of which it returns the first.
func Row(t testing.TB, n int) (first uint16) {
	t.Helper()
	for range tries {
		port, free, err := hold(0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(free)
		held := 1
		for ; held < n && int(port)+held < 1<<16; held++ {
			_, free, err := hold(port + uint16(held))
			if err != nil {
				break
			}
			t.Cleanup(free)
		}
		if held == n {
			return port
		}
	}
	t.Fatalf("no %d free ports in a row", n)
	return 0
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
