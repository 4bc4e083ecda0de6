package registry

import (
	"maps"
	"sync"
)

// An entry is what a table keeps until a moment: codes and grants. Once it is published
// it does not change. The zero value, nil, is no entry.
type entry interface {
	comparable
	until() int64 // ms on the registry's clock
}

// A table is entries by id, as everybody sees them: the committer changes it, others
// read. Those that have expired go with the next sweep.
type table[E entry] struct {
	mu sync.RWMutex // guards by
	by map[string]E
}

func (t *table[E]) get(id string) E {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.by[id]
}

// size counts those that have expired, too.
func (t *table[E]) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.by)
}

// live returns the entries that have not expired.
func (t *table[E]) live(now int64) map[string]E {
	t.mu.RLock()
	defer t.mu.RUnlock()
	live := make(map[string]E, len(t.by))
	for id, e := range t.by {
		if e.until() > now {
			live[id] = e
		}
	}
	return live
}

// expired returns the ids of the entries that have.
func (t *table[E]) expired(now int64) (ids []string) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for id, e := range t.by {
		if e.until() <= now {
			ids = append(ids, id)
		}
	}
	return ids
}

// publish shows everybody what has changed; those that are nil are gone. It takes as long
// as the change is large, since every batch calls it.
func (t *table[E]) publish(changed map[string]E) {
	if len(changed) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = make(map[string]E, len(changed))
	}
	var gone E
	for id, e := range changed {
		if e == gone {
			delete(t.by, id)
		} else {
			t.by[id] = e
		}
	}
}

// A staging is a table as a batch leaves it.
type staging[E entry] struct {
	table   *table[E]
	now     int64
	changed map[string]E // nil: gone
}

// stage returns a table with nothing changed but that entries which may be unsure (see
// state) are written again.
func (t *table[E]) stage(now int64, unsure map[string]struct{}) staging[E] {
	s := staging[E]{t, now, make(map[string]E, len(unsure))}
	for id := range unsure {
		s.changed[id] = t.get(id)
	}
	return s
}

// get returns an entry that has not expired, else nil.
func (s staging[E]) get(id string) E {
	e, staged := s.changed[id]
	if !staged {
		e = s.table.get(id)
	}
	var none E
	if e == none || e.until() <= s.now {
		return none
	}
	return e
}

func (s staging[E]) set(id string, e E) { s.changed[id] = e }

func (s staging[E]) remove(id string) {
	var gone E
	s.changed[id] = gone
}

// sweep takes those away that have expired.
func (s staging[E]) sweep() {
	for _, id := range s.table.expired(s.now) {
		if _, staged := s.changed[id]; !staged {
			s.remove(id)
		}
	}
}

// full says whether there are so many that have not expired. It takes those away that
// have only when they may decide it.
func (s staging[E]) full(most int) bool {
	if s.table.size()+len(s.changed) < most {
		return false
	}
	s.sweep()
	all := s.table.live(s.now)
	maps.Copy(all, s.changed)
	n := 0
	var gone E
	for _, e := range all {
		if e != gone && e.until() > s.now {
			n++
		}
	}
	return n >= most
}
