package tunnelcore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// tickTime is the grain of the wheel.
	tickTime = time.Second
	// graceTime is how long the second ping in a row may stay unanswered.
	graceTime = 10 * time.Second
	// idleTime is how often streams are looked at that say nothing. The gap between
	// two pings is up to twice that: below the patience of proxies on the way, some
	// of which cut after half a minute.
	idleTime = 12 * time.Second
	// joinTime is how often a node whose id is taken looks whether it is free.
	joinTime = 500 * time.Millisecond
	// takenTime is what the tunnels are spread over that have to leave a node whose id
	// another process has taken.
	takenTime = 30 * time.Second
	// missedTime is how long after a heartbeat the node may count as dead for others
	// when the next one is taken, with what that one may need itself.
	missedTime = registry.NodeTTL - registry.NodeHeartbeat
	// restoreTimeout bounds one attempt to write again what all tunnels hold, and
	// restorePause is what follows one that fails.
	restoreTimeout = 30 * time.Second
	restorePause   = time.Second
	// refreshRetry is how soon a refresh is repeated that has failed, doubled each time up
	// to 32 times that.
	refreshRetry = 5 * time.Second
	// refreshBatch bounds the holders in one call to the registry.
	refreshBatch = 500
	// lostAtOnce bounds the questions, at the same time, why tunnels are lost.
	lostAtOnce = 32
)

// wheel holds each tunnel in the slot of the second in which it is due: one timer
// for all devices. It belongs to Hub.mu.
type wheel struct {
	slots [1024]map[*tunnel]struct{} // more seconds than a heartbeat has
	now   int
}

// add makes t due after d, rounded up to a tick.
func (w *wheel) add(t *tunnel, d time.Duration) {
	ticks := min(max(1, int((d+tickTime-1)/tickTime)), len(w.slots)-1)
	t.pulse.slot = (w.now + ticks) % len(w.slots)
	if w.slots[t.pulse.slot] == nil {
		w.slots[t.pulse.slot] = make(map[*tunnel]struct{})
	}
	w.slots[t.pulse.slot][t] = struct{}{}
}

func (w *wheel) remove(t *tunnel) { delete(w.slots[t.pulse.slot], t) }

// tick moves on by one slot and returns the tunnels that are due.
func (w *wheel) tick() map[*tunnel]struct{} {
	w.now = (w.now + 1) % len(w.slots)
	due := w.slots[w.now]
	w.slots[w.now] = nil
	return due
}

// pulse is what the heartbeat knows of a tunnel. It belongs to Hub.mu.
type pulse struct {
	slot   int
	heard  uint32
	missed int // pings in a row that nothing was heard after
}

// housekeeping pings tunnels, ends those that are silent, pings idle streams and
// forgets devices that are gone.
func (h *Hub) housekeeping() {
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	var idle time.Time
	var crowd crowd
	for {
		select {
		case <-h.ctx.Done():
			return
		case now := <-tick.C:
			h.beatTunnels()
			h.forgetGone(now)
			if crowd.settles(h.Tunnels(), now) {
				h.wg.Go(h.rest)
			}
			if now.Sub(idle) >= idleTime {
				idle = now
				h.pingStreams()
			}
		}
	}
}

// beatTunnels pings the tunnels that are due. Two pings without any sign of life
// after them, and a tunnel is over.
func (h *Hub) beatTunnels() {
	var ping, dead []*tunnel
	h.mu.Lock()
	for t := range h.wheel.tick() {
		p := &t.pulse
		heard := t.sock.Heard()
		switch {
		case heard != p.heard:
			p.heard, p.missed = heard, 0
		case p.missed < 2:
		default:
			dead = append(dead, t)
			continue
		}
		p.missed++
		ping = append(ping, t)
		if p.missed == 2 {
			h.wheel.add(t, min(graceTime, t.inForce().heartbeat))
		} else {
			h.wheel.add(t, jitter(t.inForce().heartbeat))
		}
	}
	h.mu.Unlock()
	for _, t := range ping {
		// Each by itself: a write to a full buffer waits.
		h.wg.Go(t.sock.PingSoon) // also when frames are always under way
	}
	for _, t := range dead {
		t.mu.Lock()
		t.why = "heartbeat timeout"
		t.mu.Unlock()
		t.sock.Close()
	}
}

// jitter spreads d by a tenth to both sides.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// forgetGone forgets the devices that have been gone for a while.
func (h *Hub) forgetGone(now time.Time) {
	h.mu.Lock()
	gone := make([]*device, 0, len(h.gone))
	for d := range h.gone {
		gone = append(gone, d)
	}
	h.mu.Unlock()
	for _, d := range gone {
		h.mu.Lock()
		if _, ok := h.gone[d]; ok && now.Sub(d.since()) > reconnectTime {
			h.ports.release(d.id)
		}
		h.mu.Unlock()
		if !d.forgettable(now) {
			continue
		}
		h.mu.Lock()
		// It may have come back meanwhile.
		if _, ok := h.gone[d]; ok && d.forgettable(now) {
			delete(h.gone, d)
			delete(h.devices, d.id)
		}
		h.mu.Unlock()
	}
}

func (h *Hub) pingStreams() {
	h.mu.Lock()
	var busy []*device
	for _, d := range h.devices {
		if d.streaming() {
			busy = append(busy, d)
		}
	}
	h.mu.Unlock()
	for _, d := range busy {
		// Each device by itself, and not twice: a write to a full buffer waits.
		if d.keeping.CompareAndSwap(false, true) {
			h.wg.Go(func() {
				defer d.keeping.Store(false)
				d.keepAlive()
			})
		}
	}
}

// join makes this node known to the registry. When a process before this one has
// died, its id is free after registry.NodeTTL; when it lives, it never is.
func (h *Hub) join() error {
	deadline := time.Now().Add(registry.NodeTTL + registry.NodeHeartbeat)
	for {
		err := h.beat()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, registry.ErrSchema):
			return err
		case !errors.Is(err, registry.ErrNodeLive):
			h.log().Error("registry does not answer; no agent is let in until it does", "error", err)
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%w: give each node an id of its own", err)
		}
		if !pause(h.ctx, joinTime) {
			return h.ctx.Err()
		}
	}
}

// beating tells the registry that this node lives, and early if its number of clients
// has moved.
func (h *Hub) beating() {
	next := time.NewTimer(registry.NodeHeartbeat)
	defer next.Stop()
	failing, taken := !h.joined.Load(), time.Time{}
	for {
		began := time.Now()
		select {
		case <-h.ctx.Done():
			return
		case <-h.admission.moved:
			next.Reset(max(0, cluster.BeatLeast-time.Since(began)))
			select {
			case <-h.ctx.Done():
				return
			case <-next.C:
			}
		case <-next.C:
		}
		err := h.beat()
		next.Reset(registry.NodeHeartbeat)
		if h.ctx.Err() != nil {
			return
		}
		taken = h.whenTaken(err, taken)
		if (err != nil) == failing {
			continue
		}
		if failing = err != nil; failing {
			h.log().Error("this node is not known to the registry; connected devices stay reachable", "error", err)
		} else {
			h.log().Info("registry knows this node again")
		}
	}
}

// whenTaken lets the tunnels go when another process has had this node's id for so
// long that it lives: devices that are connected here nobody finds any more. since is
// when that was first seen, zero when it was not.
func (h *Hub) whenTaken(err error, since time.Time) time.Time {
	switch {
	case !errors.Is(err, registry.ErrNodeLive):
		return time.Time{}
	case since.IsZero():
		return time.Now()
	case time.Since(since) > registry.NodeTTL && h.Tunnels() > 0:
		h.log().Error("another process has the id of this node, which lets its devices go: give each node an id of its own", "error", err)
		h.wg.Go(func() { h.closeAll(h.unhurried.ctx, h.patient.ctx, whyTaken, takenTime) })
		return time.Now().Add(takenTime)
	}
	return since
}

func (h *Hub) beat() error { return h.beatBy(h.ctx) }

// beatBy is a heartbeat that ends with ctx.
func (h *Hub) beatBy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	own := h.self()
	began := time.Now()
	err := h.reg.Beat(ctx, own)
	switch {
	case err == nil:
		if now := time.Since(h.started); now-time.Duration(h.beaten.Swap(int64(now))) > missedTime {
			select {
			case h.lapsed <- struct{}{}:
			default: // refreshing looks anyway
			}
		}
		h.admission.told.Store(int64(own.Clients))
		h.joined.Store(true)
		h.look(ctx, began.Add(time.Since(began)/2))
	case errors.Is(err, registry.ErrNodeLive):
		h.joined.Store(false)
	default:
		h.unanswered.Store(true)
	}
	return err
}

// look reads what the other nodes say of themselves. This one has beaten at a moment.
func (h *Hub) look(ctx context.Context, beaten time.Time) {
	all, err := h.reg.Nodes(ctx)
	if err != nil {
		if ctx.Err() == nil {
			h.log().Debug("the other nodes are not known", "error", err)
		}
		h.unanswered.Store(true)
		return // what was known of them may still be true
	}
	if h.unanswered.Swap(false) {
		h.answered.Store(int64(time.Since(h.started)))
	}
	others := slices.DeleteFunc(all, func(n registry.Node) bool {
		if n.ID == h.node.ID && n.Epoch == h.node.Epoch {
			h.admission.clock.Store(&reading{registry: n.At, local: beaten})
		}
		return n.ID == h.node.ID
	})
	others = append(others, h.stillThere(others)...)
	gone := h.admission.peers.Update(others)
	if len(others) > 0 && h.settings.Load().Node.URL == "" && !h.admission.warned.Swap(true) {
		h.log().Warn("this node has no url, so that no agent is sent here or from here to another node: write `url https://…`, where agents reach this very node, in its `node` block")
	}
	if len(gone) > 0 {
		h.peersGone(gone)
	}
}

// refreshing prolongs the leases of live tunnels, once per third of the lease.
func (h *Hub) refreshing() {
	last, failures := time.Now(), 0
	for {
		lease := h.settings.Load().Lease
		next := time.NewTimer(time.Until(last.Add(refreshPause(lease, failures))))
		select {
		case <-h.ctx.Done():
			next.Stop()
			return
		case <-h.changed: // the lease may be another
			next.Stop()
			if h.settings.Load().Lease == lease {
				continue
			}
		case <-h.lapsed: // so other nodes may have been given what is held here
			next.Stop()
		case <-next.C:
		}
		last = time.Now()
		if h.refresh() {
			failures = 0
		} else {
			failures++
		}
	}
}

// refreshPause is what lies between two refreshes: less after failures, so that leases do
// not run out that only missed one.
func refreshPause(lease time.Duration, failures int) time.Duration {
	full := jitter(lease / 3 * 9 / 10)
	if failures == 0 {
		return full
	}
	return min(full, jitter(refreshRetry<<min(failures-1, 5)))
}

// refresh says whether the registry has answered for all.
func (h *Hub) refresh() (ok bool) {
	ok = true
	lease := h.settings.Load().Lease
	all := h.live()
	for len(all) > 0 {
		batch := all[:min(len(all), refreshBatch)]
		all = all[len(batch):]
		holders := make([]registry.Holder, len(batch))
		for i, t := range batch {
			holders[i] = t.holder
		}
		ctx, cancel := context.WithTimeout(h.ctx, registryTimeout)
		lost, err := h.reg.Refresh(ctx, lease, holders)
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) {
			h.log().Error("leases not refreshed", "devices", len(batch), "error", err)
			ok = false
		}
		h.closeLost(lost)
	}
	return ok
}

// closeLost closes the tunnels that do not hold their devices any more. Why is asked of
// the registry for some at a time: one that is slow keeps none of them for long.
func (h *Hub) closeLost(lost []registry.Holder) {
	turns := make(chan struct{}, lostAtOnce)
	var asking sync.WaitGroup
	defer asking.Wait()
	for _, holder := range lost {
		h.mu.Lock()
		t := h.tunnels[holder.Tunnel]
		h.mu.Unlock()
		if t == nil {
			continue
		}
		h.disown(t)
		turns <- struct{}{}
		asking.Go(func() {
			defer func() { <-turns }()
			t.closeSoon(h.whyLost(holder))
		})
	}
}

// restoring writes again what tunnels hold whenever the registry has lost data.
func (h *Hub) restoring(r registry.Restorer) {
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-r.Lost():
		}
		held := h.held()
		ctx, cancel := context.WithTimeout(h.ctx, restoreTimeout)
		lost, err := r.Restore(ctx, held)
		cancel()
		h.closeLost(lost)
		if err == nil {
			continue
		}
		h.log().Warn("what is held could not be written to the registry again; trying on", "devices", len(held), "error", err)
		select {
		case <-h.ctx.Done():
			return
		case <-time.After(restorePause): // Lost tells of it anew
		}
	}
}

// held is what all tunnels hold.
func (h *Hub) held() []registry.Held {
	all := h.live()
	held := make([]registry.Held, len(all))
	for i, t := range all {
		t.mu.Lock()
		held[i] = registry.Held{
			Holder: t.holder, Label: t.label, Instance: t.hello.Instance,
			Node: h.node, Lease: t.bound.lease, Ports: maps.Clone(t.public),
		}
		t.mu.Unlock()
	}
	return held
}

// whyLost says how to close a tunnel that does not hold its device any more. One
// that a newer tunnel has replaced must not fight for it. One whose lease has run
// out, as while this machine was asleep, comes back at once.
func (h *Hub) whyLost(holder registry.Holder) (code int, why string) {
	ctx, cancel := context.WithTimeout(h.ctx, registryTimeout)
	defer cancel()
	rec, err := h.reg.ByDevice(ctx, holder.Device)
	if err == nil && rec.Generation > holder.Generation {
		return wire.CloseReplaced, whyReplaced
	}
	return wire.CloseRestart, whyLapsed
}
