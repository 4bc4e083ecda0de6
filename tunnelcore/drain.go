package tunnelcore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// drainLook is how often a draining node looks for tunnels that it has not told.
	drainLook = time.Second
	// drainHeld is how old a tunnel must be to be told that came while the node was
	// draining already, because nobody else could take it. An agent that is told again
	// and again waits ever longer.
	drainHeld = 3 * time.Second
	// exitTime bounds how long a node that stops waits for the registry to know.
	exitTime = 2 * time.Second
)

// ErrNobodyElse: there is no other node that could take the devices.
var ErrNobodyElse = errors.New("no other live node could take the devices")

// drain is the state of a node that gives its devices to others. It belongs to Hub.mu.
type drain struct {
	on   bool
	stop context.CancelFunc // ends the spreading; nil when there is none
}

// Drain gives the devices of this node to the others. It returns when they know that
// nobody is to be sent here any more; agents are then told one after the other, over
// within, or as much longer as the others need to take them. Each has its new tunnel
// before it leaves the old one. Stats tells how many are left, and the event `drained`
// that none is. It goes on until Undrain. Called again it tells those that
// have not been told, over the new time.
//
// The error is ErrNobodyElse, of a within that is not 0 to 24 hours, or the registry's
// that could not be told: the node drains all the same, and others hear of it as soon
// as they can.
func (h *Hub) Drain(ctx context.Context, within time.Duration) error {
	if most := wire.MaxDrain * time.Second; within < 0 || within > most {
		return fmt.Errorf("drain within %v: not between 0 and %v", within, most)
	}
	if h.ableOthers() == 0 {
		// A node that has just started hears of the others with its next heartbeat.
		_ = h.beatBy(ctx) // what it would say, tellNodes says
	}
	if h.ableOthers() == 0 {
		return ErrNobodyElse
	}
	if !h.begin() {
		return stopping
	}
	spreading, stop := context.WithCancel(h.ctx)
	h.setDraining(drain{on: true, stop: stop})
	h.log().Info("draining", "tunnels", h.Tunnels(), "within", within)
	go func() { // Shutdown waits for it
		defer h.wg.Done()
		h.spread(spreading, within)
	}()
	return h.tellNodes(ctx)
}

// Vacate is Drain, as fast as the others can take the devices, for a node that is about
// to stop but still serves. It returns when no tunnel is left, with ctx, or at once when
// nobody else could take them.
func (h *Hub) Vacate(ctx context.Context) {
	if h.Tunnels() == 0 {
		return
	}
	switch err := h.Drain(ctx, 0); {
	case errors.Is(err, ErrNobodyElse), errors.Is(err, stopping):
		return
	case err != nil:
		h.log().Warn("the other nodes do not know that this one stops", "error", err)
	}
	look := time.NewTicker(lookTime)
	defer look.Stop()
	for h.Tunnels() > 0 {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// Undrain ends Drain: agents that were told leave nevertheless, others stay, and new
// ones come. The error is the registry's that could not be told.
func (h *Hub) Undrain(ctx context.Context) error {
	h.setDraining(drain{})
	h.log().Info("no longer draining", "tunnels", h.Tunnels())
	return h.tellNodes(ctx)
}

func (h *Hub) setDraining(d drain) {
	h.mu.Lock()
	old := h.draining
	h.draining = d
	h.mu.Unlock()
	if old.stop != nil {
		old.stop()
	}
}

// ableOthers is how many peers take agents, as far as is known.
func (h *Hub) ableOthers() int {
	n := 0
	for _, p := range h.admission.peers.Expected() {
		if !p.Draining && p.Clients < p.Capacity {
			n++
		}
	}
	return n
}

// tellNodes has the registry know at once what this node says of itself.
func (h *Hub) tellNodes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	return h.reg.Beat(ctx, h.self())
}

// leaving has the others know that this node stops, so that they send nobody here. It
// does not wait for long: they find out.
func (h *Hub) leaving(ctx context.Context) {
	if len(h.admission.peers.All()) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitTime)
	defer cancel()
	if err := h.tellNodes(ctx); err != nil && !errors.Is(err, registry.ErrNodeLive) {
		h.log().Warn("the other nodes do not know that this one stops", "error", err)
	}
}

// spread tells the agents of all tunnels to leave, evenly over within, and later those
// that have come meanwhile, until ctx ends.
func (h *Hub) spread(ctx context.Context, within time.Duration) {
	began := time.Now()
	all := h.live()
	drained := false
	for ctx.Err() == nil {
		pace := h.drainPace(within, len(all))
		for _, t := range all {
			if h.ableOthers() > 0 && t.tellMoving() && !pause(ctx, pace) {
				return
			}
		}
		if h.Tunnels() > 0 {
			drained = false
		} else if !drained {
			drained = true
			h.log().Info("drained: no tunnel is left", "took", time.Since(began).Round(time.Second))
			h.emit("drained", map[string]any{"node": h.node.ID})
		}
		if !pause(ctx, drainLook) {
			return
		}
		all = all[:0]
		for _, t := range h.live() {
			if t.since.Before(began) || time.Since(t.since) > drainHeld {
				all = append(all, t)
			}
		}
	}
}

// drainPace is the time between two tunnels of n that are told: those that leave get
// half of what the others take per second, which have arrivals of their own.
func (h *Hub) drainPace(within time.Duration, n int) time.Duration {
	rate := max(1, h.settings.Load().Limits.NewTunnels*max(1, h.ableOthers())/2)
	return max(within/time.Duration(max(1, n)), time.Second/time.Duration(rate))
}

// pause waits for d; false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tellMoving tells the agent to leave for another node now; false when it was told
// before, or has gone. It does not wait for an agent that does not read.
func (t *tunnel) tellMoving() bool {
	t.mu.Lock()
	tell := !t.moving && !t.over && t.why == ""
	t.moving = t.moving || tell
	t.mu.Unlock()
	if !tell {
		return false
	}
	t.hub.wg.Go(func() {
		ctx, cancel := context.WithTimeout(t.hub.ctx, controlWrite)
		defer cancel()
		if t.greet(ctx) != nil { // `ready` comes before everything else
			return
		}
		if t.sock.WriteMessage(socket.Text, wire.Encode(&wire.Drain{})) != nil {
			t.sock.Close() // what was to be written may be cut in the middle
		}
	})
	return true
}

// leave ends a tunnel that another one has replaced, and to which visitors come no
// more. Of one that was told to leave, the streams go on that would end with it, for a
// while.
func (t *tunnel) leave(why string) {
	t.mu.Lock()
	moving := t.moving
	t.mu.Unlock()
	t.hub.wg.Go(func() {
		t.tellHost() // who keeps connections for a next visitor would have it wait for them
		if moving {
			t.settle(t.hub.patient.ctx)
		}
		t.close(wire.CloseReplaced, why)
	})
}
