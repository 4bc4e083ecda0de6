// Package dashboard is a web page that lists devices, and the JSON and the events that
// it reads.
package dashboard

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

//go:embed index.html
var indexText string

//go:embed dashboard.css
var cssText []byte

//go:embed dashboard.js
var jsText []byte

// index names its assets by their checksums, so that caching them is safe.
var index = []byte(strings.NewReplacer("{{css}}", checksum(cssText), "{{js}}", checksum(jsText)).Replace(indexText))

func checksum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// policy lets the page load its own files and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Source is what the page shows.
type Source interface {
	// Devices and Nodes answer with what is to be sent as JSON.
	Devices(r *http.Request) (any, error)
	Nodes(r *http.Request) (any, error)
	// Device returns one as in a list, with what the node knows that it is connected
	// to.
	Device(r *http.Request, id string) (any, error)
	// Changes returns the ids of devices that change, until leave is called; it is
	// closed when some were missed. ok is false when there is no room for another.
	Changes() (ids <-chan string, leave func(), ok bool)
}

// Serve answers r, whose path is relative to where the page is. It reports whether
// there is anything at that path. Events end with quit.
func Serve(w http.ResponseWriter, r *http.Request, s Source, quit <-chan struct{}) bool {
	h := w.Header()
	path := strings.TrimPrefix(r.URL.Path, "/")
	device, isDevice := strings.CutPrefix(path, "api/devices/")
	switch path {
	case "", "dashboard.css", "dashboard.js", "api/devices", "api/nodes", "api/events":
	default:
		if !isDevice || device == "" {
			return false
		}
	}
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Robots-Tag", "noindex")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "the dashboard only reads", http.StatusMethodNotAllowed)
		return true
	}
	switch path {
	case "":
		asset(w, r, "text/html; charset=utf-8", index, "no-cache")
	case "dashboard.css":
		asset(w, r, "text/css; charset=utf-8", cssText, "public, max-age=31536000, immutable")
	case "dashboard.js":
		asset(w, r, "text/javascript; charset=utf-8", jsText, "public, max-age=31536000, immutable")
	case "api/devices":
		answer(w, r, s.Devices)
	case "api/nodes":
		answer(w, r, s.Nodes)
	case "api/events":
		events(w, r, s, quit)
	default:
		answer(w, r, func(r *http.Request) (any, error) { return s.Device(r, device) })
	}
	return true
}

func asset(w http.ResponseWriter, r *http.Request, kind string, text []byte, cache string) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", cache)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(text))
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
		status := http.StatusServiceUnavailable
		var known *StatusError
		if errors.As(err, &known) {
			status = known.Status
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// Who has left does not read it.
	_ = json.NewEncoder(w).Encode(v)
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
