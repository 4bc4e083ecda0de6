package registrytest

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func (s *suite) journal(device string) registry.Journal {
	s.Helper()
	j, err := s.Registry.Journal(s.ctx, device)
	if err != nil {
		s.Fatalf("Journal(%s): %v", device, err)
	}
	list, err := s.Registry.Journals(s.ctx, []string{"nobody", device})
	if err != nil || len(list) != 2 {
		s.Fatalf("Journals: %+v, %v", list, err)
	}
	short := j
	short.Events = nil
	if !reflect.DeepEqual(list[0], registry.Journal{}) || !reflect.DeepEqual(list[1], short) {
		s.Errorf("Journals: %+v, want nothing and %+v", list, short)
	}
	return j
}

func (s *suite) note(device, kind, detail string) {
	s.Helper()
	if err := s.Registry.Note(s.ctx, []registry.Event{{Device: device, Kind: kind, Node: "edge-1", Detail: detail}}); err != nil {
		s.Fatalf("Note: %v", err)
	}
}

func (s *suite) tag(device string, tags ...string) {
	s.Helper()
	if err := s.Registry.SetTags(s.ctx, device, tags); err != nil {
		s.Fatalf("SetTags: %v", err)
	}
}

var journalTests = []test{
	{"events are kept, the last ones first", func(s *suite) {
		if j := s.journal("cam"); !reflect.DeepEqual(j, registry.Journal{}) {
			s.Errorf("of a device of which nothing is known: %+v", j)
		}
		for i := range registry.MaxEvents + 5 {
			s.note("cam", []string{registry.EventOnline, "offline"}[i%2], fmt.Sprint(i))
			s.pass(2 * time.Millisecond)
		}
		j := s.journal("cam")
		if len(j.Events) != registry.MaxEvents || j.Connects != (registry.MaxEvents+6)/2 || j.Tags != nil {
			s.Fatalf("%d events, %d connects, tags %v", len(j.Events), j.Connects, j.Tags)
		}
		for i, e := range j.Events {
			n := registry.MaxEvents + 4 - i
			if e.Detail != fmt.Sprint(n) || e.Kind != []string{registry.EventOnline, "offline"}[n%2] || e.Node != "edge-1" {
				s.Errorf("event %d: %+v", i, e)
			}
			if i > 0 && e.At.After(j.Events[i-1].At) {
				s.Errorf("event %d is newer than the one before it", i)
			}
		}
		if age := s.now().Sub(j.Events[0].At); age < 0 || age > 10*time.Second {
			s.Errorf("the last event is %v old", age)
		}
		if j := s.journal("cam-2"); len(j.Events) > 0 {
			s.Errorf("of another device: %+v", j)
		}
	}},
	{"events are one line each", func(s *suite) {
		s.note("cam", "refused", "a\tb\nc\xff\x00 "+strings.Repeat("é", registry.MaxWhy))
		j := s.journal("cam")
		if len(j.Events) != 1 || !strings.HasPrefix(j.Events[0].Detail, "a b c� ") || len(j.Events[0].Detail) > registry.MaxWhy || strings.ContainsAny(j.Events[0].Detail, "\t\n\x00") {
			s.Errorf("%+q", j.Events)
		}
		for _, kind := range []string{"", "two words", "a\tb"} {
			if err := s.Registry.Note(s.ctx, []registry.Event{{Device: "dog", Kind: "x"}, {Device: "cam", Kind: kind}}); !errors.Is(err, registry.ErrInvalid) {
				s.Errorf("Note of kind %q: %v, want ErrInvalid", kind, err)
			}
		}
		if err := s.Registry.Note(s.ctx, []registry.Event{{Kind: "x"}}); !errors.Is(err, registry.ErrInvalid) {
			s.Errorf("Note of no device: %v, want ErrInvalid", err)
		}
		if j := s.journal("dog"); len(j.Events) > 0 {
			s.Errorf("beside an invalid one: %+v", j)
		}
		var many []registry.Event
		for i := range 600 {
			many = append(many, registry.Event{Device: fmt.Sprint("d", i/2), Kind: registry.EventOnline, Detail: fmt.Sprint(i % 2)})
		}
		if err := s.Registry.Note(s.ctx, many); err != nil {
			s.Fatal(err)
		}
		if j := s.journal("d299"); len(j.Events) != 2 || j.Connects != 2 || j.Events[0].Detail != "1" || j.Events[0].Device != "d299" {
			s.Errorf("of many: %+v", j)
		}
	}},
	{"tags", func(s *suite) {
		s.tag("cam", "lyon", "fw=1.2")
		s.note("cam", registry.EventOnline, "")
		if j := s.journal("cam"); fmt.Sprint(j.Tags) != "[lyon fw=1.2]" || len(j.Events) != 1 || j.Connects != 1 {
			s.Errorf("%+v", j)
		}
		var many []string
		for i := range registry.MaxTags + 1 {
			many = append(many, fmt.Sprint("t", i))
		}
		for _, bad := range [][]string{{""}, {"A"}, {"a b"}, {"a,b"}, {"a", "a"}, {strings.Repeat("x", registry.MaxTag+1)}, many, {"é"}} {
			if err := s.Registry.SetTags(s.ctx, "cam", bad); !errors.Is(err, registry.ErrInvalid) {
				s.Errorf("SetTags(%q): %v, want ErrInvalid", bad, err)
			}
		}
		s.tag("cam", many[1:]...)
		if j := s.journal("cam"); len(j.Tags) != registry.MaxTags || len(j.Events) != 1 {
			s.Errorf("%+v", j)
		}
		s.tag("cam")
		if j := s.journal("cam"); j.Tags != nil || len(j.Events) != 1 || j.Connects != 1 {
			s.Errorf("without tags: %+v", j)
		}
		s.tag("dog")
		s.tag("dog", "x")
		for range 2 {
			if err := s.Registry.DropJournal(s.ctx, "dog"); err != nil {
				s.Errorf("DropJournal: %v", err)
			}
		}
		if j := s.journal("dog"); !reflect.DeepEqual(j, registry.Journal{}) {
			s.Errorf("dropped: %+v", j)
		}
	}},
	{"connects of a day are counted, and all ends after a week", func(s *suite) {
		s.tag("tagged", "x")
		s.note("tagged", registry.EventOnline, "")
		for range 3 {
			s.note("cam", registry.EventOnline, "")
		}
		s.Advance(12 * time.Hour)
		s.note("cam", registry.EventOnline, "")
		s.note("cam", "offline", "")
		if j := s.journal("cam"); j.Connects != 4 {
			s.Errorf("%d connects, want 4", j.Connects)
		}
		s.Advance(12*time.Hour + s.margin())
		if j := s.journal("cam"); j.Connects != 1 {
			s.Errorf("a day later: %d connects, want 1", j.Connects)
		}
		s.Advance(registry.EventTime - 12*time.Hour - time.Minute)
		if j := s.journal("cam"); len(j.Events) != 5 || j.Connects != 0 {
			s.Errorf("just before the end: %+v", j)
		}
		s.Advance(time.Minute + s.margin())
		if j := s.journal("cam"); !reflect.DeepEqual(j, registry.Journal{}) {
			s.Errorf("after the end: %+v", j)
		}
		s.note("cam", registry.EventOnline, "again")
		if j := s.journal("cam"); len(j.Events) != 1 {
			s.Errorf("begun anew: %+v", j)
		}
		if j := s.journal("tagged"); fmt.Sprint(j.Tags) != "[x]" {
			s.Errorf("with a tag: %+v", j)
		}
	}},
	{"a restart forgets nothing", func(s *suite) {
		s.needReopen()
		s.tag("cam", "lyon")
		s.note("cam", registry.EventOnline, "one")
		s.note("door", "offline", "two")
		if err := s.Registry.DropJournal(s.ctx, "door"); err != nil {
			s.Fatal(err)
		}
		before := s.journal("cam")
		s.Registry = s.Reopen()
		after := s.journal("cam")
		if fmt.Sprint(after.Tags) != "[lyon]" || after.Connects != 1 || len(after.Events) != 1 || !after.Events[0].At.Equal(before.Events[0].At) {
			s.Errorf("%+v, want %+v", after, before)
		}
		if j := s.journal("door"); len(j.Events) > 0 {
			s.Errorf("dropped: %+v", j)
		}
	}},
}
