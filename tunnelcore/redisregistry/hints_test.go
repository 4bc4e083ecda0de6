package redisregistry

import (
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/redistest"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func TestHintText(t *testing.T) {
	long := strings.Repeat("\x01", registry.MaxName)
	for text, want := range map[string]registry.Hint{
		`{"device":"cam-17","label":"aaaa"}`:                    {Device: "cam-17", Label: "aaaa"},
		`{"ports":true}`:                                        {Ports: true},
		encodeHint(registry.Hint{Device: long, Label: long}):    {Device: long, Label: long},
		`{"device":"cam","label":"x","new":{"in":"version 2"}}`: {Device: "cam", Label: "x"},
		``:               {},
		`{}`:             {},
		`[]`:             {},
		`{"device":17}`:  {},
		`{"ports":true`:  {},
		`{"later":true}`: {},
		`{"device":"` + strings.Repeat("x", maxHint) + `"}`: {},
	} {
		got, ok := decodeHint(text)
		if got != want || ok != (want != registry.Hint{}) {
			t.Errorf("%.60s: %+v, %v, want %+v", text, got, ok, want)
		}
	}
}

func FuzzHint(f *testing.F) {
	f.Add(`{"device":"cam-17","label":"aaaa"}`)
	f.Add(portsHint)
	f.Fuzz(func(t *testing.T, text string) {
		h, ok := decodeHint(text)
		if ok == (h == registry.Hint{}) {
			t.Fatalf("%q: %+v, %v", text, h, ok)
		}
		if again, _ := decodeHint(encodeHint(h)); ok && len(encodeHint(h)) <= maxHint && again != h {
			t.Fatalf("%q: %+v became %+v", text, h, again)
		}
	})
}

// heard waits for a hint.
func heard(t *testing.T, hints <-chan registry.Hint, want registry.Hint) {
	t.Helper()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	for {
		select {
		case got := <-hints:
			if got == want {
				return
			}
		case <-late.C:
			t.Fatalf("no hint %+v", want)
		}
	}
}

// TestHintsAfterRestart subscribes anew by itself, and says that it has missed some.
func TestHintsAfterRestart(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	a, b := short(t, Options{URL: "redis://" + s.Addr}), short(t, Options{URL: "redis://" + s.Addr})
	n := beatNode(t, a, "n1", "e1")
	hints := b.Hints(t.Context())
	for range 3 {
		heard(t, hints, registry.Hint{})
		held := claim(t, a, ask(n, "cam", "t1"))
		heard(t, hints, registry.Hint{Device: "cam", Label: held.Label})
		s.Kill()
		s.Start()
		awaitLost(t, a, n)
		restore(t, a, []registry.Held{held})
	}
	heard(t, hints, registry.Hint{})
	if err := b.Close(); err != nil { // with a subscription, and once more by open
		t.Error(err)
	}
	for range hints { // ends
	}
}

// TestHintsFromNowhere ignores what is not a hint.
func TestHintsFromNowhere(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, redistest.Options{})
	r := short(t, Options{URL: "redis://" + s.Addr})
	hints := r.Hints(t.Context())
	heard(t, hints, registry.Hint{})
	for _, text := range []string{"", "{}", "\x00", `{"device":"` + strings.Repeat("x", 1<<20) + `"}`} {
		s.Do("PUBLISH", "iottunnel:hints", strings.ReplaceAll(text[:min(len(text), 100<<10)], "\x00", "?"))
	}
	s.Do("PUBLISH", "iottunnel:hints", portsHint)
	if got := <-hints; got != (registry.Hint{Ports: true}) {
		t.Errorf("%+v was taken for a hint", got)
	}
}
