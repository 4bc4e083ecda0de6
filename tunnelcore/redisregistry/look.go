package redisregistry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// A record is a device's key as it was read.
type record struct {
	device      string
	label       string // empty when the device has no lease
	generation  int64
	tunnel      registry.Incumbent // zero when it was released
	until, seen int64              // Redis time in milliseconds
	why         string
	ports       map[uint16]uint16
	rests       []rest // oldest first; none that has ended
	restsText   string // as it was read
}

// heldBy says whether the tunnel holds the device.
func (rec *record) heldBy(h registry.Holder) bool {
	return rec.label != "" && h.Tunnel != "" && rec.tunnel.Holder == h
}

// generationText is how scripts say which generation holds a device.
func (rec *record) generationText() string { return strconv.FormatInt(rec.generation, 10) }

// readAll reads the records of devices, in their order, and the time at one of
// them. Those without a lease have an empty label.
func (r *Registry) readAll(ctx context.Context, ids []string) (records []record, now int64, err error) {
	b := r.batch(ctx)
	var calls []*scriptCall
	for piece := range slices.Chunk(ids, r.perCall) {
		keys := make([]string, len(piece))
		for i, id := range piece {
			keys[i] = r.keys.device(id)
		}
		calls = append(calls, b.script(readScript, keys))
	}
	if err := b.run(); err != nil {
		return nil, 0, err
	}
	records = make([]record, len(ids))
	for n, c := range calls {
		p := c.reply()
		now = p.number(0)
		for i := range min(r.perCall, len(ids)-n*r.perCall) {
			id := ids[n*r.perCall+i]
			if records[n*r.perCall+i], err = readRecord(id, p.sub(i+1), now); err != nil {
				return nil, 0, fmt.Errorf("device %s: %w", id, err)
			}
		}
	}
	return records, now, nil
}

// readRecord reads the fields of a device.
func readRecord(device string, p reply, now int64) (record, error) {
	rec := record{
		device: device, label: p.text(0), generation: p.number(1),
		until: p.number(6), seen: p.number(7), why: p.text(8),
	}
	if p.text(2) != "" {
		rec.tunnel = registry.Incumbent{
			Holder:   registry.Holder{Device: device, Generation: rec.generation, Tunnel: p.text(2)},
			Instance: p.text(3),
			Node:     registry.NodeRef{ID: p.text(4), Epoch: p.text(5)},
		}
	}
	ports, err := decodePorts(p.text(9))
	rec.ports, rec.restsText = ports, p.text(10)
	rests, err2 := decodeRests(rec.restsText)
	rec.rests = slices.DeleteFunc(rests, func(e rest) bool { return e.end <= now })
	if rec.until <= now {
		rec.label = ""
	}
	return rec, firstError(p.err, err, err2)
}

// ByLabel implements registry.Registry.
func (r *Registry) ByLabel(ctx context.Context, label string) (registry.Record, error) {
	if err := ctx.Err(); err != nil {
		return registry.Record{}, err
	}
	if !matchable(label) {
		return registry.Record{}, registry.ErrUnknown
	}
	return call(ctx, r, "look up label", func(ctx context.Context) (registry.Record, error) {
		device, err := r.c.HGet(ctx, r.keys.lease(label), "device").Result()
		if errors.Is(err, redis.Nil) {
			err = registry.ErrUnknown
		}
		if err != nil {
			return registry.Record{}, err
		}
		rec, err := r.byDevice(ctx, device)
		if err == nil && rec.Label != label {
			err = registry.ErrUnknown // the route is reserved, or has outlived its lease
		}
		if err != nil {
			return registry.Record{}, err
		}
		return rec, nil
	})
}

// ByDevice implements registry.Registry.
func (r *Registry) ByDevice(ctx context.Context, device string) (registry.Record, error) {
	if err := ctx.Err(); err != nil {
		return registry.Record{}, err
	}
	if !matchable(device) {
		return registry.Record{}, registry.ErrUnknown
	}
	return call(ctx, r, "look up device", func(ctx context.Context) (registry.Record, error) {
		return r.byDevice(ctx, device)
	})
}

func (r *Registry) byDevice(ctx context.Context, device string) (registry.Record, error) {
	records, _, err := r.readAll(ctx, []string{device})
	if err != nil {
		return registry.Record{}, err
	}
	list, err := r.public(ctx, records)
	if err != nil {
		return registry.Record{}, err
	}
	if len(list) == 0 {
		return registry.Record{}, registry.ErrUnknown
	}
	return list[0], nil
}

// public returns records as others see them, those with a lease only.
func (r *Registry) public(ctx context.Context, records []record) ([]registry.Record, error) {
	var list []registry.Record
	b := r.batch(ctx)
	epochs := map[string]*redis.StringCmd{}
	for _, rec := range records {
		if n := rec.tunnel.Node.ID; rec.label != "" && n != "" && epochs[n] == nil {
			epochs[n] = b.pipe.HGet(ctx, r.keys.node(n), "epoch")
		}
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	for _, rec := range records {
		if rec.label == "" {
			continue
		}
		p := registry.Record{
			Device: rec.device, Label: rec.label, Generation: rec.generation,
			Until: time.UnixMilli(rec.until), Seen: time.UnixMilli(rec.seen), Why: rec.why, Ports: rec.ports,
		}
		if n := rec.tunnel.Node; n.ID != "" {
			if epochs[n.ID].Val() == n.Epoch {
				p.Online = rec.tunnel
			} else {
				p.Why = registry.WhyNodeGone
			}
		}
		list = append(list, p)
	}
	return list, nil
}

// Devices implements registry.Registry.
func (r *Registry) Devices(ctx context.Context, after string, limit int) ([]registry.Record, error) {
	return call(ctx, r, "list devices", func(ctx context.Context) ([]registry.Record, error) {
		var page []registry.Record
		for limit > len(page) {
			n := min(limit-len(page), batchSize)
			ids, err := r.deviceIDs(ctx, after, n)
			if err != nil {
				return nil, err
			}
			records, err := r.known(ctx, ids)
			if err != nil {
				return nil, err
			}
			list, err := r.public(ctx, records)
			if err != nil {
				return nil, err
			}
			page = append(page, list...)
			if len(ids) < n {
				break
			}
			after = ids[n-1]
		}
		return page, nil
	})
}

// deviceIDs returns up to n ids of the list, those after `after`.
func (r *Registry) deviceIDs(ctx context.Context, after string, n int) ([]string, error) {
	return r.page(ctx, r.keys.devices(), after, n)
}

// page returns up to n members of a sorted set whose scores are all 0, those after
// `after`.
func (r *Registry) page(ctx context.Context, key, after string, n int) ([]string, error) {
	start := "-"
	if after != "" {
		start = "(" + after
	}
	return r.c.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: key, Start: start, Stop: "+", ByLex: true, Count: int64(n),
	}).Result()
}

// known reads the records of listed devices, and takes those out of the list
// whose lease has ended.
func (r *Registry) known(ctx context.Context, ids []string) ([]record, error) {
	records, _, err := r.readAll(ctx, ids)
	if err != nil {
		return nil, err
	}
	var stale []string
	for _, rec := range records {
		if rec.label == "" {
			stale = append(stale, rec.device)
		}
	}
	if len(stale) == 0 {
		return records, nil
	}
	members := make([]any, len(stale))
	for i, id := range stale {
		members[i] = id
	}
	if err := r.c.ZRem(ctx, r.keys.devices(), members...).Err(); err != nil {
		return nil, err
	}
	// A claim puts the device into the list after it has got its lease: one that
	// came since the first look may have done so before the ZREM.
	again, _, err := r.readAll(ctx, stale)
	if err != nil {
		return nil, err
	}
	var back []redis.Z
	for _, rec := range again {
		if rec.label != "" {
			back = append(back, redis.Z{Member: rec.device})
		}
	}
	if len(back) > 0 {
		err = r.c.ZAdd(ctx, r.keys.devices(), back...).Err()
	}
	return records, err
}
