package device

import (
	"context"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// start runs a device that measures fast, until the test ends.
func start(t *testing.T) *Device {
	t.Helper()
	d := New(Config{Interval: 5 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { d.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return d
}

// TestProbe: a day of readings is the same each time, and believable.
func TestProbe(t *testing.T) {
	p, again, other := Probe{Seed: 1}, Probe{Seed: 1}, Probe{Seed: 2}
	begin := time.Date(2026, 5, 4, 0, 0, 0, 0, time.UTC)
	low, high, doors, different := math.Inf(1), math.Inf(-1), 0, 0
	before := p.At(begin)
	for at := begin; at.Before(begin.Add(24 * time.Hour)); at = at.Add(time.Second) {
		r := p.At(at)
		if r != again.At(at) {
			t.Fatalf("%v: two readings of the same probe differ", at)
		}
		if r.Celsius != other.At(at).Celsius {
			different++
		}
		if jump := math.Abs(r.Celsius - before.Celsius); jump > 0.7 {
			t.Fatalf("%v: jumped by %.2f in a second", at, jump)
		}
		if r.Door && !before.Door {
			doors++
		}
		low, high, before = math.Min(low, r.Celsius), math.Max(high, r.Celsius), r
	}
	if low < 1 || low > 4 || high < 6 || high > 13 {
		t.Errorf("from %.2f to %.2f °C in a day", low, high)
	}
	if doors < 200 || doors > 480 {
		t.Errorf("the door opened %d times in a day", doors)
	}
	if different < 80000 {
		t.Errorf("probes with different seeds differ in %d of 86400 readings", different)
	}
}

func TestParseSettings(t *testing.T) {
	for _, c := range []struct {
		name, unit, alarm string
		want              Settings
		problems          string // fields
	}{
		{"Cellar", "C", "8", Settings{"Cellar", Celsius, 8}, ""},
		{"  Cellar ", "F", "46.4", Settings{"Cellar", Fahrenheit, 8}, ""},
		{"<script>alert(1)</script>", "C", "-0,5", Settings{"<script>alert(1)</script>", Celsius, -0.5}, ""},
		{strings.Repeat("é", NameMax), "C", "85", Settings{strings.Repeat("é", NameMax), Celsius, 85}, ""},
		{strings.Repeat("é", NameMax+1), "C", "85", Settings{}, "name"},
		{"", "C", "8", Settings{}, "name"},
		{" \n ", "C", "8", Settings{}, "name"},
		{"a\x00b", "C", "8", Settings{}, "name"},
		{"a\xffb", "C", "8", Settings{}, "name"},
		{"a\u202eb", "C", "8", Settings{}, "name"},
		{"a", "K", "8", Settings{}, "unit"},
		{"a", "C", "85.01", Settings{}, "alarm"},
		{"a", "C", "-40.01", Settings{}, "alarm"},
		{"a", "F", "-40", Settings{"a", Fahrenheit, -40}, ""},
		{"a", "C", "NaN", Settings{}, "alarm"},
		{"a", "C", "Inf", Settings{}, "alarm"},
		{"a", "C", "warm", Settings{}, "alarm"},
		{"", "", "", Settings{}, "alarm name unit"},
	} {
		got, problems := ParseSettings(c.name, c.unit, c.alarm)
		if fields := keys(problems); fields != c.problems {
			t.Errorf("ParseSettings(%q, %q, %q): problems with %q, want %q", c.name, c.unit, c.alarm, fields, c.problems)
		} else if c.problems == "" && got != c.want {
			t.Errorf("ParseSettings(%q, %q, %q) = %v, want %v", c.name, c.unit, c.alarm, got, c.want)
		}
	}
}

func keys(m map[string]string) string {
	var out []string
	for _, field := range []string{"alarm", "name", "unit"} {
		if m[field] != "" {
			out = append(out, field)
		}
	}
	return strings.Join(out, " ")
}

// TestSlowSubscriber: one that does not read is dropped, and nobody else.
func TestSlowSubscriber(t *testing.T) {
	d := start(t)
	_, slow, leaveSlow, ok := d.subscribe()
	if !ok {
		t.Fatal("no room for the first visitor")
	}
	defer leaveSlow()
	_, quick, leaveQuick, _ := d.subscribe()
	defer leaveQuick()
	for range 3 * subscriberQueue {
		if _, more := <-quick; !more {
			t.Fatal("a subscriber that reads was dropped")
		}
	}
	n := 0
	for range slow {
		n++
	}
	if n != subscriberQueue {
		t.Errorf("the slow subscriber got %d changes before the end, want %d", n, subscriberQueue)
	}
}

func TestVisitorsAreBounded(t *testing.T) {
	d := start(t)
	var leaves []func()
	defer func() {
		for _, leave := range leaves {
			leave()
		}
	}()
	for {
		_, _, leave, ok := d.subscribe()
		if !ok {
			break
		}
		leaves = append(leaves, leave)
	}
	if len(leaves) != visitorsMax {
		t.Errorf("%d visitors got in, want %d", len(leaves), visitorsMax)
	}
}

// TestHistoryIsBounded: the past is there at once, and does not grow.
func TestHistoryIsBounded(t *testing.T) {
	d := New(Config{Logger: slog.New(slog.DiscardHandler)})
	for i := range 2 * historyLength {
		if len(d.history) != historyLength {
			t.Fatalf("after %d measurements: %d readings", i, len(d.history))
		}
		d.measure(d.started.Add(time.Duration(i+1) * time.Second))
	}
	for i := 1; i < len(d.history); i++ {
		if step := d.history[i].Time.Sub(d.history[i-1].Time); step != time.Second {
			t.Fatalf("readings %d and %d are %v apart", i-1, i, step)
		}
	}
}
