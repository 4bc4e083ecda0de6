// Package tunnelcore is the edge without a host: a hub of device tunnels that
// accepts agents and dials devices.
package tunnelcore

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Config is what a hub is made of; it does not change while the hub lives.
type Config struct {
	Node     string // node id
	Registry registry.Registry
	Settings Settings
}

// Hub holds the tunnels of one node. All methods may be called concurrently.
type Hub struct{}

// New makes a hub. It takes ownership of c.Registry.
func New(c Config) (*Hub, error) { return nil, errors.New("not yet") }

// Update replaces the settings.
func (h *Hub) Update(s Settings) {}

// ServeAgent answers a request under wire.Root: it accepts control and transfer
// sockets and refuses the rest. It returns as soon as a socket is handed over,
// so that nothing of the request is kept alive. from is the agent's address, as
// the host trusts it.
func (h *Hub) ServeAgent(w http.ResponseWriter, r *http.Request, from netip.Addr) {}

// ErrOtherHost is Lookup's answer to a host that is not directly under the
// domain of the devices.
var ErrOtherHost = errors.New("tunnelcore: not a device hostname")

// Target is a port of a device that a hostname names.
type Target struct {
	Device string
	Label  string
	Node   string
	Tunnel string // of the live tunnel; changes with each reconnect
	Port   uint16
	Kind   wire.Kind
	Online bool
}

// Lookup resolves a visitor's Host. It returns ErrOtherHost, or an
// *answers.Error (unknown_device; unavailable when the registry cannot tell).
// The device may be offline.
func (h *Hub) Lookup(ctx context.Context, host string) (Target, error) { return Target{}, nil }

// Await is Lookup for a visitor who wants to be served: for a device whose
// tunnel has just ended uncleanly it waits, up to Settings.Wait, for the next
// one. A device that stays offline is an *answers.Error (device_offline).
func (h *Hub) Await(ctx context.Context, host string) (Target, error) { return Target{}, nil }

// Dial opens a stream to a port of a connected device, on behalf of a visitor at
// from. Errors are *answers.Error: device_offline, device_refused, device_timeout,
// device_busy, unknown_device. The connection has CloseWrite() error, and
// Abort(): see package stream.
func (h *Hub) Dial(ctx context.Context, device string, port uint16, from netip.AddrPort) (net.Conn, error) {
	return nil, nil
}

// Shutdown tells agents to come back (close code 1012), lets streams run until
// ctx ends, closes what is left, and waits for every goroutine of the hub. It
// closes the registry last.
func (h *Hub) Shutdown(ctx context.Context) error { return nil }
