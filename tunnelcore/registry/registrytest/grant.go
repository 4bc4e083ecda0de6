package registrytest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func (s *suite) newGrant(id string) registry.Grant {
	s.Helper()
	return registry.Grant{
		ID: id, Kind: registry.GrantConnect, Device: "cam", Port: 22, By: "é bob",
		Hash: secret(id), Until: s.now().Add(time.Hour),
	}
}

func (s *suite) grant(g registry.Grant) {
	s.Helper()
	if err := s.Registry.AddGrant(s.ctx, g); err != nil {
		s.Fatalf("AddGrant(%+v): %v", g, err)
	}
}

// granted wants the grant of that id to be there, or, zero, not to be.
func (s *suite) granted(id string, want registry.Grant) {
	s.Helper()
	list, err := s.Registry.FindGrants(s.ctx, []string{"nobody", id})
	if err != nil || len(list) != 2 || list[0] != (registry.Grant{}) {
		s.Fatalf("FindGrants: %+v, %v", list, err)
	}
	got := list[1]
	if off := got.Until.Sub(want.Until).Abs(); want.ID != "" && off > 5*time.Second {
		s.Errorf("%s ends %v, want %v", id, got.Until, want.Until)
	}
	if want.ID != "" && (got.Created.IsZero() || !got.Created.Before(got.Until)) {
		s.Errorf("%s was made %v", id, got.Created)
	}
	got.Until, got.Created = want.Until, want.Created
	if got != want {
		s.Errorf("grant %s: %+v, want %+v", id, got, want)
	}
}

func (s *suite) grantIDs(after string, limit int) string {
	s.Helper()
	list, err := s.Registry.Grants(s.ctx, after, limit)
	if err != nil {
		s.Fatalf("Grants: %v", err)
	}
	var ids []string
	for _, g := range list {
		ids = append(ids, g.ID)
	}
	return strings.Join(ids, " ")
}

var grantTests = []test{
	{"add, find, list, drop", func(s *suite) {
		s.granted("b", registry.Grant{})
		b, a := s.newGrant("b"), s.newGrant("a")
		a.Kind, a.By = registry.GrantShare, ""
		s.grant(b)
		s.grant(a)
		s.grant(s.newGrant("c"))
		s.granted("a", a)
		s.granted("b", b)
		if err := s.Registry.AddGrant(s.ctx, b); !errors.Is(err, registry.ErrInvalid) {
			s.Errorf("a second of the same id: %v, want ErrInvalid", err)
		}
		for _, q := range []struct {
			after string
			limit int
			want  string
		}{{"", 10, "a b c"}, {"", 2, "a b"}, {"b", 2, "c"}, {"aa", 1, "b"}, {"c", 1, ""}, {"", 0, ""}, {"", -1, ""}} {
			if got := s.grantIDs(q.after, q.limit); got != q.want {
				s.Errorf("Grants after %q, %d: %q, want %q", q.after, q.limit, got, q.want)
			}
		}
		if err := s.Registry.DropGrant(s.ctx, "b"); err != nil {
			s.Errorf("DropGrant: %v", err)
		}
		s.granted("b", registry.Grant{})
		s.granted("a", a)
		if err := s.Registry.DropGrant(s.ctx, "b"); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("DropGrant again: %v, want ErrUnknown", err)
		}
		if got := s.grantIDs("", 10); got != "a c" {
			s.Errorf("after a drop: %q", got)
		}
		s.grant(b) // its id is free again
		s.granted("b", b)
		if list, err := s.Registry.FindGrants(s.ctx, nil); err != nil || len(list) != 0 {
			s.Errorf("FindGrants of none: %+v, %v", list, err)
		}
	}},
	{"what is invalid", func(s *suite) {
		for what, change := range map[string]func(*registry.Grant){
			"no id":         func(g *registry.Grant) { g.ID = "" },
			"long id":       func(g *registry.Grant) { g.ID = strings.Repeat("x", registry.MaxGrantID+1) },
			"no device":     func(g *registry.Grant) { g.Device = "" },
			"no kind":       func(g *registry.Grant) { g.Kind = "" },
			"odd kind":      func(g *registry.Grant) { g.Kind = "root" },
			"no port":       func(g *registry.Grant) { g.Port = 0 },
			"no hash":       func(g *registry.Grant) { g.Hash = registry.SecretHash{} },
			"long by":       func(g *registry.Grant) { g.By = strings.Repeat("x", registry.MaxGrantBy+1) },
			"by with lines": func(g *registry.Grant) { g.By = "a\nb" },
			"by no UTF-8":   func(g *registry.Grant) { g.By = "a\xff" },
			"expired":       func(g *registry.Grant) { g.Until = g.Until.Add(-2 * time.Hour) },
			"too long":      func(g *registry.Grant) { g.Until = g.Until.Add(registry.GrantTime + time.Hour) },
		} {
			g := s.newGrant("x")
			change(&g)
			if err := s.Registry.AddGrant(s.ctx, g); !errors.Is(err, registry.ErrInvalid) {
				s.Errorf("%s: %v, want ErrInvalid", what, err)
			}
		}
		if got := s.grantIDs("", 10); got != "" {
			s.Errorf("recorded: %q", got)
		}
	}},
	{"they end", func(s *suite) {
		g := s.newGrant("a")
		long := s.newGrant("b")
		long.Until = long.Until.Add(time.Hour)
		s.grant(g)
		s.grant(long)
		s.Advance(time.Hour - time.Minute)
		s.granted("a", g)
		s.Advance(time.Minute + s.margin())
		s.granted("a", registry.Grant{})
		s.granted("b", long)
		if got := s.grantIDs("", 10); got != "b" {
			s.Errorf("listed: %q", got)
		}
		if err := s.Registry.DropGrant(s.ctx, "a"); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("DropGrant of one that has expired: %v, want ErrUnknown", err)
		}
		again := s.newGrant("a")
		s.grant(again)
		s.granted("a", again)
	}},
	{"there are not too many", func(s *suite) {
		if !s.Exact {
			return // slow
		}
		g := s.newGrant("")
		var wg sync.WaitGroup
		const many = 500 // share writes to disk
		for worker := range many {
			wg.Go(func() {
				for i := worker; i < registry.MaxGrants; i += many {
					g := g
					g.ID = fmt.Sprint("g", i)
					if err := s.Registry.AddGrant(s.ctx, g); err != nil {
						s.Errorf("AddGrant: %v", err)
					}
				}
			})
		}
		wg.Wait()
		if err := s.Registry.AddGrant(s.ctx, s.newGrant("x")); !errors.Is(err, registry.ErrTooManyGrants) {
			s.Errorf("one too many: %v, want ErrTooManyGrants", err)
		}
		if err := s.Registry.DropGrant(s.ctx, "g7"); err != nil {
			s.Fatal(err)
		}
		s.grant(s.newGrant("x"))
		s.Advance(2 * time.Hour)
		s.grant(s.newGrant("y"))
		if got := s.grantIDs("", 10); got != "y" {
			s.Errorf("listed: %q", got)
		}
	}},
	{"a restart forgets nothing", func(s *suite) {
		s.needReopen()
		a, b := s.newGrant("a"), s.newGrant("b")
		s.grant(a)
		s.grant(b)
		if err := s.Registry.DropGrant(s.ctx, "b"); err != nil {
			s.Fatal(err)
		}
		s.Registry = s.Reopen()
		s.granted("a", a)
		s.granted("b", registry.Grant{})
	}},
}
