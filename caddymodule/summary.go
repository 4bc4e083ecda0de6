package caddymodule

import (
	"fmt"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

// summary says how a device is, since when and why, and whether anybody was refused
// under its name since: by this node, which knows of no others.
func (v *deviceView) summary(h *tunnelcore.Hub) string {
	refusal, _ := h.LastRefusal(v.Device)
	text, since := v.standing()
	return text + refused(refusal, since)
}

// standing says how v is, and since when.
func (v *deviceView) standing() (text string, since time.Time) {
	switch {
	case v.State == stateOnline:
		text = "online"
		if v.Since != nil {
			since = *v.Since
			text += " since " + minute(since)
		}
		return text + " at " + v.Node, since
	case v.LastClose != nil:
		since = v.LastClose.At
		text = "offline since " + minute(since)
		if v.LastClose.Reason != "" {
			text += ": " + v.LastClose.Reason
		}
	case v.Hostname != "":
		text = "offline: its hostname is kept for it, and no connection is on record"
	case v.Secret == secretRevoked:
		return "revoked, and has no hostname", since
	case v.Secret != "":
		text = "enrolled, and has no hostname: it has not connected, or its lease has ended"
	default:
		text = "nothing is known of it"
	}
	if v.Secret == secretRevoked {
		text += "; revoked"
	}
	return text, since
}

// refused says how often an agent was sent away since then, and how the last time.
func refused(r tunnelcore.Refusal, since time.Time) string {
	n := 0
	for _, at := range r.Times {
		if at.After(since) {
			n++
		}
	}
	switch {
	case n == 0:
		return ""
	case n == 1:
		return fmt.Sprintf("; one refusal since: %s", reason(r))
	case n == tunnelcore.RefusalTimes:
		return fmt.Sprintf("; %d refusals since, or more: %s", n, reason(r))
	}
	return fmt.Sprintf("; %d refusals since: %s", n, reason(r))
}

func reason(r tunnelcore.Refusal) string {
	if r.Message == "" {
		return string(r.Code)
	}
	return r.Message
}

func minute(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
