package registry

import (
	"cmp"
	"context"
	"crypto/subtle"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// secrets is what Memory holds of credentials and codes, as everybody sees it:
// the committer replaces entries, others read.
type secrets struct {
	credentials sync.Map // device → *storedCredential
	enrolled    ids      // of devices
	codes       table[*storedCode]
	notices     notices
}

// storedCredential is a credential as the file keeps it.
type storedCredential struct {
	Current   string `json:"current,omitempty"` // hex
	Next      string `json:"next,omitempty"`
	Version   int64  `json:"version"`
	ChangedMS int64  `json:"changed_ms"`

	current, next SecretHash
}

// storedCode is a code as the file keeps it.
type storedCode struct {
	Hash      string `json:"hash"` // hex
	Device    string `json:"device,omitempty"`
	CreatedMS int64  `json:"created_ms"`
	UntilMS   int64  `json:"until_ms"`

	hash SecretHash
}

func (c *storedCode) until() int64 { return c.UntilMS }

// loadCredential takes in a credential of the file, and loadCode a code.
func (m *Memory) loadCredential(device string, c storedCredential) (err error) {
	if c.current, err = ParseSecretHash(c.Current); err != nil {
		return fmt.Errorf("credential of %q: %w", device, err)
	}
	if c.next, err = ParseSecretHash(c.Next); err != nil {
		return fmt.Errorf("credential of %q: %w", device, err)
	}
	m.secrets.credentials.Store(device, &c)
	m.secrets.enrolled.add(device)
	return nil
}

func (m *Memory) loadCode(id string, c storedCode) (err error) {
	if c.hash, err = ParseSecretHash(c.Hash); err != nil {
		return fmt.Errorf("code %q: %w", id, err)
	}
	m.secrets.codes.publish(map[string]*storedCode{id: &c})
	return nil
}

func (m *Memory) credential(device string) *storedCredential {
	if v, ok := m.secrets.credentials.Load(device); ok {
		return v.(*storedCredential)
	}
	return nil
}

func (m *Memory) publicCredential(device string, c *storedCredential) Credential {
	return Credential{
		Device: device, Current: c.current, Next: c.next,
		Version: c.Version, Changed: m.clock.time(c.ChangedMS),
	}
}

// Credential implements Credentials.
func (m *Memory) Credential(ctx context.Context, device string) (Credential, error) {
	if err := ctx.Err(); err != nil {
		return Credential{}, err
	}
	c := m.credential(device)
	if c == nil {
		return Credential{}, ErrUnknown
	}
	return m.publicCredential(device, c), nil
}

// SetCredential implements Credentials.
func (m *Memory) SetCredential(ctx context.Context, c Credential) (Credential, error) {
	if err := CheckCredential(c); err != nil {
		return Credential{}, err
	}
	var written *storedCredential
	err := m.mutate(ctx, func(b *batch) error {
		var version int64
		if old := b.credential(c.Device); old != nil {
			version = old.Version
		}
		if version != c.Version {
			return ErrChanged
		}
		written = &storedCredential{
			Current: c.Current.String(), Next: c.Next.String(),
			Version: max(version+1, b.now), ChangedMS: b.now,
			current: c.Current, next: c.Next,
		}
		b.credentials[c.Device] = written
		return nil
	})
	if err != nil {
		return Credential{}, err
	}
	return m.publicCredential(c.Device, written), nil
}

// DropCredential implements Credentials.
func (m *Memory) DropCredential(ctx context.Context, device string) error {
	return m.mutate(ctx, func(b *batch) error {
		if b.credential(device) != nil {
			b.credentials[device] = nil
		}
		return nil
	})
}

// Enrolled implements Credentials.
func (m *Memory) Enrolled(ctx context.Context, after string, limit int) ([]Credential, error) {
	return page(ctx, &m.secrets.enrolled, after, limit, func(device string) (Credential, bool) {
		if c := m.credential(device); c != nil {
			return m.publicCredential(device, c), true
		}
		return Credential{}, false
	})
}

// AddCode implements Credentials.
func (m *Memory) AddCode(ctx context.Context, c Code) error {
	if err := CheckCode(c, m.clock.time(m.clock.read())); err != nil {
		return err
	}
	return m.mutate(ctx, func(b *batch) error {
		if b.codes.get(c.ID) != nil {
			return fmt.Errorf("%w: code %s is there already", ErrInvalid, c.ID)
		}
		if b.codes.full(MaxCodes) {
			return ErrTooManyCodes
		}
		b.codes.set(c.ID, &storedCode{
			Hash: c.Hash.String(), Device: c.Device, CreatedMS: b.now,
			UntilMS: b.now + millis(c.Until.Sub(m.clock.time(b.now))), hash: c.Hash,
		})
		return nil
	})
}

// TakeCode implements Credentials.
func (m *Memory) TakeCode(ctx context.Context, id string, hash SecretHash, device string, known bool) error {
	return m.mutate(ctx, func(b *batch) error {
		c := b.codes.get(id)
		if c == nil || subtle.ConstantTimeCompare(c.hash[:], hash[:]) != 1 || c.Device != device && (c.Device != "" || known) {
			return ErrUnknown
		}
		b.codes.remove(id)
		return nil
	})
}

// DropCode implements Credentials.
func (m *Memory) DropCode(ctx context.Context, id string) error {
	return m.mutate(ctx, func(b *batch) error {
		if b.codes.get(id) == nil {
			return ErrUnknown
		}
		b.codes.remove(id)
		return nil
	})
}

// Codes implements Credentials.
func (m *Memory) Codes(ctx context.Context) ([]Code, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	live := m.secrets.codes.live(m.clock.read())
	codes := make([]Code, 0, len(live))
	for id, c := range live {
		codes = append(codes, Code{
			ID: id, Hash: c.hash, Device: c.Device,
			Created: m.clock.time(c.CreatedMS), Until: m.clock.time(c.UntilMS),
		})
	}
	SortCodes(codes)
	return codes, nil
}

// SortCodes puts codes into the order of Codes.
func SortCodes(codes []Code) {
	slices.SortFunc(codes, func(a, b Code) int {
		return cmp.Or(a.Until.Compare(b.Until), cmp.Compare(a.ID, b.ID))
	})
}

// credential returns the credential of a device as the batch leaves it; nil
// without one.
func (b *batch) credential(device string) *storedCredential {
	if c, staged := b.credentials[device]; staged {
		return c
	}
	return b.m.credential(device)
}

// publishSecrets shows everybody what the batch has changed.
func (b *batch) publishSecrets() {
	s := &b.m.secrets
	for device, c := range b.credentials {
		if c == nil {
			s.credentials.Delete(device)
			s.enrolled.remove(device)
			continue
		}
		if _, known := s.credentials.Swap(device, c); !known {
			s.enrolled.add(device)
		}
	}
	s.codes.publish(b.codes.changed)
}

// notices are those of one process: none outlives it, nor does a tunnel.
type notices struct {
	mu     sync.Mutex // guards what follows
	by     map[string]int64
	last   int64
	pruned int64
}

// Notify implements Credentials.
func (m *Memory) Notify(ctx context.Context, device string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName("device", device); err != nil {
		return err
	}
	n, now := &m.secrets.notices, m.clock.decide()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = max(n.last+1, now)
	if n.by == nil {
		n.by = map[string]int64{}
	}
	n.by[device] = n.last
	if now-n.pruned > time.Minute.Milliseconds() {
		n.pruned = now
		maps.DeleteFunc(n.by, func(_ string, mark int64) bool { return mark <= now-NoticeTime.Milliseconds() })
	}
	return nil
}

// Notices implements Credentials.
func (m *Memory) Notices(ctx context.Context, after int64) ([]Notice, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n := &m.secrets.notices
	n.mu.Lock()
	var list []Notice
	if n.last > after {
		for device, mark := range n.by {
			if mark > after {
				list = append(list, Notice{Device: device, Mark: mark})
			}
		}
	}
	n.mu.Unlock()
	slices.SortFunc(list, func(a, b Notice) int { return cmp.Compare(a.Mark, b.Mark) })
	return list[:min(len(list), NoticePage)], nil
}

// Drop implements Registry.
func (m *Memory) Drop(ctx context.Context, device string) error {
	return m.mutate(ctx, func(b *batch) error {
		r := b.device(device)
		if r == nil {
			return ErrUnknown
		}
		next := *r
		next.tunnel = Incumbent{}
		next.seen, next.until = b.now, b.now
		b.devices[device] = &next
		b.device(device) // clears it away
		return nil
	})
}
