// Package cluster makes several edge nodes one edge.
package cluster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// Path is where a node serves its peers, on its internal address.
const Path = "/.iottunnel/link/v1"

// Errors of calls to a peer. Either way nothing was sent to the device.
var (
	// ErrNotHere: the peer, or this very start of it, does not hold the tunnel.
	ErrNotHere = errors.New("cluster: not here")
	// ErrAway: the peer does not answer, or not in time, or is not let in.
	ErrAway = errors.New("cluster: the peer does not answer")
)

// Peer is another node.
type Peer struct {
	registry.NodeRef
	Internal string // where it serves its peers, ip:port or host:port
}

// Open asks for a stream to a port of a device, on behalf of a visitor at From.
type Open struct {
	Device string
	Tunnel string
	Port   uint16
	From   netip.AddrPort
}

// Agent is whose request a connection carries that is passed on to a peer.
type Agent struct {
	Remote netip.Addr // where the agent is
	TLS    bool       // it came by TLS, to us or to a router
}

// Local is what a node does for its peers. Its methods may be called
// concurrently, and return soon after ctx has ended.
type Local interface {
	// DialTunnel opens a stream of a tunnel of this node, and of no other: a request
	// is passed on once. ErrNotHere says that the tunnel is not here; a failure that
	// the visitor should hear of is an *answers.Error.
	DialTunnel(ctx context.Context, o Open) (*stream.Stream, error)
	// Probe asks the agent of a tunnel whether it is alive. ctx ends when the peer
	// no longer waits.
	Probe(ctx context.Context, device, tunnel string) (alive bool)
	// Replaced says that a newer tunnel has the device of h: an older one on this node
	// is over.
	Replaced(h registry.Holder)
	// Info is what peers may know of a device whose tunnel is here, to be marshalled as
	// JSON of at most 64 KiB; false when it is not here.
	Info(device string) (any, bool)
	// ServeConn serves an agent whose HTTP request is to be read from c. It owns c, and
	// returns when it is done with it, or has handed it on.
	ServeConn(ctx context.Context, c net.Conn, a Agent)
}

// Config of a Link.
type Config struct {
	Node   registry.NodeRef // this node
	Local  Local
	Logger func() *slog.Logger
}

// Link is this node's end of the connections between the nodes of a cluster: one
// WebSocket per stream, used again and again (docs/cluster.md). All methods may be
// called concurrently.
type Link struct {
	config  Config
	connect func(ctx context.Context, network, address string) (net.Conn, error)
	secrets atomic.Pointer[[]string] // in force

	tendEvery time.Duration // tendTime
	patience  patience      // standard

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // counts the sockets, and goroutines besides

	streams       atomic.Int64 // that Dial and Pass have returned
	unprovedCount atomic.Int64
	refused       atomic.Int64 // when the last one was logged, in ns since 1970

	mu       sync.Mutex // guards what follows, and some of each conn; held for no I/O
	closed   bool
	tended   bool // tend was started
	inbound  int
	unproved []*conn // that have proved nothing yet, the oldest first
	pools    map[registry.NodeRef]*pool
}

// patience is how long a link waits for a peer: to answer, to give a sign of life, and
// for one of the handshakes with it to end.
type patience struct{ answer, hail, place time.Duration }

var standard = patience{answerTime, hailTime, placeTime}

// NewLink makes a link that lets nobody in, nor goes out, before SetSecrets. It costs
// nothing while it has no peers.
func NewLink(c Config) *Link {
	l := &Link{config: c, connect: new(net.Dialer).DialContext, tendEvery: tendTime, patience: standard, pools: make(map[registry.NodeRef]*pool)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.secrets.Store(new([]string))
	return l
}

// SetSecrets says what proves a node to be one of ours: two nodes need one in common,
// and any of the first maxSecrets will do. Sockets that were opened with another one
// serve no further request. With none there is no link in either direction.
func (l *Link) SetSecrets(secrets []string) {
	secrets = slices.Clone(secrets[:min(len(secrets), maxSecrets)])
	l.secrets.Store(&secrets)
	if len(secrets) > 0 {
		return
	}
	l.mu.Lock()
	all := l.allLocked()
	l.mu.Unlock()
	l.end(all)
}

// inForce are the secrets; not to be changed.
func (l *Link) inForce() []string { return *l.secrets.Load() }

// shares reports whether a secret is in force.
func (l *Link) shares(secret string) bool { return slices.Contains(l.inForce(), secret) }

// Forget has all sockets closed to and from a peer that is dead, which it does not wait
// for. What is asked of it later is tried anew.
func (l *Link) Forget(n registry.NodeRef) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pools[n]
	if p == nil || l.closed {
		return // Close closes them
	}
	p.forgotten, p.silent = true, time.Time{}
	all := slices.Collect(maps.Keys(p.conns))
	parked := l.banLocked(all) // at once: nobody gets one of them any more
	l.wg.Go(func() { l.endBanned(all, parked) })
}

// Close closes everything, streams included, and waits until nothing of the link is
// left. Whatever is asked of it later is ErrAway.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	all := l.allLocked()
	l.mu.Unlock()
	l.cancel()
	l.end(all)
	l.wg.Wait()
}

// Streams is how many of the streams that Dial and Pass have returned are open.
func (l *Link) Streams() int { return int(l.streams.Load()) }

// Stats is what a link has at the moment.
type Stats struct {
	In, Out  int   // sockets of peers, and to them
	Idle     int   // those of Out that wait for a stream
	Unproved int64 // how often somebody had none of our secrets, so far
}

// Stats counts.
func (l *Link) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{Unproved: l.unprovedCount.Load()}
	for _, p := range l.pools {
		s.Idle += len(p.idle)
		for c := range p.conns {
			if c.inbound {
				s.In++
			} else {
				s.Out++
			}
		}
	}
	return s
}

func (l *Link) log() *slog.Logger {
	if l.config.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.config.Logger()
}

// refuse logs what strangers and faulty peers do, once a second at most.
func (l *Link) refuse(what, node, remote string, err error) {
	now, last := time.Now().UnixNano(), l.refused.Load()
	if now-last < int64(time.Second) || !l.refused.CompareAndSwap(last, now) {
		return
	}
	l.log().Warn(what, "node", cutText(node, 64), "remote", remote, "reason", err)
}
