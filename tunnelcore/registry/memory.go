package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

// MemoryOptions say how a Memory keeps its state.
type MemoryOptions struct {
	// Path is the file that leases are kept in, created when it is not there.
	// Empty: nothing is kept, and a restart forgets all leases.
	Path string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Logger is told when the file cannot be written and when it can again; nil
	// means silence.
	Logger *slog.Logger
}

// Memory is the Registry of a single node: all in this process, served from
// memory, and kept in a file.
//
// Claim, LeasePorts, Refresh and Release return once they are on disk, so that a
// crash of the process or of the machine takes nothing back that a device was
// told; those that come while the disk is busy share the next write. Look-ups
// wait for neither the disk nor a lock, and see only what is on disk.
//
// After a restart every device is offline, until its agent is back, and its lease
// runs on. The file belongs to one process at a time.
type Memory struct {
	clock *clock
	nodes nodes
	log   *slog.Logger

	devices  sync.Map // device → *record; written by the committer
	labels   sync.Map // label → *record; written by the committer
	ids      ids      // of devices
	public   publics  // ports that are leased
	hints    Hints
	secrets  secrets  // of enrolled devices
	journals sync.Map // device → *storedJournal; written by the committer
	grants   table[*storedGrant]
	state    // the committer's own

	ops     chan *op
	closing sync.Once
	quit    chan struct{} // closed to stop the committer
	stopped chan struct{} // closed when it has ended
	closed  error         // what Close returns; set before stopped
}

// OpenMemory opens the registry. The error names the file when it is in use by
// another process, damaged, or of a newer version.
func OpenMemory(opts MemoryOptions) (*Memory, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Memory{
		log:     opts.Logger,
		state:   newState(),
		ops:     make(chan *op, maxBatch),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	if opts.Path == "" {
		m.clock = newClock(opts.Now, saved{})
	} else if err := m.open(opts); err != nil {
		return nil, err
	}
	go m.commitLoop() // Close stops it and waits
	return m, nil
}

// open opens the file and loads what it holds.
func (m *Memory) open(opts MemoryOptions) error {
	s, err := openStore(opts.Path)
	if err != nil {
		return err
	}
	begin := func(st storedState) {
		m.generation = st.Generation
		m.clock = newClock(opts.Now, saved{st.ClockMS, st.WallMS})
	}
	rest := func(port uint16, r storedRest) error {
		if _, leased := m.ports[port]; !leased {
			m.ports[port] = portUse{device: r.Device, port: r.Port, rest: r.UntilMS}
			m.resting.add(r.Device, port)
		}
		return nil
	}
	into := reading{state: begin, device: m.load, rest: rest, credential: m.loadCredential, code: m.loadCode, journal: m.loadJournal, grant: m.loadGrant}
	if err := s.read(into); err != nil {
		// The error is what matters, and a damaged file has nothing to flush.
		_ = s.close()
		return err
	}
	m.store = s
	return nil
}

// load takes in a device of the file.
func (m *Memory) load(device string, d storedDevice) error {
	if device == "" || d.Label == "" || d.Generation <= 0 {
		return fmt.Errorf("device %q: no label or generation", device)
	}
	if other, taken := m.labels.Load(d.Label); taken {
		return fmt.Errorf("device %q: has the label of %q", device, other.(*record).device)
	}
	r := &record{
		device: device, label: d.Label, generation: d.Generation,
		until: d.UntilMS, seen: d.SeenMS, why: d.Why, ports: d.Ports,
	}
	if d.Online {
		r.why = WhyNodeGone
	}
	for port, public := range r.ports {
		if use, taken := m.ports[public]; taken {
			return fmt.Errorf("device %q: has port %d of %q", device, public, use.device)
		}
		m.ports[public] = portUse{device: device, port: port}
		m.public.set(public, portUse{device: device, port: port})
	}
	m.generation = max(m.generation, r.generation)
	m.devices.Store(device, r)
	m.labels.Store(r.label, r)
	m.ids.add(device)
	return nil
}

// Close writes what is under way and closes the file. Calls that come later fail.
func (m *Memory) Close() error {
	m.closing.Do(func() { close(m.quit) })
	<-m.stopped
	m.hints.Close()
	return m.closed
}

// Claim implements Registry.
func (m *Memory) Claim(ctx context.Context, c Claim) (Lease, error) {
	for _, n := range []struct{ what, name string }{
		{"device", c.Device}, {"instance", c.Instance}, {"tunnel", c.Tunnel},
		{"label", c.Label}, {"node id", c.Node.ID}, {"node epoch", c.Node.Epoch},
	} {
		if err := checkName(n.what, n.name); err != nil {
			return Lease{}, err
		}
	}
	if c.Lease <= 0 {
		return Lease{}, fmt.Errorf("%w: lease %v", ErrInvalid, c.Lease)
	}
	var l Lease
	err := m.mutate(ctx, func(b *batch) (err error) {
		l, err = b.claim(c)
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	return l, nil
}

// LeasePorts implements Registry.
func (m *Memory) LeasePorts(ctx context.Context, h Holder, want []uint16, first, last uint16) (map[uint16]uint16, error) {
	if first > last {
		return nil, fmt.Errorf("%w: ports %d-%d", ErrInvalid, first, last)
	}
	wanted := make(map[uint16]struct{}, len(want)) // also the copy that the committer may read after ctx has ended
	for _, port := range want {
		if port == 0 {
			return nil, fmt.Errorf("%w: port 0", ErrInvalid)
		}
		wanted[port] = struct{}{}
	}
	if first == 0 {
		clear(wanted)
	}
	var ports map[uint16]uint16
	err := m.mutate(ctx, func(b *batch) error {
		leased, err := b.leasePorts(h, wanted, first, last)
		ports = maps.Clone(leased) // the record's own stays there
		return err
	})
	if err != nil {
		return nil, err
	}
	return ports, nil
}

// Refresh implements Registry.
func (m *Memory) Refresh(ctx context.Context, lease time.Duration, holders []Holder) ([]Holder, error) {
	if lease <= 0 {
		return nil, fmt.Errorf("%w: lease %v", ErrInvalid, lease)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var lost []Holder
	for piece := range slices.Chunk(holders, maxBatch) { // a claim need not wait behind the whole fleet
		piece = slices.Clone(piece) // the committer may read it after ctx has ended
		var l []Holder
		err := m.mutateMany(ctx, len(piece), func(b *batch) error {
			l = b.refresh(piece, lease)
			return nil
		})
		if err != nil {
			return nil, err
		}
		lost = append(lost, l...)
	}
	return lost, nil
}

// Release implements Registry.
func (m *Memory) Release(ctx context.Context, h Holder, lease time.Duration, why string) error {
	if lease < 0 {
		return fmt.Errorf("%w: lease %v", ErrInvalid, lease)
	}
	why = shorten(why)
	return m.mutate(ctx, func(b *batch) error { return b.release(h, lease, why) })
}

// ByLabel implements Registry.
func (m *Memory) ByLabel(ctx context.Context, label string) (Record, error) {
	return m.look(ctx, &m.labels, label)
}

// ByDevice implements Registry.
func (m *Memory) ByDevice(ctx context.Context, device string) (Record, error) {
	return m.look(ctx, &m.devices, device)
}

func (m *Memory) look(ctx context.Context, in *sync.Map, name string) (Record, error) {
	if err := ctx.Err(); err != nil {
		return Record{}, err
	}
	v, ok := in.Load(name)
	if !ok {
		return Record{}, ErrUnknown
	}
	r, now := v.(*record), m.clock.read()
	if r.until <= now {
		return Record{}, ErrUnknown
	}
	return m.show(r, now), nil
}

// Devices implements Registry.
func (m *Memory) Devices(ctx context.Context, after string, limit int) ([]Record, error) {
	now := m.clock.read()
	return page(ctx, &m.ids, after, limit, func(id string) (Record, bool) {
		if r := m.published(id); r != nil && r.until > now {
			return m.show(r, now), true
		}
		return Record{}, false
	})
}

// Beat implements Registry.
func (m *Memory) Beat(ctx context.Context, n Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := errors.Join(checkName("node id", n.ID), checkName("node epoch", n.Epoch)); err != nil {
		return err
	}
	return m.nodes.beat(n, m.clock.decide())
}

// Leave implements Registry.
func (m *Memory) Leave(ctx context.Context, n NodeRef) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.nodes.leave(n)
	return nil
}

// Nodes implements Registry.
func (m *Memory) Nodes(ctx context.Context) ([]Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return m.nodes.list(m.clock.read(), m.clock.time), nil
}

// Time implements Registry.
func (m *Memory) Time(ctx context.Context) (time.Time, error) {
	return m.clock.time(m.clock.read()), ctx.Err()
}

// show returns the record as others see it, a copy.
func (m *Memory) show(r *record, now int64) Record {
	p := Record{
		Device: r.device, Label: r.label, Generation: r.generation,
		Until: m.clock.time(r.until), Seen: m.clock.time(r.seen),
		Why: r.why, Ports: maps.Clone(r.ports),
	}
	if r.online() {
		if m.nodes.live(r.tunnel.Node, now) {
			p.Online = r.tunnel
		} else {
			p.Why = WhyNodeGone
		}
	}
	return p
}

func checkName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: %s is empty", ErrInvalid, what)
	case len(name) > MaxName:
		return fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrInvalid, what, len(name), MaxName)
	}
	return nil
}

// shorten cuts why to MaxWhy bytes, between characters.
func shorten(why string) string {
	if len(why) <= MaxWhy {
		return why
	}
	end := MaxWhy
	for end > 0 && !utf8.RuneStart(why[end]) {
		end--
	}
	return why[:end]
}

var _ Registry = (*Memory)(nil)
