// Package registry records who holds which label, port and tunnel: the leases of
// devices and the nodes that serve them.
//
// Memory keeps them for a single node; package redisregistry shares them between
// nodes. One conformance suite, registrytest, holds both to what Registry says.
package registry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Holder names one tunnel of one device. Whatever changes a device's record
// names the holder it believes in, and changes nothing when another one holds
// the device by now: a late goodbye can never hurt a newer tunnel.
type Holder struct {
	Device     string
	Generation int64 // grows with every claim of the device, over expiry and restarts
	Tunnel     string
}

// NodeRef is one start of one node: the epoch is new each time.
type NodeRef struct {
	ID    string
	Epoch string
}

// Claim asks for a device on behalf of a tunnel that is about to live on a node.
type Claim struct {
	Device   string
	Instance string
	Tunnel   string
	// Node is where the tunnel lives. It should have beaten by then: the tunnel
	// counts as live only while its node does.
	Node NodeRef
	// Label is taken when the device has no lease, or when its lease has run
	// out. A device with a lease keeps the label it has. Never empty.
	Label string
	// Lease is how long label and ports stay the device's after it has left;
	// more than zero. While the tunnel lives, the lease runs for a third more,
	// from the claim or the last Refresh.
	Lease time.Duration
	// Evict names the holder that was found dead and may be replaced although it
	// is of another instance; zero when none was.
	Evict Holder
}

// Lease is what a granted claim holds.
type Lease struct {
	Holder
	Label string
	Until time.Time // when it would end without a refresh: Claim.Lease and a third from now
	// Fresh says that the label is new: the device had none, or lost it.
	Fresh bool
	// Previous is the tunnel that this claim replaced while it lived, evicted ones
	// included; zero when there was none. The winner tells the loser.
	Previous Incumbent
}

// Incumbent is the live holder of a device, and where it is.
type Incumbent struct {
	Holder
	Instance string
	Node     NodeRef
}

// HeldError refuses a claim: another instance holds the device. If the incumbent
// turns out dead, the claim is made again with Evict set to its holder.
type HeldError struct{ Incumbent Incumbent }

func (e *HeldError) Error() string {
	return fmt.Sprintf("registry: device %s is held by a tunnel on node %s", e.Incumbent.Device, e.Incumbent.Node.ID)
}

// Errors of a Registry; an error of the context is returned as it is. Others mean
// that the registry could not tell: nothing is known of the outcome, and trying
// again can help.
var (
	// ErrInvalid: the caller's mistake, an argument that can never work. Nothing
	// has changed.
	ErrInvalid = errors.New("registry: invalid argument")
	// ErrUnknown: no lease of that label or device.
	ErrUnknown = errors.New("registry: not leased")
	// ErrLabelTaken: the candidate label is leased to another device.
	ErrLabelTaken = errors.New("registry: label is leased to another device")
	// ErrLost: the holder does not hold the device any more.
	ErrLost = errors.New("registry: held by a newer tunnel")
	// ErrRestoring: the registry is new, or has lost data, and gives no label and no port
	// away before nodes have written again what they hold. That takes seconds.
	ErrRestoring = errors.New("registry: is new, or has lost data: nodes write again what they hold")
	// ErrSchema: what is recorded is of another version, which this one does not
	// know. The error names the cure; trying again does not help.
	ErrSchema = errors.New("registry: of another version")
	// ErrNodeLive: another live process uses this node id.
	ErrNodeLive = errors.New("registry: node id is in use by another live process")
	// ErrTooManyPorts: the device would have more than MaxPorts public ports, those
	// that rest included. Nothing has changed. It can have new ones once others have
	// rested, after PortRest at most; those that it had it can have at any time.
	ErrTooManyPorts = fmt.Errorf("registry: a device has at most %d public ports, those that rest included", MaxPorts)
)

// PortsFullError refuses ports: none is free in the range.
type PortsFullError struct{ First, Last uint16 }

func (e *PortsFullError) Error() string {
	return fmt.Sprintf("registry: no free port in %d-%d", e.First, e.Last)
}

// PortRest is how long a public port rests after its lease has ended or it was
// given back, so that its visitors do not reach somebody else: only the same port
// of the same device may have it meanwhile.
const PortRest = time.Minute

// MaxPorts is how many public ports a device can have, leased and resting: twice
// as many as one agent may forward, so that it can change them all at once, but
// not empty the range by changing them again and again.
const MaxPorts = 64

// MaxName is how many bytes a device, instance, tunnel, label, node id or epoch
// may have. MaxWhy is how many bytes of a Release's reason are kept; the rest is
// cut off.
const (
	MaxName = 255
	MaxWhy  = 255
)

// WhyNodeGone is the Record.Why of a device whose node stopped without a goodbye,
// or was restarted.
const WhyNodeGone = "edge node gone"

// Record is what is known of a device that has a lease.
type Record struct {
	Device     string
	Label      string
	Generation int64
	// Online is the live tunnel, zero when there is none or its node is not live.
	Online Incumbent
	// Until is when the lease ends unless it is refreshed.
	Until time.Time
	// Seen is when the tunnel was last claimed, refreshed or released.
	Seen time.Time
	// Why is how the last tunnel ended: what Release was told, or WhyNodeGone.
	// Empty while online.
	Why string
	// Ports are the device's ports and the public ports that lead to them; nil
	// when there are none.
	Ports map[uint16]uint16
}

// Node is one live edge process, as the others see it.
type Node struct {
	NodeRef
	URL      string // where agents reach this very node
	Internal string // where routers and other nodes reach it, ip:port
	Clients  int
	Capacity int
	Draining bool
	At       time.Time // of its last heartbeat, on the registry's clock; Beat does not look at it
}

// PortLease is a leased public port, and where it leads: a port of a device.
type PortLease struct {
	Public uint16
	Device string
	Port   uint16
}

// NodeTTL is how long after its last heartbeat a node counts as live, and
// NodeHeartbeat how often it writes one.
const (
	NodeTTL       = 10 * time.Second
	NodeHeartbeat = 3 * time.Second
)

// Registry records leases and nodes. Implementations are safe for concurrent
// use, take time from one clock (Redis' own where it is Redis), and promise:
//
//   - a label is never leased to two devices, nor a public port;
//   - generations of a device only grow, even after its lease has ended;
//   - a call with an old Holder changes nothing and says ErrLost;
//   - after its lease a label is gone, and a port rests for PortRest;
//   - a device has at most MaxPorts public ports, those that rest included;
//   - a lease that has run out holds nothing, though its tunnel may live: the
//     record is gone, the tunnel's Holder is lost, another may claim the device.
//
// Names (see MaxName) that are empty or too long, and durations out of range, are
// ErrInvalid; in a Holder they just match nothing, which is ErrLost, and in a
// look-up they are ErrUnknown. Times are good to the millisecond.
//
// Every call ends with ctx. One that is made with an ended ctx changes nothing;
// one whose ctx ends meanwhile may or may not have been carried out.
// Implementations copy what they keep and what they return.
type Registry interface {
	// Claim takes the device for c.Tunnel, and publishes its route. It is granted
	// when no live tunnel holds the device, when the live one is of the same
	// instance, or is c.Evict; a tunnel is live while its node is (the node's
	// last heartbeat is younger than NodeTTL and of the tunnel's epoch). Else the
	// error is *HeldError; ErrLabelTaken asks for another candidate. After either
	// nothing has changed.
	Claim(ctx context.Context, c Claim) (Lease, error)

	// LeasePorts gives each port of want a public port in [first, last]: the same
	// as before while the lease holds, else the one that it had last if that still
	// rests, as long as the range has it; else a free one. Those of the device that
	// are not in want are given back: they rest, also after this very call. first =
	// 0 gives all back. It changes nothing and says ErrTooManyPorts if with the free
	// ones it needs the device would have more than MaxPorts; else *PortsFullError
	// if there are not that many. Ports belong to the lease, not to the tunnel: the
	// next tunnel of the device finds them.
	//
	// A zero in want, or a first above last, is ErrInvalid. Repeated ports count once.
	LeasePorts(ctx context.Context, h Holder, want []uint16, first, last uint16) (map[uint16]uint16, error)

	// Ports returns the public ports that are leased, in no order, and now, the
	// version of the list. Where that is still version, nothing has changed and the
	// list is nil; it never is for version 0. Ports that rest are not in the list,
	// those of devices that are offline are, as long as their lease runs.
	//
	// After a loss of data it fails until what is held has been written again: that
	// ports are missing does not mean meanwhile that they are not leased. A list that
	// comes with the error has some that are.
	Ports(ctx context.Context, version int64) (leases []PortLease, now int64, err error)

	// Refresh sets the leases of live tunnels to end lease and a third from now,
	// so that after a crash a full lease remains; lease is more than zero. It
	// returns the holders that are lost, in their order.
	Refresh(ctx context.Context, lease time.Duration, holders []Holder) (lost []Holder, err error)

	// Release ends a tunnel: the device is offline, for the reason why (shown to
	// operators), and its lease runs out after lease, at once when that is zero;
	// less is ErrInvalid. Releasing twice is ErrLost.
	Release(ctx context.Context, h Holder, lease time.Duration, why string) error

	// ByLabel returns the record of the device that a label is leased to, or
	// ErrUnknown.
	ByLabel(ctx context.Context, label string) (Record, error)

	// ByDevice returns the record of a device, or ErrUnknown.
	ByDevice(ctx context.Context, device string) (Record, error)

	// Devices lists records in the order (by bytes) of device ids, those after
	// `after`, which need not exist; at most limit, and fewer only at the end of
	// the list. A limit of zero or less lists nothing.
	Devices(ctx context.Context, after string, limit int) ([]Record, error)

	// Drop ends the lease of a device at once, whoever holds it: label and ports are
	// gone as after a Release with lease 0, and the holder, if there is one, is lost.
	// Without a lease it is ErrUnknown.
	Drop(ctx context.Context, device string) error

	// Beat is a node's heartbeat, and says what the others see of it from now on.
	// It is ErrNodeLive while another epoch of the same id is live: the newcomer
	// waits for that to end, and who finds its id taken while it was silent stops.
	Beat(ctx context.Context, n Node) error

	// Leave ends the node's life at once; its tunnels no longer count as live.
	// It does nothing when another epoch has the id by now.
	Leave(ctx context.Context, n NodeRef) error

	// Nodes lists the live nodes in the order of ids.
	Nodes(ctx context.Context) ([]Node, error)

	// Time returns the present moment on the registry's clock, which is the same for
	// all nodes whatever their own clocks say.
	Time(ctx context.Context) (time.Time, error)

	Credentials
	Grants
	Journals
	Hinter

	// Close frees what the registry holds; nothing may be called after it.
	Close() error
}
