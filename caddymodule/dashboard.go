package caddymodule

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/caddymodule/dashboard"
	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func init() {
	caddy.RegisterModule(new(Dashboard))
	httpcaddyfile.RegisterHandlerDirective("iottunnel_dashboard", parseDashboard)
	httpcaddyfile.RegisterDirectiveOrder("iottunnel_dashboard", httpcaddyfile.Before, "reverse_proxy")
}

// Dashboard is a web page that lists devices, with their ports and hostnames, as they
// come and go. Who may see it is for handlers in front of it to decide, such as
// `basic_auth`. Below another path than / use it in `handle_path`.
//
// Devices can be disconnected, given other secrets or tags, and revoked there by those
// whose name Caddy knows: from `basic_auth` and other authentication of its own, or a
// client certificate that it has verified. What they do is logged with that name.
//
// Its data is at `api/devices`, `api/devices/ID`, `api/nodes`, and as server-sent events at `api/events`.
type Dashboard struct {
	// Let everybody who gets here change devices, as behind `forward_auth`.
	Manage bool `json:"manage,omitempty"`

	// Let nobody change anything.
	ReadOnly bool `json:"read_only,omitempty"`

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
	if dashboard.Serve(w, r, dashboardSource{d, e}, d.quit) {
		return nil
	}
	return next.ServeHTTP(w, r)
}

// dashboardTime bounds what a request asks of the registry.
const dashboardTime = 20 * time.Second

// Validate refuses settings that contradict each other.
func (d *Dashboard) Validate() error {
	if d.Manage && d.ReadOnly {
		return errors.New("iottunnel_dashboard: manage and read_only contradict each other: write one of them")
	}
	return nil
}

// dashboardSource is what an edge knows.
type dashboardSource struct {
	page *Dashboard
	edge *edge
}

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
	return s.device(r, id)
}

func (s dashboardSource) device(r *http.Request, id string) (deviceView, error) {
	ctx, cancel := context.WithTimeout(r.Context(), dashboardTime)
	defer cancel()
	d, err := getDevice(ctx, s.edge.hub, id)
	if errors.Is(err, registry.ErrUnknown) {
		err = &dashboard.StatusError{Status: http.StatusNotFound, Err: errors.New("nothing is known of this device")}
	}
	return d, err
}

func (s dashboardSource) URL(r *http.Request, id string) (string, error) {
	d, err := s.device(r, id)
	for _, p := range d.Ports {
		if p.URL != "" {
			return p.URL, err
		}
	}
	return "", err
}

// Traffic asks other nodes, too, for what is connected to them.
func (s dashboardSource) Traffic(r *http.Request, ids []string) map[string][2]int64 {
	ctx, cancel := context.WithTimeout(r.Context(), ownerTime)
	defer cancel()
	var mu sync.Mutex // guards all
	all := make(map[string][2]int64, len(ids))
	inParallel(len(ids), func(i int) {
		info, ok := s.edge.hub.Tunnel(ids[i])
		if !ok && tunnelcore.CheckDevice(ids[i]) == nil {
			if rec, err := s.edge.hub.Registry().ByDevice(ctx, ids[i]); err == nil && rec.Online.Tunnel != "" {
				info, ok = s.edge.hub.TunnelOf(ctx, rec)
			}
		}
		if ok {
			mu.Lock()
			defer mu.Unlock()
			all[ids[i]] = [2]int64{info.Received, info.Sent}
		}
	})
	return all
}

// Session implements dashboard.Source.
func (s dashboardSource) Session(r *http.Request) dashboard.Session {
	v := dashboard.Session{User: userOf(r)}
	switch {
	case s.page.ReadOnly:
		v.Why = "this dashboard is read_only"
	case s.page.Manage || v.User != "":
		v.Manage = true
	default:
		v.Why = "nobody has said who you are: put basic_auth or client certificates in front of the dashboard, or write `manage` into it"
	}
	return v
}

// userOf is who Caddy knows that has sent r: by a name that it has asked a password
// for, or the certificate that it has verified.
func userOf(r *http.Request) string {
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		if user, ok := repl.GetString("http.auth.user.id"); ok && user != "" {
			return user
		}
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		subject := r.TLS.PeerCertificates[0].Subject
		return cmp.Or(subject.CommonName, subject.String())
	}
	return ""
}

// Do implements dashboard.Source.
func (s dashboardSource) Do(r *http.Request, id, action string, body []byte) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), dashboardTime)
	defer cancel()
	do := map[string]adminHandler{"disconnect": adminDisconnect, "rotate": adminRotate, "revoke": adminRevoke, "tags": adminTags}[action]
	asked := r.Clone(ctx)
	asked.SetPathValue("device", id)
	asked.Body = io.NopCloser(bytes.NewReader(body))
	err := tunnelcore.CheckDevice(id)
	var v any
	if err == nil {
		v, err = do(ctx, s.edge, s.page.app, asked)
	} else {
		err = badRequest(err)
	}
	s.page.app.logger.Info("dashboard", slog.String("action", action), slog.String("device", id),
		slog.String("user", userOf(r)), slog.String("remote", clientIP(r).String()), slog.Any("error", err))
	if err != nil {
		var api caddy.APIError
		if err := apiError(asked, err); errors.As(err, &api) {
			return nil, &dashboard.StatusError{Status: api.HTTPStatus, Err: api.Err}
		}
		return nil, err
	}
	return v, nil
}

// Changes implements dashboard.Source.
func (s dashboardSource) Changes() (<-chan string, func(), bool) {
	return s.edge.pages.join(s.edge.hub.Registry())
}

const (
	// maxPages bounds the pages that follow, and maxBehind the changes that one may be
	// behind before it has to read the list again.
	maxPages  = 100
	maxBehind = 1000
	// gather is how long hints of the registry wait for others: a device that comes
	// is claimed a moment before its node can tell about it.
	gather = 300 * time.Millisecond
)

// feed gives pages the ids of devices that change: of this node by its events, of
// others by the hints of the registry. Sending never waits.
type feed struct {
	mu     sync.Mutex // guards what follows, and closing what is in pages
	pages  map[chan string]struct{}
	unhint context.CancelFunc // ends following hints
	done   chan struct{}      // closed when that has ended
}

// join returns a channel of ids, which is closed when too many wait in it, or hints
// were missed. While there are pages hints are followed.
func (f *feed) join(hinter registry.Hinter) (<-chan string, func(), bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pages) >= maxPages {
		return nil, nil, false
	}
	if f.pages == nil {
		f.pages = make(map[chan string]struct{})
	}
	if f.unhint == nil {
		ctx, cancel := context.WithCancel(context.Background())
		f.unhint, f.done = cancel, make(chan struct{})
		go f.follow(hinter.Hints(ctx), f.done)
	}
	page := make(chan string, maxBehind)
	f.pages[page] = struct{}{}
	return page, func() { f.leave(page) }, true
}

// leave takes a page out. The last one waits until hints are followed no more.
func (f *feed) leave(page chan string) {
	f.mu.Lock()
	delete(f.pages, page)
	var done chan struct{}
	if len(f.pages) == 0 && f.unhint != nil {
		f.unhint()
		f.unhint, done = nil, f.done
	}
	f.mu.Unlock()
	if done != nil {
		<-done
	}
}

// follow sends what hints name, until they end.
func (f *feed) follow(hints <-chan registry.Hint, done chan struct{}) {
	defer close(done)
	waiting := make(map[string]struct{})
	tick := time.NewTicker(gather)
	defer tick.Stop()
	for {
		select {
		case hint, more := <-hints:
			switch {
			case !more:
				return
			case hint == (registry.Hint{}):
				clear(waiting)
				f.missed()
			case hint.Device != "" && len(waiting) < maxBehind:
				waiting[hint.Device] = struct{}{}
			case hint.Device != "":
				clear(waiting)
				f.missed()
			}
		case <-tick.C:
			for id := range waiting {
				f.send(id)
			}
			clear(waiting)
		}
	}
}

func (f *feed) send(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for page := range f.pages {
		select {
		case page <- id:
		default:
			f.closeLocked(page)
		}
	}
}

// missed has all pages read the list again.
func (f *feed) missed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for page := range f.pages {
		f.closeLocked(page)
	}
}

// closeLocked ends a page's channel; its leave is still to come. It wants mu.
func (f *feed) closeLocked(page chan string) {
	close(page)
	delete(f.pages, page)
}

func parseDashboard(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	d := new(Dashboard)
	err := d.UnmarshalCaddyfile(h.Dispenser)
	return d, err
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	iottunnel_dashboard [<matcher>] {
//		manage
//		read_only
//	}
func (p *Dashboard) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if err := noValue(d, "iottunnel_dashboard"); err != nil {
		return err
	}
	return parseBlock(d, "iottunnel_dashboard", p, dashboardSettings)
}

var dashboardSettings = []setting[*Dashboard]{
	flagSetting("iottunnel_dashboard: manage", func(p *Dashboard) *bool { return &p.Manage }),
	flagSetting("iottunnel_dashboard: read_only", func(p *Dashboard) *bool { return &p.ReadOnly }),
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Dashboard)(nil)
	_ caddy.Validator             = (*Dashboard)(nil)
	_ caddy.CleanerUpper          = (*Dashboard)(nil)
	_ caddyfile.Unmarshaler       = (*Dashboard)(nil)
	_ caddyhttp.MiddlewareHandler = (*Dashboard)(nil)
	_ dashboard.Source            = dashboardSource{}
)
