package caddymodule

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// handedOver waits until one configuration alone listens on the site's port. Load
// returns a moment before the listener of the one before is closed, and that resets a
// connection which has just come to it. Only Linux tells.
func (f *fixture) handedOver() {
	f.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(testWait); ; {
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil || listeners(string(table), f.port) <= 1 {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			f.t.Fatalf("two configurations listen on port %d", f.port)
		}
	}
}

// listeners counts those of a port in a table as of /proc/net/tcp.
func listeners(table string, port int) (n int) {
	for line := range strings.Lines(table) {
		c := strings.Fields(line) // number, local address, remote address, state
		if len(c) > 3 && strings.HasSuffix(c[1], fmt.Sprintf(":%04X", port)) && c[3] == "0A" {
			n++
		}
	}
	return n
}

func TestListeners(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000
   2: 0100007F:1F91 00000000:0000 0A 00000000:00000000
   3: 0100007F:1F90 0100007F:D431 01 00000000:00000000
`
	for port, want := range map[int]int{8080: 2, 8081: 1, 8082: 0} {
		if n := listeners(table, port); n != want {
			t.Errorf("port %d: %d, want %d", port, n, want)
		}
	}
}
