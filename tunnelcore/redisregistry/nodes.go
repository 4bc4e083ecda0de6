package redisregistry

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	// keepNodes is how long a node that is gone stays in the list of nodes.
	keepNodes = 24 * time.Hour
	// sweepEvery is after how many heartbeats some of the list of devices is looked
	// through, and sweepSize how many: 64 a minute. Where many of them have no lease any more,
	// sweepMost with each heartbeat: devices that come but once leave no list that grows.
	sweepEvery = 20
	sweepSize  = 64
	sweepMost  = batchSize
	// asideTime bounds each step that a heartbeat takes besides: a master that is silent, of
	// which it needs no key, must not make it late.
	asideTime = time.Second
)

// Beat implements registry.Registry. It also looks whether Redis has lost data
// since the last time.
func (r *Registry) Beat(ctx context.Context, n registry.Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := cmp.Or(checkName("node id", n.ID), checkName("node epoch", n.Epoch)); err != nil {
		return err
	}
	_, err := call(ctx, r, "heartbeat", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.beat(ctx, n)
	})
	return err
}

func (r *Registry) beat(ctx context.Context, n registry.Node) error {
	draining := 0
	if n.Draining {
		draining = 1
	}
	if !r.watch.acquainted() {
		// So that its first heartbeat says that it has nothing to write again. Of an error
		// the heartbeat tells.
		_ = r.aside(ctx, r.look)
	}
	sent := r.now()
	b := r.batch(ctx)
	beat := b.script(beatScript, []string{r.keys.node(n.ID)},
		n.Epoch, r.nodeTTL.Milliseconds(), n.URL, n.Internal, n.Clients, n.Capacity, draining, r.watch.restoredTo(), newToken())
	enlisted := b.script(enlistScript, []string{r.keys.nodes()},
		n.ID, r.nodeTTL.Milliseconds(), keepNodes.Milliseconds())
	if err := b.run(); err != nil {
		return err
	}
	p, q := beat.reply(), enlisted.reply()
	was := p.number(0)
	var ids []string
	for i := range q.list {
		ids = append(ids, q.text(i))
	}
	if err := firstError(p.err, q.err); err != nil {
		return err
	}
	if was == 0 {
		r.watch.left(n.NodeRef)
		return registry.ErrNodeLive
	}
	// What is found out here makes no heartbeat fail: nobody could do better with
	// it than look again the next time.
	if err := r.aside(ctx, r.look); err != nil && ctx.Err() == nil {
		r.log.Debug("redis does not tell its state", "error", err)
	}
	count := r.watch.beat(r, n, sent, was == 2, ids)
	sweep := func(ctx context.Context) error { return r.sweep(ctx, count) }
	if err := r.aside(ctx, sweep); err != nil && ctx.Err() == nil {
		r.log.Debug("the list of devices was not swept", "error", err)
	}
	if err := r.aside(ctx, r.settleDoubts); err != nil && ctx.Err() == nil {
		r.log.Debug("claims that were given up were not looked after", "error", err)
	}
	return nil
}

// aside takes a step of asideTime at most.
func (r *Registry) aside(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, asideTime)
	defer cancel()
	return step(ctx)
}

// sweep takes devices without a lease out of some of the list of devices, going
// on where it left off, when it is its turn after so many heartbeats.
func (r *Registry) sweep(ctx context.Context, beats int) error {
	from, stale := r.watch.sweptTo()
	size := sweepMost
	if !stale {
		if size = sweepSize; beats%sweepEvery != 0 {
			return nil
		}
	}
	ids, err := r.deviceIDs(ctx, from, size)
	if err != nil {
		return err
	}
	records, err := r.known(ctx, ids)
	if err != nil {
		return err
	}
	gone := 0
	for _, rec := range records {
		if rec.label == "" {
			gone++
		}
	}
	next := ""
	if len(ids) == size {
		next = ids[size-1]
	}
	r.watch.swept(next, gone > size/4)
	return nil
}

// Leave implements registry.Registry.
func (r *Registry) Leave(ctx context.Context, n registry.NodeRef) error {
	_, err := call(ctx, r, "leave", func(ctx context.Context) (struct{}, error) {
		p := r.run(ctx, leaveScript, []string{r.keys.node(n.ID)}, n.Epoch)
		if p.number(0) == 0 {
			return struct{}{}, p.err
		}
		r.watch.left(n)
		return struct{}{}, r.c.ZRem(ctx, r.keys.nodes(), n.ID).Err()
	})
	return err
}

// Nodes implements registry.Registry.
func (r *Registry) Nodes(ctx context.Context) ([]registry.Node, error) {
	return call(ctx, r, "list nodes", func(ctx context.Context) ([]registry.Node, error) {
		list, err := r.c.ZRangeWithScores(ctx, r.keys.nodes(), 0, -1).Result()
		if err != nil {
			return nil, err
		}
		beats := make(map[string]time.Time, len(list))
		for _, z := range list {
			if id, ok := z.Member.(string); ok {
				beats[id] = time.UnixMilli(int64(z.Score))
			}
		}
		ids := slices.Sorted(maps.Keys(beats))
		b := r.batch(ctx)
		read := make([]*redis.SliceCmd, len(ids))
		for i, id := range ids {
			read[i] = b.pipe.HMGet(ctx, r.keys.node(id), "epoch", "url", "internal", "clients", "capacity", "draining")
		}
		if err := b.run(); err != nil {
			return nil, err
		}
		var nodes []registry.Node
		for i, id := range ids {
			p := reply{list: read[i].Val()}
			n := registry.Node{
				NodeRef: registry.NodeRef{ID: id, Epoch: p.text(0)}, URL: p.text(1), Internal: p.text(2),
				Clients: int(p.number(3)), Capacity: int(p.number(4)), Draining: p.text(5) == strconv.Itoa(1),
				At: beats[id],
			}
			if p.err != nil {
				return nil, p.err
			}
			if n.Epoch != "" {
				nodes = append(nodes, n)
			}
		}
		return nodes, nil
	})
}
