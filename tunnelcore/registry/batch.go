package registry

import (
	"hash/fnv"
	"maps"
	"time"
)

// A record is what the registry holds of a device. Once it is published it does
// not change; who wants it otherwise stores another one.
type record struct {
	device, label string
	generation    int64
	tunnel        Incumbent // zero when it was released, or of an earlier process
	until, seen   int64     // on the registry's clock
	why           string
	ports         map[uint16]uint16
}

func (r *record) online() bool { return r.tunnel.Tunnel != "" }

func (r *record) heldBy(h Holder) bool { return r != nil && r.online() && r.tunnel.Holder == h }

// stored returns what the file keeps of r; nil when r is.
func (r *record) stored() any {
	if r == nil {
		return nil
	}
	return storedDevice{
		Label: r.label, Generation: r.generation, Online: r.online(),
		UntilMS: r.until, SeenMS: r.seen, Why: r.why, Ports: r.ports,
	}
}

// portUse is why a public port cannot be had: a port of a device leases it, or
// did so and it rests.
type portUse struct {
	device string
	port   uint16
	rest   int64 // until then; 0: it is leased
}

func (u portUse) leased() bool { return u.device != "" && u.rest == 0 }

// state is what only the committer sees, besides what it publishes.
type state struct {
	store      *store             // nil when nothing is kept
	ports      map[uint16]portUse // by public port; what is not in it is free
	resting    resting            // those of ports that rest
	generation int64              // the highest handed out
	swept      string             // the last device that sweep looked at
	failing    bool               // the last write failed

	// What a failed write was to change. The file may have it or not, so the next
	// write says again what is true.
	unsureDevices     map[string]struct{}
	unsurePorts       map[uint16]struct{}
	unsureCredentials map[string]struct{}
	unsureCodes       map[string]struct{}
	unsureJournals    map[string]struct{}
	unsureGrants      map[string]struct{}

	journalsSwept int64 // when journals are looked through again
}

func newState() state {
	return state{
		ports:             map[uint16]portUse{},
		resting:           resting{},
		unsureDevices:     map[string]struct{}{},
		unsurePorts:       map[uint16]struct{}{},
		unsureCredentials: map[string]struct{}{},
		unsureCodes:       map[string]struct{}{},
		unsureJournals:    map[string]struct{}{},
		unsureGrants:      map[string]struct{}{},
	}
}

// A batch is what one write to disk will change. Operations of the batch see the
// changes of those before them; nobody else does until publish.
type batch struct {
	m          *Memory
	now        int64
	generation int64
	devices    map[string]*record // nil: gone
	labels     map[string]string  // label → device; empty: free
	ports      map[uint16]portUse // zero: free
	rested     resting            // those of ports that rest, or did before a later change

	credentials map[string]*storedCredential // nil: gone
	codes       staging[*storedCode]
	journals    map[string]*storedJournal // nil: gone
	grants      staging[*storedGrant]
}

// resting is the public ports of each device that rest.
type resting map[string]map[uint16]struct{}

func (r resting) add(device string, public uint16) {
	if r[device] == nil {
		r[device] = map[uint16]struct{}{}
	}
	r[device][public] = struct{}{}
}

func (r resting) remove(device string, public uint16) {
	delete(r[device], public)
	if len(r[device]) == 0 {
		delete(r, device)
	}
}

func (m *Memory) newBatch() *batch {
	now := m.clock.decide()
	b := &batch{
		m: m, now: now, generation: m.generation,
		devices: map[string]*record{}, labels: map[string]string{}, ports: map[uint16]portUse{},
		rested:      resting{},
		credentials: map[string]*storedCredential{}, journals: map[string]*storedJournal{},
		codes: m.secrets.codes.stage(now, m.unsureCodes), grants: m.grants.stage(now, m.unsureGrants),
	}
	for id := range m.unsureDevices {
		b.devices[id] = m.published(id)
	}
	for port := range m.unsurePorts {
		b.ports[port] = m.ports[port]
	}
	for device := range m.unsureCredentials {
		b.credentials[device] = m.credential(device)
	}
	for device := range m.unsureJournals {
		b.journals[device] = m.journal(device)
	}
	return b
}

// published returns the record that everybody sees, ended or not; nil without one.
func (m *Memory) published(device string) *record {
	if v, ok := m.devices.Load(device); ok {
		return v.(*record)
	}
	return nil
}

// changed says whether there is anything to write.
func (b *batch) changed() bool {
	return len(b.devices) > 0 || len(b.ports) > 0 || len(b.credentials) > 0 || len(b.codes.changed) > 0 || len(b.journals) > 0 || len(b.grants.changed) > 0
}

// device returns the record of a device that has a lease, else nil. It clears
// away one whose lease has run out.
func (b *batch) device(id string) *record {
	r, staged := b.devices[id]
	if !staged {
		r = b.m.published(id)
	}
	if r == nil || r.until > b.now {
		return r
	}
	b.devices[id] = nil
	b.labels[r.label] = ""
	for port, public := range r.ports {
		b.rest(id, port, public, r.until)
	}
	return nil
}

// owner returns the device that a label is leased to, or nothing.
func (b *batch) owner(label string) string {
	id, staged := b.labels[label]
	if !staged {
		if v, ok := b.m.labels.Load(label); ok {
			id = v.(*record).device
		}
	}
	if id == "" || b.device(id) == nil {
		return ""
	}
	return id
}

// use returns who has a port, zero when it is free.
func (b *batch) use(port uint16) portUse {
	u, staged := b.ports[port]
	if !staged {
		u = b.m.ports[port]
	}
	if u.leased() && b.device(u.device) == nil {
		u = b.ports[port] // it rests, since its lease has run out
	}
	if !u.leased() && u.rest <= b.now {
		return portUse{}
	}
	return u
}

// rest gives up the public port of a device's port whose lease ended then.
func (b *batch) rest(device string, port, public uint16, then int64) {
	u := portUse{device: device, port: port, rest: then + PortRest.Milliseconds()}
	if u.rest <= b.now {
		b.ports[public] = portUse{}
		return
	}
	b.ports[public] = u
	b.rested.add(device, public)
}

// restingOf returns the public ports of a device that rest.
func (b *batch) restingOf(device string) map[uint16]portUse {
	own := map[uint16]portUse{}
	for _, set := range []map[uint16]struct{}{b.m.resting[device], b.rested[device]} {
		for public := range set {
			if u := b.use(public); u.device == device && !u.leased() {
				own[public] = u
			}
		}
	}
	return own
}

// lastOf returns the public port in [first, last] among those that rest which port
// had last; 0 without one.
func lastOf(resting map[uint16]portUse, port, first, last uint16) (public uint16) {
	for p, u := range resting {
		if u.port != port || p < first || p > last {
			continue
		}
		if best := resting[public]; u.rest > best.rest || u.rest == best.rest && p < public {
			public = p
		}
	}
	return public
}

// claim is Registry.Claim for arguments that are valid.
func (b *batch) claim(c Claim) (Lease, error) {
	old := b.device(c.Device)
	r := &record{device: c.Device, label: c.Label}
	var replaced Incumbent
	if old != nil {
		r.label, r.ports = old.label, old.ports
		if old.online() && b.m.nodes.live(old.tunnel.Node, b.now) {
			replaced = old.tunnel
			if replaced.Instance != c.Instance && replaced.Holder != c.Evict {
				return Lease{}, &HeldError{Incumbent: replaced}
			}
		}
	} else {
		if b.owner(c.Label) != "" {
			return Lease{}, ErrLabelTaken
		}
		b.labels[c.Label] = c.Device
	}
	// Above every generation there ever was, so that none has to be remembered
	// per device after its lease. The wall clock in µs makes that so (but for a
	// clock that is wrong) even when the file was lost.
	b.generation = max(b.generation+1, b.m.clock.time(b.now).UnixMicro())
	r.generation = b.generation
	r.tunnel = Incumbent{
		Holder:   Holder{Device: c.Device, Generation: r.generation, Tunnel: c.Tunnel},
		Instance: c.Instance,
		Node:     c.Node,
	}
	r.seen, r.until = b.now, b.now+whileLive(c.Lease)
	b.devices[c.Device] = r
	return Lease{
		Holder: r.tunnel.Holder, Label: r.label, Until: b.m.clock.time(r.until),
		Fresh: old == nil, Previous: replaced,
	}, nil
}

// whileLive is how long the lease of a live tunnel runs without a refresh.
func whileLive(lease time.Duration) int64 { return millis(lease) + millis(lease/3) }

// leasePorts is Registry.LeasePorts. The map it returns is the record's.
func (b *batch) leasePorts(h Holder, want map[uint16]struct{}, first, last uint16) (map[uint16]uint16, error) {
	r := b.device(h.Device)
	if !r.heldBy(h) {
		return nil, ErrLost
	}
	ports := make(map[uint16]uint16, len(want))
	for port := range want {
		if public, ok := r.ports[port]; ok && first <= public && public <= last {
			ports[port] = public
		}
	}
	taken := make(map[uint16]uint16, len(want)-len(ports)) // by this call: public port → port
	if len(ports) < len(want) {
		if err := b.takePorts(r, want, first, last, ports, taken); err != nil {
			return nil, err
		}
	}
	if maps.Equal(ports, r.ports) {
		return r.ports, nil
	}
	for port, public := range r.ports {
		if ports[port] != public {
			b.rest(h.Device, port, public, b.now)
		}
	}
	for public, port := range taken {
		b.ports[public] = portUse{device: h.Device, port: port}
	}
	next := *r
	next.ports = ports
	if len(ports) == 0 {
		next.ports = nil
	}
	b.devices[h.Device] = &next
	return next.ports, nil
}

// takePorts finds public ports for those of want that have none in ports yet: it
// adds them to ports and to taken.
func (b *batch) takePorts(r *record, want map[uint16]struct{}, first, last uint16, ports, taken map[uint16]uint16) error {
	resting := b.restingOf(r.device)
	have := len(r.ports) + len(resting)
	missing := make([]uint16, 0, len(want)-len(ports))
	for port := range want {
		if _, ok := ports[port]; ok {
			continue
		}
		if public := lastOf(resting, port, first, last); public != 0 {
			ports[port], taken[public] = public, port
		} else {
			missing = append(missing, port)
		}
	}
	// What is given back rests, so that free ones are on top of all there are.
	if have+len(missing) > MaxPorts && len(missing) > 0 {
		return ErrTooManyPorts
	}
	for _, port := range missing {
		public := b.freePort(preferred(r.device, port, first, last), first, last, taken)
		if public == 0 {
			return &PortsFullError{First: first, Last: last}
		}
		ports[port], taken[public] = public, port
	}
	return nil
}

// freePort returns a free port, the first from start on and then from first; 0
// when there is none.
func (b *batch) freePort(start, first, last uint16, taken map[uint16]uint16) uint16 {
	size := int(last) - int(first) + 1
	for i := range size {
		port := first + uint16((int(start-first)+i)%size)
		if _, ok := taken[port]; !ok && b.use(port) == (portUse{}) {
			return port
		}
	}
	return 0
}

// preferred is where the search for a free port starts: at the same one each time,
// so that a device mostly finds its old port again even after its lease, and
// spread over the range, so that the search is short.
func preferred(device string, port, first, last uint16) uint16 {
	h := fnv.New32a()
	h.Write([]byte(device))
	h.Write([]byte{byte(port >> 8), byte(port)})
	return first + uint16(h.Sum32()%(uint32(last)-uint32(first)+1))
}

// refresh is Registry.Refresh.
func (b *batch) refresh(holders []Holder, lease time.Duration) (lost []Holder) {
	for _, h := range holders {
		r := b.device(h.Device)
		if !r.heldBy(h) {
			lost = append(lost, h)
			continue
		}
		next := *r
		next.seen, next.until = b.now, b.now+whileLive(lease)
		b.devices[h.Device] = &next
	}
	return lost
}

// release is Registry.Release.
func (b *batch) release(h Holder, lease time.Duration, why string) error {
	r := b.device(h.Device)
	if !r.heldBy(h) {
		return ErrLost
	}
	next := *r
	next.tunnel = Incumbent{}
	next.seen, next.until, next.why = b.now, b.now+millis(lease), why
	b.devices[h.Device] = &next
	b.device(h.Device) // clears it away when the lease ends at once
	return nil
}

// publish shows everybody what the batch has changed.
func (b *batch) publish() {
	m := b.m
	m.generation = b.generation
	b.publishSecrets()
	b.publishJournals()
	m.grants.publish(b.grants.changed)
	moved := false
	for port, use := range b.ports {
		moved = m.public.set(port, use) || moved
		if old := m.ports[port]; old.rest != 0 {
			m.resting.remove(old.device, port)
		}
		if use.rest != 0 {
			m.resting.add(use.device, port)
		}
		if use == (portUse{}) {
			delete(m.ports, port)
		} else {
			m.ports[port] = use
		}
	}
	for label, device := range b.labels {
		if device == "" {
			m.labels.Delete(label)
		}
	}
	for id, r := range b.devices {
		old := m.published(id)
		if r == nil {
			m.devices.Delete(id)
			m.ids.remove(id)
		} else {
			m.labels.Store(r.label, r)
			m.devices.Store(id, r)
			if old == nil {
				m.ids.add(id)
			}
		}
		m.hint(id, old, r)
	}
	if moved {
		m.hints.Send(Hint{Ports: true})
	}
}
