package tunnelcore

import (
	"context"
	"errors"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// noticeOverlap is how much of what was read before is read again, in
	// milliseconds: the clocks of Redis servers agree within half of it.
	noticeOverlap = 20_000
	// noticeGap is how long notices may go unread before all tunnels are looked at
	// instead: well within the time for which they are kept.
	noticeGap = registry.NoticeTime / 2
)

// noticed is how far a node has read notices.
type noticed struct {
	mark int64            // the last one
	seen map[string]int64 // marks of devices that will be read again
	at   time.Time        // of the last time that they could be read
}

// watching reads notices with each heartbeat, and looks at the tunnels that they
// are about.
func (h *Hub) watching() {
	tick := time.NewTicker(registry.NodeHeartbeat)
	defer tick.Stop()
	n := noticed{seen: make(map[string]int64), at: time.Now()}
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
		if err := h.readNotices(&n); err != nil {
			continue // beating logs that the registry is away
		}
		if time.Since(n.at) > noticeGap {
			h.undecided.Store(true)
		}
		n.at = time.Now()
		if h.undecided.Swap(false) {
			h.recheckAll()
		}
	}
}

// readNotices looks at the tunnels of devices about which there is a new notice.
func (h *Hub) readNotices(n *noticed) error {
	for after := n.mark - noticeOverlap; ; {
		ctx, cancel := context.WithTimeout(h.ctx, registryTimeout)
		list, err := h.reg.Notices(ctx, after)
		cancel()
		if err != nil {
			return err
		}
		for _, one := range list {
			if n.seen[one.Device] == one.Mark {
				continue
			}
			n.seen[one.Device] = one.Mark
			h.Recheck(one.Device)
		}
		if len(list) > 0 {
			after = list[len(list)-1].Mark
			n.mark = max(n.mark, after)
		}
		if len(list) < registry.NoticePage {
			break
		}
	}
	for device, mark := range n.seen {
		if mark < n.mark-noticeOverlap {
			delete(n.seen, device)
		}
	}
	return nil
}

// Recheck looks whether a device may still be connected, and closes its tunnel on
// this node if not: its authorisation is asked for again, and whether the tunnel
// still holds the device. A handshake that is under way looks again by itself.
func (h *Hub) Recheck(device string) {
	h.notices.Add(1) // before looking: who is about to register compares it afterwards
	h.mu.Lock()
	d := h.devices[device]
	h.mu.Unlock()
	if d == nil {
		return
	}
	if t, _ := d.live(); t != nil {
		h.recheck(t)
	}
}

// recheckAll is Recheck for all tunnels, until the registry cannot tell.
func (h *Hub) recheckAll() {
	for _, t := range h.live() {
		if !h.recheck(t) {
			return
		}
	}
}

// recheck closes t if it may not be connected, or does not hold its device any
// more; false: the registry cannot tell, and is asked again when it can.
func (h *Hub) recheck(t *tunnel) bool {
	if err := h.reauthorise(t); err != nil {
		return !errors.Is(err, ErrUndecided)
	}
	ctx, cancel := context.WithTimeout(h.ctx, registryTimeout)
	defer cancel()
	lost, err := h.reg.Refresh(ctx, h.settings.Load().Lease, []registry.Holder{t.holder})
	if err != nil {
		h.undecided.Store(true)
		return false
	}
	if len(lost) == 0 {
		return true
	}
	h.disown(t)
	code, why := h.whyLost(t.holder)
	if code == wire.CloseRestart {
		why = whyOperator
		if rec, err := h.reg.ByDevice(ctx, t.holder.Device); err == nil && rec.Why != "" {
			why = rec.Why
		}
		t.oust()
	}
	t.closeSoon(code, why)
	return true
}

// oust notes that t is about to be closed though no other tunnel has its device:
// if there is nothing to release at its end, it is not for having been replaced.
func (t *tunnel) oust() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ousted = true
}

// authRefusal is how an agent is told that it was not let in.
func authRefusal(err error) error {
	switch {
	case errors.Is(err, ErrUndecided):
		return registryAway(err)
	case errors.Is(err, ErrNotEntitled):
		return &answers.Error{Code: wire.Forbidden, Message: "the credential does not entitle to this", Cause: err}
	}
	return &answers.Error{Code: wire.Unauthorized, Message: "device or token is wrong", Cause: err}
}
