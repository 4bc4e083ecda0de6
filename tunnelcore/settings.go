package tunnelcore

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// HostnameMode is how a device gets its label.
type HostnameMode string

const (
	// HostnameRandom leases a random label of 80 bits.
	HostnameRandom HostnameMode = "random"
	// HostnameDevice leases the device id itself.
	HostnameDevice HostnameMode = "device"
)

// Settings are what an operator configures of an edge. They may change while it
// runs (Hub.Update): tunnels live on, and what is new counts from then on.
type Settings struct {
	// Domain under which devices get their names, in normal form.
	Domain string
	// Scheme and Port of the URLs that visitors use; an empty port is the
	// scheme's own.
	Scheme string
	Port   string
	// Hostname is how labels are made.
	Hostname HostnameMode
	// Lease is how long a device that has left keeps its label and ports.
	Lease time.Duration
	// Heartbeat is the interval of pings to agents that ask for none.
	Heartbeat time.Duration
	// Wait is how long a visitor waits for a device whose tunnel has just ended
	// without a goodbye.
	Wait time.Duration
	// OpenTimeout is how long a device may take to answer an open.
	OpenTimeout time.Duration
	// Without are capabilities that agents do not get, although this edge has them.
	Without wire.Caps
	// AllowPlaintext lets agents come without TLS from elsewhere than loopback.
	AllowPlaintext bool
	// TCP are the public ports for what is not HTTP; nil: there are none.
	TCP *TCPPorts
	// Authenticators are asked in turn; without one nobody is let in.
	Authenticators []Authenticator
	// Enrollment lets devices exchange claim codes for secrets.
	Enrollment bool
	// Connect lets technicians who have a grant reach ports of devices at ConnectPath.
	Connect bool
	// GrantTrust is for how long a grant is believed of which the registry says nothing,
	// because it does not answer.
	GrantTrust time.Duration
	// Audit is told of each visit that was no HTTP request, when it is over; may be
	// nil. It must not block.
	Audit func(Visit)
	// Node is how this node takes part in a cluster.
	Node   NodeSettings
	Limits Limits
	// Visitor tells, by the context of a look-up, the address of who asks; the zero Addr
	// where it is not known. One address can ask for so many names that nobody has, and
	// those without one together for so many. It may be nil, and must not block.
	Visitor func(ctx context.Context) netip.Addr
	// Logger receives what operators read; nil discards it.
	Logger *slog.Logger
	// Events is told of `online`, `offline`, `cloned` and `limited`, with the device, and
	// of `drained`, with the node, outside locks; may be nil. It must not block.
	Events func(name string, data map[string]any)
	// TunnelEnded is told the id of each tunnel that is over, maybe twice, and Crowded the id
	// of one whose device has no room for the stream that a visitor waits for: a
	// host that keeps idle connections to devices closes them then. Both may be
	// nil, and must not block.
	TunnelEnded func(tunnel string)
	Crowded     func(tunnel string)
}

// NodeSettings are how a node takes part in a cluster.
type NodeSettings struct {
	// URL is where agents reach this very node; without one they are neither sent
	// here nor from here elsewhere.
	URL string
	// Internal is where other nodes and routers reach this one, host:port.
	Internal string
	// Secrets prove the nodes of a cluster to each other: the first is used, all are
	// accepted.
	Secrets []string
}

// Limits bound what devices and visitors can make an edge hold.
type Limits struct {
	Tunnels                   int           // live tunnels on this node
	NewTunnels                int           // accepted per second, after authentication
	StreamsPerDevice          int           // at once
	StreamsPerAddress         int           // at once to one device from one visitor address
	RequestsPerDevice         int           // per second through this node; 0: no bound
	BandwidthPerDevice        int64         // bytes per second through this node, both directions together; 0: no bound
	BufferPerDevice           int           // bytes on their way in streams that have no transfer socket, both directions together
	HandshakeTimeout          time.Duration // from the request to the 101
	HeaderBytes               int           // of an agent's handshake
	UnauthenticatedPerAddress int           // handshakes under way, or refused in the last minute
}

// Defaults are the settings that hold where an operator wrote none. Domain and
// Authenticators have none.
func Defaults() Settings {
	return Settings{
		Scheme:      "https",
		Hostname:    HostnameRandom,
		Lease:       720 * time.Hour,
		Heartbeat:   wire.DefaultHeartbeat * time.Second,
		Wait:        5 * time.Second,
		OpenTimeout: 15 * time.Second,
		GrantTrust:  15 * time.Minute,
		Limits: Limits{
			Tunnels:                   20000,
			NewTunnels:                200,
			StreamsPerDevice:          wire.DefaultStreams,
			StreamsPerAddress:         16,
			BufferPerDevice:           2 * wire.DefaultEarlyTotal,
			HandshakeTimeout:          10 * time.Second,
			HeaderBytes:               8 << 10,
			UnauthenticatedPerAddress: 32,
		},
	}
}

// orDefaults fills in what is zero.
func (l Limits) orDefaults(d Limits) Limits {
	return Limits{
		Tunnels:                   cmp.Or(l.Tunnels, d.Tunnels),
		NewTunnels:                cmp.Or(l.NewTunnels, d.NewTunnels),
		StreamsPerDevice:          cmp.Or(l.StreamsPerDevice, d.StreamsPerDevice),
		StreamsPerAddress:         cmp.Or(l.StreamsPerAddress, d.StreamsPerAddress),
		RequestsPerDevice:         cmp.Or(l.RequestsPerDevice, d.RequestsPerDevice),
		BandwidthPerDevice:        cmp.Or(l.BandwidthPerDevice, d.BandwidthPerDevice),
		BufferPerDevice:           cmp.Or(l.BufferPerDevice, d.BufferPerDevice),
		HandshakeTimeout:          cmp.Or(l.HandshakeTimeout, d.HandshakeTimeout),
		HeaderBytes:               cmp.Or(l.HeaderBytes, d.HeaderBytes),
		UnauthenticatedPerAddress: cmp.Or(l.UnauthenticatedPerAddress, d.UnauthenticatedPerAddress),
	}
}
