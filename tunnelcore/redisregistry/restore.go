package redisregistry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// Lost implements registry.Restorer. It is found out by heartbeats, and by calls that miss
// something.
func (r *Registry) Lost() <-chan struct{} { return r.watch.lost }

// Restore implements registry.Restorer.
func (r *Registry) Restore(ctx context.Context, held []registry.Held) ([]registry.Holder, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	held = slices.Clone(held) // read on after ctx has ended
	for i := range held {
		h := &held[i]
		h.Ports = maps.Clone(h.Ports)
		err := checkClaim(registry.Claim{
			Device: h.Device, Instance: h.Instance, Tunnel: h.Tunnel, Node: h.Node, Label: h.Label, Lease: h.Lease,
		})
		if err != nil {
			return nil, err
		}
	}
	lost, err := call(ctx, r, "restore", func(ctx context.Context) ([]registry.Holder, error) {
		return r.restoreAll(ctx, held)
	})
	if err != nil {
		r.watch.signal() // it has to be tried again
	}
	return lost, err
}

func (r *Registry) restoreAll(ctx context.Context, held []registry.Held) ([]registry.Holder, error) {
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	// Tunnels count as live only while their node does.
	if err := r.beatAgain(ctx); err != nil {
		return nil, err
	}
	w := r.watch
	w.mu.Lock()
	state := w.state
	w.mu.Unlock()
	var lost []registry.Holder
	for piece := range slices.Chunk(held, batchSize) {
		l, err := r.restore(ctx, piece)
		if err != nil {
			return nil, err
		}
		lost = append(lost, l...)
	}
	// What happened meanwhile is only seen by looking again.
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	w.mu.Lock()
	same := w.state == state
	if same {
		w.pending, w.restored, w.writtenAt = false, state, r.now()
	}
	w.mu.Unlock()
	if !same {
		return nil, errRestoring
	}
	r.log.Info("what is held was written again", "devices", len(held), "lost", len(lost))
	// Others wait for reading it in the node's key. If that fails, the next
	// heartbeat writes it.
	_ = r.beatAgain(ctx)
	return lost, nil
}

// beatAgain repeats the last heartbeats of the nodes of this process.
func (r *Registry) beatAgain(ctx context.Context) error {
	for _, n := range r.watch.nodes() {
		if err := r.beat(ctx, n); err != nil && !errors.Is(err, registry.ErrNodeLive) {
			return err // whose id was taken finds out by its own heartbeat
		}
	}
	return nil
}

// restore is restoreAll for a bounded number. Labels are reserved as by a claim,
// and ports before the records that name them; also those of records that are
// there, since in a cluster the ports may have been lost without them.
func (r *Registry) restore(ctx context.Context, held []registry.Held) (lost []registry.Holder, err error) {
	gone := map[int]bool{}
	tokens := make([]string, len(held))
	todo := make([]int, len(held))
	for i := range held {
		todo[i], tokens[i] = i, newToken()
	}
	commits := make([]string, len(held))
	for try := 0; len(todo) > 0; try++ {
		if try == tries {
			return nil, errBusy
		}
		if todo, err = r.restoreRecords(ctx, held, todo, gone, tokens, commits); err != nil {
			return nil, err
		}
		if err := r.reserveAll(ctx, held, todo, gone, tokens, commits); err != nil {
			return nil, err
		}
		if try == 0 {
			if err := r.reclaimPorts(ctx, held, gone); err != nil {
				return nil, err
			}
		}
		todo = slices.DeleteFunc(todo, func(i int) bool { return gone[i] })
	}
	b := r.batch(ctx)
	var listed []redis.Z
	for i, h := range held {
		if gone[i] {
			lost = append(lost, h.Holder)
			continue
		}
		r.publish(b, h.Holder, h.Label, h.Node, live(h.Lease))
		listed = append(listed, redis.Z{Member: h.Device})
	}
	if len(listed) > 0 {
		b.pipe.ZAdd(ctx, r.keys.devices(), listed...)
	}
	return lost, b.run()
}

// reclaimPorts takes public ports again, unless their holder is gone; so are those
// that have lost one: only a new tunnel can tell its agent of another.
func (r *Registry) reclaimPorts(ctx context.Context, held []registry.Held, gone map[int]bool) error {
	b := r.batch(ctx)
	var calls []*scriptCall
	var of []int
	for i := range held {
		if gone[i] {
			continue
		}
		h := &held[i]
		for _, c := range r.keepPorts(b, live(h.Lease), map[string]map[uint16]uint16{h.Device: h.Ports}) {
			calls, of = append(calls, c), append(of, i)
		}
	}
	if err := b.run(); err != nil {
		return err
	}
	for n, c := range calls {
		p := c.reply()
		if p.err != nil {
			return p.err
		}
		if len(p.list) > 0 {
			r.log.Warn("a public port was leased to another device meanwhile", "device", held[of[n]].Device)
			gone[of[n]] = true
		}
	}
	return nil
}

// restoreRecords writes the records of todo, and returns those that need their
// label reserved.
func (r *Registry) restoreRecords(ctx context.Context, held []registry.Held, todo []int, gone map[int]bool, tokens, commits []string) (again []int, err error) {
	b := r.batch(ctx)
	calls := make([]*scriptCall, len(todo))
	for n, i := range todo {
		h := &held[i]
		calls[n] = b.script(restoreScript, []string{r.keys.device(h.Device)},
			h.Generation, h.Tunnel, h.Instance, h.Node.ID, h.Node.Epoch, h.Label,
			live(h.Lease), r.tail.Milliseconds(), encodePorts(h.Ports), pendWindow.Milliseconds(),
			tokens[i], commits[i])
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	for n, i := range todo {
		p := calls[n].reply()
		switch verdict := p.text(0); {
		case p.err != nil:
			return nil, p.err
		case verdict == "lost":
			gone[i] = true
		case verdict == "label":
			again = append(again, i)
		case verdict != "ok":
			return nil, fmt.Errorf("%w: %q", errReply, verdict)
		}
	}
	return again, nil
}

// reserveAll reserves the labels of todo. Almost always nobody is in the way, so
// that one batch does; where somebody is, one by one.
func (r *Registry) reserveAll(ctx context.Context, held []registry.Held, todo []int, gone map[int]bool, tokens, commits []string) error {
	b := r.batch(ctx)
	calls := make([]*scriptCall, len(todo))
	for n, i := range todo {
		h := &held[i]
		calls[n] = b.script(holdScript, []string{r.keys.lease(h.Label)},
			h.Device, tokens[i], live(h.Lease)+r.tail.Milliseconds(), "", "")
	}
	if err := b.run(); err != nil {
		return err
	}
	for n, i := range todo {
		p := calls[n].reply()
		reserved := p.number(0) == 1
		if p.err != nil {
			return p.err
		}
		if !reserved {
			h := &held[i]
			var err error
			if reserved, err = r.reserve(ctx, h.Device, h.Label, tokens[i], live(h.Lease)); err != nil {
				return err
			}
			if !reserved {
				r.log.Warn("a label was leased to another device meanwhile", "device", h.Device, "label", h.Label)
				gone[i] = true
				continue
			}
		}
		commits[i] = tokens[i]
	}
	return nil
}

var _ registry.Restorer = (*Registry)(nil)
