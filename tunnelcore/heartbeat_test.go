package tunnelcore

import (
	"testing"
	"time"
)

// Leases that were not refreshed are so soon, and not only when they are due again.
func TestRefreshAgainSoon(t *testing.T) {
	n := startNodes(t, 1, nil)[0]
	n.connect(hello("cam-17"))
	if !n.hub.refresh() {
		t.Error("refreshed, and not so by its own word")
	}
	n.reg.down.Store(true)
	if n.hub.refresh() {
		t.Error("the registry was away, and the leases are refreshed")
	}
	n.reg.down.Store(false)
	const lease = 720 * time.Hour
	for failures, most := range []time.Duration{lease / 3, 6 * time.Second, 11 * time.Second, 22 * time.Second} {
		if p := refreshPause(lease, failures); p > most || p < most/2 {
			t.Errorf("after %d failures: %v, want at most %v", failures, p, most)
		}
	}
	if p := refreshPause(lease, 1<<40); p > 3*time.Minute {
		t.Errorf("after very many: %v", p)
	}
	if p := refreshPause(3*time.Second, 5); p > time.Second {
		t.Errorf("a short lease: %v", p)
	}
}
