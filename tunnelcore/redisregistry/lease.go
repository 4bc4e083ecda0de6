package redisregistry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	routeLook  = 15 * time.Minute
	routeTurns = 8
)

// Refresh implements registry.Registry. Where Redis has lost what the holders
// hold they are not lost: Restore writes it again.
func (r *Registry) Refresh(ctx context.Context, lease time.Duration, holders []registry.Holder) ([]registry.Holder, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if lease <= 0 {
		return nil, fmt.Errorf("%w: lease %v", registry.ErrInvalid, lease)
	}
	holders = slices.Clone(holders) // read on after ctx has ended
	return call(ctx, r, "refresh", func(ctx context.Context) ([]registry.Holder, error) {
		var lost []registry.Holder
		for piece := range slices.Chunk(holders, batchSize) {
			l, err := r.refresh(ctx, live(lease), piece)
			if err != nil {
				return nil, err
			}
			lost = append(lost, l...)
		}
		return lost, nil
	})
}

// refresh prolongs first what depends on the leases, and then them: a crash in
// between leaves no lease with a route or a port that ends before it.
func (r *Registry) refresh(ctx context.Context, liveMS int64, holders []registry.Holder) ([]registry.Holder, error) {
	began := r.now()
	records, _, err := r.readAll(ctx, devicesOf(holders))
	if err != nil {
		return nil, err
	}
	b := r.batch(ctx)
	routes := make([]routeCalls, len(holders))
	ports := map[string]map[uint16]uint16{}
	var mine []int
	for i, h := range holders {
		rec := records[i]
		if !rec.heldBy(h) {
			continue
		}
		mine = append(mine, i)
		routes[i].kept = b.pipe.PExpire(ctx, r.keys.lease(rec.label), time.Duration(liveMS)*time.Millisecond+r.tail)
		if looksAtRoute(liveMS) {
			routes[i].gen = b.pipe.HGet(ctx, r.keys.lease(rec.label), "gen")
		}
		if len(rec.ports) > 0 {
			ports[h.Device] = rec.ports
		}
	}
	kept := r.keepPorts(b, liveMS, ports)
	if err := b.run(); err != nil {
		return nil, err
	}
	others, err := othersOf(kept)
	if err != nil {
		return nil, err
	}

	by := make([]string, len(holders)) // the generation that holds it instead
	for i, rec := range records {
		by[i] = rec.generationText()
	}
	if err := r.refreshLeases(ctx, liveMS, holders, mine, by); err != nil {
		return nil, err
	}
	b = r.batch(ctx)
	for _, i := range mine {
		if by[i] == "" && !routes[i].leadTo(holders[i]) {
			r.publish(b, holders[i], records[i].label, records[i].tunnel.Node, liveMS)
		}
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	lapsed := make([]bool, len(holders))
	if r.wasAway(time.Duration(liveMS) * time.Millisecond) {
		for i, rec := range records {
			lapsed[i] = rec.label == "" && rec.tunnel.Holder == holders[i]
		}
	}
	lost, err := r.sortLost(ctx, holders, by, lapsed, began)
	if err != nil || len(others) == 0 {
		return lost, err
	}
	robbed, err := r.robbed(ctx, holders, others)
	for _, h := range robbed {
		if !slices.Contains(lost, h) {
			lost = append(lost, h)
		}
	}
	return lost, err
}

// robbed returns the holders that still have a public port which is another's: only
// a new tunnel can tell their agents of another one.
func (r *Registry) robbed(ctx context.Context, holders []registry.Holder, others map[string]bool) (list []registry.Holder, err error) {
	records, _, err := r.readAll(ctx, devicesOf(holders))
	if err != nil {
		return nil, err
	}
	for i, h := range holders {
		if records[i].heldBy(h) && haveOthers(h.Device, records[i].ports, others) {
			r.log.Warn("a public port was leased to another device meanwhile", "device", h.Device)
			list = append(list, h)
		}
	}
	return list, nil
}

// routeCalls are what a refresh asks for a route.
type routeCalls struct {
	kept *redis.BoolCmd
	gen  *redis.StringCmd // nil where it is not looked at
}

// leadTo says whether the route is there, and h's as far as was looked at: it may have been
// deleted by hand, or a reservation that came late has taken the node out of it.
func (c routeCalls) leadTo(h registry.Holder) bool {
	return c.kept.Val() && (c.gen == nil || c.gen.Val() == strconv.FormatInt(h.Generation, 10))
}

// looksAtRoute says whether a refresh looks at a route: always, but where leases are so short that
// there are many refreshes, one in routeTurns does.
func looksAtRoute(liveMS int64) bool {
	return liveMS > routeLook.Milliseconds() || rand.N(routeTurns) == 0
}

// refreshLeases prolongs the leases of holders[i] for the i of mine; by[i] is
// empty where that was done, else the generation that holds the device.
func (r *Registry) refreshLeases(ctx context.Context, liveMS int64, holders []registry.Holder, mine []int, by []string) error {
	b := r.batch(ctx)
	var calls []*scriptCall
	for piece := range slices.Chunk(mine, r.perCall) {
		keys := make([]string, len(piece))
		args := []any{liveMS, r.tail.Milliseconds()}
		for n, i := range piece {
			keys[n] = r.keys.device(holders[i].Device)
			args = append(args, holders[i].Generation, holders[i].Tunnel)
		}
		calls = append(calls, b.script(refreshScript, keys, args...))
	}
	if err := b.run(); err != nil {
		return err
	}
	for n, c := range calls {
		p := c.reply()
		for at, i := range mine[n*r.perCall : min(len(mine), (n+1)*r.perCall)] {
			by[i] = p.text(at + 1)
		}
		if p.err != nil {
			return p.err
		}
	}
	return nil
}

// refreshCall is refreshLeases for holders of one slot.
func (r *Registry) refreshCall(ctx context.Context, holders []registry.Holder, liveMS int64) reply {
	keys := make([]string, len(holders))
	args := []any{liveMS, r.tail.Milliseconds()}
	for i, h := range holders {
		keys[i] = r.keys.device(h.Device)
		args = append(args, h.Generation, h.Tunnel)
	}
	return r.run(ctx, refreshScript, keys, args...)
}

// sortLost returns the holders that do not hold their device, judged by the
// generation that does; empty means that they do. The lease of one that has lapsed
// has run out while Redis was away, and nobody has claimed the device since: Restore
// finds out whether it can have its label again. The generations were read since began.
func (r *Registry) sortLost(ctx context.Context, holders []registry.Holder, by []string, lapsed []bool, began time.Time) (lost []registry.Holder, err error) {
	looked, restoring := false, false
	for i, h := range holders {
		if by[i] == "" {
			continue
		}
		if lapsed[i] {
			r.watch.signal()
			continue
		}
		if missing(h, by[i]) && !looked {
			if restoring, err = r.hasLostData(ctx, began); err != nil {
				return nil, err
			}
			looked = true
		}
		if missing(h, by[i]) && restoring {
			continue
		}
		lost = append(lost, h)
	}
	return lost, nil
}

// Release implements registry.Registry.
func (r *Registry) Release(ctx context.Context, h registry.Holder, lease time.Duration, why string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if lease < 0 {
		return fmt.Errorf("%w: lease %v", registry.ErrInvalid, lease)
	}
	if !matchable(h.Device) || h.Tunnel == "" {
		return registry.ErrLost
	}
	_, err := crowd(ctx, r, "release", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.release(ctx, h, lease, why)
	})
	return err
}

// release ends the lease first, and then what depends on it. Without a tunnel h is
// a device that is offline.
func (r *Registry) release(ctx context.Context, h registry.Holder, lease time.Duration, why string) error {
	leaseMS := millis(lease)
	// The next tunnel may keep the ports or take them back at once, and then has them.
	records, _, err := r.readAll(ctx, []string{h.Device})
	if err != nil {
		return err
	}
	scores, err := r.portScores(ctx, records[0].ports)
	if err != nil {
		return err
	}
	p := r.run(ctx, releaseScript, []string{r.keys.device(h.Device)},
		h.Generation, h.Tunnel, leaseMS, r.tail.Milliseconds(), shorten(why), newToken())
	if p.number(0) == 0 {
		return firstError(p.err, registry.ErrLost)
	}
	label := p.text(1)
	ports, err := decodePorts(p.text(2))
	if p.err != nil || err != nil {
		return firstError(p.err, err)
	}
	ttl := leaseMS + r.tail.Milliseconds()
	if leaseMS == 0 {
		ttl = 0
	}
	b := r.batch(ctx)
	b.script(unpublishScript, []string{r.keys.lease(label)},
		h.Device, h.Generation, ttl, r.keys.hints(), routeHint(h.Device, label))
	r.leavePorts(b, leaseMS, h.Device, ports, scores)
	return b.run()
}

func devicesOf(holders []registry.Holder) []string {
	ids := make([]string, len(holders))
	for i, h := range holders {
		ids[i] = h.Device
	}
	return ids
}
