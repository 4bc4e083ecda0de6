package registry

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Event is something that happened to a device, for operators to read.
type Event struct {
	Device string
	At     time.Time // on the registry's clock; Note does not look at it
	Kind   string    // a word; EventOnline is counted
	Node   string    // where it happened; may be empty
	Detail string    // such as why; at most MaxWhy bytes are kept
}

// EventOnline is the Event.Kind of a device that has connected.
const EventOnline = "online"

// Journal is what operators are told of a device besides its lease: Tags are theirs,
// the rest is what happened to it.
type Journal struct {
	Tags []string // as SetTags was given them
	// Connects is how often the device has connected in this hour of the clock and the
	// 23 before it.
	Connects int
	Events   []Event // newest first, at most MaxEvents; only in Journal's answer
}

const (
	// MaxEvents is how many events of a device are kept, and EventTime how long after
	// the last one, unless it has tags.
	MaxEvents = 24
	EventTime = 8 * 24 * time.Hour

	// MaxTags is how many tags a device may have, and MaxTag the bytes of each.
	MaxTags = 16
	MaxTag  = 40
)

// Journals records what Journal holds. What Registry says of calls, names and errors
// holds here, too. Nothing else depends on it: where it fails, devices do not notice.
type Journals interface {
	// Journal returns that of a device; the zero Journal when nothing is known.
	Journal(ctx context.Context, device string) (Journal, error)

	// Journals returns those of devices, in their order, without events.
	Journals(ctx context.Context, devices []string) ([]Journal, error)

	// SetTags puts tags in the place of those that the device has; see CheckTags.
	SetTags(ctx context.Context, device string, tags []string) error

	// Note adds events, now, the first one first. What is not UTF-8 in them, or a
	// control character, is replaced. One that is invalid keeps the others out.
	Note(ctx context.Context, events []Event) error

	// DropJournal forgets all of a device.
	DropJournal(ctx context.Context, device string) error
}

// CheckTags says what is wrong with tags: up to MaxTags of them, each of 1 to MaxTag
// lower-case letters, digits and -._:/=, none twice.
func CheckTags(tags []string) error {
	if len(tags) > MaxTags {
		return fmt.Errorf("%w: %d tags, at most %d are allowed", ErrInvalid, len(tags), MaxTags)
	}
	seen := make(map[string]struct{}, len(tags))
	for _, tag := range tags {
		odd := strings.ContainsFunc(tag, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("-._:/=", c)
		})
		if tag == "" || len(tag) > MaxTag || odd {
			return fmt.Errorf("%w: tag %q is not of 1 to %d lower-case letters, digits and -._:/=", ErrInvalid, tag, MaxTag)
		}
		if _, twice := seen[tag]; twice {
			return fmt.Errorf("%w: tag %q is there twice", ErrInvalid, tag)
		}
		seen[tag] = struct{}{}
	}
	return nil
}

// CleanEvents returns events as they are kept, without their times: on one line each,
// and bounded.
func CleanEvents(events []Event) ([]Event, error) {
	list := make([]Event, len(events))
	for i, e := range events {
		var err error
		if list[i], err = cleanEvent(e); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func cleanEvent(e Event) (Event, error) {
	if err := checkName("device", e.Device); err != nil {
		return Event{}, err
	}
	clean := func(s string) string {
		s = strings.Map(func(c rune) rune {
			if c < ' ' || c == 0x7f {
				return ' '
			}
			return c
		}, strings.ToValidUTF8(s, "�"))
		return shorten(s)
	}
	e = Event{Device: e.Device, Kind: clean(e.Kind), Node: clean(e.Node), Detail: clean(e.Detail)}
	if e.Kind == "" || strings.Contains(e.Kind, " ") {
		return Event{}, fmt.Errorf("%w: kind of an event: %q is not a word", ErrInvalid, e.Kind)
	}
	return e, nil
}
