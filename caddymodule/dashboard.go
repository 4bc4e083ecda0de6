package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/caddymodule/dashboard"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func init() {
	caddy.RegisterModule(new(Dashboard))
	httpcaddyfile.RegisterHandlerDirective("iottunnel_dashboard", parseDashboard)
	httpcaddyfile.RegisterDirectiveOrder("iottunnel_dashboard", httpcaddyfile.Before, "reverse_proxy")
}

// Dashboard is a web page that lists devices, with their ports and hostnames, as they
// come and go. It changes nothing. Who may see it is for handlers in front of it to
// decide, such as `basic_auth`. Below another path than / use it in `handle_path`.
//
// Its data is at `api/devices`, `api/devices/ID`, `api/nodes`, and as server-sent events at `api/events`.
type Dashboard struct {
	app  *App
	quit chan struct{}
	once sync.Once
}

// CaddyModule returns the Caddy module information.
func (*Dashboard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.iottunnel_dashboard",
		New: func() caddy.Module { return new(Dashboard) },
	}
}

// Provision sets up the handler.
func (d *Dashboard) Provision(ctx caddy.Context) (err error) {
	d.quit = make(chan struct{})
	if d.app, err = appOf(ctx); err != nil {
		return err
	}
	// Streams of events end before servers wait for them.
	return onStopping(ctx, d.end)
}

func (d *Dashboard) end() { d.once.Do(func() { close(d.quit) }) }

// Cleanup ends streams of events.
func (d *Dashboard) Cleanup() error {
	if d.quit != nil {
		d.end()
	}
	return nil
}

// ServeHTTP serves the page.
func (d *Dashboard) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	e := d.app.await(r.Context())
	if e == nil {
		return caddyhttp.Error(http.StatusServiceUnavailable, errors.New("the edge has not started"))
	}
	if dashboard.Serve(w, r, dashboardSource{e}, d.quit) {
		return nil
	}
	return next.ServeHTTP(w, r)
}

// dashboardTime bounds what a request asks of the registry.
const dashboardTime = 20 * time.Second

// dashboardSource is what an edge knows.
type dashboardSource struct{ edge *edge }

func (s dashboardSource) Devices(r *http.Request) (any, error) {
	q, err := deviceQueryOf(r)
	if err != nil {
		return nil, &dashboard.StatusError{Status: http.StatusBadRequest, Err: err}
	}
	ctx, cancel := context.WithTimeout(r.Context(), dashboardTime)
	defer cancel()
	return listDevices(ctx, s.edge.hub, q)
}

func (s dashboardSource) Nodes(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), dashboardTime)
	defer cancel()
	nodes, err := listNodes(ctx, s.edge.hub)
	return map[string]any{"nodes": nodes}, err
}

func (s dashboardSource) Device(r *http.Request, id string) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), dashboardTime)
	defer cancel()
	d, err := getDevice(ctx, s.edge.hub, id)
	if errors.Is(err, registry.ErrUnknown) {
		return nil, &dashboard.StatusError{Status: http.StatusNotFound, Err: errors.New("nothing is known of this device")}
	}
	return d, err
}

func (s dashboardSource) Changes() (<-chan string, func(), bool) { return changes.join() }

// changes tells pages of devices that come and go on this node.
var changes feed

const (
	// maxPages bounds the pages that follow, and maxBehind the changes that one may be
	// behind before it has to read the list again.
	maxPages  = 100
	maxBehind = 1000
)

// feed hands ids to whoever listens. Sending never waits.
type feed struct {
	mu    sync.Mutex // guards pages, and closing what is in it
	pages map[chan string]struct{}
}

// join returns a channel of ids, which is closed when too many wait in it.
func (f *feed) join() (<-chan string, func(), bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pages) >= maxPages {
		return nil, nil, false
	}
	if f.pages == nil {
		f.pages = make(map[chan string]struct{})
	}
	page := make(chan string, maxBehind)
	f.pages[page] = struct{}{}
	return page, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.pages, page)
	}, true
}

func (f *feed) send(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for page := range f.pages {
		select {
		case page <- id:
		default:
			close(page)
			delete(f.pages, page)
		}
	}
}

// tellPages has events told to pages, too.
func tellPages(emit func(name string, data map[string]any)) func(name string, data map[string]any) {
	return func(name string, data map[string]any) {
		if id, ok := data["device"].(string); ok {
			changes.send(id)
		}
		if emit != nil {
			emit(name, data)
		}
	}
}

func parseDashboard(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	d := new(Dashboard)
	err := d.UnmarshalCaddyfile(h.Dispenser)
	return d, err
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	iottunnel_dashboard [<matcher>]
func (*Dashboard) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() || d.NextBlock(d.Nesting()) {
		return d.Errf("iottunnel_dashboard: takes no value and no block, given %q", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Dashboard)(nil)
	_ caddy.CleanerUpper          = (*Dashboard)(nil)
	_ caddyfile.Unmarshaler       = (*Dashboard)(nil)
	_ caddyhttp.MiddlewareHandler = (*Dashboard)(nil)
	_ dashboard.Source            = dashboardSource{}
)
