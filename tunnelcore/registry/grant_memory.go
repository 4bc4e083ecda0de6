package registry

import (
	"context"
	"fmt"
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

func (g *storedGrant) until() int64 { return g.UntilMS }

// loadGrant takes in a grant of the file.
func (m *Memory) loadGrant(id string, g storedGrant) (err error) {
	if g.hash, err = ParseSecretHash(g.Hash); err != nil {
		return fmt.Errorf("grant %q: %w", id, err)
	}
	m.grants.publish(map[string]*storedGrant{id: &g})
	return nil
}

// AddGrant implements Grants.
func (m *Memory) AddGrant(ctx context.Context, g Grant) error {
	if err := CheckGrant(g, m.clock.time(m.clock.read())); err != nil {
		return err
	}
	return m.mutate(ctx, func(b *batch) error {
		if b.grants.get(g.ID) != nil {
			return fmt.Errorf("%w: grant %s is there already", ErrInvalid, g.ID)
		}
		if b.grants.full(MaxGrants) {
			return ErrTooManyGrants
		}
		b.grants.set(g.ID, &storedGrant{
			Kind: g.Kind, Device: g.Device, Port: g.Port, By: g.By, Hash: g.Hash.String(),
			CreatedMS: b.now, UntilMS: b.now + millis(g.Until.Sub(m.clock.time(b.now))), hash: g.Hash,
		})
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
		if b.grants.get(id) == nil {
			return ErrUnknown
		}
		b.grants.remove(id)
		return nil
	})
}

// Grants implements the interface of that name.
func (m *Memory) Grants(ctx context.Context, after string, limit int) ([]Grant, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	live := m.grants.live(m.clock.read())
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
