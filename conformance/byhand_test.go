package conformance

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
)

// A device that nobody starts connects by itself, and is reset when the tool asks for it.
func TestByHand(t *testing.T) {
	for _, slow := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := newMemNet()
			start := launcher(n, fullCaps, "")
			vars := Vars{URL: "ws://127.0.0.1:8080", Device: "bench-1", Token: "s3cret", Echo: "127.0.0.1:7007", HTTP: "127.0.0.1:7080", Dead: "127.0.0.1:1"}
			var device Process
			resets := 0
			all, err := Run(context.Background(), Config{
				Listen: "127.0.0.1:8080", Echo: vars.Echo, HTTP: vars.HTTP, OwnService: true, Device: vars.Device, Token: vars.Token,
				Network: n.listen, MaxBackoff: maxBackoff, Slow: slow,
				Say: func(format string, args ...any) {
					if !strings.Contains(format, "reset") && format != "waiting for the device" {
						return
					}
					if device != nil {
						device.Kill()
						resets++
					}
					device, _ = start(vars)
				},
			})
			if err != nil {
				t.Error(err)
			}
			device.Kill()
			passed := 0
			for _, r := range all {
				switch r.Verdict {
				case Pass:
					passed++
				case Fail:
					t.Errorf("%s %s\nexpected: %s\ncame:     %s\n%s", r.Rule, r.Name, r.Want, r.Came, strings.Join(r.Log, "\n"))
				}
			}
			if passed < 100 || !slow && resets == 0 || resets > 20 {
				t.Errorf("%d cases pass, after %d resets", passed, resets)
			}
		})
	}
}

// What no rule and no profile is, is said before anything is tried.
func TestCheckConfig(t *testing.T) {
	for _, c := range []Config{{Profile: "fat"}, {Only: []string{"5.1", "99"}}} {
		if _, err := Run(context.Background(), c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	if err := (&Config{Profile: "inline", Only: []string{"5", "12.1"}}).Check(); err != nil {
		t.Error(err)
	}
}
