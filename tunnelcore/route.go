package tunnelcore

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// routeTime is how long the registry's word is believed that a device has a tunnel,
	// absentTime that it has none, or that nobody has a label.
	routeTime  = 2 * time.Second
	absentTime = time.Second
	// aheadTime is after how much of that it is asked again, if somebody wants the route, who
	// does not wait for it: so that visitors who keep coming do not wait for a registry that
	// is busy with a crowd of devices.
	aheadTime = 1500 * time.Millisecond
	// maxRoutes and maxAbsent bound what is remembered; keptTime is how long, since
	// anybody asked, sweepTime how often it is looked for what may go.
	maxRoutes = 1 << 16
	maxAbsent = 1 << 12
	keptTime  = time.Minute
	sweepTime = 15 * time.Second
	// patience is how long a visitor waits for the registry who can be served by what
	// was last known.
	patience = 250 * time.Millisecond
	// awayTime is how long a registry that did not answer is left in peace by those who
	// can do without; maxAway bounds the questions of all others meanwhile: it may be
	// one server of several that is gone.
	awayTime = time.Second
	maxAway  = 64
	// maxAhead bounds the questions under way beside which others are asked ahead of time.
	maxAhead = 64
)

// errSlow: too many ask for what does not exist, or the registry did not answer a
// moment ago.
var errSlow = errors.New("not asked: the registry is given time")

// errWho: it has to be known who asks.
var errWho = errors.New("asked by nobody")

// key is what a route is looked for by: a label, or a device.
type key struct {
	device bool
	name   string
}

// route is what the registry said of a device. It does not change.
type route struct {
	rec    registry.Record // without ports
	remote *remote         // the tunnel, when it is another node's
	at     time.Time       // as of which it was so; zero: something has happened since
	doubt  time.Time       // when that was
	lost   time.Time       // since when the registry has forgotten it; zero: it has not
}

// fresh says whether the route is believed without asking.
func (rt *route) fresh(now time.Time) bool {
	if rt.remote == nil {
		return now.Sub(rt.at) < absentTime
	}
	return now.Sub(rt.at) < routeTime
}

// routes remember where the devices are that are not connected to this node. Each is
// asked for once at a time, and soon again; while the registry does not answer, what
// was known of tunnels goes on being used.
type routes struct {
	hub     *Hub
	unknown *strangers // who ask for what turns out not to exist
	polls   bucket     // of questions whether a device is back

	mu       sync.Mutex // guards what follows
	byLabel  map[string]*route
	byDevice map[string]*route
	absent   map[key]time.Time // what nobody has, and since when that is known
	asking   map[key]*question
	away     time.Time // until then the registry is asked for what nobody can do without
	waiting  map[string]*room
	guests   int // in all rooms
}

func newRoutes(h *Hub) *routes {
	r := &routes{
		hub:      h,
		unknown:  newStrangers(budget{unknownBurst, unknownRate}, budget{allUnknownBurst, allUnknownRate}),
		byLabel:  make(map[string]*route),
		byDevice: make(map[string]*route),
		absent:   make(map[key]time.Time),
		asking:   make(map[key]*question),
		waiting:  make(map[string]*room),
	}
	r.polls.set(pollBurst, pollRate)
	return r
}

// question is one that the registry is asked just now.
type question struct {
	at    time.Time
	from  *netip.Addr   // who pays for it if nobody has what it is about; nil: nobody
	done  chan struct{} // closed when what follows is set
	route *route
	err   error
}

// find returns the route of a label or a device. The error is registry.ErrUnknown, that
// of ctx, or another one when the registry cannot tell.
func (r *routes) find(ctx context.Context, k key) (*route, error) {
	known, q, err := r.ask(k, nil)
	if errors.Is(err, errWho) {
		from := r.hub.visitor(ctx, k)
		known, q, err = r.ask(k, &from)
	}
	if q == nil {
		return known, err
	}
	var enough <-chan time.Time
	if known != nil && known.remote != nil {
		t := time.NewTimer(patience)
		defer t.Stop()
		enough = t.C
	}
	select {
	case <-q.done:
	case <-enough:
		r.leaveAlone()
		return known, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if q.err != nil && enough != nil && !errors.Is(q.err, registry.ErrUnknown) {
		return known, nil
	}
	return q.route, q.err
}

// ask returns what is known of k, if that is believed or nothing better can be had, or
// else the question whose answer is to be waited for, and what is known until then. from
// is who pays for what nobody has; when that is needed, and nil, the error is errWho.
func (r *routes) ask(k key, from *netip.Addr) (known *route, q *question, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	known = r.knownLocked(k)
	if known != nil {
		if known.remote != nil {
			known.remote.used.Store(now.Unix())
		}
		if known.fresh(now) {
			if known.remote != nil && now.Sub(known.at) >= aheadTime && r.asking[k] == nil && !now.Before(r.away) && len(r.asking) < maxAhead {
				_ = r.beginLocked(k, now, nil) // nil while stopping
			}
			return known, nil, nil
		}
	} else if at, ok := r.absent[k]; ok && now.Sub(at) < absentTime {
		return nil, nil, registry.ErrUnknown
	}
	if q = r.asking[k]; q != nil {
		return known, q, nil
	}
	if now.Before(r.away) {
		led := known != nil && known.remote != nil
		crowded := len(r.asking) >= maxAway
		switch {
		case led && (crowded || !known.at.IsZero()): // else it is known to have changed
			return known, nil, nil
		case crowded:
			return nil, nil, errSlow
		}
	}
	switch {
	case known != nil:
		from = nil
	case from == nil:
		return nil, nil, errWho
	case !r.unknown.take(*from):
		return nil, nil, errSlow
	}
	if q = r.beginLocked(k, now, from); q == nil {
		return nil, nil, stopping
	}
	return known, q, nil
}

// beginLocked has the registry asked for k, which it is not asked for yet; nil when the
// hub stops. It wants mu.
func (r *routes) beginLocked(k key, now time.Time, from *netip.Addr) *question {
	if !r.hub.beginTransfer() {
		return nil
	}
	q := &question{at: now, from: from, done: make(chan struct{})}
	r.asking[k] = q
	go r.answer(k, q) // Shutdown waits for it
	return q
}

// visitor is the address of who asks for k by ctx; the zero Addr where nobody knows.
func (h *Hub) visitor(ctx context.Context, k key) netip.Addr {
	f := h.settings.Load().Visitor
	if f == nil || k.device { // strangers do not know names of devices
		return netip.Addr{}
	}
	return f(ctx)
}

// knownLocked wants mu.
func (r *routes) knownLocked(k key) *route {
	if k.device {
		return r.byDevice[k.name]
	}
	return r.byLabel[k.name]
}

// leaveAlone has nobody ask the registry for a moment who can do without.
func (r *routes) leaveAlone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = time.Now().Add(awayTime)
}

// answer asks the registry.
func (r *routes) answer(k key, q *question) {
	defer r.hub.wg.Done()
	ctx, cancel := context.WithTimeout(r.hub.ctx, registryTimeout)
	defer cancel()
	var rec registry.Record
	if k.device {
		rec, q.err = r.hub.reg.ByDevice(ctx, k.name)
	} else {
		rec, q.err = r.hub.reg.ByLabel(ctx, k.name)
	}
	unknown := errors.Is(q.err, registry.ErrUnknown)
	if q.from != nil && !unknown {
		r.unknown.giveBack(*q.from)
	}
	var over []*remote
	r.mu.Lock()
	now := time.Now()
	current := r.asking[k] == q // else something has happened since it was asked
	if current {
		delete(r.asking, k)
	}
	switch {
	case q.err == nil:
		r.away = time.Time{}
		q.route, over = r.learnLocked(rec, q.at, current)
	case unknown && current && r.keepLocked(r.knownLocked(k), q.at):
		q.route, q.err = r.knownLocked(k), nil
	case unknown && current:
		over = append(over, r.forgetLocked(r.knownLocked(k)))
		if len(r.absent) >= maxAbsent {
			clear(r.absent)
		}
		r.absent[k] = now
	case !unknown:
		r.away = now.Add(awayTime)
	}
	r.mu.Unlock()
	r.end(over...)
	close(q.done)
}

// keepLocked keeps a route to a tunnel of which the registry knows no more, as of a
// moment: when it has lost data, what lives is written again within restoreTime. The
// tunnel's node knows better until then. It says false when there is nothing to keep. It
// wants mu.
func (r *routes) keepLocked(rt *route, at time.Time) bool {
	if rt == nil || rt.remote == nil || rt.remote.failing() != (time.Time{}) {
		return false
	}
	if r.byDevice[rt.rec.Device] != rt { // it is another one's by now
		return false
	}
	kept := *rt
	kept.at = at
	if kept.lost.IsZero() {
		kept.lost = at
	}
	if at.Sub(kept.lost) >= restoreTime {
		return false
	}
	r.byDevice[rt.rec.Device], r.byLabel[rt.rec.Label] = &kept, &kept
	return true
}

// learnLocked makes a route of a record as of a moment, and remembers it; in doubt
// unless current: something has happened since. It returns the tunnels that are over by
// that. It wants mu.
func (r *routes) learnLocked(rec registry.Record, at time.Time, current bool) (rt *route, over []*remote) {
	rec.Ports = nil
	rt = &route{rec: rec, at: at}
	old := r.byDevice[rec.Device]
	if !current {
		if old != nil && old.at.After(at) {
			return old, nil // somebody else has asked later
		}
		rt.at, rt.doubt = time.Time{}, time.Now()
	}
	n := rec.Online.Node.ID
	if n == "" && rec.Why == registry.WhyNodeGone && r.outlivesLocked(old, rec) {
		rt.remote = old.remote
	}
	if n != "" && n != r.hub.node.ID {
		if old != nil && old.remote != nil && old.remote.holder == rec.Online.Holder {
			rt.remote = old.remote
		} else {
			rt.remote = &remote{holder: rec.Online.Holder, node: rec.Online.Node}
			rt.remote.used.Store(time.Now().Unix())
		}
	}
	if old != nil && old.rec.Label != rec.Label && r.byLabel[old.rec.Label] == old {
		delete(r.byLabel, old.rec.Label)
	}
	if other := r.byLabel[rec.Label]; other != nil && other.rec.Device != rec.Device {
		over = append(over, r.forgetLocked(other)) // it has lost its label
	}
	if old == nil && len(r.byDevice) >= maxRoutes {
		over = append(over, r.forgetLocked(r.anyLocked()))
	}
	r.byDevice[rec.Device], r.byLabel[rec.Label] = rt, rt
	delete(r.absent, key{name: rec.Label})
	delete(r.absent, key{device: true, name: rec.Device})
	if old != nil && old.remote != rt.remote {
		over = append(over, old.remote)
	}
	if old == nil || old.remote != rt.remote {
		r.wakeLocked(rec.Device)
	}
	return rt, over
}

// outlivesLocked says whether the tunnel of a route may live although its node seems to
// be gone by rec: this node knows it as live. It wants mu.
func (r *routes) outlivesLocked(old *route, rec registry.Record) bool {
	if old == nil || old.remote == nil || old.remote.holder.Generation != rec.Generation {
		return false
	}
	n, ok := r.hub.admission.peers.Find(old.remote.node.ID)
	return ok && n.NodeRef == old.remote.node
}

// anyLocked picks a route to make room for another one. It wants mu.
func (r *routes) anyLocked() *route {
	const looks = 8
	var oldest *route
	n := 0
	for _, rt := range r.byDevice {
		if oldest == nil || rt.at.Before(oldest.at) {
			oldest = rt
		}
		if n++; n == looks {
			break
		}
	}
	return oldest
}

// forgetLocked forgets a route, nil too, and returns its tunnel. It wants mu.
func (r *routes) forgetLocked(rt *route) *remote {
	if rt == nil {
		return nil
	}
	if r.byDevice[rt.rec.Device] == rt {
		delete(r.byDevice, rt.rec.Device)
	}
	if r.byLabel[rt.rec.Label] == rt {
		delete(r.byLabel, rt.rec.Label)
	}
	return rt.remote
}

// end tells the host that tunnels of other nodes are over, as far as this node is
// concerned; nil ones, too. Nobody finds them here any more.
func (r *routes) end(over ...*remote) {
	f := r.hub.settings.Load().TunnelEnded
	for _, m := range over {
		if m != nil && f != nil {
			f(m.holder.Tunnel)
		}
	}
}

// stale has the registry asked again about a device, or a label, although what is
// known of it is not old. Who waits for the device looks again.
func (r *routes) stale(device, label string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range []*route{r.byDevice[device], r.byLabel[label]} {
		if rt != nil {
			r.staleLocked(rt)
		}
	}
	r.forgetQuestionLocked(device, label)
	r.wakeLocked(device)
}

// renew has the registry asked at once about a device that visitors of this node have
// reached at another one: if its tunnel is over, the connections that the host keeps to
// it have to go, or its agent waits for them before it ends.
func (r *routes) renew(device string) {
	r.mu.Lock()
	rt := r.byDevice[device]
	r.mu.Unlock()
	if rt != nil && rt.remote != nil {
		_, _, _ = r.ask(key{device: true, name: device}, nil) // nobody waits for the answer
	}
}

// forgetQuestionLocked has those who come now ask anew: an answer that is under way may
// be from before. It wants mu.
func (r *routes) forgetQuestionLocked(device, label string) {
	for _, k := range []key{{true, device}, {false, label}} {
		delete(r.absent, k)
		delete(r.asking, k)
	}
}

// staleLocked has a route that is remembered doubted. It wants mu.
func (r *routes) staleLocked(rt *route) {
	if r.byDevice[rt.rec.Device] != rt {
		return // done, or it is over
	}
	doubted := *rt
	doubted.at, doubted.doubt = time.Time{}, time.Now()
	r.byDevice[rt.rec.Device], r.byLabel[rt.rec.Label] = &doubted, &doubted
	r.forgetQuestionLocked(rt.rec.Device, rt.rec.Label)
}

// allStale is stale for all.
func (r *routes) allStale() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rt := range r.byDevice {
		r.staleLocked(rt)
	}
	clear(r.absent)
	clear(r.asking)
	for device := range r.waiting {
		r.wakeLocked(device)
	}
}

// refused says that m could not be reached, as somebody has tried since began. The
// registry is asked again about its device, unless it has been asked meanwhile.
func (r *routes) refused(m *remote, began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rt := r.byDevice[m.holder.Device]
	if rt == nil || rt.remote != m || rt.at.After(began) || rt.doubt.After(began) {
		return
	}
	r.staleLocked(rt)
}

// forgetNode forgets the routes to a node that is over.
func (r *routes) forgetNode(n registry.NodeRef) {
	var over []*remote
	r.mu.Lock()
	for _, rt := range r.byDevice {
		if rt.remote != nil && rt.remote.node == n {
			over = append(over, r.forgetLocked(rt))
			r.wakeLocked(rt.rec.Device)
		}
	}
	r.mu.Unlock()
	r.end(over...)
}

// sweep forgets what nobody has asked for in a while.
func (r *routes) sweep(now time.Time) {
	var over []*remote
	r.mu.Lock()
	for _, rt := range r.byDevice {
		used := rt.at
		if rt.remote != nil {
			used = time.Unix(rt.remote.used.Load(), 0)
		}
		if now.Sub(used) > keptTime {
			over = append(over, r.forgetLocked(rt))
		}
	}
	r.mu.Unlock()
	r.end(over...)
}

// routing follows what the registry tells of devices that come and go, and forgets
// what is not needed.
func (h *Hub) routing() {
	hints := h.reg.Hints(h.ctx)
	sweep := time.NewTicker(sweepTime)
	defer sweep.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case hint, ok := <-hints:
			switch {
			case !ok:
				hints = nil // they are gone, and not needed
			case hint == registry.Hint{}:
				h.routes.allStale()
			case hint.Device != "" || hint.Label != "":
				h.routes.stale(hint.Device, hint.Label)
				h.routes.renew(hint.Device)
			}
		case now := <-sweep.C:
			h.routes.sweep(now)
		}
	}
}

// routeError is what a visitor is told whose device was not found.
func routeError(err error) error {
	switch {
	case errors.Is(err, registry.ErrUnknown):
		return &answers.Error{Code: wire.UnknownDevice}
	case errors.Is(err, context.Canceled):
		return answers.From(err)
	case errors.As(err, new(*answers.Error)):
		return err
	}
	return &answers.Error{Code: wire.Unavailable, RetryAfter: time.Second, Cause: err}
}
