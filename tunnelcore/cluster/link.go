// Package cluster makes several edge nodes one edge.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"

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

// Link is this node's end of the connections between the nodes of a cluster.
type Link struct {
	config Config
}

// NewLink makes a link that lets nobody in, nor goes out, before SetSecrets.
func NewLink(c Config) *Link { return &Link{config: c} }

// SetSecrets says what proves a peer to be one: the first is used, all are accepted.
// With none there is no link in either direction.
func (l *Link) SetSecrets(secrets []string) {}

// Serve answers a peer's request at Path.
func (l *Link) Serve(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }

// Dial opens a stream of a tunnel on the peer p.
func (l *Link) Dial(ctx context.Context, p Peer, o Open) (*stream.Stream, error) {
	return nil, ErrAway
}

// Pass returns a connection to p's ServeConn.
func (l *Link) Pass(ctx context.Context, p Peer, a Agent) (net.Conn, error) { return nil, ErrAway }

// Probe asks p whether the agent of a tunnel is alive.
func (l *Link) Probe(ctx context.Context, p Peer, device, tunnel string) (alive bool, err error) {
	return false, ErrAway
}

// Replaced tells p that the tunnel of h has replaced one of p's.
func (l *Link) Replaced(ctx context.Context, p Peer, h registry.Holder) error { return ErrAway }

// Info asks p what it knows of a device.
func (l *Link) Info(ctx context.Context, p Peer, device string) (json.RawMessage, error) {
	return nil, ErrAway
}

// Forget closes all sockets to and from a peer that is dead.
func (l *Link) Forget(n registry.NodeRef) {}

// Close closes everything, and waits until nothing of the link is left.
func (l *Link) Close() {}
