// Package dashboard is a web page that lists devices and does to them what operators
// do, and the JSON and the events that it lives by.
package dashboard

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"rsc.io/qr"
)

//go:embed index.html dashboard.css dashboard.js device.js text.js traffic.js
var files embed.FS

// An asset is a file of the page.
type asset struct {
	kind string // Content-Type
	text []byte
	tag  string // ETag
}

var assets = map[string]asset{
	"":              load("index.html", "text/html; charset=utf-8"),
	"dashboard.css": load("dashboard.css", "text/css; charset=utf-8"),
	"dashboard.js":  load("dashboard.js", "text/javascript; charset=utf-8"),
	"device.js":     load("device.js", "text/javascript; charset=utf-8"),
	"text.js":       load("text.js", "text/javascript; charset=utf-8"),
	"traffic.js":    load("traffic.js", "text/javascript; charset=utf-8"),
}

func load(name, kind string) asset {
	text, err := files.ReadFile(name)
	if err != nil {
		panic(err) // it is in the binary
	}
	sum := sha256.Sum256(text)
	return asset{kind, text, `"` + hex.EncodeToString(sum[:8]) + `"`}
}

// policy lets the page load its own files and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Source is what the page shows, and what it has done.
type Source interface {
	// Devices and Nodes answer with what is to be sent as JSON.
	Devices(r *http.Request) (any, error)
	Nodes(r *http.Request) (any, error)
	// Device returns one as in a list, with what the node knows that it is connected
	// to.
	Device(r *http.Request, id string) (any, error)
	// Traffic returns the bytes from and to each of the devices that are connected.
	Traffic(r *http.Request, ids []string) map[string][2]int64
	// URL is that of a device's page; empty when it has none.
	URL(r *http.Request, id string) (string, error)
	// Session says who asks, and whether they may change anything.
	Session(r *http.Request) Session
	// Do does to a device what Actions names. It is called for who may.
	Do(r *http.Request, id, action string, body []byte) (any, error)
	// Changes returns the ids of devices that change, until leave is called; it is
	// closed when some were missed. ok is false when there is no room for another.
	Changes() (ids <-chan string, leave func(), ok bool)
}

// Session is who has the page open.
type Session struct {
	User   string `json:"user,omitempty"`
	Manage bool   `json:"manage"`
	Why    string `json:"why,omitempty"` // they may not
}

// Actions are what a page can have done to a device, by POST to
// `api/devices/ID/ACTION`.
var Actions = []string{"disconnect", "rotate", "revoke", "tags"}

// Serve answers r, whose path is relative to where the page is. It reports whether
// there is anything at that path. Events end with quit.
func Serve(w http.ResponseWriter, r *http.Request, s Source, quit <-chan struct{}) bool {
	path := strings.TrimPrefix(r.URL.Path, "/")
	serve, allow := find(path, s, quit)
	if serve == nil {
		return false
	}
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Robots-Tag", "noindex")
	if r.Method != allow && (allow != http.MethodGet || r.Method != http.MethodHead) {
		h.Set("Allow", allow)
		http.Error(w, "this is served to "+allow+" alone", http.StatusMethodNotAllowed)
		return true
	}
	serve(w, r)
	return true
}

// find returns what serves a path, and the method that it takes; nil when nothing
// does.
func find(path string, s Source, quit <-chan struct{}) (serve http.HandlerFunc, allow string) {
	if a, ok := assets[path]; ok {
		return a.serve, http.MethodGet
	}
	get := func(of func(*http.Request) (any, error)) (http.HandlerFunc, string) {
		return func(w http.ResponseWriter, r *http.Request) { answer(w, r, of) }, http.MethodGet
	}
	switch path {
	case "api/devices":
		return get(s.Devices)
	case "api/nodes":
		return get(s.Nodes)
	case "api/session":
		return get(func(r *http.Request) (any, error) { return s.Session(r), nil })
	case "api/traffic":
		return get(func(r *http.Request) (any, error) { return traffic(r, s) })
	case "api/events":
		return func(w http.ResponseWriter, r *http.Request) { events(w, r, s, quit) }, http.MethodGet
	}
	device, ok := strings.CutPrefix(path, "api/devices/")
	device, action, acts := strings.Cut(device, "/")
	switch {
	case !ok || device == "":
		return nil, ""
	case !acts:
		return get(func(r *http.Request) (any, error) { return s.Device(r, device) })
	case action == "qr.svg":
		return func(w http.ResponseWriter, r *http.Request) { code(w, r, s, device) }, http.MethodGet
	case slices.Contains(Actions, action):
		return func(w http.ResponseWriter, r *http.Request) { do(w, r, s, device, action) }, http.MethodPost
	}
	return nil, ""
}

func (a asset) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "no-cache") // a new version counts at once; the same costs a 304
	w.Header().Set("ETag", a.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.text))
}

// maxTraffic is how many devices one request may ask the traffic of: the rows of a
// large screen.
const maxTraffic = 200

func traffic(r *http.Request, s Source) (any, error) {
	ids := strings.Split(r.URL.Query().Get("ids"), ",")
	if len(ids) > maxTraffic {
		return nil, &StatusError{http.StatusBadRequest, fmt.Errorf("%d devices, at most %d are allowed", len(ids), maxTraffic)}
	}
	return s.Traffic(r, ids), nil
}

// code draws the URL of a device's page as a QR code.
func code(w http.ResponseWriter, r *http.Request, s Source, device string) {
	w.Header().Set("Cache-Control", "no-store")
	url, err := s.URL(r, device)
	if err == nil && url == "" {
		err = &StatusError{http.StatusNotFound, errors.New("this device has no page now")}
	}
	if err != nil {
		fail(w, err)
		return
	}
	q, err := qr.Encode(url, qr.M)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "image/svg+xml")
	const quiet = 4 // modules around it (ISO/IEC 18004)
	var path strings.Builder
	for y := range q.Size {
		for x := range q.Size {
			if q.Black(x, y) {
				fmt.Fprintf(&path, "M%d %dh1v1h-1z", x+quiet, y+quiet)
			}
		}
	}
	side := q.Size + 2*quiet
	// Who has left does not read it.
	_, _ = fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d"><path fill="#fff" d="M0 0h%dv%dH0z"/><path d="%s"/></svg>`,
		side, side, side, side, path.String())
}

// crossOrigin knows the requests that other sites have a browser make.
var crossOrigin = http.NewCrossOriginProtection()

// maxBody is how long the body of an action may be, in bytes.
const maxBody = 8 << 10

// do has something done to a device, if it is the page that asks, and may.
func do(w http.ResponseWriter, r *http.Request, s Source, device, action string) {
	// A browser sends its user's password, cookie or certificate whoever makes it
	// ask. Forms of other sites cannot say JSON either.
	if err := crossOrigin.Check(r); err != nil || r.Header.Get("Content-Type") != "application/json" {
		http.Error(w, "this takes application/json from the dashboard's own page", http.StatusForbidden)
		return
	}
	if session := s.Session(r); !session.Manage {
		http.Error(w, session.Why, http.StatusForbidden)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "body: "+err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, r, func(r *http.Request) (any, error) { return s.Do(r, device, action, body) })
}

// StatusError is an error that says with which status it is to be answered.
type StatusError struct {
	Status int
	Err    error
}

func (e *StatusError) Error() string { return e.Err.Error() }

func answer(w http.ResponseWriter, r *http.Request, of func(*http.Request) (any, error)) {
	w.Header().Set("Cache-Control", "no-store")
	v, err := of(r)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// Who has left does not read it.
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	var known *StatusError
	if errors.As(err, &known) {
		status = known.Status
	}
	http.Error(w, err.Error(), status)
}

const (
	// pingTime keeps what is on the way from taking silence for an end.
	pingTime = 15 * time.Second
	// eventsTime is how long one stream of events lasts; the page comes again.
	eventsTime = time.Hour
	// eventWrite bounds each write to a page.
	eventWrite = 10 * time.Second
)

// events sends each device that has changed.
func events(w http.ResponseWriter, r *http.Request, s Source, quit <-chan struct{}) {
	ids, leave, ok := s.Changes()
	if !ok {
		w.Header().Set("Retry-After", "30")
		http.Error(w, "too many pages follow the devices", http.StatusServiceUnavailable)
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(w)
	send := func(format string, args ...any) bool {
		_ = out.SetWriteDeadline(time.Now().Add(eventWrite)) // not all writers have one
		_, err := fmt.Fprintf(w, format, args...)
		return err == nil && out.Flush() == nil
	}
	ping, end := time.NewTicker(pingTime), time.NewTimer(eventsTime)
	defer ping.Stop()
	defer end.Stop()
	for alive := send(": hello\n\n"); alive; {
		select {
		case id, more := <-ids:
			if !more {
				send("event: missed\ndata: \n\n")
				return
			}
			if d, err := s.Device(r, id); err == nil {
				text, err := json.Marshal(d) // on one line
				alive = err == nil && send("event: device\ndata: %s\n\n", text)
			}
		case <-ping.C:
			alive = send(": ping\n\n")
		case <-end.C:
			return
		case <-quit:
			return
		case <-r.Context().Done():
			return
		}
	}
}
