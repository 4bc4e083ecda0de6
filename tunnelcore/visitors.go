package tunnelcore

import (
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// visitors bounds what one address may do at one device at once, so that a
// single visitor cannot take all of the device's streams. Its locks are many, as
// every request takes one twice.
type visitors struct {
	seed   maphash.Seed
	shards [64]visitorShard
}

type visitorShard struct {
	mu sync.Mutex // guards what follows
	by map[source]*slots
}

func newVisitors() *visitors {
	v := &visitors{seed: maphash.MakeSeed()}
	for i := range v.shards {
		v.shards[i].by = make(map[source]*slots)
	}
	return v
}

func (v *visitors) shard(from source) *visitorShard {
	return &v.shards[maphash.Comparable(v.seed, from)%uint64(len(v.shards))]
}

// source is a visitor's address at a device.
type source struct {
	device string
	addr   netip.Addr
}

// Enter counts a visitor's request to a device, until leave is called: one
// address has at most Limits.StreamsPerAddress of them at once. Who comes with
// more waits for a turn. More per second than Limits.RequestsPerDevice are refused.
// Errors are *answers.Error: too_many, or what ctx says.
func (h *Hub) Enter(ctx context.Context, device string, addr netip.Addr) (leave func(), err error) {
	if err := h.permit(device); err != nil {
		return nil, err
	}
	return h.visitors.enter(ctx, source{device, AddressKey(addr)}, h.settings.Load().Limits.StreamsPerAddress, slotTime)
}

func (v *visitors) enter(ctx context.Context, from source, limit int, wait time.Duration) (leave func(), err error) {
	return v.shard(from).enter(ctx, from, limit, wait)
}

func (v *visitorShard) enter(ctx context.Context, from source, limit int, wait time.Duration) (leave func(), err error) {
	v.mu.Lock()
	s := v.by[from]
	if s == nil {
		s = new(slots)
		v.by[from] = s
	}
	s.resize(limit)
	// Taken under mu: a gate that nobody uses is removed.
	err = s.acquire(ctx, 0, nil)
	if errors.Is(err, errNoSlot) && wait > 0 {
		v.mu.Unlock()
		err = s.acquire(ctx, wait, nil)
		v.mu.Lock()
	}
	defer v.mu.Unlock()
	switch {
	case err == nil:
		return func() { v.leave(from, s) }, nil
	case errors.Is(err, errNoSlot):
		return nil, &answers.Error{Code: wire.TooMany, RetryAfter: time.Second, Message: "too many requests of one address to this device"}
	}
	return nil, answers.From(err)
}

func (v *visitorShard) leave(from source, s *slots) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s.release()
	if s.idle() && v.by[from] == s {
		delete(v.by, from)
	}
}
