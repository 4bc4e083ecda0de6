package registry

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// storedJournal is a journal as the file keeps it. Once it is published it does not
// change.
type storedJournal struct {
	Tags []string `json:"tags,omitempty"`
	// Hours is how often the device has connected, by hours of the clock, oldest first.
	Hours  []storedHour  `json:"hours,omitempty"`
	Events []storedEvent `json:"events,omitempty"` // newest first
}

type storedHour struct {
	Hour     int64 `json:"hour"` // of Unix time
	Connects int   `json:"connects"`
}

type storedEvent struct {
	AtMS   int64  `json:"at_ms"`
	Kind   string `json:"kind"`
	Node   string `json:"node,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// journalHours is how many hours of the clock Journal.Connects counts.
const journalHours = 24

// ended says whether nothing of the journal need be kept any more.
func (j *storedJournal) ended(now int64) bool {
	return len(j.Tags) == 0 && (len(j.Events) == 0 || j.Events[0].AtMS <= now-EventTime.Milliseconds())
}

func (m *Memory) loadJournal(device string, j storedJournal) error {
	if device == "" {
		return fmt.Errorf("journal of no device")
	}
	m.journals.Store(device, &j)
	return nil
}

func (m *Memory) journal(device string) *storedJournal {
	if v, ok := m.journals.Load(device); ok {
		return v.(*storedJournal)
	}
	return nil
}

func (m *Memory) publicJournal(device string, events bool) Journal {
	j, now := m.journal(device), m.clock.read()
	if j == nil || j.ended(now) {
		return Journal{}
	}
	p := Journal{Tags: slices.Clone(j.Tags)}
	for _, h := range j.Hours {
		if h.Hour > m.hour(now)-journalHours {
			p.Connects += h.Connects
		}
	}
	if events {
		for _, e := range j.Events {
			p.Events = append(p.Events, Event{Device: device, At: m.clock.time(e.AtMS), Kind: e.Kind, Node: e.Node, Detail: e.Detail})
		}
	}
	return p
}

// hour is the hour of Unix time at a moment of the registry's clock.
func (m *Memory) hour(ms int64) int64 { return m.clock.time(ms).Unix() / int64(time.Hour/time.Second) }

// Journal implements Journals.
func (m *Memory) Journal(ctx context.Context, device string) (Journal, error) {
	if err := ctx.Err(); err != nil {
		return Journal{}, err
	}
	return m.publicJournal(device, true), nil
}

// Journals implements Journals.
func (m *Memory) Journals(ctx context.Context, devices []string) ([]Journal, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	list := make([]Journal, len(devices))
	for i, device := range devices {
		list[i] = m.publicJournal(device, false)
	}
	return list, nil
}

// SetTags implements Journals.
func (m *Memory) SetTags(ctx context.Context, device string, tags []string) error {
	if err := checkName("device", device); err != nil {
		return err
	}
	if err := CheckTags(tags); err != nil {
		return err
	}
	tags = slices.Clone(tags)
	return m.mutate(ctx, func(b *batch) error {
		var next storedJournal
		if old := b.journal(device); old != nil {
			next = *old
		}
		next.Tags = tags
		b.journals[device] = &next
		if next.ended(b.now) {
			b.journals[device] = nil
		}
		return nil
	})
}

// Note implements Journals.
func (m *Memory) Note(ctx context.Context, events []Event) error {
	events, err := CleanEvents(events)
	if err != nil || len(events) == 0 {
		return err
	}
	return m.mutateMany(ctx, len(events), func(b *batch) error {
		for _, e := range events {
			b.note(e)
		}
		return nil
	})
}

func (b *batch) note(e Event) {
	var next storedJournal
	if old := b.journal(e.Device); old != nil && !old.ended(b.now) {
		next = *old
	}
	kept := next.Events[:min(len(next.Events), MaxEvents-1)]
	next.Events = append([]storedEvent{{AtMS: b.now, Kind: e.Kind, Node: e.Node, Detail: e.Detail}}, kept...)
	hour := b.m.hour(b.now)
	next.Hours = slices.DeleteFunc(slices.Clone(next.Hours), func(h storedHour) bool { return h.Hour <= hour-journalHours })
	if e.Kind == EventOnline {
		if n := len(next.Hours); n > 0 && next.Hours[n-1].Hour == hour {
			next.Hours[n-1].Connects++
		} else {
			next.Hours = append(next.Hours, storedHour{hour, 1})
		}
	}
	b.journals[e.Device] = &next
}

// DropJournal implements Journals.
func (m *Memory) DropJournal(ctx context.Context, device string) error {
	return m.mutate(ctx, func(b *batch) error {
		if b.journal(device) != nil {
			b.journals[device] = nil
		}
		return nil
	})
}

// journal returns that of a device as the batch leaves it; nil without one.
func (b *batch) journal(device string) *storedJournal {
	if j, staged := b.journals[device]; staged {
		return j
	}
	return b.m.journal(device)
}

// publishJournals shows everybody what the batch has changed.
func (b *batch) publishJournals() {
	for device, j := range b.journals {
		if j == nil {
			b.m.journals.Delete(device)
		} else {
			b.m.journals.Store(device, j)
		}
	}
}

// journalSweep is how often journals that have ended are looked for.
const journalSweep = time.Hour

// sweepJournals takes those away that have ended.
func (b *batch) sweepJournals() {
	if b.now < b.m.journalsSwept {
		return
	}
	b.m.journalsSwept = b.now + journalSweep.Milliseconds()
	b.m.journals.Range(func(key, value any) bool {
		if device := key.(string); b.journal(device) != nil && value.(*storedJournal).ended(b.now) {
			b.journals[device] = nil
		}
		return true
	})
}
