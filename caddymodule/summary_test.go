package caddymodule

import (
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

func TestSummary(t *testing.T) {
	at := time.Date(2026, 11, 23, 9, 12, 30, 0, time.UTC)
	left := &closeView{Reason: "heartbeat timeout", At: at}
	refusals := func(times ...time.Time) tunnelcore.Refusal {
		return tunnelcore.Refusal{Code: "unauthorized", Message: "wrong token", Times: times}
	}
	for _, c := range []struct {
		name    string
		view    deviceView
		refusal tunnelcore.Refusal
		want    string
	}{
		{"online", deviceView{State: stateOnline, Node: "edge-1", Since: &at}, tunnelcore.Refusal{}, "online since 2026-11-23 09:12 UTC at edge-1"},
		{"refused before", deviceView{State: stateOnline, Node: "edge-1", Since: &at}, refusals(at.Add(-time.Second)), "online since 2026-11-23 09:12 UTC at edge-1"},
		{"offline", deviceView{State: stateOffline, LastClose: left}, tunnelcore.Refusal{}, "offline since 2026-11-23 09:12 UTC: heartbeat timeout"},
		{"refused since", deviceView{State: stateOffline, LastClose: left}, refusals(at.Add(-time.Hour), at.Add(time.Second), at.Add(time.Minute), at.Add(time.Hour)),
			"offline since 2026-11-23 09:12 UTC: heartbeat timeout; 3 refusals since: wrong token"},
		{"revoked", deviceView{State: stateOffline, LastClose: left, Secret: "revoked"}, refusals(at.Add(time.Second)),
			"offline since 2026-11-23 09:12 UTC: heartbeat timeout; revoked; one refusal since: wrong token"},
		{"revoked, without a lease", deviceView{State: stateOffline, Secret: "revoked"}, tunnelcore.Refusal{}, "revoked, and has no hostname"},
		{"imported", deviceView{State: stateOffline, Secret: "current", Hostname: "x.devices.test"}, tunnelcore.Refusal{},
			"offline: its hostname is kept for it, and no connection is on record"},
		{"new", deviceView{State: stateOffline, Secret: "current"}, tunnelcore.Refusal{}, "enrolled, and has no hostname: it has not connected, or its lease has ended"},
		{"unknown", deviceView{State: stateOffline}, tunnelcore.Refusal{Code: "unauthorized", Times: []time.Time{at}}, "nothing is known of it; one refusal since: unauthorized"},
	} {
		text, since := c.view.standing()
		if got := text + refused(c.refusal, since); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
