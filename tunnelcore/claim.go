package tunnelcore

import (
	"context"
	"errors"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// labelTries bounds the labels that are drawn for one claim. With 80 random bits
// the first is free.
const labelTries = 5

// How often instances of a device that were replaced may come back: so many at
// once, and so many per second in the long run.
const returnBurst, returnRate = 3, 3.0 / 60

// claim takes the device for t. A live tunnel of another instance keeps it; one
// that is dead is evicted.
func (h *Hub) claim(ctx context.Context, t *tunnel) (registry.Lease, error) {
	h.mu.Lock()
	h.claiming[t.holder.Tunnel] = struct{}{}
	h.mu.Unlock()
	s := h.settings.Load()
	c := registry.Claim{
		Device:   t.holder.Device,
		Instance: t.hello.Instance,
		Tunnel:   t.holder.Tunnel,
		Node:     h.node,
		Lease:    s.Lease,
	}
	for range labelTries {
		c.Label = c.Device
		if s.Hostname == HostnameRandom {
			c.Label = names.NewLabel()
		}
		lease, err := h.reg.Claim(ctx, c)
		var held *registry.HeldError
		switch {
		case err == nil && (lease.Label == c.Device) == (s.Hostname == HostnameDevice):
			if was := lease.Previous.Instance; was != "" && was != c.Instance {
				h.mu.Lock()
				d := h.deviceLocked(c.Device)
				h.mu.Unlock()
				d.replaced(was)
			}
			return lease, nil
		case err == nil: // a label from before the mode of hostnames was changed
			if err := h.reg.Release(ctx, lease.Holder, 0, "renamed"); err != nil && !errors.Is(err, registry.ErrLost) {
				return registry.Lease{}, registryAway(err)
			}
			c.Evict = registry.Holder{}
		case errors.Is(err, registry.ErrLabelTaken) && s.Hostname == HostnameRandom:
		case errors.Is(err, registry.ErrLabelTaken):
			return registry.Lease{}, &answers.Error{Code: wire.Unavailable, RetryAfter: time.Minute, Cause: err,
				Message: "the name of this device is leased to another one"}
		case errors.As(err, &held):
			lives, err := h.incumbentLives(ctx, held.Incumbent)
			if err != nil {
				return registry.Lease{}, err
			}
			if lives || h.rivals(c.Device, c.Instance) {
				return registry.Lease{}, &answers.Error{Code: wire.DeviceConnected, RetryAfter: 10 * time.Second,
					Message: "another device of this name is connected"}
			}
			c.Evict = held.Incumbent.Holder
		default:
			return registry.Lease{}, registryAway(err)
		}
	}
	return registry.Lease{}, &answers.Error{Code: wire.Unavailable, RetryAfter: time.Second,
		Message: "the device is claimed by several agents at once"}
}

func registryAway(err error) error {
	return &answers.Error{Code: wire.Unavailable, RetryAfter: 2 * time.Second, Cause: err, Message: "the registry does not answer"}
}

// rivals reports whether a newcomer has to wait although the incumbent looks dead.
// A device that was started anew is an instance that nobody has seen; one that had
// the device, was replaced and comes back, again and again, is one of two devices
// of one name.
func (h *Hub) rivals(device, instance string) bool {
	h.mu.Lock()
	d := h.deviceLocked(device)
	h.mu.Unlock()
	if !d.wasHere(instance) || d.returns.take() {
		return false
	}
	h.tellCloned(d)
	return true
}

// tellCloned tells operators, once a minute, that a device is there twice.
func (h *Hub) tellCloned(d *device) {
	d.mu.Lock()
	tell := time.Since(d.cloned) > time.Minute
	if tell {
		d.cloned = time.Now()
	}
	d.mu.Unlock()
	if tell {
		h.log().Warn("two devices of one name: give each an id of its own", "device", d.id)
		h.emit("cloned", map[string]any{"device": d.id})
	}
}

// incumbentLives asks the tunnel that holds a device for a sign of life. One at a node
// that does not answer may live: the newcomer waits until that node does, or is gone.
func (h *Hub) incumbentLives(ctx context.Context, i registry.Incumbent) (bool, error) {
	if i.Node.ID == h.node.ID {
		return h.tunnelLives(ctx, i.Tunnel), nil
	}
	p, err := h.peer(ctx, i.Node)
	lives := false
	if err == nil {
		lives, err = h.link.Probe(ctx, p, i.Device, i.Tunnel)
	}
	if err != nil {
		return false, &answers.Error{Code: wire.Unavailable, RetryAfter: peerRetry, Cause: err,
			Message: "the device seems to be connected to a node that does not answer"}
	}
	if lives {
		h.mu.Lock()
		d := h.deviceLocked(i.Device)
		h.mu.Unlock()
		h.tellCloned(d)
	}
	return lives, nil
}

// tellLoser tells the node whose tunnel a claim has replaced, if that is another one.
// When it cannot be reached it finds a notice.
func (h *Hub) tellLoser(l registry.Lease) {
	loser := l.Previous.Node
	if loser.ID == "" || loser.ID == h.node.ID {
		return
	}
	h.observer.TookOver()
	h.wg.Go(func() {
		ctx, cancel := context.WithTimeout(h.ctx, registryTimeout)
		defer cancel()
		p, err := h.peer(ctx, loser)
		if err == nil {
			err = h.link.Replaced(ctx, p, l.Holder)
		}
		if err == nil || errors.Is(err, cluster.ErrNotHere) { // that start of it is over
			return
		}
		ctx, cancel = context.WithTimeout(context.WithoutCancel(h.ctx), registryTimeout)
		defer cancel()
		if err := h.reg.Notify(ctx, l.Device); err != nil {
			h.log().Warn("a node does not know that its tunnel was replaced; it will find out", "device", l.Device, "node", loser.ID, "error", err)
		}
	})
}

// tunnelLives asks a tunnel of this node for a sign of life.
func (h *Hub) tunnelLives(ctx context.Context, tunnel string) bool {
	h.mu.Lock()
	t := h.tunnels[tunnel]
	_, claiming := h.claiming[tunnel]
	h.mu.Unlock()
	if t == nil {
		return claiming // about to be up; else the registry missed its end
	}
	lives := t.alive(ctx)
	if lives && ctx.Err() == nil {
		h.tellCloned(t.device)
	}
	return lives
}

func (h *Hub) unclaim(tunnel string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.claiming, tunnel)
}

// giveBack releases the claim of a tunnel that never came up.
func (h *Hub) giveBack(t *tunnel) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), registryTimeout)
	defer cancel()
	err := h.reg.Release(ctx, t.holder, h.settings.Load().Lease, whyHandshake)
	if err != nil && !errors.Is(err, registry.ErrLost) {
		t.log().Error("lease not released; it ends by itself", "error", err)
	}
}
