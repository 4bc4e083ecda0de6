package webhook

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"
)

const (
	// lookTime is how often a desk looks for what has become due, and askTime bounds
	// what it asks then.
	lookTime = time.Second
	askTime  = 10 * time.Second
	// settleTime is how long what was asked of the registry takes to be there, and
	// hopeTime how long a registry that does not answer is asked again. Then a device
	// is told of without it: better twice than never.
	settleTime = 2 * time.Second
	hopeTime   = time.Minute
	// maxKnown bounds the devices that are waited for, and those whose comings are
	// counted. Those over it are told of at once.
	maxKnown = 100_000
)

// desk decides what is told of devices that come and go. One goroutine uses it.
type desk struct {
	fleet   Fleet
	absent  map[string]Event // devices whose absence is not told yet
	leaving []due            // absences, by when they are to be told
	coming  []due            // arrivals that may be the end of an absence that was told
	flaps   map[string]*flap
	swept   time.Time
}

// due is an event with a time.
type due struct {
	Event
	when time.Time
}

// flap is how often a device has left lately.
type flap struct {
	left  []time.Time
	muted bool
	last  Event // while it is muted
}

func newDesk(fleet Fleet) *desk {
	return &desk{fleet: fleet, absent: make(map[string]Event), flaps: make(map[string]*flap)}
}

// take is given what has happened, and returns what to tell at once.
func (d *desk) take(s *Settings, e Event) []Event {
	e.ID = newID()
	if e.Event != Online && e.Event != Offline {
		return d.pick(s, e)
	}
	if f := d.flaps[e.Device]; f != nil && f.muted {
		f.last = e
		if e.Event == Offline {
			f.left = append(f.left[1:], e.At)
		}
		return nil
	}
	if e.Event == Offline {
		if told := d.left(s, e); told != nil {
			return told
		}
	}
	switch {
	case s.OfflineAfter <= 0:
		return d.pick(s, e)
	case e.Event == Online:
		if _, waiting := d.absent[e.Device]; waiting {
			delete(d.absent, e.Device)
			return nil
		}
		if len(d.coming) >= maxKnown {
			return d.pick(s, e)
		}
		d.coming = append(d.coming, due{e, e.At.Add(settleTime)})
		return nil
	case len(d.absent) >= maxKnown || len(d.leaving) >= 2*maxKnown:
		return d.pick(s, e)
	}
	d.absent[e.Device] = e
	d.leaving = append(d.leaving, due{e, e.At.Add(s.OfflineAfter)})
	return nil
}

// left counts that a device has left. When it does so all the time, that is what is
// told, and nothing else until it stops.
func (d *desk) left(s *Settings, e Event) []Event {
	if s.Flaps <= 0 {
		return nil
	}
	f := d.flaps[e.Device]
	if f == nil {
		if len(d.flaps) >= maxKnown {
			return nil
		}
		f = new(flap)
		d.flaps[e.Device] = f
	}
	f.left = append(f.left, e.At)
	for len(f.left) > s.Flaps || e.At.Sub(f.left[0]) > s.FlapWindow {
		f.left = f.left[1:]
	}
	if len(f.left) < s.Flaps {
		return nil
	}
	f.muted, f.last = true, e
	delete(d.absent, e.Device)
	e.ID, e.Event, e.Times = newID(), Flapping, len(f.left)
	return append(make([]Event, 0, 1), d.pick(s, e)...) // not nil: it was decided
}

// pick returns e if s wants it.
func (d *desk) pick(s *Settings, e Event) []Event {
	if !s.wants(e.Event) {
		return nil
	}
	return []Event{e}
}

// look returns what has become due by now.
func (d *desk) look(ctx context.Context, s *Settings, now time.Time) []Event {
	told := d.arrived(ctx, s, now)
	told = append(told, d.stayedAway(ctx, s, now)...)
	return append(told, d.steady(s, now)...)
}

// stayedAway returns the devices that have not come back in time, to any node.
func (d *desk) stayedAway(ctx context.Context, s *Settings, now time.Time) (told []Event) {
	for len(d.leaving) > 0 && !now.Before(d.leaving[0].when) {
		e := d.leaving[0]
		if d.absent[e.Device].ID == e.ID { // else it has come back, or has left again
			connected, err := d.fleet.Connected(ctx, e.Device)
			if err != nil && now.Sub(e.when) < hopeTime {
				return told // the next look asks again
			}
			delete(d.absent, e.Device)
			if !connected {
				told = append(told, d.pick(s, e.Event)...)
			}
		}
		d.leaving = d.leaving[1:]
	}
	return told
}

// arrived returns the devices that have come, if they were away for so long that
// this was told, or would have been.
func (d *desk) arrived(ctx context.Context, s *Settings, now time.Time) (told []Event) {
	for len(d.coming) > 0 && !now.Before(d.coming[0].when) {
		e := d.coming[0]
		at, away, first, err := d.fleet.LastAbsence(ctx, e.Device)
		if err != nil && now.Sub(e.when) < hopeTime {
			return told
		}
		if err != nil || first || away && e.At.Sub(at) >= s.OfflineAfter {
			told = append(told, d.pick(s, e.Event)...)
		}
		d.coming = d.coming[1:]
	}
	return told
}

// steady returns how those are now that were flapping.
func (d *desk) steady(s *Settings, now time.Time) (told []Event) {
	if now.Sub(d.swept) < s.FlapWindow/10 {
		return nil
	}
	d.swept = now
	for device, f := range d.flaps {
		switch {
		case f.muted && now.Sub(f.last.At) >= s.FlapWindow:
			told = append(told, d.pick(s, f.last)...)
			delete(d.flaps, device)
		case !f.muted && now.Sub(f.left[len(f.left)-1]) >= s.FlapWindow:
			delete(d.flaps, device)
		}
	}
	return told
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
