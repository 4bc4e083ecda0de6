package registrytest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

var credentialTests = []test{
	{"enrol, rotate, revoke", func(s *suite) {
		r, one, two, three := s.Registry, secret("one"), secret("two"), secret("three")
		s.noCredential("cam")
		first := s.enroll("cam", one, registry.ReplaceNone)
		if first.Version <= 0 || first.Changed.IsZero() {
			s.Errorf("enrolled as %+v", first)
		}
		s.hasSecrets("cam", one, registry.SecretHash{})
		for _, over := range []registry.Replace{registry.ReplaceNone, registry.ReplaceRevoked} {
			if _, err := registry.Enroll(s.ctx, r, "cam", two, over); !errors.Is(err, registry.ErrEnrolled) {
				s.Errorf("Enroll of a device that has a secret: %v, want ErrEnrolled", err)
			}
		}
		s.hasSecrets("cam", one, registry.SecretHash{})

		// Both count until the next one was used.
		for _, next := range []registry.SecretHash{three, two} {
			if _, err := registry.Rotate(s.ctx, r, "cam", next); err != nil {
				s.Fatal(err)
			}
			s.hasSecrets("cam", one, next)
		}
		if err := registry.Promote(s.ctx, r, "cam", three); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("Promote of a secret that is out of use: %v, want ErrUnknown", err)
		}
		for range 2 {
			if err := registry.Promote(s.ctx, r, "cam", two); err != nil {
				s.Errorf("Promote: %v", err)
			}
			s.hasSecrets("cam", two, registry.SecretHash{})
		}

		before := s.credential("cam")
		for range 2 {
			if err := registry.Revoke(s.ctx, r, "cam"); err != nil {
				s.Errorf("Revoke: %v", err)
			}
		}
		after := s.credential("cam")
		if !after.Revoked() || after.Next != (registry.SecretHash{}) || after.Version <= before.Version {
			s.Errorf("revoked: %+v after %+v", after, before)
		}
		if _, err := registry.Rotate(s.ctx, r, "cam", one); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("Rotate of a device that is revoked: %v, want ErrUnknown", err)
		}
		if err := registry.Promote(s.ctx, r, "cam", registry.SecretHash{}); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("Promote of nothing: %v, want ErrUnknown", err)
		}
		if _, err := registry.Enroll(s.ctx, r, "cam", one, registry.ReplaceNone); !errors.Is(err, registry.ErrEnrolled) {
			s.Errorf("Enroll of a device that is revoked: %v, want ErrEnrolled", err)
		}
		s.enroll("cam", one, registry.ReplaceRevoked)
		s.enroll("cam", two, registry.ReplaceAny)
		s.hasSecrets("cam", two, registry.SecretHash{})

		last := s.credential("cam")
		for range 2 {
			if err := r.DropCredential(s.ctx, "cam"); err != nil {
				s.Errorf("DropCredential: %v", err)
			}
		}
		s.noCredential("cam")
		s.pass(time.Second)
		if again := s.enroll("cam", one, registry.ReplaceNone); again.Version <= last.Version {
			s.Errorf("version %d after %d", again.Version, last.Version)
		}
	}},
	{"revoking a device that nobody enrolled", func(s *suite) {
		if err := registry.Revoke(s.ctx, s.Registry, "cam"); err != nil {
			s.Fatal(err)
		}
		if c := s.credential("cam"); !c.Revoked() {
			s.Errorf("%+v", c)
		}
	}},
	{"a change that comes too late", func(s *suite) {
		c := s.enroll("cam", secret("one"), registry.ReplaceNone)
		newer := s.enroll("cam", secret("two"), registry.ReplaceAny)
		for _, version := range []int64{0, c.Version, newer.Version + 1, -1} {
			late := registry.Credential{Device: "cam", Current: secret("late"), Version: version}
			if got, err := s.Registry.SetCredential(s.ctx, late); !errors.Is(err, registry.ErrChanged) {
				s.Errorf("SetCredential over version %d: %+v, %v, want ErrChanged", version, got, err)
			}
		}
		late := registry.Credential{Device: "door", Current: secret("late"), Version: 1}
		if got, err := s.Registry.SetCredential(s.ctx, late); !errors.Is(err, registry.ErrChanged) {
			s.Errorf("SetCredential over what is not there: %+v, %v, want ErrChanged", got, err)
		}
		s.hasSecrets("cam", secret("two"), registry.SecretHash{})
		s.noCredential("door")
	}},
	{"list", func(s *suite) {
		var want []string
		for _, id := range []string{"b", "a", "a-1", "c", "aa"} {
			s.enroll(id, secret(id), registry.ReplaceNone)
			want = append(want, id)
		}
		if err := registry.Revoke(s.ctx, s.Registry, "c"); err != nil {
			s.Fatal(err)
		}
		slices.Sort(want)
		s.enrolled("", 10, want...)
		s.enrolled("", 2, want[:2]...)
		s.enrolled(want[1], 2, want[2:4]...)
		s.enrolled("a-0", 10, want[1:]...)
		s.enrolled("", 0)
		s.enrolled("", -1)
		if err := s.Registry.DropCredential(s.ctx, "b"); err != nil {
			s.Fatal(err)
		}
		s.enrolled("a-1", 10, "aa", "c")
	}},
	{"long list", func(s *suite) {
		var want []string
		for i := range 600 {
			id := fmt.Sprintf("d%04d", i)
			want = append(want, id)
			s.enroll(id, secret(id), registry.ReplaceNone)
		}
		s.enrolled("", 5000, want...)
		s.enrolled("d0009", 550, want[10:560]...)
	}},
	{"one of many changes wins", func(s *suite) {
		c := s.enroll("cam", secret("one"), registry.ReplaceNone)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				c := c
				c.Next = secret(fmt.Sprint(i))
				_, err := s.Registry.SetCredential(s.ctx, c)
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, registry.ErrChanged) {
					s.Errorf("SetCredential: %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			s.Errorf("%d changes of one version were written", won.Load())
		}
	}},
	{"invalid arguments", func(s *suite) {
		r := s.Registry
		soon := s.now().Add(time.Hour)
		check := func(what string, err error) {
			s.Helper()
			if !errors.Is(err, registry.ErrInvalid) {
				s.Errorf("%s: %v, want ErrInvalid", what, err)
			}
		}
		set := func(c registry.Credential) error { _, err := r.SetCredential(s.ctx, c); return err }
		long := strings.Repeat("x", registry.MaxName+1)
		check("a next secret alone", set(registry.Credential{Device: "cam", Next: secret("x")}))
		for _, name := range []string{"", long} {
			check("SetCredential", set(registry.Credential{Device: name, Current: secret("x")}))
			check("AddCode", r.AddCode(s.ctx, registry.Code{ID: name, Hash: secret("x"), Until: soon}))
			check("Notify", r.Notify(s.ctx, name))
			if _, err := r.Credential(s.ctx, name); !errors.Is(err, registry.ErrUnknown) {
				s.Errorf("Credential: %v, want ErrUnknown", err)
			}
			if err := r.DropCode(s.ctx, name); !errors.Is(err, registry.ErrUnknown) {
				s.Errorf("DropCode: %v, want ErrUnknown", err)
			}
			if err := r.Drop(s.ctx, name); !errors.Is(err, registry.ErrUnknown) {
				s.Errorf("Drop: %v, want ErrUnknown", err)
			}
		}
		check("a code for a long name", r.AddCode(s.ctx, registry.Code{ID: "c", Device: long, Hash: secret("x"), Until: soon}))
		check("a code without a hash", r.AddCode(s.ctx, registry.Code{ID: "c", Until: soon}))
		check("a code that has expired", r.AddCode(s.ctx, registry.Code{ID: "c", Hash: secret("x"), Until: soon.Add(-2 * time.Hour)}))
		check("a code for ever", r.AddCode(s.ctx, registry.Code{ID: "c", Hash: secret("x"), Until: soon.Add(2 * registry.CodeTTL)}))
		s.codes()
	}},
	{"with an ended context", func(s *suite) {
		ctx, cancel := contextEnded(s.ctx)
		defer cancel()
		s.enroll("cam", secret("one"), registry.ReplaceNone)
		c := s.credential("cam")
		r := s.Registry
		for name, call := range map[string]func() error{
			"Credential":     func() error { _, err := r.Credential(ctx, "cam"); return err },
			"SetCredential":  func() error { _, err := r.SetCredential(ctx, c); return err },
			"DropCredential": func() error { return r.DropCredential(ctx, "cam") },
			"Enrolled":       func() error { _, err := r.Enrolled(ctx, "", 1); return err },
			"AddCode": func() error {
				return r.AddCode(ctx, registry.Code{ID: "c", Hash: secret("x"), Until: c.Changed.Add(time.Hour)})
			},
			"TakeCode": func() error { return r.TakeCode(ctx, "c", secret("x"), "cam", false) },
			"DropCode": func() error { return r.DropCode(ctx, "c") },
			"Codes":    func() error { _, err := r.Codes(ctx); return err },
			"Notify":   func() error { return r.Notify(ctx, "cam") },
			"Notices":  func() error { _, err := r.Notices(ctx, 0); return err },
			"Drop":     func() error { return r.Drop(ctx, "cam") },
		} {
			if err := call(); !errors.Is(err, ctx.Err()) {
				s.Errorf("%s: %v, want %v", name, err, ctx.Err())
			}
		}
		if got := s.credential("cam"); got != c {
			s.Errorf("changed from %+v to %+v", c, got)
		}
	}},
	{"is kept", func(s *suite) {
		s.needReopen()
		s.enroll("cam", secret("one"), registry.ReplaceNone)
		if _, err := registry.Rotate(s.ctx, s.Registry, "cam", secret("two")); err != nil {
			s.Fatal(err)
		}
		s.enroll("door", secret("three"), registry.ReplaceNone)
		if err := registry.Revoke(s.ctx, s.Registry, "door"); err != nil {
			s.Fatal(err)
		}
		s.enroll("bell", secret("four"), registry.ReplaceNone)
		if err := s.Registry.DropCredential(s.ctx, "bell"); err != nil {
			s.Fatal(err)
		}
		code := s.addCode("c1", "cam", time.Hour)
		s.addCode("c2", "", time.Hour)
		if err := s.Registry.TakeCode(s.ctx, "c2", secret("c2"), "new", false); err != nil {
			s.Fatal(err)
		}
		cam := s.credential("cam")
		s.Registry = s.Reopen()
		if got := s.credential("cam"); got != cam {
			s.Errorf("%+v, want %+v", got, cam)
		}
		if c := s.credential("door"); !c.Revoked() {
			s.Errorf("door is %+v", c)
		}
		s.noCredential("bell")
		s.enrolled("", 10, "cam", "door")
		s.codes(code.ID)
	}},
}

var codeTests = []test{
	{"once", func(s *suite) {
		r := s.Registry
		s.addCode("free", "", time.Hour)
		s.addCode("bound", "cam", 2*time.Hour)
		s.codes("free", "bound")
		check := func(what string, err, want error) {
			s.Helper()
			if !errors.Is(err, want) {
				s.Errorf("%s: %v, want %v", what, err, want)
			}
		}
		check("another hash", r.TakeCode(s.ctx, "free", secret("else"), "door", false), registry.ErrUnknown)
		check("another id", r.TakeCode(s.ctx, "else", secret("free"), "door", false), registry.ErrUnknown)
		check("another device", r.TakeCode(s.ctx, "bound", secret("bound"), "door", false), registry.ErrUnknown)
		s.codes("free", "bound")
		check("a device that is known", r.TakeCode(s.ctx, "free", secret("free"), "door", true), registry.ErrUnknown)
		check("any device", r.TakeCode(s.ctx, "free", secret("free"), "door", false), nil)
		check("again", r.TakeCode(s.ctx, "free", secret("free"), "door", false), registry.ErrUnknown)
		check("its device", r.TakeCode(s.ctx, "bound", secret("bound"), "cam", true), nil)
		check("again", r.TakeCode(s.ctx, "bound", secret("bound"), "cam", false), registry.ErrUnknown)
		s.codes()
		s.addCode("dropped", "", time.Hour)
		check("drop", r.DropCode(s.ctx, "dropped"), nil)
		check("drop again", r.DropCode(s.ctx, "dropped"), registry.ErrUnknown)
		check("dropped", r.TakeCode(s.ctx, "dropped", secret("dropped"), "door", false), registry.ErrUnknown)
	}},
	{"an id is one code's", func(s *suite) {
		c := s.addCode("c", "", time.Hour)
		if err := s.Registry.AddCode(s.ctx, c); !errors.Is(err, registry.ErrInvalid) {
			s.Errorf("AddCode again: %v, want ErrInvalid", err)
		}
	}},
	{"by one of many", func(s *suite) {
		s.addCode("c", "", time.Hour)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				err := s.Registry.TakeCode(s.ctx, "c", secret("c"), fmt.Sprintf("d%d", i), false)
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, registry.ErrUnknown) {
					s.Errorf("TakeCode: %v", err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			s.Errorf("%d devices got the code", won.Load())
		}
	}},
	{"until it expires", func(s *suite) {
		s.addCode("soon", "", 3*time.Second)
		s.addCode("late", "", time.Hour)
		s.codes("soon", "late")
		s.pass(3*time.Second + s.margin())
		s.codes("late")
		if err := s.Registry.TakeCode(s.ctx, "soon", secret("soon"), "cam", false); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("TakeCode of an expired code: %v, want ErrUnknown", err)
		}
		if err := s.Registry.DropCode(s.ctx, "soon"); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("DropCode of an expired code: %v, want ErrUnknown", err)
		}
		s.addCode("soon", "", time.Hour) // its id is free
	}},
}

var noticeTests = []test{
	{"in order", func(s *suite) {
		if got := s.notices(0); len(got) != 0 {
			s.Errorf("notices %+v", got)
		}
		for _, id := range []string{"a", "b", "c", "a"} {
			if err := s.Registry.Notify(s.ctx, id); err != nil {
				s.Fatal(err)
			}
		}
		all := s.notices(0)
		if len(all) != 3 || all[0].Device != "b" || all[1].Device != "c" || all[2].Device != "a" ||
			all[0].Mark >= all[1].Mark || all[1].Mark >= all[2].Mark {
			s.Fatalf("notices %+v", all)
		}
		if got := s.notices(all[0].Mark); !slices.Equal(got, all[1:]) {
			s.Errorf("after the first: %+v, want %+v", got, all[1:])
		}
		if got := s.notices(all[2].Mark); len(got) != 0 {
			s.Errorf("after the last: %+v", got)
		}
	}},
	{"of a revocation", func(s *suite) {
		s.enroll("cam", secret("x"), registry.ReplaceNone)
		if got := s.notices(0); len(got) != 0 {
			s.Errorf("notices %+v", got)
		}
		if err := registry.Revoke(s.ctx, s.Registry, "cam"); err != nil {
			s.Fatal(err)
		}
		if got := s.notices(0); len(got) != 1 || got[0].Device != "cam" {
			s.Errorf("notices %+v", got)
		}
	}},
	{"page by page", func(s *suite) {
		const n = registry.NoticePage + 50
		for i := range n {
			if err := s.Registry.Notify(s.ctx, fmt.Sprintf("d%04d", i)); err != nil {
				s.Fatal(err)
			}
		}
		page := s.notices(0)
		if len(page) != registry.NoticePage {
			s.Fatalf("%d notices at once", len(page))
		}
		rest := s.notices(page[len(page)-1].Mark)
		if len(rest) != 50 || rest[0].Device != "d0200" || rest[49].Device != "d0249" {
			s.Errorf("%d more", len(rest))
		}
	}},
}

var dropTests = []test{
	{"of a device that is offline", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.lease(l.Holder, 40000, 40000, 22)
		s.release(l.Holder, "bye")
		s.drop("cam")
		s.gone("cam", l.Label)
		if err := s.Registry.Drop(s.ctx, "cam"); !errors.Is(err, registry.ErrUnknown) {
			s.Errorf("Drop again: %v, want ErrUnknown", err)
		}
		if page, err := s.Registry.Devices(s.ctx, "", 10); err != nil || len(page) != 0 {
			s.Errorf("Devices: %+v, %v", page, err)
		}
		other := s.ask(n, "other", "t1")
		other.Label = l.Label // is free
		o := s.claim(other)
		s.full(o.Holder, 40000, 40000, 22) // rests
		again := s.claim(s.ask(n, "cam-2", "t2"))
		s.release(again.Holder, "bye")
	}},
	{"of a device that is connected", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.drop("cam")
		s.gone("cam", l.Label)
		s.lost(l.Holder)
		c := s.ask(n, "cam", "t2")
		c.Label = "l-new"
		next := s.claim(c)
		if !next.Fresh || next.Label != "l-new" || next.Generation <= l.Generation {
			s.Errorf("lease %+v after %+v", next, l)
		}
		s.lost(l.Holder)
	}},
	{"of a device whose node is gone", func(s *suite) {
		n := s.node("n1", "e1")
		l := s.claim(s.ask(n, "cam", "t1"))
		s.leave("n1", "e1")
		s.alive = nil
		s.drop("cam")
		s.gone("cam", l.Label)
	}},
}

func secret(text string) registry.SecretHash { return registry.HashSecret(text) }

func (s *suite) enroll(device string, hash registry.SecretHash, over registry.Replace) registry.Credential {
	s.Helper()
	c, err := registry.Enroll(s.ctx, s.Registry, device, hash, over)
	if err != nil {
		s.Fatalf("Enroll(%s): %v", device, err)
	}
	if got := s.credential(device); got != c || c.Device != device || c.Current != hash {
		s.Fatalf("Enroll(%s) = %+v, and recorded is %+v", device, c, got)
	}
	return c
}

func (s *suite) credential(device string) registry.Credential {
	s.Helper()
	c, err := s.Registry.Credential(s.ctx, device)
	if err != nil {
		s.Fatalf("Credential(%s): %v", device, err)
	}
	return c
}

func (s *suite) noCredential(device string) {
	s.Helper()
	if c, err := s.Registry.Credential(s.ctx, device); !errors.Is(err, registry.ErrUnknown) {
		s.Errorf("Credential(%s) = %+v, %v, want ErrUnknown", device, c, err)
	}
}

func (s *suite) hasSecrets(device string, current, next registry.SecretHash) {
	s.Helper()
	if c := s.credential(device); c.Current != current || c.Next != next {
		s.Errorf("secrets of %s: %v and %v, want %v and %v", device, c.Current, c.Next, current, next)
	}
}

func (s *suite) enrolled(after string, limit int, want ...string) {
	s.Helper()
	page, err := s.Registry.Enrolled(s.ctx, after, limit)
	if err != nil {
		s.Fatalf("Enrolled: %v", err)
	}
	var got []string
	for _, c := range page {
		got = append(got, c.Device)
		if one := s.credential(c.Device); one != c {
			s.Errorf("listed as %+v, recorded is %+v", c, one)
		}
	}
	if !slices.Equal(got, want) {
		s.Errorf("Enrolled(%q, %d): %d, want %d: %.60q", after, limit, len(got), len(want), got)
	}
}

// addCode adds a code whose hash is that of its id.
func (s *suite) addCode(id, device string, ttl time.Duration) registry.Code {
	s.Helper()
	c := registry.Code{ID: id, Hash: secret(id), Device: device, Until: s.now().Add(ttl)}
	if err := s.Registry.AddCode(s.ctx, c); err != nil {
		s.Fatalf("AddCode(%+v): %v", c, err)
	}
	return c
}

func (s *suite) codes(want ...string) {
	s.Helper()
	codes, err := s.Registry.Codes(s.ctx)
	if err != nil {
		s.Fatalf("Codes: %v", err)
	}
	var got []string
	for _, c := range codes {
		got = append(got, c.ID)
		if c.Hash != secret(c.ID) || !c.Until.After(c.Created) {
			s.Errorf("code %+v", c)
		}
	}
	if !slices.Equal(got, want) {
		s.Errorf("codes %q, want %q", got, want)
	}
}

func (s *suite) notices(after int64) []registry.Notice {
	s.Helper()
	list, err := s.Registry.Notices(s.ctx, after)
	if err != nil {
		s.Fatalf("Notices: %v", err)
	}
	return list
}

func (s *suite) drop(device string) {
	s.Helper()
	if err := s.Registry.Drop(s.ctx, device); err != nil {
		s.Fatalf("Drop(%s): %v", device, err)
	}
}
