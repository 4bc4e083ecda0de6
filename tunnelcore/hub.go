// Package tunnelcore is the edge without a host: a hub of device tunnels that
// accepts agents and dials devices.
package tunnelcore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// refusalsLogged bounds the log lines per second that strangers can cause.
const refusalsLogged = 50

// renameTime is what the tunnels of a hub are spread over that must all come
// back for new hostnames.
const renameTime = 30 * time.Second

// Config is what a hub is made of; it does not change while the hub lives.
type Config struct {
	Node     string // node id
	Registry registry.Registry
	Settings Settings
	Observer Observer // may be nil
	// Unserved is closed when the host brings no visitors any more. Until then a hub that
	// shuts down goes on to reach the devices of other nodes for them. nil: it brings
	// none once it has called Shutdown.
	Unserved <-chan struct{}
}

// Hub holds the tunnels of one node. All methods may be called concurrently.
//
// Locks, outer before inner: Hub.mu, ports.mu, device.mu, tunnel.mu. None is held during
// I/O or a callback.
type Hub struct {
	node     registry.NodeRef
	reg      registry.Registry
	observer Observer
	settings atomic.Pointer[Settings]
	started  time.Time
	unserved <-chan struct{} // Config.Unserved

	// wg counts the goroutines and streams of the hub; begin and end change it.
	wg sync.WaitGroup
	// ctx ends when Shutdown runs out of patience: registry calls and loops end.
	ctx    context.Context
	cancel context.CancelFunc
	// unhurried ends when Retire must not spread any longer what it does, patient
	// when streams must end, and down is closed when it is done.
	unhurried, patient life
	down               chan struct{}
	// changed makes refreshing look at the lease again after Update.
	changed chan struct{}
	// lapsed makes refreshing look whether tunnels still hold their devices: this node
	// may have counted as dead. beaten is when its last heartbeat was taken, in
	// nanoseconds since started.
	lapsed chan struct{}
	beaten atomic.Int64

	handshakes handshakeLimiter
	arrivals   gate
	admission  admission
	refusals   bucket // of log lines
	guesses    bucket // of claim codes

	lastRefusals refusalLog
	grants       *grants

	ports    *ports
	visitors *visitors
	usage    usage

	// link leads to the other nodes, and routes tell which devices are there.
	link      *cluster.Link
	routes    *routes
	newcomers atomic.Pointer[[]registry.Node] // of which the heartbeat may not know yet
	looks     bucket                          // for those
	bereaved  atomic.Int64                    // when a node was last found gone, in nanoseconds since started
	answered  atomic.Int64                    // when the registry began to answer again, likewise; 0: it always has

	unanswered atomic.Bool // the last heartbeat

	streams, parked atomic.Int64 // for Stats
	parkedFor       time.Duration

	// joined: the registry knows this node, so that claims count.
	joined atomic.Bool
	// notices counts those about devices; a handshake that was under way meanwhile
	// looks again whether its device may be connected.
	notices atomic.Int64
	// undecided: of some tunnel it could not be told whether it may be connected.
	undecided atomic.Bool

	// labels holds the live tunnel of each label: the visitors' way past mu.
	labels sync.Map // string → *tunnel

	// mu guards what follows.
	mu       sync.Mutex
	stopping bool // nothing new is taken
	draining drain
	closed   bool                 // and nothing goes on
	devices  map[string]*device   // those with a tunnel, with streams, or just gone
	gone     map[*device]struct{} // those of devices without a tunnel
	tunnels  map[string]*tunnel   // by tunnel id
	claiming map[string]struct{}
	coming   map[*tunnel]struct{} // those that were let in and are not up yet
	wheel    wheel
}

// life is a context with what ends it.
type life struct {
	ctx    context.Context
	cancel context.CancelFunc
}

// newLife makes a life that ends with ctx at the latest.
func newLife(ctx context.Context) life {
	ctx, cancel := context.WithCancel(ctx)
	return life{ctx, cancel}
}

// New makes a hub and takes ownership of c.Registry, also when it fails. It
// fails when another live process has the same node id; one that has just died is
// waited for. A registry that does not answer is none of these: agents are let in
// when it does.
func New(c Config) (*Hub, error) {
	h := &Hub{
		node:      registry.NodeRef{ID: c.Node, Epoch: wire.NewID()},
		reg:       c.Registry,
		observer:  cmp.Or[Observer](c.Observer, unobserved{}),
		started:   time.Now(),
		unserved:  c.Unserved,
		changed:   make(chan struct{}, 1),
		lapsed:    make(chan struct{}, 1),
		down:      make(chan struct{}),
		parkedFor: parkedTime,
		devices:   make(map[string]*device),
		gone:      make(map[*device]struct{}),
		tunnels:   make(map[string]*tunnel),
		claiming:  make(map[string]struct{}),
		coming:    make(map[*tunnel]struct{}),
		admission: admission{moved: make(chan struct{}, 1)},
		visitors:  newVisitors(),
	}
	h.ports = &ports{
		hub:  h,
		open: make(map[uint16]*publicPort),
		by:   make(map[string][]*publicPort),
	}
	h.routes = newRoutes(h)
	h.grants = newGrants(h)
	h.looks.set(lookBurst, lookRate)
	h.guesses.set(wrongCodes, wrongCodeRate)
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.patient = newLife(h.ctx)
	h.unhurried = newLife(h.patient.ctx)
	h.link = cluster.NewLink(cluster.Config{Node: h.node, Local: served{h}, Logger: h.log})
	h.store(c.Settings)
	if err := h.join(); err != nil {
		h.cancel()
		h.link.Close()
		return nil, errors.Join(fmt.Errorf("node %q: %w", c.Node, err), c.Registry.Close())
	}
	h.wg.Go(h.housekeeping)
	h.wg.Go(h.beating)
	h.wg.Go(h.refreshing)
	h.wg.Go(h.watching)
	h.wg.Go(h.grants.watching)
	h.wg.Go(h.ports.follow)
	h.wg.Go(h.routing)
	if r, ok := h.reg.(registry.Restorer); ok {
		h.wg.Go(func() { h.restoring(r) })
	}
	return h, nil
}

// Update replaces the settings. Live tunnels are authorised again: those that
// fail are closed with code 4003. After a change of domain or hostname mode all
// are closed with 1012, one after the other, for agents to learn their new names;
// else agents are told of the bounds and public ports that have changed.
func (h *Hub) Update(s Settings) {
	old := h.settings.Load()
	h.store(s)
	select {
	case h.changed <- struct{}{}:
	default: // refreshing looks anyway
	}
	if !h.begin() {
		return
	}
	go func() { // Shutdown waits for it
		defer h.wg.Done()
		all := h.live()
		for _, t := range all {
			if errors.Is(h.reauthorise(t), ErrUndecided) {
				break // all are looked at when it can be told
			}
		}
		if h.settings.Load().renames(old) {
			h.closeAll(h.ctx, h.ctx, whyRenamed, renameTime)
			return
		}
		for _, t := range all {
			h.rebound(t)
		}
	}()
}

// renames reports whether devices have other hostnames than by old.
func (s *Settings) renames(old *Settings) bool {
	return s.Domain != old.Domain || s.Hostname != old.Hostname
}

// closeAll tells the agents of all tunnels to come back, spread over d; the rest
// at once when unhurried ends. Streams that would end with their tunnel may go on
// for a while, until patient ends.
func (h *Hub) closeAll(unhurried, patient context.Context, why string, d time.Duration) {
	all := h.live()
	for i, t := range all {
		h.wg.Go(func() {
			t.settle(patient)
			t.close(wire.CloseRestart, why)
		})
		if i == len(all)-1 {
			return
		}
		pause := time.NewTimer(min(d/time.Duration(len(all)), time.Second))
		select {
		case <-unhurried.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// store makes s the settings in force, with what is missing filled in.
func (h *Hub) store(s Settings) {
	d := Defaults()
	s.Scheme = cmp.Or(s.Scheme, d.Scheme)
	s.Hostname = cmp.Or(s.Hostname, d.Hostname)
	s.Lease = cmp.Or(s.Lease, d.Lease)
	s.Heartbeat = cmp.Or(s.Heartbeat, d.Heartbeat)
	s.OpenTimeout = cmp.Or(s.OpenTimeout, d.OpenTimeout)
	s.GrantTrust = cmp.Or(s.GrantTrust, d.GrantTrust)
	s.Limits = s.Limits.orDefaults(d.Limits)
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	h.settings.Store(&s)
	h.handshakes.setLimit(s.Limits.UnauthenticatedPerAddress)
	h.link.SetSecrets(s.Node.Secrets)
	h.arrivals.set(float64(s.Limits.NewTunnels), float64(s.Limits.NewTunnels))
	h.refusals.set(refusalsLogged, refusalsLogged)
}

func (h *Hub) log() *slog.Logger { return h.settings.Load().Logger }

// emit tells the host of an event.
func (h *Hub) emit(name string, data map[string]any) {
	if f := h.settings.Load().Events; f != nil {
		f(name, data)
	}
}

// begin counts something that Shutdown waits for; false once it has begun to.
// The counterpart is wg.Done.
func (h *Hub) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return false
	}
	h.wg.Add(1)
	return true
}

// beginTransfer is begin for what streams need that live, and for visitors who can be
// served by another node: it goes on while Shutdown waits for streams.
func (h *Hub) beginTransfer() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.wg.Add(1)
	return true
}

// reauthorise closes a tunnel, and its streams, that today's authenticators do
// not let in, and returns why. ErrUndecided: they could not tell, and are asked
// again when they can.
func (h *Hub) reauthorise(t *tunnel) error {
	err := authenticate(h.ctx, h.settings.Load().Authenticators, t.credential)
	if err == nil || h.ctx.Err() != nil {
		return nil
	}
	if errors.Is(err, ErrUndecided) {
		h.undecided.Store(true)
		return err
	}
	t.log().Warn("authorisation withdrawn", "reason", err)
	t.oust()
	t.device.dropStreams()
	if errors.Is(err, ErrExpired) {
		t.closeSoon(wire.CloseExpired, whyExpired)
		return err
	}
	t.closeSoon(wire.CloseRevoked, whyWithdrawn)
	return err
}

// rebound brings a tunnel to today's settings, and tells its agent.
func (h *Hub) rebound(t *tunnel) {
	ctx, cancel := context.WithTimeout(h.ctx, registryTimeout)
	defer cancel()
	b := t.bounds(h.settings.Load())
	b.addresses = h.leasePorts(ctx, t)
	if t.setBounds(b) {
		t.announceSoon()
	}
}

func (h *Hub) isStopping() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stopping
}

// live returns the tunnels there are.
func (h *Hub) live() []*tunnel {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*tunnel, 0, len(h.tunnels))
	for _, t := range h.tunnels {
		all = append(all, t)
	}
	return all
}

// Stats are numbers of what a hub holds now.
type Stats struct {
	Tunnels int // live
	Streams int // open, of visitors
	Parked  int // transfer sockets that wait for a stream
	// Draining: the node gives its devices to others (Hub.Drain), or is about to stop.
	Draining bool
}

// Stats tells what h holds. It costs next to nothing.
func (h *Hub) Stats() Stats {
	own := h.self()
	return Stats{Tunnels: own.Clients, Streams: int(h.streams.Load()), Parked: int(h.parked.Load()), Draining: own.Draining}
}

// Tunnels is the number of live tunnels.
func (h *Hub) Tunnels() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.tunnels)
}

// Shutdown tells agents to come back (close code 1012), lets visitors come for devices
// of other nodes (see Config.Unserved) and streams run until ctx ends, closes what is
// left, and waits for every goroutine of the hub. It closes the registry last. Called
// while Retire is under way it makes that one hurry, and waits for it.
func (h *Hub) Shutdown(ctx context.Context) error { return h.Retire(ctx, 0) }

// Retire is Shutdown for a process that goes on, with another registry or as
// another node: it tells agents one after the other, over spread, so that not all
// of them arrive at once there. Nothing new is opened meanwhile.
func (h *Hub) Retire(ctx context.Context, spread time.Duration) error {
	h.mu.Lock()
	first := !h.stopping
	h.stopping = true
	h.mu.Unlock()
	if !first {
		h.unhurried.cancel()
		defer context.AfterFunc(ctx, h.patient.cancel)()
		<-h.down
		return nil
	}
	defer close(h.down)
	defer h.patient.cancel()
	defer context.AfterFunc(ctx, h.patient.cancel)()
	h.leaving(ctx)
	h.ports.close()
	h.closeAll(h.unhurried.ctx, h.patient.ctx, whyStopping, spread)
	h.waitForVisitors(h.patient.ctx)
	h.waitForStreams(h.patient.ctx)
	h.cancel()
	h.link.Close()
	h.mu.Lock()
	h.closed = true
	devices := make([]*device, 0, len(h.devices))
	for _, d := range h.devices {
		devices = append(devices, d)
	}
	h.mu.Unlock()
	for _, t := range h.live() {
		t.sock.Close()
	}
	for _, d := range devices {
		d.dropStreams()
	}
	h.wg.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), registryTimeout)
	defer cancel()
	return errors.Join(h.reg.Leave(last, h.node), h.reg.Close())
}

// waitForVisitors returns when the host brings no more, or with ctx. Sites that stop
// still finish what they have begun, and take requests on connections that are open:
// those for devices of other nodes can be served.
func (h *Hub) waitForVisitors(ctx context.Context) {
	if h.unserved == nil {
		return
	}
	select {
	case <-h.unserved:
	case <-ctx.Done():
	}
}

// waitForStreams returns when no tunnel and no stream is left, or with ctx.
func (h *Hub) waitForStreams(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for h.busy() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *Hub) busy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.tunnels) > 0 {
		return true
	}
	if h.link.Streams() > 0 { // through other nodes
		return true
	}
	for _, d := range h.devices {
		if d.streaming() {
			return true
		}
	}
	return false
}

// hashed is what is kept of a secret: comparing hashes takes the same time
// wherever they differ.
func hashed(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }
