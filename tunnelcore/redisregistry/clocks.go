package redisregistry

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// clocks knows what time it is at each master, from what they last said.
type clocks struct {
	mu sync.Mutex
	at map[string]moment // by the address of a master; heartbeats replace them all
}

// A moment is the time at a server, in milliseconds, and when its answer was here:
// the server's clock is a little further than that says, never behind it.
type moment struct {
	serverMS int64
	here     time.Time
}

// replace sets all there is.
func (c *clocks) replace(at map[string]moment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

// set notes what one master has said.
func (c *clocks) set(addr string, m moment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = map[string]moment{}
	}
	c.at[addr] = m
}

func (c *clocks) get(addr string) (moment, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.at[addr]
	return m, ok
}

// masterOf returns the master that has a key.
func (r *Registry) masterOf(ctx context.Context, key string) (*redis.Client, error) {
	if c, ok := r.c.(*redis.ClusterClient); ok {
		return c.MasterForKey(ctx, key)
	}
	return r.c.(*redis.Client), nil // what connect makes otherwise
}

// notAfter returns the time, in milliseconds at the master that has key, after which a
// script that is sent now is not to be carried out any more: when ctx ends. It
// bounds ctx to claimTime; the caller calls cancel.
func (r *Registry) notAfter(ctx context.Context, key string) (bounded context.Context, cancel context.CancelFunc, ms int64, err error) {
	bounded, cancel = context.WithTimeout(ctx, r.claimTime)
	c, err := r.masterOf(bounded, key)
	if err != nil {
		return bounded, cancel, 0, err
	}
	m, ok := r.clocks.get(c.Options().Addr)
	if !ok {
		now, err := c.Time(bounded).Result()
		if err != nil {
			return bounded, cancel, 0, err
		}
		m = moment{now.UnixMilli(), r.now()}
		r.clocks.set(c.Options().Addr, m)
	}
	end, _ := bounded.Deadline()
	return bounded, cancel, m.serverMS + (r.now().Sub(m.here) + time.Until(end)).Milliseconds(), nil
}

// isLate notes the time at the master that has key: it has refused a script as late that is
// not, so that its clock was set, or this machine has slept.
func (r *Registry) isLate(ctx context.Context, key string, serverMS int64) error {
	c, err := r.masterOf(ctx, key)
	if err == nil {
		r.clocks.set(c.Options().Addr, moment{serverMS, r.now()})
	}
	return err
}
