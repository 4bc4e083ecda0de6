package redisregistry

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

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
	return crowd(ctx, r, "lease ports", func(ctx context.Context) (map[uint16]uint16, error) {
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
	began := r.now()
	records, now, err := r.readAll(ctx, []string{h.Device})
	if err != nil {
		return nil, false, err
	}
	rec := records[0]
	if !rec.heldBy(h) {
		return nil, false, r.lostError(ctx, h, rec.generationText(), began)
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
	// Once they are given back, another call may take them back at once.
	scores, err := r.portScores(ctx, without(rec.ports, kept))
	if err != nil {
		return nil, false, err
	}
	left := rec.until - now
	ports = kept
	had := maps.Clone(kept) // and those that come back
	var taken []takenPort
	if len(kept) < len(want) {
		if err := r.mayLease(ctx); err != nil {
			return nil, false, err
		}
		for _, e := range rec.rests { // the last one counts
			if _, ok := kept[e.port]; !ok && first <= e.public && e.public <= last && slices.Contains(want, e.port) {
				had[e.port] = e.public
			}
		}
		// What is given back rests, so that free ones are on top of all there are.
		missing := len(want) - len(had)
		if missing > 0 && len(rec.ports)+len(rec.rests)+missing > registry.MaxPorts {
			return nil, false, registry.ErrTooManyPorts
		}
		if taken, err = r.allocate(ctx, h.Device, want, had, first, last, left); err != nil {
			return nil, false, err
		}
		ports = map[uint16]uint16{}
		for _, t := range taken {
			ports[t.port] = t.public
		}
		taken = slices.DeleteFunc(taken, func(t takenPort) bool { return kept[t.port] == t.public })
	}
	given := without(rec.ports, ports)
	p := r.run(ctx, setPortsScript, []string{r.keys.device(h.Device)},
		h.Generation, h.Tunnel, encodePorts(rec.ports), encodePorts(ports), rec.until,
		rec.restsText, encodeRests(r.restsAfter(rec, had, ports, given, now)))
	verdict := p.number(0)
	if p.err != nil {
		return nil, false, p.err
	}
	b := r.batch(ctx)
	if verdict != 1 {
		// What was taken just now is in no record: what was free need not even rest.
		r.undoPorts(b, h.Device, taken)
		if err := b.run(); err != nil {
			return nil, false, err
		}
		if verdict == 0 {
			return nil, false, r.lostError(ctx, h, p.text(1), began)
		}
		return nil, false, nil
	}
	r.leavePorts(b, 0, h.Device, given, scores)
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

// restsAfter returns what rests of a device once it has ports and has given others
// back. One of had that it has not got back is somebody else's by now.
func (r *Registry) restsAfter(rec record, had, ports, given map[uint16]uint16, now int64) []rest {
	leased := map[uint16]bool{}
	for _, public := range ports {
		leased[public] = true
	}
	rests := slices.DeleteFunc(slices.Clone(rec.rests), func(e rest) bool {
		return leased[e.public] || had[e.port] == e.public
	})
	for _, port := range slices.Sorted(maps.Keys(given)) {
		rests = append(rests, rest{port, given[port], now + r.portRest.Milliseconds()})
	}
	return rests
}

// A takenPort is what allocate has done for one port.
type takenPort struct {
	port, public   uint16
	written, found int64 // its scores, after and before; found is 0 when it was free
}

// allocate takes a public port for each of want: the one in had, if it is still the
// device's, else a free one.
func (r *Registry) allocate(ctx context.Context, device string, want []uint16, had map[uint16]uint16, first, last uint16, left int64) ([]takenPort, error) {
	keys := append(r.keys.portKeys(), r.keys.portOp(newToken()))
	args := []any{device, left, r.portRest.Milliseconds(), first, last, pendWindow.Milliseconds(), r.keys.hints(), portsHint}
	for _, port := range want {
		args = append(args, port, had[port], preferred(device, port, first, last))
	}
	p := r.run(ctx, allocateScript, keys, args...)
	if p.err == nil && len(p.list) == 0 {
		return nil, &registry.PortsFullError{First: first, Last: last}
	}
	taken := make([]takenPort, len(want))
	for i, port := range want {
		taken[i] = takenPort{port, uint16(p.number(3 * i)), p.number(3*i + 1), p.number(3*i + 2)}
	}
	return taken, p.err
}

// undoPorts adds to a batch that ports are what they were before allocate.
func (r *Registry) undoPorts(b *batch, device string, taken []takenPort) {
	if len(taken) == 0 {
		return
	}
	args := []any{r.keys.hints(), portsHint}
	for _, t := range taken {
		args = append(args, t.public, portOwner(device, t.port), t.written, t.found)
	}
	b.script(undoPortsScript, r.keys.portKeys(), args...)
}

// portScores returns until when public ports are in use, by public port.
func (r *Registry) portScores(ctx context.Context, ports map[uint16]uint16) (map[uint16]int64, error) {
	scores := map[uint16]int64{}
	if len(ports) == 0 {
		return scores, nil
	}
	publics := slices.Collect(maps.Values(ports))
	members := make([]string, len(publics))
	for i, public := range publics {
		members[i] = strconv.Itoa(int(public))
	}
	list, err := r.c.ZMScore(ctx, r.keys.ports(), members...).Result()
	if err != nil {
		return nil, err
	}
	for i, public := range publics {
		scores[public] = int64(list[i])
	}
	return scores, nil
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

// keepPorts adds to a batch that the public ports of devices last for a lease. othersOf
// tells of those that do not, once it has run.
func (r *Registry) keepPorts(b *batch, liveMS int64, ports map[string]map[uint16]uint16) []*scriptCall {
	const perCall = 200
	head := []any{liveMS, r.portRest.Milliseconds(), r.keys.hints(), portsHint}
	args := slices.Clone(head)
	var calls []*scriptCall
	send := func() {
		if len(args) > len(head) {
			calls = append(calls, b.script(keepPortsScript, r.keys.portKeys(), args...))
			args = slices.Clone(head)
		}
	}
	for device, of := range ports {
		for port, public := range of {
			args = append(args, public, portOwner(device, port))
			if len(args) >= len(head)+2*perCall {
				send()
			}
		}
	}
	send()
	return calls
}

// othersOf returns which owners have not got their public port by keepPorts: it
// belongs to another, which only lost data can bring about.
func othersOf(calls []*scriptCall) (owners map[string]bool, err error) {
	for _, c := range calls {
		p := c.reply()
		for i := range p.list {
			if owners == nil {
				owners = map[string]bool{}
			}
			owners[p.text(i)] = true
		}
		if p.err != nil {
			return nil, p.err
		}
	}
	return owners, nil
}

// haveOthers says whether one of the ports belongs to another device.
func haveOthers(device string, ports map[uint16]uint16, owners map[string]bool) bool {
	for port := range ports {
		if owners[portOwner(device, port)] {
			return true
		}
	}
	return false
}

// forgetPorts takes ports out of the record of a device that belong to others by now: it gets
// new ones when it leases ports.
func (r *Registry) forgetPorts(ctx context.Context, h registry.Holder, owners map[string]bool) error {
	for range tries {
		records, _, err := r.readAll(ctx, []string{h.Device})
		if err != nil {
			return err
		}
		rec := records[0]
		if !rec.heldBy(h) || !haveOthers(h.Device, rec.ports, owners) {
			return nil
		}
		left := maps.Clone(rec.ports)
		maps.DeleteFunc(left, func(port, _ uint16) bool { return owners[portOwner(h.Device, port)] })
		p := r.run(ctx, setPortsScript, []string{r.keys.device(h.Device)}, h.Generation, h.Tunnel,
			encodePorts(rec.ports), encodePorts(left), rec.until, rec.restsText, rec.restsText)
		if p.number(0) != 2 || p.err != nil {
			r.log.Warn("a public port was leased to another device meanwhile", "device", h.Device)
			return p.err
		}
	}
	return errBusy
}

// leavePorts adds to a batch that public ports of a device are leased for leaseMS
// more and then rest: those that have the same score still.
func (r *Registry) leavePorts(b *batch, leaseMS int64, device string, ports map[uint16]uint16, scores map[uint16]int64) {
	if len(ports) == 0 {
		return
	}
	args := []any{leaseMS, r.portRest.Milliseconds(), r.keys.hints(), portsHint}
	for port, public := range ports {
		args = append(args, public, portOwner(device, port), scores[public])
	}
	b.script(leavePortsScript, r.keys.portKeys(), args...)
}
