// Package caddymodule makes Caddy an iottunnel edge: devices behind NATs and
// firewalls connect to it, and each gets a hostname of its own among Caddy's
// sites.
package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App is the iottunnel edge of this Caddy: the tunnels of connected devices, and
// what operators decide about them. It serves nothing by itself: sites hand it
// requests with the handler `iottunnel`.
//
// Tunnels, visitors' requests and their WebSockets survive a configuration
// reload. New settings count from the reload on; another registry or node id
// makes a new edge, and devices connect to it again.
//
// Devices prove who they are: without `auth` Caddy refuses to start.
type App struct {
	// The domain under which devices get their hostnames, `LABEL.domain`.
	// Required. Let it be a registrable domain of its own: the pages of devices
	// must not share cookies with yours.
	Domain string `json:"domain,omitempty"`

	// Scheme and port of the URLs by which visitors reach devices, as agents are
	// told them. Default: what Caddy listens on where the handler `iottunnel`
	// serves devices, HTTPS first. Write it where ports are mapped in front of
	// Caddy, as in containers.
	Visitors *Visitors `json:"visitors,omitempty"`

	// Where it is recorded which device holds which hostname. Default: `memory`,
	// for a single node, which keeps its records in a file.
	RegistryRaw json.RawMessage `json:"registry,omitempty" caddy:"namespace=iottunnel.registries inline_key=driver"`

	// Who decides whether an agent is the device that it says it is. They are
	// asked in order until one knows the device. Required; `none`, alone, lets
	// everybody in.
	AuthRaw []json.RawMessage `json:"auth,omitempty" caddy:"namespace=iottunnel.authenticators inline_key=provider"`

	// How long a device that has left keeps its hostname. At least 1s.
	// Default: 720h.
	Lease caddy.Duration `json:"lease,omitempty"`

	// How a device gets its label: `random` draws one of 80 random bits; `device`
	// takes the device id. Default: `random`.
	Hostname string `json:"hostname,omitempty"`

	// Public TCP ports that devices lease for what is not HTTP. Default: none.
	TCPPorts *TCPPorts `json:"tcp_ports,omitempty"`

	// What tells this node from others, and how they reach it.
	Node *Node `json:"node,omitempty"`

	// The interval of pings to agents that ask for none: 1s to 15m.
	// Default: 25s.
	Heartbeat caddy.Duration `json:"heartbeat,omitempty"`

	// If true, agents may come without TLS from elsewhere than loopback; their
	// credentials can then be read on the way. Default: false.
	AllowPlaintext bool `json:"allow_plaintext,omitempty"`

	// If true, technicians reach ports of devices by `iottunnel-agent connect`, with
	// tokens that `grant` makes. Default: false.
	Connect bool `json:"connect,omitempty"`

	// For how long grants and links go on that a node knows of while the registry
	// answers nothing: 10s to 90d. What is revoked meanwhile elsewhere lets in here for
	// so long. Default: 15m.
	GrantTrust caddy.Duration `json:"grant_trust,omitempty"`

	// How long a visitor waits for a device whose connection has just broken.
	// Default: 5s.
	Wait *caddy.Duration `json:"wait,omitempty"`

	// How long a device may take from the end of a visitor's request to the header
	// of its answer; after it the visitor is told so, with status 504. What follows
	// the header takes as long as it takes. Default: 2m, which is more than the
	// minute for which services hold back the answers to long polls, and less than
	// the five after which browsers give up.
	AnswerTimeout caddy.Duration `json:"answer_timeout,omitempty"`

	// URLs that are told what happens to devices. Default: none.
	Webhooks []*Webhook `json:"webhooks,omitempty"`

	// Bounds on what devices and visitors can make this node hold.
	Limits *Limits `json:"limits,omitempty"`

	registry       RegistryOpener
	authenticators []tunnelcore.Authenticator
	nodeID         string
	node           node // what Node says
	logger         *slog.Logger
	audit          auditor
	ctx            caddy.Context

	ready chan struct{} // closed once edge is set, or will never be

	edge atomic.Pointer[edge] // nil before Start; every request reads it

	mu       sync.Mutex // guards what follows
	ended    bool
	refs     int                 // this app and its handlers; the last one to go releases the edge
	internal []*caddyhttp.Server // those with a handler for nodes and routers; nil where it is not known
	shared   bool                // a handler has `access shared`
	servers  []*caddyhttp.Server
}

// Visitors is how visitors reach devices from the outside.
type Visitors struct {
	// `https` or `http`.
	Scheme string `json:"scheme,omitempty"`
	// Default: the scheme's own port.
	Port int `json:"port,omitempty"`
}

// TCPPorts are public TCP ports that devices lease along with their hostnames.
type TCPPorts struct {
	// The first and the last port, as in `20000-29999`.
	Range string `json:"range,omitempty"`
	// The addresses to listen on. Default: all.
	Bind []string `json:"bind,omitempty"`
	// The hostname that agents are told. Default: the domain.
	Host string `json:"host,omitempty"`
	// Which nodes of a cluster listen on a device's port: `all`, so that it stays
	// reachable by the same address wherever the device is connected; or `owner`, the
	// one that it is connected to, which takes fewer descriptors and needs an address
	// in front that finds the node. Default: `all`.
	Listen string `json:"listen,omitempty"`
	// The addresses that may connect. Default: all.
	Allow []string `json:"allow,omitempty"`
}

// Limits bound what devices and visitors can make a node hold. Zero is the
// default.
type Limits struct {
	// Connected devices. Default: 20000.
	Tunnels int `json:"tunnels,omitempty"`
	// Devices let in per second, after authentication. Default: 200.
	NewTunnels int `json:"new_tunnels,omitempty"`
	// Streams to a device at once. Default: 256.
	StreamsPerDevice int `json:"streams_per_device,omitempty"`
	// Of one address (IPv6: of one /64) to a device at once: requests, WebSockets
	// among them, and connections to its public ports. Requests wait for their turn
	// for up to 10s. Default: 16.
	StreamsPerAddress int `json:"streams_per_address,omitempty"`
	// Requests to a device per second through this node, WebSockets among them, and
	// connections to its public ports; who comes with more gets 429. Default: no bound.
	RequestsPerDevice int `json:"requests_per_device,omitempty"`
	// Bytes per second from and to a device through this node, together, of what is
	// opened from then on. At least 16 KiB. Default: no bound.
	BandwidthPerDevice int64 `json:"bandwidth_per_device,omitempty"`
	// Bytes that visitors' connections to a device may have on the way before each
	// has a connection of its own, in both directions together. With less, bursts of
	// visitors wait longer for a distant device. Default: 2 MiB.
	BufferPerDevice int64 `json:"buffer_per_device,omitempty"`
	// From an agent's request to its answer. Default: 10s.
	HandshakeTimeout caddy.Duration `json:"handshake_timeout,omitempty"`
	// Bytes in the header of an agent's request. Default: 8 KiB.
	HeaderBytes int `json:"header_bytes,omitempty"`
	// Handshakes of one address that are under way, or were refused in the last
	// minute. Default: 32.
	UnauthenticatedPerAddress int `json:"unauthenticated_per_address,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "iottunnel",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision sets up the app. It opens nothing: that is Start's.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.logger = ctx.Slogger()
	a.audit = newAuditor(ctx)
	a.ready = make(chan struct{})
	a.refs = 1
	if err := a.expand(caddy.NewReplacer()); err != nil {
		return err
	}
	if a.RegistryRaw == nil {
		a.RegistryRaw = json.RawMessage(`{"driver":"memory"}`)
	}
	opener, err := ctx.LoadModule(a, "RegistryRaw")
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	a.registry = opener.(RegistryOpener)
	if a.AuthRaw != nil {
		auth, err := ctx.LoadModule(a, "AuthRaw")
		if err != nil {
			return fmt.Errorf("auth: %w", err)
		}
		for _, one := range auth.([]any) {
			a.authenticators = append(a.authenticators, one.(tunnelcore.Authenticator))
		}
	}
	if err := metrics.register(ctx); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return onStopping(ctx, a.stopping)
}

// Start opens the edge, or gives the one that the previous configuration has
// opened its new settings.
func (a *App) Start() error {
	key := edgeKey{registry: a.registry.Identity(), node: a.nodeID}
	settings := a.settings()
	e, err := holdEdge(key, func() (*edge, error) { return openEdge(a, key, settings) })
	if err != nil {
		return err
	}
	a.bindAuth(e.hub.Registry())
	e.push(a, settings)
	a.edge.Store(e)
	close(a.ready)
	current.push(a)
	for _, auth := range a.authenticators {
		if _, ok := auth.(*NoAuth); ok {
			a.logger.Warn("auth none: whoever reaches this edge can connect as any device")
		}
	}
	a.warnAlone()
	a.logger.Info("edge is up",
		slog.String("domain", settings.Domain),
		slog.String("node", a.nodeID),
		slog.String("visitors", urlPattern(settings)))
	return nil
}

// Stop gives the edge back to the configuration that was there before, if this
// one has failed to start; else the next one has taken over.
func (a *App) Stop() error {
	current.remove(a)
	if e := a.running(); e != nil {
		e.remove(a)
	}
	return nil
}

// Cleanup lets go of the edge. The last configuration that does so ends it.
func (a *App) Cleanup() error {
	if a.ready == nil {
		return nil // Provision was never called
	}
	a.mu.Lock()
	if a.running() == nil && !a.ended {
		close(a.ready)
	}
	a.ended = true
	a.mu.Unlock()
	return a.release()
}

// hold keeps the edge for a handler until release. Modules are cleaned up in no
// order: a handler has visitors to say goodbye to before the edge goes.
func (a *App) hold() {
	a.mu.Lock()
	a.refs++
	a.mu.Unlock()
}

func (a *App) release() error {
	a.mu.Lock()
	a.refs--
	last, e := a.refs == 0, a.running()
	a.mu.Unlock()
	if !last || e == nil {
		return nil
	}
	return releaseEdge(e.key)
}

// running returns the edge, or nil before Start.
func (a *App) running() *edge { return a.edge.Load() }

// startWait bounds how long a request waits for the app to start.
const startWait = 10 * time.Second

// await returns the edge. Apps start in no order, so that requests can come
// first: they wait. Those that came with a configuration that has failed to start
// get the edge of the one that goes on. It returns nil if there will be none.
func (a *App) await(ctx context.Context) *edge {
	select {
	case <-a.ready:
	default:
		ctx, cancel := context.WithTimeout(ctx, startWait)
		defer cancel()
		select {
		case <-a.ready:
		case <-ctx.Done():
		}
	}
	if e := a.running(); e != nil {
		return e
	}
	if other := current.top(); other != nil {
		return other.running()
	}
	return nil
}

// stopping is called before the apps of this configuration stop, which waits for it.
// When Caddy exits, the other nodes of a cluster get the devices while the sites still
// serve: for half of the grace period at most, so that the whole takes no longer.
func (a *App) stopping() {
	e := a.running()
	if e == nil || !exiting() {
		return
	}
	began, grace := time.Now(), a.grace()
	ctx, cancel := context.WithTimeout(context.Background(), grace/2)
	defer cancel()
	e.hub.Vacate(ctx)
	e.beginShutdown(grace - time.Since(began))
}

// exitGrace is how long streams may go on when Caddy exits without a
// grace_period, or with a longer one.
const exitGrace = 10 * time.Second

// grace ends a little before the grace period of the sites, so that requests
// that are cut end as broken, and not with the process.
func (a *App) grace() time.Duration {
	grace := exitGrace
	if app, err := a.ctx.AppIfConfigured("http"); err == nil {
		if g := time.Duration(app.(*caddyhttp.App).GracePeriod); g > 0 {
			grace = min(grace, g)
		}
	}
	return grace * 9 / 10
}

// appOf finds the app of the configuration that a module belongs to.
func appOf(ctx caddy.Context) (*App, error) {
	app, err := ctx.AppIfConfigured("iottunnel")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, errors.New("iottunnel is not configured: write a block `iottunnel { domain … auth … }` into the global options")
	}
	if err != nil {
		return nil, err
	}
	return app.(*App), nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.Validator    = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
