package registrytest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

// The model is a registry as simple as can be: plain maps, one caller, its own
// time. Random operations go to both, and after each one everything that can be
// seen must be what the model says.

var randomTests = []test{
	{"operations against a model", func(s *suite) {
		seed := seed()
		s.Logf("IOTTUNNEL_SEED=%d", seed)
		newModel(s, seed).run(steps(3000))
	}},
}

func seed() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("IOTTUNNEL_SEED"), 10, 64); err == nil {
		return n
	}
	return rand.Uint64()
}

func steps(n int) int {
	if steps, err := strconv.Atoi(os.Getenv("IOTTUNNEL_STEPS")); err == nil && steps > 0 {
		return steps
	}
	return n
}

type model struct {
	*suite
	rand  *rand.Rand
	now   time.Duration // since the start
	start time.Time     // on the registry's clock; known from the first record

	devices map[string]*modelDevice
	rests   map[uint16]modelRest // by public port; some have ended
	nodes   map[string]modelNode
	ever    map[string]int64 // device → its highest generation

	holders []registry.Holder // that were handed out, old and new
	tunnels int               // drawn so far
	epochs  int
	trace   []string // of the last operations
}

type modelDevice struct {
	label       string
	generation  int64
	tunnel      registry.Incumbent // zero: offline
	orphan      bool               // by a reopening: whether its tunnel still counts is open
	until, seen time.Duration
	why         string
	ports       map[uint16]uint16
}

type modelRest struct {
	device string // whose it was
	port   uint16
	until  time.Duration
}

type modelNode struct {
	registry.Node
	at time.Duration
}

func newModel(s *suite, seed uint64) *model {
	return &model{
		suite:   s,
		rand:    rand.New(rand.NewPCG(seed, 0)),
		devices: map[string]*modelDevice{},
		rests:   map[uint16]modelRest{},
		nodes:   map[string]modelNode{},
		ever:    map[string]int64{},
	}
}

var (
	someDevices   = []string{"cam", "door", "bell", "lamp", "a-b", "a0"}
	someLabels    = []string{"l1", "l2", "l3", "l4", "l5", "l6", "l7"}
	someInstances = []string{"i1", "i2"}
	someNodes     = []string{"n1", "n2"}
	somePorts     = []uint16{22, 80, 443}
	// Few public ports for many devices, in ranges that overlap.
	someRanges = [][2]uint16{{40000, 40005}, {40003, 40008}, {40000, 40008}, {0, 0}}
)

func pick[T any](m *model, from []T) T { return from[m.rand.IntN(len(from))] }

// run tries that many operations.
func (m *model) run(steps int) {
	ops := []struct {
		weight int
		do     func() string
	}{
		{30, m.tryClaim}, {15, m.tryPorts}, {10, m.tryRefresh}, {10, m.tryRelease},
		{12, m.tryBeat}, {2, m.tryLeave}, {15, m.tryAdvance}, {1, m.tryReopen},
	}
	sum := 0
	for _, op := range ops {
		sum += op.weight
	}
	for step := range steps {
		n := m.rand.IntN(sum)
		for _, op := range ops {
			if n -= op.weight; n < 0 {
				m.note(op.do())
				break
			}
		}
		m.keepBeating()
		if m.compare(); m.Failed() {
			m.Fatalf("at step %d; the last operations:\n%s", step, strings.Join(m.trace, "\n"))
		}
	}
}

func (m *model) note(what string) {
	if what == "" {
		return
	}
	m.trace = append(m.trace, fmt.Sprintf("%12v %s", m.now, what))
	if len(m.trace) > 40 {
		m.trace = m.trace[1:]
	}
}

// device returns the device if it has a lease.
func (m *model) device(id string) *modelDevice {
	d := m.devices[id]
	if d == nil || d.until > m.now {
		return d
	}
	delete(m.devices, id)
	for port, public := range d.ports {
		m.rests[public] = modelRest{id, port, d.until + m.PortRest}
	}
	return nil
}

func (m *model) live(n registry.NodeRef) bool {
	node, ok := m.nodes[n.ID]
	return ok && node.Epoch == n.Epoch && m.now-node.at < m.NodeTTL
}

// holder draws a holder: mostly a current one, else an old or a forged one.
func (m *model) holder() registry.Holder {
	h := registry.Holder{Device: pick(m, someDevices), Generation: 1, Tunnel: "forged"}
	if n := len(m.holders); n > 0 {
		h = m.holders[max(0, n-1-m.rand.IntN(30))]
	}
	if d := m.device(h.Device); d != nil && m.rand.IntN(4) > 0 {
		h = registry.Holder{Device: h.Device, Generation: d.generation, Tunnel: d.tunnel.Tunnel}
	}
	switch m.rand.IntN(20) {
	case 0:
		h.Tunnel += "x"
	case 1:
		h.Generation--
	case 2:
		h.Generation++
	}
	return h
}

// held returns the device that h holds, else nil; ok is false when it cannot be told.
func (m *model) held(h registry.Holder) (d *modelDevice, ok bool) {
	d = m.device(h.Device)
	if d == nil {
		return nil, true
	}
	if d.orphan && d.generation == h.Generation {
		return nil, false
	}
	if d.tunnel.Holder != h || h.Tunnel == "" {
		return nil, true
	}
	return d, true
}

func (m *model) draw() registry.Claim {
	m.tunnels++
	c := registry.Claim{
		Device: pick(m, someDevices), Instance: pick(m, someInstances), Tunnel: fmt.Sprintf("t%d", m.tunnels),
		Label: pick(m, someLabels), Lease: m.Lease/4 + time.Duration(m.rand.IntN(3000))*time.Millisecond,
	}
	c.Node = registry.NodeRef{ID: pick(m, someNodes), Epoch: "never"}
	if n, ok := m.nodes[c.Node.ID]; ok && m.rand.IntN(10) > 0 {
		c.Node = n.NodeRef
	}
	if m.rand.IntN(3) == 0 {
		c.Evict = m.holder()
	}
	return c
}

func (m *model) tryClaim() string {
	c := m.draw()
	d := m.device(c.Device)
	l, err := m.Registry.Claim(m.ctx, c)
	what := fmt.Sprintf("Claim(%+v) = %+v, %v", c, l, err)

	var previous registry.Incumbent
	if d != nil && m.live(d.tunnel.Node) {
		previous = d.tunnel
		if previous.Instance != c.Instance && previous.Holder != c.Evict {
			if held := new(registry.HeldError); !errors.As(err, &held) || held.Incumbent != previous {
				m.Errorf("%s, want held by %+v", what, previous)
			}
			return what
		}
	}
	label := c.Label
	if d != nil {
		label = d.label
	} else if m.labelled(label) != "" {
		if !errors.Is(err, registry.ErrLabelTaken) {
			m.Errorf("%s, want the label taken by %s", what, m.labelled(label))
		}
		return what
	}
	if err != nil {
		m.Errorf("%s, want it granted", what)
		return what
	}
	want := registry.Lease{
		Holder: registry.Holder{Device: c.Device, Generation: l.Generation, Tunnel: c.Tunnel},
		Label:  label, Until: l.Until, Fresh: d == nil, Previous: previous,
	}
	if l != want {
		m.Errorf("%s,\nwant %+v", what, want)
	}
	if l.Generation <= m.ever[c.Device] {
		m.Errorf("%s: generation after %d", what, m.ever[c.Device])
	}
	m.ever[c.Device] = l.Generation
	m.holders = append(m.holders, l.Holder)
	next := &modelDevice{
		label: label, generation: l.Generation,
		tunnel: registry.Incumbent{Holder: l.Holder, Instance: c.Instance, Node: c.Node},
		seen:   m.now, until: m.now + c.Lease + c.Lease/3,
	}
	if d != nil {
		next.ports = d.ports
	}
	m.devices[c.Device] = next
	if !m.start.IsZero() && m.Exact && !near(l.Until, m.start.Add(next.until)) {
		m.Errorf("%s: until %v, want %v", what, l.Until, m.start.Add(next.until))
	}
	return what
}

// labelled returns the device that the label is leased to, or nothing.
func (m *model) labelled(label string) string {
	for _, id := range someDevices {
		if d := m.device(id); d != nil && d.label == label {
			return id
		}
	}
	return ""
}

// free says whether nobody has the port and it does not rest.
func (m *model) free(port uint16) bool {
	for _, id := range someDevices {
		if d := m.device(id); d != nil {
			for _, p := range d.ports {
				if p == port {
					return false
				}
			}
		}
	}
	return m.rests[port].until <= m.now
}

// back returns the public ports in a range among which is the one that a device's
// port takes back; none when none rests.
func (m *model) back(device string, port uint16, r [2]uint16) (back []uint16) {
	var last time.Duration
	for public, rest := range m.rests {
		if rest.device != device || rest.port != port || public < r[0] || public > r[1] || rest.until <= m.now || rest.until < last {
			continue
		}
		if rest.until > last && m.Exact {
			back, last = nil, rest.until
		}
		back = append(back, public)
	}
	return back
}

func (m *model) tryPorts() string {
	h := m.holder()
	d, ok := m.held(h)
	if !ok {
		return ""
	}
	r := pick(m, someRanges)
	var want []uint16
	for _, p := range somePorts {
		if m.rand.IntN(2) == 0 {
			want = append(want, p)
		}
	}
	got, err := m.Registry.LeasePorts(m.ctx, h, want, r[0], r[1])
	what := fmt.Sprintf("LeasePorts(%+v, %v, %v) = %v, %v", h, want, r, got, err)
	if d == nil {
		if !errors.Is(err, registry.ErrLost) {
			m.Errorf("%s, want ErrLost", what)
		}
		return what
	}
	if r[0] == 0 {
		want = nil
	}
	kept := map[uint16]uint16{}
	for _, p := range want {
		if public, ok := d.ports[p]; ok && r[0] <= public && public <= r[1] {
			kept[p] = public
		}
	}
	back := map[uint16][]uint16{}
	for _, p := range want {
		if _, ok := kept[p]; ok {
			continue
		}
		if b := m.back(h.Device, p, r); b != nil {
			back[p] = b
		}
	}
	room, resting := 0, 0
	for p := r[0]; p <= r[1] && p != 0; p++ {
		if m.free(p) {
			room++
		} else if _, rests := m.rests[p]; !m.Exact && rests {
			resting++ // or not any more: on a running clock that is open
		}
	}
	full := new(registry.PortsFullError)
	if missing := len(want) - len(kept) - len(back); missing > room && (missing > room+resting || errors.As(err, &full)) {
		if !errors.As(err, &full) || *full != (registry.PortsFullError{First: r[0], Last: r[1]}) {
			m.Errorf("%s, want a PortsFullError", what)
		}
		return what
	}
	if err != nil || len(got) != len(want) {
		m.Errorf("%s, want %v, of which kept %v; %d are free", what, want, kept, room)
		return what
	}
	taken := map[uint16]bool{}
	for _, p := range want {
		public := got[p]
		if old, ok := kept[p]; ok && public != old {
			m.Errorf("%s, want %d kept for %d", what, old, p)
		} else if b := back[p]; b != nil && m.Exact && !slices.Contains(b, public) {
			m.Errorf("%s, want one of %v back for %d", what, b, p)
		} else if !ok && !slices.Contains(b, public) && (!m.free(public) && (m.Exact || m.rests[public] == modelRest{}) || public < r[0] || public > r[1]) || taken[public] {
			m.Errorf("%s: %d is not free", what, public)
		}
		taken[public] = true
		delete(m.rests, public)
	}
	for p, public := range d.ports {
		if got[p] != public {
			m.rests[public] = modelRest{h.Device, p, m.now + m.PortRest}
		}
	}
	d.ports = maps.Clone(got)
	return what
}

func (m *model) tryRefresh() string {
	var holders, want []registry.Holder
	lease := m.Lease/2 + time.Duration(m.rand.IntN(3000))*time.Millisecond
	for range m.rand.IntN(4) {
		h := m.holder()
		d, ok := m.held(h)
		switch {
		case !ok:
			continue
		case d == nil:
			want = append(want, h)
		default:
			d.seen, d.until = m.now, m.now+lease+lease/3
		}
		holders = append(holders, h)
	}
	lost, err := m.Registry.Refresh(m.ctx, lease, holders)
	what := fmt.Sprintf("Refresh(%v, %+v) = %+v, %v", lease, holders, lost, err)
	if err != nil || !slices.Equal(lost, want) {
		m.Errorf("%s, want lost %+v", what, want)
	}
	return what
}

func (m *model) tryRelease() string {
	h := m.holder()
	d, ok := m.held(h)
	if !ok {
		return ""
	}
	lease := pick(m, []time.Duration{0, m.Lease / 10, m.Lease, m.Lease})
	why := fmt.Sprintf("why %d", m.rand.IntN(100))
	err := m.Registry.Release(m.ctx, h, lease, why)
	what := fmt.Sprintf("Release(%+v, %v, %s) = %v", h, lease, why, err)
	switch {
	case d == nil:
		if !errors.Is(err, registry.ErrLost) {
			m.Errorf("%s, want ErrLost", what)
		}
	case err != nil:
		m.Errorf("%s, want it done", what)
	default:
		d.tunnel, d.why = registry.Incumbent{}, why
		d.seen, d.until = m.now, m.now+lease
		m.device(h.Device)
	}
	return what
}

func (m *model) tryBeat() string {
	n := registry.Node{NodeRef: registry.NodeRef{ID: pick(m, someNodes)}, Clients: m.rand.IntN(100)}
	old, known := m.nodes[n.ID]
	n.Epoch = old.Epoch
	if !known || m.rand.IntN(4) == 0 {
		m.epochs++
		n.Epoch = fmt.Sprintf("e%d", m.epochs)
	}
	err := m.Registry.Beat(m.ctx, n)
	what := fmt.Sprintf("Beat(%+v) = %v", n, err)
	if known && old.Epoch != n.Epoch && m.live(old.NodeRef) {
		if !errors.Is(err, registry.ErrNodeLive) {
			m.Errorf("%s, want ErrNodeLive", what)
		}
		return what
	}
	if err != nil {
		m.Errorf("%s, want it done", what)
	}
	m.nodes[n.ID] = modelNode{n, m.now}
	return what
}

func (m *model) tryLeave() string {
	n := registry.NodeRef{ID: pick(m, someNodes), Epoch: "never"}
	if m.rand.IntN(2) == 0 {
		n = m.nodes[n.ID].NodeRef
	}
	if n.ID == "" {
		return ""
	}
	if err := m.Registry.Leave(m.ctx, n); err != nil {
		m.Errorf("Leave(%+v): %v", n, err)
	}
	if m.nodes[n.ID].Epoch == n.Epoch {
		delete(m.nodes, n.ID)
	}
	return fmt.Sprintf("Leave(%+v)", n)
}

// tryAdvance lets time pass, where the model can follow it: a moment, a
// heartbeat, a lease, a rest, or just up to something's end or to before it.
func (m *model) tryAdvance() string {
	if !m.Exact {
		return ""
	}
	var d time.Duration
	switch m.rand.IntN(10) {
	case 0, 1, 2:
		d = time.Duration(1+m.rand.IntN(100)) * time.Millisecond
	case 3, 4, 5:
		d = time.Duration(m.rand.Int64N(int64(m.NodeTTL)))
	case 6:
		d = time.Duration(m.rand.Int64N(int64(m.Lease)))
	case 7:
		d = time.Duration(m.rand.Int64N(int64(m.PortRest)))
	default:
		var ends []time.Duration
		for _, id := range slices.Sorted(maps.Keys(m.devices)) {
			ends = append(ends, m.devices[id].until)
		}
		for _, p := range slices.Sorted(maps.Keys(m.rests)) {
			ends = append(ends, m.rests[p].until)
		}
		if len(ends) > 0 {
			d = pick(m, ends) - m.now - time.Duration(m.rand.IntN(2))*time.Millisecond
		}
	}
	d = d.Truncate(time.Millisecond)
	if d <= 0 {
		return ""
	}
	m.Advance(d)
	m.now += d
	return fmt.Sprintf("advance %v", d)
}

// keepBeating keeps nodes alive where time passes of its own.
func (m *model) keepBeating() {
	if m.Exact || m.rand.IntN(20) > 0 {
		return
	}
	for _, n := range m.nodes {
		m.beat(n.Node)
	}
}

func (m *model) tryReopen() string {
	if m.Reopen == nil {
		return ""
	}
	m.Registry = m.Reopen()
	for _, n := range m.nodes {
		m.leave(n.ID, n.Epoch)
	}
	clear(m.nodes)
	for _, id := range someDevices {
		if d := m.device(id); d != nil && d.tunnel.Tunnel != "" {
			d.tunnel, d.why, d.orphan = registry.Incumbent{}, registry.WhyNodeGone, true
		}
	}
	return "reopen"
}

// compare compares all that can be seen with the model.
func (m *model) compare() {
	m.Helper()
	var all []string
	for _, id := range slices.Sorted(slices.Values(someDevices)) {
		got, err := m.Registry.ByDevice(m.ctx, id)
		d := m.device(id)
		if d == nil {
			if !errors.Is(err, registry.ErrUnknown) {
				m.Errorf("ByDevice(%s) = %+v, %v, want ErrUnknown", id, got, err)
			}
			continue
		}
		if err != nil {
			m.Errorf("ByDevice(%s): %v", id, err)
			continue
		}
		m.compareRecord(id, d, got)
		all = append(all, line(got))
	}
	for _, label := range someLabels {
		got, err := m.Registry.ByLabel(m.ctx, label)
		if id := m.labelled(label); id == "" && !errors.Is(err, registry.ErrUnknown) || id != "" && (err != nil || got.Device != id || got.Label != label) {
			m.Errorf("ByLabel(%s) = %+v, %v, want device %q", label, got, err, id)
		}
	}
	page, err := m.Registry.Devices(m.ctx, "", len(someDevices))
	var listed []string
	for _, r := range page {
		listed = append(listed, line(r))
	}
	if err != nil || !slices.Equal(listed, all) {
		m.Errorf("Devices: %v\n got %s\nwant %s", err, strings.Join(listed, "\n     "), strings.Join(all, "\n     "))
	}
	m.compareNodes()
}

func (m *model) compareRecord(id string, d *modelDevice, got registry.Record) {
	m.Helper()
	want := registry.Record{
		Device: id, Label: d.label, Generation: d.generation, Online: d.tunnel, Why: d.why,
		Ports: d.ports, Until: got.Until, Seen: got.Seen,
	}
	if d.tunnel.Tunnel != "" && !m.live(d.tunnel.Node) {
		want.Online, want.Why = registry.Incumbent{}, registry.WhyNodeGone
	}
	if len(want.Ports) == 0 {
		want.Ports = nil
	}
	m.same(want, got)
	if length := got.Until.Sub(got.Seen) - (d.until - d.seen); length < -2*time.Millisecond || length > 2*time.Millisecond {
		m.Errorf("%s: the lease runs %v, want %v", id, got.Until.Sub(got.Seen), d.until-d.seen)
	}
	if !m.Exact {
		return
	}
	if m.start.IsZero() {
		m.start = got.Seen.Add(-d.seen)
	}
	if !near(got.Seen, m.start.Add(d.seen)) {
		m.Errorf("%s: seen %v, want %v", id, got.Seen, m.start.Add(d.seen))
	}
}

func (m *model) compareNodes() {
	m.Helper()
	var want []registry.Node
	for _, id := range someNodes {
		if n, ok := m.nodes[id]; ok && m.live(n.NodeRef) {
			want = append(want, n.Node)
		}
	}
	m.suite.nodes(want...)
}

// near allows for rounding to milliseconds.
func near(a, b time.Time) bool {
	d := a.Sub(b)
	return -2*time.Millisecond <= d && d <= 2*time.Millisecond
}
