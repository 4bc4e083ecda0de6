package registry

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// grantAll adds as many grants as there may be.
func grantAll(tb testing.TB, m *Memory) {
	tb.Helper()
	err := m.mutate(context.Background(), func(b *batch) error {
		for i := range MaxGrants {
			g := Grant{Kind: GrantConnect, Device: "cam-17", Port: 22, Hash: SecretHash{1}}
			b.grants.set(fmt.Sprintf("%016x", i), &storedGrant{
				Kind: g.Kind, Device: g.Device, Port: g.Port, Hash: g.Hash.String(),
				CreatedMS: b.now, UntilMS: b.now + time.Hour.Milliseconds(), hash: g.Hash,
			})
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkBesideGrants is a device that comes back, and a start, where there are as many
// grants as there may be.
func BenchmarkBesideGrants(b *testing.B) {
	b.Run("claim", func(b *testing.B) {
		m := openTest(b, MemoryOptions{})
		grantAll(b, m)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.Claim(b.Context(), testClaim("cam-17")); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("start", func(b *testing.B) {
		opts := MemoryOptions{Path: filepath.Join(b.TempDir(), "registry.db")}
		m, err := OpenMemory(opts)
		if err != nil {
			b.Fatal(err)
		}
		grantAll(b, m)
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			m, err := OpenMemory(opts)
			if err != nil {
				b.Fatal(err)
			}
			if err := m.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

type testEntry struct{ ends int64 }

func (e *testEntry) until() int64 { return e.ends }

func TestStaging(t *testing.T) {
	var all table[*testEntry]
	all.publish(map[string]*testEntry{"old": {5}, "a": {20}, "b": {30}})
	s := all.stage(10, nil)
	if s.full(3) || !s.full(2) {
		t.Error("of three entries one has expired")
	}
	s.set("c", &testEntry{20})
	s.set("a", &testEntry{40}) // in place of the other
	if s.full(4) || !s.full(3) {
		t.Error("one is new")
	}
	s.remove("b")
	s.set("d", &testEntry{10})
	if s.full(3) || !s.full(2) {
		t.Error("one is gone, and one new one has expired")
	}
	for id, want := range map[string]int64{"old": 0, "a": 40, "b": 0, "c": 20, "d": 0, "e": 0} {
		var got int64
		if e := s.get(id); e != nil {
			got = e.ends
		}
		if got != want {
			t.Errorf("%s ends at %d as the batch leaves it, want %d", id, got, want)
		}
	}
	if all.get("b") == nil || all.get("c") != nil {
		t.Error("others see it before it is published")
	}
	s.sweep()
	all.publish(s.changed)
	if all.get("old") != nil || all.get("b") != nil || all.get("c") == nil || all.size() != 3 {
		t.Errorf("published: %v", all.by)
	}
}

// What failed to be written is written again as it is.
func TestStageUnsure(t *testing.T) {
	var all table[*testEntry]
	all.publish(map[string]*testEntry{"a": {20}})
	s := all.stage(10, map[string]struct{}{"a": {}, "b": {}})
	if e, there := s.changed["b"]; e != nil || !there || s.changed["a"] != all.by["a"] || len(s.changed) != 2 {
		t.Errorf("to be written: %v", s.changed)
	}
}

// A device that comes back does not wait for the lists of codes and grants, nor makes
// those wait who read them.
func TestClaimLeavesTablesAlone(t *testing.T) {
	m := openTest(t, MemoryOptions{})
	m.grants.mu.Lock()
	defer m.grants.mu.Unlock()
	m.secrets.codes.mu.Lock()
	defer m.secrets.codes.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := m.Claim(ctx, testClaim("cam-17")); err != nil {
		t.Error(err)
	}
}
