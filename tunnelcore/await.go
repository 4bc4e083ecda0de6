package tunnelcore

import (
	"context"
	"errors"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	// reconnectTime is how long after an unclean end a device is expected back:
	// agents come back within their largest backoff, 30 s by default.
	reconnectTime = 30 * time.Second
	// maxWaiting bounds the visitors who wait for one device to come back, and
	// maxGuests those who wait for any.
	maxWaiting = 256
	maxGuests  = 1 << 14
	// pollLeast and pollMost are how soon the registry is asked again whether a device
	// is back that somebody waits for; it usually tells by itself. pollBurst and
	// pollRate, per second, bound that for all devices together.
	pollLeast           = 50 * time.Millisecond
	pollMost            = time.Second
	pollBurst, pollRate = 200, 200.0
)

// room is where the visitors of one device wait for it to come back.
type room struct {
	changed chan struct{} // closed when it may have
	guests  int
	polled  time.Time // when the registry was last asked for their sake
}

// enter makes a visitor one of those who wait for a device; false: there is no room
// for more. The counterpart is leave.
func (r *routes) enter(device string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.waiting[device]
	if w == nil {
		w = &room{changed: make(chan struct{})}
		r.waiting[device] = w
	}
	if w.guests >= maxWaiting || r.guests >= maxGuests {
		if w.guests == 0 {
			delete(r.waiting, device)
		}
		return false
	}
	w.guests++
	r.guests++
	return true
}

func (r *routes) leave(device string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.waiting[device]
	w.guests--
	r.guests--
	if w.guests == 0 {
		delete(r.waiting, device)
	}
}

// change is closed when the device, which the caller waits for, may have come back.
func (r *routes) change(device string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting[device].changed
}

// poll has the registry asked again about a device that the caller waits for, unless
// another one who waits has done so within pause, or all ask too much.
func (r *routes) poll(device string, pause time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, now := r.waiting[device], time.Now()
	if now.Sub(w.polled) < pause || !r.polls.take() {
		return
	}
	w.polled = now
	delete(r.absent, key{true, device})
	if rt := r.byDevice[device]; rt != nil {
		r.staleLocked(rt)
	}
}

// last returns what was last said of a device, however long ago, but asks when it is
// known that it has changed.
func (r *routes) last(ctx context.Context, device string) (*route, error) {
	r.mu.Lock()
	rt := r.byDevice[device]
	r.mu.Unlock()
	if rt != nil && !rt.at.IsZero() {
		return rt, nil
	}
	return r.find(ctx, key{true, device})
}

// wake has those look again who wait for a device.
func (r *routes) wake(device string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakeLocked(device)
}

// wakeLocked wants mu.
func (r *routes) wakeLocked(device string) {
	if w := r.waiting[device]; w != nil {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// silentWait is how long a visitor waits, from when he came or the node fell silent, whose
// device is at a node that says nothing: agents notice that late, so that it is hardly
// elsewhere any sooner.
const silentWait = 2 * time.Second

// retry calls again, whenever the device may be back, while the error is errNoTunnel, which
// err is; not at all when it is not expected back, and no longer than Settings.Wait, or
// silentWait. It returns the last error.
func (h *Hub) retry(ctx context.Context, device string, err error, again func() error) error {
	last := time.Now().Add(h.settings.Load().Wait)
	for errors.Is(err, errNoTunnel) {
		until := last
		var silent *cluster.SilentError
		if errors.As(err, &silent) {
			until = earlier(last, silent.Since.Add(silentWait))
		}
		if !time.Now().Before(until) {
			return err
		}
		ctx, cancel := context.WithDeadline(ctx, until)
		back := h.await(ctx, device)
		if back {
			err = again()
			// Not at once again, if it was not there after all.
			back = errors.Is(err, errNoTunnel) && pause(ctx, pollLeast)
		}
		cancel()
		if !back {
			return err
		}
	}
	return err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// await waits until a device has a tunnel, here or elsewhere, that was not found
// wanting a moment ago; but only if it is expected back, and until ctx ends.
func (h *Hub) await(ctx context.Context, device string) bool {
	left := h.expected(ctx, device)
	if left <= 0 || !h.routes.enter(device) {
		return false
	}
	defer h.routes.leave(device)
	timeout := time.NewTimer(left)
	defer timeout.Stop()
	pause := pollLeast
	for {
		changed := h.routes.change(device)
		if h.isBack(ctx, device) {
			return true
		}
		poll := time.NewTimer(pause)
		select {
		case <-changed:
		case <-poll.C:
			if !h.alone() {
				h.routes.poll(device, pause)
			}
			pause = min(2*pause, pollMost)
		case <-timeout.C:
			poll.Stop()
			return false
		case <-ctx.Done():
			poll.Stop()
			return false
		case <-h.ctx.Done():
			poll.Stop()
			return false
		}
		poll.Stop()
	}
}

// isBack reports whether the device has a tunnel that may be tried.
func (h *Hub) isBack(ctx context.Context, device string) bool {
	if t, _ := h.liveTunnel(device); t != nil {
		return true
	}
	if h.alone() {
		return false
	}
	rt, err := h.routes.last(ctx, device)
	return err == nil && rt.remote != nil && rt.remote.failure() == nil
}

// expected is how much longer a device without a tunnel is expected back; zero or
// less: not at all.
func (h *Hub) expected(ctx context.Context, device string) time.Duration {
	h.mu.Lock()
	d, stop := h.devices[device], h.stopping
	h.mu.Unlock()
	left := reconnectTime - time.Since(h.started) // whatever has a lease may be about to come
	if d != nil {
		left = d.expected()
	}
	switch {
	case !h.alone():
	case stop:
		return 0
	default:
		return left
	}
	rt, err := h.routes.find(ctx, key{device: true, name: device})
	switch {
	case errors.Is(err, registry.ErrUnknown):
		return 0
	case err != nil:
		return left
	case rt.remote != nil:
		if since := rt.remote.failing(); !since.IsZero() {
			return max(left, reconnectTime-time.Since(since))
		}
		return reconnectTime // it has just come
	}
	return max(left, h.expectedOf(rt.rec))
}

// expectedOf is how much longer a device is expected back by what its record says of
// the end of its last tunnel.
func (h *Hub) expectedOf(rec registry.Record) time.Duration {
	switch now := h.admission.now(); {
	case rec.Why == registry.WhyNodeGone: // when, only those know who knew the node
		return reconnectTime - time.Since(h.started.Add(time.Duration(h.bereaved.Load())))
	case rec.Why == whyGoodbye, rec.Why == whyWithdrawn, now.IsZero():
		return 0
	default:
		return reconnectTime - now.Sub(rec.Seen)
	}
}
