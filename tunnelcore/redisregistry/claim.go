package redisregistry

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// Claim implements registry.Registry.
func (r *Registry) Claim(ctx context.Context, c registry.Claim) (registry.Lease, error) {
	if err := ctx.Err(); err != nil {
		return registry.Lease{}, err
	}
	if err := checkClaim(c); err != nil {
		return registry.Lease{}, err
	}
	// What is set after ctx has ended, and Claim returned, is nothing: nothing is sent then.
	var sent atomic.Bool
	l, err := crowd(ctx, r, "claim", func(ctx context.Context) (registry.Lease, error) { return r.claim(ctx, c, &sent) })
	switch {
	case err == nil:
		r.doubts.remove(c.Tunnel)
	case sent.Load() && inDoubt(err):
		r.doubts.add(c.Tunnel, doubt{c.Device, c.Lease, r.now().Add(r.claimTime)})
	}
	return l, err
}

// claim has the device's key decide who holds the device. The rest follows from
// that: before a device gets a label, the label is reserved for it; once it holds
// the device, its route is published. It says when Redis may be about to decide.
func (r *Registry) claim(ctx context.Context, c registry.Claim, sent *atomic.Bool) (registry.Lease, error) {
	var dead registry.Holder // whose node was found not to live
	commit := ""
	if c.Evict.Device != c.Device {
		c.Evict = registry.Holder{}
	}
	for range tries {
		p := r.claimDevice(ctx, c, dead, commit, sent)
		switch verdict := p.text(0); {
		case p.err != nil:
			return registry.Lease{}, p.err
		case verdict == "late":
			if err := r.isLate(ctx, r.keys.device(c.Device), p.number(1)); err != nil {
				return registry.Lease{}, err
			}
		case verdict == "ok":
			return r.granted(ctx, c, p, dead)
		case verdict == "held":
			by := incumbent(c.Device, &p, 1)
			if p.err != nil {
				return registry.Lease{}, p.err
			}
			lives, err := r.nodeLives(ctx, by.Node)
			if err != nil {
				return registry.Lease{}, err
			}
			if lives {
				return registry.Lease{}, &registry.HeldError{Incumbent: by}
			}
			// It may be the node's key that was lost. Of another error the next call tells.
			if err := r.mayLease(ctx); errors.Is(err, errRestoring) {
				return registry.Lease{}, err
			}
			// The script replaces just this holder: whoever comes in between is
			// looked at anew.
			dead = by.Holder
		case verdict == "label":
			label, token := p.text(1), p.text(2)
			reserved, err := r.reserveFresh(ctx, c, label, token)
			if err != nil {
				return registry.Lease{}, err
			}
			if !reserved && label == c.Label {
				return registry.Lease{}, registry.ErrLabelTaken
			}
			if reserved {
				commit = token
			}
		default:
			return registry.Lease{}, fmt.Errorf("%w: %q", errReply, verdict)
		}
	}
	return registry.Lease{}, errBusy
}

// claimDevice has the device's key decide. A link that breaks keeps what was sent, and
// delivers it when it is whole again: the device may be at another node by then,
// so that nothing is carried out once the caller has given up.
func (r *Registry) claimDevice(ctx context.Context, c registry.Claim, dead registry.Holder, commit string, sent *atomic.Bool) reply {
	key := r.keys.device(c.Device)
	ctx, cancel, notAfter, err := r.notAfter(ctx, key)
	defer cancel()
	if err != nil {
		return reply{err: err}
	}
	sent.Store(true)
	return r.run(ctx, claimScript, []string{key},
		c.Tunnel, c.Instance, c.Node.ID, c.Node.Epoch, live(c.Lease),
		r.tail.Milliseconds(), r.grace.Milliseconds(), pendWindow.Milliseconds(),
		c.Evict.Generation, c.Evict.Tunnel, dead.Generation, dead.Tunnel,
		c.Label, newToken(), commit, r.portRest.Milliseconds(), notAfter)
}

// reserveFresh reserves the label that the device is about to get; it may be that
// of another claim, which then both try to finish. What is in the way is taken
// back, so that nothing has changed.
func (r *Registry) reserveFresh(ctx context.Context, c registry.Claim, label, token string) (bool, error) {
	err := r.mayLease(ctx)
	reserved := false
	if err == nil {
		reserved, err = r.reserve(ctx, c.Device, label, token, live(c.Lease))
	}
	if !reserved {
		p := r.run(ctx, unpendScript, []string{r.keys.device(c.Device)}, token)
		if err == nil {
			err = p.err
		}
	}
	return reserved, err
}

// reserve makes the route of a label the device's, for the attempt that token
// names. It says no when another device has the label, or is about to get it.
//
// A route that outlives its lease is in the way only as long as nobody looks: it
// is taken from a device that does not have the label, after check has made sure
// that the device cannot get it any more without changing hold, which is compared.
func (r *Registry) reserve(ctx context.Context, device, label, token string, liveMS int64) (bool, error) {
	var from, hold string
	for range tries {
		p := r.run(ctx, holdScript, []string{r.keys.lease(label)}, device, token, liveMS+r.tail.Milliseconds(), from, hold)
		if p.number(0) == 1 || p.err != nil {
			return p.err == nil, p.err
		}
		from, hold = p.text(1), p.text(2)
		q := r.run(ctx, checkScript, []string{r.keys.device(from)}, label)
		if q.number(0) == 1 || q.err != nil {
			return false, q.err
		}
	}
	return false, errBusy
}

// incumbent reads generation, tunnel, instance, node and epoch from i on.
func incumbent(device string, p *reply, i int) registry.Incumbent {
	return registry.Incumbent{
		Holder:   registry.Holder{Device: device, Generation: p.number(i), Tunnel: p.text(i + 1)},
		Instance: p.text(i + 2),
		Node:     registry.NodeRef{ID: p.text(i + 3), Epoch: p.text(i + 4)},
	}
}

// nodeLives says whether that very start of the node is live.
func (r *Registry) nodeLives(ctx context.Context, n registry.NodeRef) (bool, error) {
	epoch, err := r.c.HGet(ctx, r.keys.node(n.ID), "epoch").Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return false, err
	}
	return err == nil && epoch == n.Epoch, nil
}

// granted finishes a claim that the device's key has granted with p: it publishes
// the route, makes the ports last, and then the lease.
func (r *Registry) granted(ctx context.Context, c registry.Claim, p reply, dead registry.Holder) (registry.Lease, error) {
	l := registry.Lease{
		Holder: registry.Holder{Device: c.Device, Generation: p.number(1), Tunnel: c.Tunnel},
		Label:  p.text(2), Fresh: p.number(3) == 1, Until: time.UnixMilli(p.number(4)),
	}
	ports, err := decodePorts(p.text(5))
	replaced := incumbent(c.Device, &p, 6)
	if p.err != nil || err != nil {
		return registry.Lease{}, firstError(p.err, err)
	}
	liveMS := live(c.Lease)
	b := r.batch(ctx)
	published := r.publish(b, l.Holder, l.Label, c.Node, liveMS)
	kept := r.keepPorts(b, liveMS, map[string]map[uint16]uint16{c.Device: ports})
	b.pipe.ZAdd(ctx, r.keys.devices(), redis.Z{Member: c.Device})
	var epoch *redis.StringCmd
	if replaced.Tunnel != "" && replaced.Holder != dead {
		epoch = b.pipe.HGet(ctx, r.keys.node(replaced.Node.ID), "epoch")
	}
	if err := b.run(); err != nil {
		return registry.Lease{}, err
	}
	if epoch != nil && epoch.Err() == nil && epoch.Val() == replaced.Node.Epoch {
		l.Previous = replaced
	}
	if q := published.reply(); q.number(0) == -1 {
		if err := r.retakeLabel(ctx, c, l); err != nil {
			return registry.Lease{}, err
		}
	}
	others, err := othersOf(kept)
	if err != nil {
		return registry.Lease{}, err
	}
	if len(others) > 0 {
		if err := r.forgetPorts(ctx, l.Holder, others); err != nil {
			return registry.Lease{}, err
		}
	}
	if l.Fresh {
		return l, nil // its keys were made to last before
	}
	return r.confirm(ctx, l, liveMS)
}

// confirm prolongs a lease whose keys have been.
func (r *Registry) confirm(ctx context.Context, l registry.Lease, liveMS int64) (registry.Lease, error) {
	p := r.refreshCall(ctx, []registry.Holder{l.Holder}, liveMS)
	by := p.text(1)
	switch {
	case p.err != nil:
		return registry.Lease{}, p.err
	case by == "":
		l.Until = time.UnixMilli(p.number(0) + liveMS)
	case by == strconv.FormatInt(l.Generation, 10):
		return registry.Lease{}, errLapsed
	}
	return l, nil // or replaced already, which its winner tells it
}

// publish adds to a batch the writing of the route of a label.
func (r *Registry) publish(b *batch, h registry.Holder, label string, n registry.NodeRef, liveMS int64) *scriptCall {
	return b.script(publishScript, []string{r.keys.lease(label)},
		h.Device, h.Generation, n.ID, n.Epoch, r.watch.internal(n), liveMS+r.tail.Milliseconds(),
		r.keys.hints(), routeHint(h.Device, label))
}

// retakeLabel is for a label whose route leads to another device, which only lost
// data can bring about: one of the two has to give it up.
func (r *Registry) retakeLabel(ctx context.Context, c registry.Claim, l registry.Lease) error {
	reserved, err := r.reserve(ctx, c.Device, l.Label, newToken(), live(c.Lease))
	if err != nil {
		return err
	}
	if !reserved {
		r.log.Warn("a device loses its label, which is leased to another", "device", c.Device, "label", l.Label)
		if err := r.release(ctx, l.Holder, 0, "label leased to another device"); err != nil {
			return err
		}
		return registry.ErrLabelTaken
	}
	b := r.batch(ctx)
	r.publish(b, l.Holder, l.Label, c.Node, live(c.Lease))
	return b.run()
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
