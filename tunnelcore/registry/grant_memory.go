package registry

import (
	"context"
	"fmt"
	"maps"
	"sync"
)

// storedGrant is a grant as the file keeps it.
type storedGrant struct {
	Kind      GrantKind `json:"kind"`
	Device    string    `json:"device"`
	Port      uint16    `json:"port"`
	By        string    `json:"by,omitempty"`
	Hash      string    `json:"hash"` // hex
	CreatedMS int64     `json:"created_ms"`
	UntilMS   int64     `json:"until_ms"`

	hash SecretHash
}

// grantTable is the grants by id; those that have expired go with the next sweep.
type grantTable struct {
	mu sync.RWMutex // guards by
	by map[string]*storedGrant
}

func (t *grantTable) get(id string) *storedGrant {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.by[id]
}

// size counts those that have expired, too.
func (t *grantTable) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.by)
}

// split returns the grants that have not expired, and the ids of the others.
func (t *grantTable) split(now int64) (live map[string]*storedGrant, expired []string) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	live = make(map[string]*storedGrant, len(t.by))
	for id, g := range t.by {
		if g.UntilMS > now {
			live[id] = g
		} else {
			expired = append(expired, id)
		}
	}
	return live, expired
}

// loadGrant takes in a grant of the file.
func (m *Memory) loadGrant(id string, g storedGrant) (err error) {
	if g.hash, err = ParseSecretHash(g.Hash); err != nil {
		return fmt.Errorf("grant %q: %w", id, err)
	}
	m.publishGrants(map[string]*storedGrant{id: &g})
	return nil
}

// publishGrants shows everybody what has changed; those that are nil are gone.
func (m *Memory) publishGrants(changed map[string]*storedGrant) {
	t := &m.grants
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string]*storedGrant{}
	}
	maps.Copy(t.by, changed)
	maps.DeleteFunc(t.by, func(_ string, g *storedGrant) bool { return g == nil })
}

// grant returns a grant that has not expired, as the batch leaves it, else nil.
func (b *batch) grant(id string) *storedGrant {
	g, staged := b.grants[id]
	if !staged {
		g = b.m.grants.get(id)
	}
	if g == nil || g.UntilMS <= b.now {
		return nil
	}
	return g
}

// sweepGrants takes those away that have expired, and returns the others.
func (b *batch) sweepGrants() (live map[string]*storedGrant) {
	live, expired := b.m.grants.split(b.now)
	for _, id := range expired {
		if _, staged := b.grants[id]; !staged {
			b.grants[id] = nil
		}
	}
	return live
}

// countGrants counts those that have not expired, as the batch leaves them.
func (b *batch) countGrants() int {
	live := b.sweepGrants()
	for id, staged := range b.grants {
		if staged == nil {
			delete(live, id)
		} else {
			live[id] = staged
		}
	}
	return len(live)
}

// AddGrant implements Grants.
func (m *Memory) AddGrant(ctx context.Context, g Grant) error {
	if err := CheckGrant(g, m.clock.time(m.clock.read())); err != nil {
		return err
	}
	return m.mutate(ctx, func(b *batch) error {
		if b.grant(g.ID) != nil {
			return fmt.Errorf("%w: grant %s is there already", ErrInvalid, g.ID)
		}
		if b.m.grants.size()+len(b.grants) >= MaxGrants && b.countGrants() >= MaxGrants {
			return ErrTooManyGrants
		}
		b.grants[g.ID] = &storedGrant{
			Kind: g.Kind, Device: g.Device, Port: g.Port, By: g.By, Hash: g.Hash.String(),
			CreatedMS: b.now, UntilMS: b.now + millis(g.Until.Sub(m.clock.time(b.now))), hash: g.Hash,
		}
		return nil
	})
}

// FindGrants implements Grants.
func (m *Memory) FindGrants(ctx context.Context, ids []string) ([]Grant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	list, now := make([]Grant, len(ids)), m.clock.read()
	for i, id := range ids {
		if g := m.grants.get(id); g != nil && g.UntilMS > now {
			list[i] = m.publicGrant(id, g)
		}
	}
	return list, nil
}

func (m *Memory) publicGrant(id string, g *storedGrant) Grant {
	return Grant{
		ID: id, Kind: g.Kind, Device: g.Device, Port: g.Port, By: g.By, Hash: g.hash,
		Created: m.clock.time(g.CreatedMS), Until: m.clock.time(g.UntilMS),
	}
}

// DropGrant implements Grants.
func (m *Memory) DropGrant(ctx context.Context, id string) error {
	return m.mutate(ctx, func(b *batch) error {
		if b.grant(id) == nil {
			return ErrUnknown
		}
		b.grants[id] = nil
		return nil
	})
}

// Grants implements the interface of that name.
func (m *Memory) Grants(ctx context.Context, after string, limit int) ([]Grant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	live, _ := m.grants.split(m.clock.read())
	ids := make([]string, 0, len(live))
	for id := range live {
		ids = append(ids, id)
	}
	var list []Grant
	for _, id := range PageGrants(ids, after, limit) {
		list = append(list, m.publicGrant(id, live[id]))
	}
	return list, nil
}
