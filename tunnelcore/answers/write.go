package answers

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Header marks every answer that the edge makes itself; its value is the code.
// A device cannot send it: what it sends under this name is dropped.
const Header = "Iottunnel-Error"

// WriteHTTP answers a visitor: with a page, JSON or a line of text, as formFor
// reads its Accept header. HEAD gets the same headers and no body. The page asks
// again by itself (codes that pass, and only for GET and HEAD: nothing else may
// be repeated without being asked for).
//
// Headers that w holds already are kept, save those that describe another body.
func (e *Error) WriteHTTP(w http.ResponseWriter, r *http.Request) {
	accept := r.Header.Values("Accept")
	w.Header().Add("Vary", "Accept")
	switch formFor(accept) {
	case formHTML:
		safe := r.Method == http.MethodGet || r.Method == http.MethodHead
		e.write(w, r.Method, "text/html; charset=utf-8", e.page(safe))
	case formJSON:
		e.write(w, r.Method, "application/json", e.json())
	default:
		e.write(w, r.Method, "text/plain; charset=utf-8", e.text())
	}
}

// WriteJSON answers an agent: always JSON, {"error": CODE, "message": TEXT}.
// A redirect's Location is set by the caller before.
func (e *Error) WriteJSON(w http.ResponseWriter) {
	e.write(w, http.MethodGet, "application/json", e.json())
}

func (e *Error) write(w http.ResponseWriter, method, contentType string, body []byte) {
	h := w.Header()
	for _, name := range [...]string{"Content-Encoding", "Content-Range", "Content-Language", "Etag", "Last-Modified", "Trailer"} {
		h.Del(name)
	}
	h.Set(Header, string(e.Code))
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Robots-Tag", "noindex")
	h.Set("Cache-Control", "no-store")
	if seconds := e.retrySeconds(); seconds > 0 {
		h.Set("Retry-After", strconv.Itoa(seconds))
	}
	if e.Code == wire.Unauthorized && h.Get("Www-Authenticate") == "" {
		h.Set("Www-Authenticate", "Bearer") // RFC 9110 §15.5.2 asks for one
	}
	w.WriteHeader(e.Status())
	if method != http.MethodHead {
		_, _ = w.Write(body) // the reader has gone: there is nobody to tell
	}
}

// retrySeconds rounds up: asking too early would be in vain.
func (e *Error) retrySeconds() int {
	if e.RetryAfter <= 0 {
		return 0
	}
	seconds := e.RetryAfter / time.Second
	if e.RetryAfter%time.Second > 0 {
		seconds++
	}
	return int(seconds)
}

// json is wire.ErrorBody, with the moment a device was last seen where it is
// known. No character is escaped that JSON does not ask for: with nosniff there
// is no need, and other languages then write the same bytes.
func (e *Error) json() []byte {
	body := struct {
		wire.ErrorBody
		LastSeen string `json:"last_seen,omitempty"`
	}{ErrorBody: wire.ErrorBody{Error: e.Code, Message: e.message()}}
	if !e.LastSeen.IsZero() {
		body.LastSeen = e.LastSeen.UTC().Format(time.RFC3339)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		panic("answers: strings that cannot be written as JSON: " + err.Error())
	}
	return b.Bytes()
}

// text is one line for a terminal: `CODE: MESSAGE`.
func (e *Error) text() []byte {
	var b bytes.Buffer
	_, _ = io.WriteString(&b, string(e.Code)+": "+e.message()) // a bytes.Buffer does not fail
	if !e.LastSeen.IsZero() {
		b.WriteString(" (last seen " + e.LastSeen.UTC().Format(time.RFC3339) + ")")
	}
	b.WriteByte('\n')
	return b.Bytes()
}
