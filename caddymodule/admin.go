package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func init() {
	caddy.RegisterModule(new(AdminAPI))
}

// AdminAPI is what operators do, on Caddy's admin endpoint: list devices and nodes,
// enrol and revoke devices, make claim codes, move what is recorded elsewhere.
// docs/operations.md describes it.
type AdminAPI struct{}

// CaddyModule returns the Caddy module information.
func (*AdminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.iottunnel",
		New: func() caddy.Module { return new(AdminAPI) },
	}
}

const (
	// adminTimeout bounds a request, and adminBody its body: 500 lines of an import.
	adminTimeout = 60 * time.Second
	adminBody    = 4 << 20
	// adminWorkers is how many devices of one request are under way at once, so that
	// they share writes to disk.
	adminWorkers = 32
	// maxBulk is how many devices one request may name.
	maxBulk = 500
	// defaultCodeTTL is how long a claim code lasts that names no time.
	defaultCodeTTL = 15 * time.Minute
)

// adminHandler answers with what it returns, as JSON.
type adminHandler func(ctx context.Context, e *edge, a *App, r *http.Request) (any, error)

// Routes implements caddy.AdminRouter.
func (api *AdminAPI) Routes() []caddy.AdminRoute {
	var routes []caddy.AdminRoute
	for _, route := range []struct {
		pattern string
		handler adminHandler
	}{
		{"GET /iottunnel/devices", adminDevices},
		{"GET /iottunnel/devices/{device}", adminDevice},
		{"POST /iottunnel/devices/{device}/enroll", adminEnroll},
		{"POST /iottunnel/devices/{device}/rotate", adminRotate},
		{"POST /iottunnel/devices/{device}/revoke", adminRevoke},
		{"POST /iottunnel/devices/{device}/disconnect", adminDisconnect},
		{"POST /iottunnel/devices/{device}/relabel", adminRelabel},
		{"POST /iottunnel/devices/{device}/forget", adminForget},
		{"PUT /iottunnel/devices/{device}/tags", adminTags},
		{"POST /iottunnel/enroll", adminEnrollMany},
		{"POST /iottunnel/codes", adminNewCode},
		{"GET /iottunnel/codes", adminCodes},
		{"DELETE /iottunnel/codes/{id}", adminDropCode},
		{"POST /iottunnel/grants", adminNewGrant},
		{"GET /iottunnel/grants", adminGrants},
		{"DELETE /iottunnel/grants/{grant}", adminDropGrant},
		{"GET /iottunnel/nodes", adminNodes},
		{"GET /iottunnel/drain", adminDrained},
		{"POST /iottunnel/drain", adminDrain},
		{"POST /iottunnel/import", adminImport},
	} {
		routes = append(routes, caddy.AdminRoute{Pattern: route.pattern, Handler: adminJSON(route.handler)})
	}
	routes = append(routes, caddy.AdminRoute{Pattern: "GET /iottunnel/export", Handler: caddy.AdminHandlerFunc(adminExport)})
	return routes
}

// edgeNow is the edge in force.
func edgeNow() (*edge, *App, error) {
	a := current.top()
	if a == nil || a.running() == nil {
		return nil, nil, caddy.APIError{
			HTTPStatus: http.StatusServiceUnavailable,
			Err:        errors.New("no iottunnel edge runs in this Caddy: its configuration has no global option `iottunnel`, or has not started"),
		}
	}
	return a.running(), a, nil
}

// adminJSON makes an admin handler of h.
func adminJSON(h adminHandler) caddy.AdminHandler {
	return caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		e, a, err := edgeNow()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(r.Context(), adminTimeout)
		defer cancel()
		if device := r.PathValue("device"); device != "" {
			if err := tunnelcore.CheckDevice(device); err != nil {
				return badRequest(err)
			}
		}
		answer, err := h(ctx, e, a, r)
		if err != nil {
			return apiError(r, err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store") // there are secrets among them
		return json.NewEncoder(w).Encode(answer)
	})
}

func badRequest(err error) error {
	return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err}
}

func conflict(format string, args ...any) error {
	return caddy.APIError{HTTPStatus: http.StatusConflict, Err: fmt.Errorf(format, args...)}
}

// apiError is how an operator is told what went wrong.
func apiError(r *http.Request, err error) error {
	var api caddy.APIError
	device := r.PathValue("device")
	switch {
	case errors.As(err, &api):
		return api
	case errors.Is(err, registry.ErrUnknown) && r.PathValue("id") != "":
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("there is no such claim code: it was used, revoked, or has expired; `caddy iottunnel code list` shows those there are")}
	case errors.Is(err, registry.ErrUnknown) && r.PathValue("grant") != "":
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: errors.New("there is no such grant: it was revoked, or has expired; `caddy iottunnel grants` shows those there are")}
	case errors.Is(err, registry.ErrUnknown):
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf("nothing is known of device %s: it has no lease and is not enrolled", device)}
	case errors.Is(err, registry.ErrEnrolled):
		return conflict("device %s is enrolled already: give it another secret with `rotate %s`, or take its secret away with `revoke %s` and enrol it again", device, device, device)
	case errors.Is(err, tunnelcore.ErrOffline):
		return conflict("device %s is not connected", device)
	case errors.Is(err, tunnelcore.ErrNobodyElse):
		return conflict("%w: start another node, or wait until one is listed by `nodes` that has room and a URL", err)
	case errors.Is(err, registry.ErrTooManyCodes), errors.Is(err, registry.ErrTooManyGrants):
		return conflict("%w", err)
	case errors.Is(err, registry.ErrInvalid):
		return badRequest(err)
	}
	return caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: fmt.Errorf("the registry could not do it: %w", err)}
}

// needEnrolled refuses what would have no effect.
func needEnrolled(a *App) error {
	if a.enrolls() {
		return nil
	}
	return conflict("secrets of enrolled devices do not count here: write `auth enrolled` into the global option iottunnel, then reload")
}

func adminDevices(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	q, err := deviceQueryOf(r)
	if err != nil {
		return nil, badRequest(err)
	}
	return listDevices(ctx, e.hub, q)
}

// deviceQueryOf reads the parameters of a list.
func deviceQueryOf(r *http.Request) (deviceQuery, error) {
	p := r.URL.Query()
	q := deviceQuery{Text: p.Get("q"), State: p.Get("state"), Tag: p.Get("tag"), After: p.Get("after"), Limit: defaultPage}
	if q.State != "" && q.State != stateOnline && q.State != stateOffline {
		return q, fmt.Errorf("state: %q is neither online nor offline", q.State)
	}
	if text := p.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			return q, fmt.Errorf("limit: %q is not a number from 1 to %d", text, maxPage)
		}
		q.Limit = n
	}
	return q, nil
}

func adminDevice(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	return getDevice(ctx, e.hub, r.PathValue("device"))
}

// tokenView is a secret, shown once.
type tokenView struct {
	Device string `json:"device"`
	Token  string `json:"token"`
}

func adminEnroll(ctx context.Context, e *edge, a *App, r *http.Request) (any, error) {
	if err := needEnrolled(a); err != nil {
		return nil, err
	}
	device := r.PathValue("device")
	token, err := e.hub.Enroll(ctx, device, registry.ReplaceRevoked)
	if err != nil {
		return nil, err
	}
	return tokenView{Device: device, Token: token}, nil
}

func adminRotate(ctx context.Context, e *edge, a *App, r *http.Request) (any, error) {
	if err := needEnrolled(a); err != nil {
		return nil, err
	}
	device := r.PathValue("device")
	token, err := e.hub.Rotate(ctx, device)
	if errors.Is(err, registry.ErrUnknown) {
		return nil, conflict("device %s has no secret to change: enrol it with `enroll %s`", device, device)
	}
	if err != nil {
		return nil, err
	}
	return tokenView{Device: device, Token: token}, nil
}

// doneView names the device that something was done to.
type doneView struct {
	Device string `json:"device"`
	Done   string `json:"done"`
}

func adminRevoke(ctx context.Context, e *edge, a *App, r *http.Request) (any, error) {
	if err := needEnrolled(a); err != nil {
		return nil, err
	}
	device := r.PathValue("device")
	return doneView{device, "revoked"}, e.hub.Revoke(ctx, device)
}

func adminDisconnect(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	device := r.PathValue("device")
	return doneView{device, "disconnected"}, e.hub.Disconnect(ctx, device)
}

func adminRelabel(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	if !e.hub.RandomLabels() {
		return nil, conflict("devices have their ids as hostnames here (`hostname device`): there is no other label to give")
	}
	device := r.PathValue("device")
	err := e.hub.Relabel(ctx, device)
	if errors.Is(err, registry.ErrUnknown) {
		return nil, conflict("device %s has no hostname: it gets one when it connects", device)
	}
	return doneView{device, "relabelled"}, err
}

func adminForget(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	device := r.PathValue("device")
	if err := e.hub.Forget(ctx, device); err != nil {
		return nil, err
	}
	return doneView{device, "forgotten"}, e.hub.Registry().DropJournal(ctx, device)
}

// tagsView is what {"tags":["lyon","fw=1.2"]} says: tags in the place of those that
// there are.
type tagsView struct {
	Device string   `json:"device"`
	Tags   []string `json:"tags"`
}

func adminTags(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	v := tagsView{Device: r.PathValue("device")}
	if err := decodeBody(r, &v); err != nil {
		return nil, err
	}
	v.Device = r.PathValue("device")
	if v.Tags == nil {
		return nil, badRequest(errors.New(`a list is missing, as in {"tags":["lyon"]}; an empty one takes all tags away`))
	}
	if _, err := getDevice(ctx, e.hub, v.Device); err != nil {
		return nil, err
	}
	return v, e.hub.Registry().SetTags(ctx, v.Device, v.Tags)
}

// decodeBody reads a JSON body into v; none leaves it as it is.
func decodeBody(r *http.Request, v any) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, adminBody+1))
	if err != nil {
		return badRequest(fmt.Errorf("body: %w", err))
	}
	if len(body) > adminBody {
		return badRequest(fmt.Errorf("the body is longer than %d bytes", adminBody))
	}
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return badRequest(fmt.Errorf("body: %w", err))
	}
	return nil
}

// bulkView is what became of many devices, in their order.
type bulkView struct {
	Enrolled []tokenView `json:"enrolled"`
	Failed   []failView  `json:"failed"`
}

type failView struct {
	Line   int    `json:"line,omitempty"` // of the body, from 1
	Device string `json:"device"`
	Error  string `json:"error"`
}

// adminEnrollMany enrols the devices of {"devices":["cam-17",…]}.
func adminEnrollMany(ctx context.Context, e *edge, a *App, r *http.Request) (any, error) {
	if err := needEnrolled(a); err != nil {
		return nil, err
	}
	var q struct {
		Devices []string `json:"devices"`
	}
	if err := decodeBody(r, &q); err != nil {
		return nil, err
	}
	if len(q.Devices) > maxBulk {
		return nil, badRequest(fmt.Errorf("%d devices at once, at most %d are allowed", len(q.Devices), maxBulk))
	}
	tokens, errs := make([]string, len(q.Devices)), make([]error, len(q.Devices))
	inParallel(len(q.Devices), func(i int) {
		if errs[i] = tunnelcore.CheckDevice(q.Devices[i]); errs[i] == nil {
			tokens[i], errs[i] = e.hub.Enroll(ctx, q.Devices[i], registry.ReplaceRevoked)
		}
	})
	v := bulkView{Enrolled: []tokenView{}, Failed: []failView{}}
	for i, device := range q.Devices {
		if errs[i] == nil {
			v.Enrolled = append(v.Enrolled, tokenView{device, tokens[i]})
			continue
		}
		v.Failed = append(v.Failed, failView{Device: device, Error: errs[i].Error()})
	}
	return v, nil
}

// inParallel calls f for 0 to n-1, some at once.
func inParallel(n int, f func(int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(n, adminWorkers) {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// codeView is a claim code; Code itself is shown once.
type codeView struct {
	ID      string    `json:"id"`
	Code    string    `json:"code,omitempty"`
	Device  string    `json:"device,omitempty"`
	Created time.Time `json:"created"`
	Until   time.Time `json:"until"`
}

// adminNewCode makes a code as {"ttl":"15m","device":"cam-17"} says.
func adminNewCode(ctx context.Context, e *edge, a *App, r *http.Request) (any, error) {
	if err := needEnrolled(a); err != nil {
		return nil, err
	}
	var q struct {
		TTL    string `json:"ttl"`
		Device string `json:"device"`
	}
	if err := decodeBody(r, &q); err != nil {
		return nil, err
	}
	ttl := defaultCodeTTL
	if q.TTL != "" {
		var err error
		if ttl, err = caddy.ParseDuration(q.TTL); err != nil || ttl <= 0 || ttl > registry.CodeTTL {
			return nil, badRequest(fmt.Errorf("ttl: %q is not a duration such as 15m, 12h or 7d, up to 30d", q.TTL))
		}
	}
	if q.Device != "" {
		if err := tunnelcore.CheckDevice(q.Device); err != nil {
			return nil, badRequest(err)
		}
	}
	text, c, err := e.hub.NewCode(ctx, q.Device, ttl)
	if err != nil {
		return nil, err
	}
	v := viewCode(c)
	v.Code = text
	return v, nil
}

func viewCode(c registry.Code) codeView {
	return codeView{ID: c.ID, Device: c.Device, Created: *moment(c.Created), Until: *moment(c.Until)}
}

func adminCodes(ctx context.Context, e *edge, _ *App, _ *http.Request) (any, error) {
	codes, err := e.hub.Registry().Codes(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]codeView, len(codes))
	for i, c := range codes {
		views[i] = viewCode(c)
	}
	return map[string]any{"codes": views}, nil
}

func adminDropCode(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	id := r.PathValue("id")
	return map[string]string{"id": id, "done": "revoked"}, e.hub.Registry().DropCode(ctx, id)
}

func adminNodes(ctx context.Context, e *edge, _ *App, _ *http.Request) (any, error) {
	nodes, err := listNodes(ctx, e.hub)
	return map[string]any{"nodes": nodes}, err
}

// drainView is how far this node has come with letting its devices go.
type drainView struct {
	Node     string `json:"node"`
	Draining bool   `json:"draining"`
	Tunnels  int    `json:"tunnels"` // devices that are still here
	Streams  int    `json:"streams"` // visitors of theirs
}

func viewDrain(e *edge) drainView {
	s := e.hub.Stats()
	return drainView{Node: e.hub.Node(), Draining: s.Draining, Tunnels: s.Tunnels, Streams: s.Streams}
}

func adminDrained(_ context.Context, e *edge, _ *App, _ *http.Request) (any, error) {
	return viewDrain(e), nil
}

// defaultDrain is what devices are spread over that have to go elsewhere.
const defaultDrain = 60 * time.Second

// adminDrain does as {"within":"60s"} or {"off":true} says, and does not wait for the
// devices.
func adminDrain(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	var q struct {
		Within string `json:"within"`
		Off    bool   `json:"off"`
	}
	if err := decodeBody(r, &q); err != nil {
		return nil, err
	}
	within := defaultDrain
	if q.Within != "" {
		var err error
		if within, err = caddy.ParseDuration(q.Within); err != nil || within < time.Second || within > wire.MaxDrain*time.Second {
			return nil, badRequest(fmt.Errorf("within: %q is not a duration such as 60s or 10m, from 1s to 24h", q.Within))
		}
	}
	if q.Off {
		if err := e.hub.Undrain(ctx); err != nil {
			return nil, err
		}
		return viewDrain(e), nil
	}
	if err := e.hub.Drain(ctx, within); err != nil {
		return nil, err
	}
	return viewDrain(e), nil
}

// adminExport writes a line for each device.
func adminExport(w http.ResponseWriter, r *http.Request) error {
	e, _, err := edgeNow()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	out := bufio.NewWriter(w)
	if err := exportDevices(r.Context(), e.hub, json.NewEncoder(out)); err != nil {
		if out.Buffered() == 0 {
			return apiError(r, err)
		}
		// Half a list must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
	return out.Flush()
}

// importView is what became of the lines of an import.
type importView struct {
	Imported int        `json:"imported"`
	Skipped  int        `json:"skipped"` // there was nothing to do
	Failed   []failView `json:"failed"`
}

func adminImport(ctx context.Context, e *edge, _ *App, r *http.Request) (any, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, adminBody+1))
	if err != nil {
		return nil, badRequest(fmt.Errorf("body: %w", err))
	}
	lines := strings.Split(strings.TrimRight(string(body), "\n"), "\n")
	if len(body) > adminBody || len(lines) > maxBulk {
		return nil, badRequest(fmt.Errorf("more than %d lines or %d bytes at once", maxBulk, adminBody))
	}
	replace := r.URL.Query().Get("replace") == "true"
	var mu sync.Mutex // guards v
	v := importView{Failed: []failView{}}
	inParallel(len(lines), func(i int) {
		if strings.TrimSpace(lines[i]) == "" {
			return
		}
		device, changed, err := importDevice(ctx, e.hub, lines[i], replace)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil:
			v.Failed = append(v.Failed, failView{Line: i + 1, Device: device, Error: err.Error()})
		case changed:
			v.Imported++
		default:
			v.Skipped++
		}
	})
	slices.SortFunc(v.Failed, func(a, b failView) int { return a.Line - b.Line })
	return v, nil
}

// Interface guards
var _ caddy.AdminRouter = (*AdminAPI)(nil)
