package registry

import (
	"context"
	"sync"
)

// publics is the leased ports of Memory as everybody sees them.
type publics struct {
	mu     sync.RWMutex // guards what follows
	leased map[uint16]portUse
	// changes counts those of leased. A lease that ends by itself is not among them.
	changes int64
}

// set notes what a public port is used for; true says that it was leased and is not
// any more, or the other way round, or to another.
func (p *publics) set(public uint16, use portUse) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.leased[public]
	switch {
	case !use.leased() && !old.leased(), use == old:
		return false
	case !use.leased():
		delete(p.leased, public)
	default:
		if p.leased == nil {
			p.leased = map[uint16]portUse{}
		}
		p.leased[public] = use
	}
	p.changes++
	return true
}

// Ports implements Registry.
func (m *Memory) Ports(ctx context.Context, version int64) ([]PortLease, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	p, now := &m.public, m.clock.read()
	p.mu.RLock()
	defer p.mu.RUnlock()
	list := make([]PortLease, 0, len(p.leased))
	for public, use := range p.leased {
		if r := m.published(use.device); r != nil && r.until > now {
			list = append(list, PortLease{Public: public, Device: use.device, Port: use.port})
		}
	}
	// Between two changes ports can only end, so that their number tells them apart.
	current := (p.changes+1)<<17 + int64(len(list))
	if current == version {
		list = nil
	}
	return list, current, nil
}

// Hints implements Hinter.
func (m *Memory) Hints(ctx context.Context) <-chan Hint { return m.hints.Subscribe(ctx) }

// hint tells what has changed in a device's route.
func (m *Memory) hint(device string, old, now *record) {
	if old != nil && (now == nil || now.label != old.label) {
		m.hints.Send(Hint{Device: device, Label: old.label})
	}
	if now != nil && (old == nil || now.label != old.label || now.tunnel != old.tunnel) {
		m.hints.Send(Hint{Device: device, Label: now.label})
	}
}
