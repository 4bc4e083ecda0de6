package registry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// maxBatch is about how many records share a write to disk: enough that 10,000
	// claims at once cost a few dozen, and few enough that one takes some 10 ms.
	maxBatch = 512
	// sweepEvery and sweepSize bound the work of clearing away ended leases:
	// 100,000 devices are gone through in two minutes, 1 ms at a time.
	sweepEvery = 5 * time.Second
	sweepSize  = 4096
)

var errClosed = errors.New("registry: closed")

// An op is a mutation on its way through the committer.
type op struct {
	ctx    context.Context // lives as long as the call that made the op
	weight int             // about how many records it changes
	apply  func(*batch) error
	err    error      // of apply, until the batch is written
	done   chan error // buffered: the caller may have left
}

// mutate has the committer apply a mutation, and returns when it is durable, when
// ctx ends, or when the registry is closed. apply may still be called, or be
// running, after mutate has returned an error of ctx: what it sets must only be
// read without an error.
func (m *Memory) mutate(ctx context.Context, apply func(*batch) error) error {
	return m.mutateMany(ctx, 1, apply)
}

// mutateMany is mutate for a change of that many records.
func (m *Memory) mutateMany(ctx context.Context, weight int, apply func(*batch) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o := &op{ctx: ctx, weight: weight, apply: apply, done: make(chan error, 1)}
	select {
	case m.ops <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-m.quit:
		return errClosed
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.stopped:
	}
	select {
	case err := <-o.done:
		return err
	default:
		return errClosed // it came after the last batch
	}
}

// commitLoop is the committer: the one goroutine that decides what changes, writes
// it and publishes it. While it writes, further operations gather.
func (m *Memory) commitLoop() {
	defer close(m.stopped)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case o := <-m.ops:
			m.commit(m.gather(o))
		case <-tick.C:
			m.sweep()
		case <-m.quit:
			m.finish()
			return
		}
	}
}

// gather returns first and the operations that are waiting.
func (m *Memory) gather(first *op) []*op {
	ops := []*op{first}
	for weight := first.weight; weight < maxBatch; {
		select {
		case o := <-m.ops:
			ops = append(ops, o)
			weight += o.weight
		default:
			return ops
		}
	}
	return ops
}

// commit carries out operations, in their order. Refusals wait for the write too:
// they may be due to an operation before them.
func (m *Memory) commit(ops []*op) {
	b := m.newBatch()
	for _, o := range ops {
		if o.err = o.ctx.Err(); o.err == nil {
			o.err = o.apply(b)
		}
	}
	err := m.write(b)
	for _, o := range ops {
		if err != nil {
			o.err = err
		}
		o.done <- o.err
	}
}

// write makes a batch durable and then visible; with an error it is neither, as
// far as can be told.
func (m *Memory) write(b *batch) error {
	if !b.changed() {
		return nil
	}
	if err := m.save(b); err != nil {
		m.generation = b.generation
		for id := range b.devices {
			m.unsureDevices[id] = struct{}{}
		}
		for port := range b.ports {
			m.unsurePorts[port] = struct{}{}
		}
		for device := range b.credentials {
			m.unsureCredentials[device] = struct{}{}
		}
		for id := range b.codes.changed {
			m.unsureCodes[id] = struct{}{}
		}
		for device := range b.journals {
			m.unsureJournals[device] = struct{}{}
		}
		for id := range b.grants.changed {
			m.unsureGrants[id] = struct{}{}
		}
		return err
	}
	clear(m.unsureDevices)
	clear(m.unsurePorts)
	clear(m.unsureCredentials)
	clear(m.unsureCodes)
	clear(m.unsureJournals)
	clear(m.unsureGrants)
	b.publish()
	return nil
}

// save makes a batch durable, and logs when that begins or ceases to fail.
func (m *Memory) save(b *batch) error {
	if m.store == nil {
		return nil
	}
	err := m.store.write(b, m.clock.save())
	if failing := err != nil; failing != m.failing {
		m.failing = failing
		if failing {
			m.log.Error("registry cannot be written: devices keep what they have, and none can connect", "path", m.store.path, "error", err)
		} else {
			m.log.Info("registry can be written again", "path", m.store.path)
		}
	}
	if err != nil {
		return fmt.Errorf("registry: write %s: %w", m.store.path, err)
	}
	return nil
}

// sweep clears away some of the ended leases and rests, where it left off, and expired
// codes, grants and journals. A failed write is logged and the next sweep tries again.
func (m *Memory) sweep() {
	b := m.newBatch()
	page := m.ids.after(nil, m.swept, sweepSize)
	for _, id := range page {
		b.device(id)
	}
	m.swept = ""
	if len(page) == sweepSize {
		m.swept = page[sweepSize-1]
	}
	seen := 0
	for port, use := range m.ports { // starts anywhere: all get their turn
		if _, staged := b.ports[port]; !staged && !use.leased() && use.rest <= b.now {
			b.ports[port] = portUse{}
		}
		if seen++; seen == sweepSize {
			break
		}
	}
	b.codes.sweep()
	b.sweepJournals()
	b.grants.sweep()
	if m.clock.stepped() && !b.changed() {
		_ = m.save(b) // ties the clock to the new wall clock; logged
		return
	}
	_ = m.write(b) // logged
}

// finish carries out what is waiting, and closes the file.
func (m *Memory) finish() {
	for {
		select {
		case o := <-m.ops:
			m.commit(m.gather(o))
			continue
		default:
		}
		break
	}
	if m.store == nil {
		return
	}
	// The clock's reading spares the next start some guessing; logged if it fails.
	_ = m.save(m.newBatch())
	m.closed = m.store.close()
}
