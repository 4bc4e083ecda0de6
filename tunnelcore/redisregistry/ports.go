package redisregistry

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// LeasePorts implements registry.Registry.
func (r *Registry) LeasePorts(ctx context.Context, h registry.Holder, want []uint16, first, last uint16) (map[uint16]uint16, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if first > last {
		return nil, fmt.Errorf("%w: ports %d-%d", registry.ErrInvalid, first, last)
	}
	if slices.Contains(want, 0) {
		return nil, fmt.Errorf("%w: port 0", registry.ErrInvalid)
	}
	want = slices.Compact(slices.Sorted(slices.Values(want)))
	if first == 0 {
		want = nil
	}
	if !matchable(h.Device) {
		return nil, registry.ErrLost
	}
	return call(ctx, r, "lease ports", func(ctx context.Context) (map[uint16]uint16, error) {
		for range tries {
			ports, done, err := r.leasePorts(ctx, h, want, first, last)
			if done || err != nil {
				return ports, err
			}
		}
		return nil, errBusy
	})
}

// leasePorts takes public ports for the device, writes them into its record if
// that has not changed meanwhile, and then gives back those it has no longer. A
// crash in between leaves a port unused until the lease would have ended, and
// never one in two records. It is not done when the record has changed.
func (r *Registry) leasePorts(ctx context.Context, h registry.Holder, want []uint16, first, last uint16) (ports map[uint16]uint16, done bool, err error) {
	records, now, err := r.readAll(ctx, []string{h.Device})
	if err != nil {
		return nil, false, err
	}
	rec := records[0]
	if !rec.heldBy(h) {
		return nil, false, r.lostError(ctx, h, rec.generationText())
	}
	kept := map[uint16]uint16{}
	for _, port := range want {
		if public, ok := rec.ports[port]; ok && first <= public && public <= last {
			kept[port] = public
		}
	}
	if len(kept) == len(want) && len(kept) == len(rec.ports) {
		return rec.ports, true, nil
	}
	left := rec.until - now
	ports = kept
	if len(kept) < len(want) {
		if err := r.mayLease(ctx); err != nil {
			return nil, false, err
		}
		if ports, err = r.allocate(ctx, h.Device, want, kept, first, last, left); err != nil {
			return nil, false, err
		}
	}
	p := r.run(ctx, setPortsScript, []string{r.keys.device(h.Device)},
		h.Generation, h.Tunnel, encodePorts(rec.ports), encodePorts(ports), rec.until)
	verdict := p.number(0)
	if p.err != nil {
		return nil, false, p.err
	}
	b := r.batch(ctx)
	if verdict != 1 {
		// What was taken just now is in no record: it need not even rest.
		r.leavePorts(b, 0, 0, h.Device, without(ports, kept))
		if err := b.run(); err != nil {
			return nil, false, err
		}
		if verdict == 0 {
			return nil, false, r.lostError(ctx, h, p.text(1))
		}
		return nil, false, nil
	}
	r.leavePorts(b, r.portRest.Milliseconds(), 0, h.Device, without(rec.ports, ports))
	if longer := p.number(1); longer > left { // it was refreshed meanwhile, without them
		r.keepPorts(b, longer, map[string]map[uint16]uint16{h.Device: ports})
	}
	if err := firstError(p.err, b.run()); err != nil {
		return nil, false, err
	}
	if len(ports) == 0 {
		return nil, true, nil
	}
	return ports, true, nil
}

// allocate takes a public port for each of want, keeping those of kept.
func (r *Registry) allocate(ctx context.Context, device string, want []uint16, kept map[uint16]uint16, first, last uint16, left int64) (map[uint16]uint16, error) {
	keys := []string{r.keys.ports(), r.keys.portDevices(), r.keys.portOp(newToken())}
	args := []any{device, left, r.portRest.Milliseconds(), first, last, pendWindow.Milliseconds()}
	for _, port := range want {
		args = append(args, port, kept[port], preferred(device, port, first, last))
	}
	p := r.run(ctx, allocateScript, keys, args...)
	if p.err == nil && len(p.list) == 0 {
		return nil, &registry.PortsFullError{First: first, Last: last}
	}
	ports := map[uint16]uint16{}
	for i, port := range want {
		ports[port] = uint16(p.number(i))
	}
	return ports, p.err
}

// preferred is where the search for a free port starts: at the same one each time,
// so that a device mostly finds its old port again even after its lease, and
// spread over the range, so that the search is short.
func preferred(device string, port, first, last uint16) uint16 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s:%d", device, port)
	return first + uint16(h.Sum32()%(uint32(last)-uint32(first)+1))
}

// without returns the ports that are not, or lead elsewhere, in other.
func without(ports, other map[uint16]uint16) map[uint16]uint16 {
	rest := maps.Clone(ports)
	maps.DeleteFunc(rest, func(port, public uint16) bool { return other[port] == public })
	return rest
}

// keepPorts adds to a batch that the public ports of devices last for a lease.
func (r *Registry) keepPorts(b *batch, liveMS int64, ports map[string]map[uint16]uint16) []*scriptCall {
	const perCall = 200
	args := []any{liveMS + r.portRest.Milliseconds()}
	var calls []*scriptCall
	send := func() {
		if len(args) > 1 {
			calls = append(calls, b.script(keepPortsScript, []string{r.keys.ports(), r.keys.portDevices()}, args...))
			args = []any{args[0]}
		}
	}
	for device, of := range ports {
		for port, public := range of {
			args = append(args, public, portOwner(device, port))
			if len(args) > 2*perCall {
				send()
			}
		}
	}
	send()
	return calls
}

// leavePorts adds to a batch that public ports of a device stay out of use for ms,
// and with own = 1 stay the device's until then.
func (r *Registry) leavePorts(b *batch, ms int64, own int, device string, ports map[uint16]uint16) {
	if len(ports) == 0 {
		return
	}
	args := []any{ms, own}
	for port, public := range ports {
		args = append(args, public, portOwner(device, port))
	}
	b.script(leavePortsScript, []string{r.keys.ports(), r.keys.portDevices()}, args...)
}
