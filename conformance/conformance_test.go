package conformance

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/iottunnel/iottunnel/internal/leak"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func TestMain(m *testing.M) { leak.Main(m) }

const (
	basicCaps  = wire.Redirect
	fullCaps   = wire.Redirect | wire.Early | wire.Reuse
	inlineCaps = wire.Redirect | wire.Early | wire.Inline
)

// results are those of a device with a bug, in a bubble: all cases, those that take
// long too, cost no time.
func results(t *testing.T, caps wire.Caps, secure bool, bug string, only ...string) (all []Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		var err error
		all, err = Run(context.Background(), Config{
			Launch: launcher(n, caps, bug), UsesSecond: true, OwnService: true, TLS: secure, Slow: true, Jobs: 1000, MaxBackoff: maxBackoff,
			Network: n.listen, Elsewhere: func() string { return "192.0.2.1" }, Only: only,
		})
		if err != nil {
			t.Error(err)
		}
	})
	return all
}

// A device that keeps every rule passes every case, in each profile.
func TestRightDevice(t *testing.T) {
	for _, c := range []struct {
		name   string
		caps   wire.Caps
		secure bool
	}{{"basic", basicCaps, false}, {"full", fullCaps, false}, {"inline", inlineCaps, false}, {"nothing", 0, false}, {"TLS", fullCaps, true}} {
		t.Run(c.name, func(t *testing.T) {
			for _, r := range results(t, c.caps, c.secure, "") {
				if r.Verdict == Fail {
					t.Errorf("%s %s\nexpected: %s\ncame:     %s\n", r.Rule, r.Name, r.Want, r.Came)
					for _, line := range r.Log[max(0, len(r.Log)-12):] {
						t.Log(line)
					}
				}
			}
		})
	}
}
