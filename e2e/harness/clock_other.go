//go:build !(linux && amd64)

package harness

import (
	"testing"
	"time"
)

// ShiftClock sets the wall clock of the process off: here it cannot, and fails.
func (p *Proc) ShiftClock(tb testing.TB, _ time.Duration) {
	tb.Helper()
	tb.Fatal("clocks of processes can be set off on linux/amd64 only")
}
