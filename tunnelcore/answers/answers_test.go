package answers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/iottunnel/iottunnel/internal/golden"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	browserAccept = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
	evil          = "</code><script>alert('x')</script>{{code}}\" onload=\"x\x00\r\nSet-Cookie: a=b\xff\u202e&amp;"
)

var seen = time.Date(2026, 3, 9, 7, 5, 4, 999, time.FixedZone("", 2*3600))

// variants are what an answer can bring besides its code; each is a golden case
// for other implementations.
var variants = []struct {
	name  string
	codes []wire.Code // nil: all
	fill  func(*Error)
}{
	{"", nil, func(*Error) {}},
	{"-seen", []wire.Code{wire.DeviceOffline}, func(e *Error) { e.LastSeen = seen }},
	{"-retry", []wire.Code{wire.DeviceOffline, wire.Unavailable, wire.TooMany}, func(e *Error) { e.RetryAfter = 29*time.Second + 1 }},
	{"-hostile", []wire.Code{wire.DeviceOffline, wire.BadRequest}, func(e *Error) { e.Message = evil; e.LastSeen = seen }},
}

// TestGolden holds every code, in every form, to the bytes in testdata: they are
// what the Lua router must answer, too.
func TestGolden(t *testing.T) {
	forms := []struct{ ext, accept string }{{"html", browserAccept}, {"json", "application/json"}, {"txt", "*/*"}}
	for _, v := range variants {
		for _, entry := range table {
			if v.codes != nil && !contains(v.codes, entry.Code) {
				continue
			}
			e := &Error{Code: entry.Code}
			v.fill(e)
			for _, f := range forms {
				w := visit(e, "GET", f.accept)
				var b bytes.Buffer
				fmt.Fprintf(&b, "HTTP/1.1 %d %s\n", w.Code, http.StatusText(w.Code))
				if err := w.Header().Write(&b); err != nil {
					t.Fatal(err)
				}
				got := strings.ReplaceAll(b.String(), "\r\n", "\n") + "\n" + w.Body.String()
				golden.Check(t, string(entry.Code)+v.name+"."+f.ext, got)
			}
		}
	}
}

// TestTable keeps the parts that bodies are made of, for other languages.
func TestTable(t *testing.T) {
	got, err := json.MarshalIndent(map[string]any{
		"codes": table, "message_max": MessageMax, "refresh_min": refreshMin, "refresh_max": refreshMax,
		"content_security_policy": contentPolicy, "page": pageTemplate,
		"fragments": map[string]string{
			"refresh": refreshFragment, "again": againFragment, "seen": seenFragment,
			"detail": detailFragment, "refresh_sentence": refreshSentence,
		},
	}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "table.json", string(got)+"\n")
}

// TestStatuses is the second copy of the list that operators script against.
func TestStatuses(t *testing.T) {
	want := map[wire.Code]int{
		"unknown_device": 404, "device_offline": 503, "device_refused": 502, "device_timeout": 504,
		"unauthorized": 401, "forbidden": 403, "device_connected": 409, "bad_request": 400,
		"not_here": 421, "device_busy": 503, "upgrade_required": 426, "too_many": 429,
		"unavailable": 503, "redirect": 302, "unknown_stream": 404,
	}
	for code, status := range want {
		if got := Status(code); got != status {
			t.Errorf("Status(%s) = %d, want %d", code, got, status)
		}
	}
	if len(table) != len(want) || len(byCode) != len(want) {
		t.Errorf("table has %d entries, want %d", len(table), len(want))
	}
	if got := Status("no_such_code"); got != 500 {
		t.Errorf("Status of an unknown code = %d, want 500", got)
	}
	for _, e := range table {
		if e.Message == "" || e.Title == "" || e.Text == "" || e.Next == "" || e.Fault == "" {
			t.Errorf("%s: an empty text", e.Code)
		}
		if oneLine(e.Message) != e.Message || strings.HasSuffix(e.Message, ".") {
			t.Errorf("%s: message %q is not a plain sentence without a full stop", e.Code, e.Message)
		}
	}
}

func TestHeaders(t *testing.T) {
	e := &Error{Code: wire.DeviceOffline, RetryAfter: 1500 * time.Millisecond}
	w := httptest.NewRecorder()
	w.Header().Set("Content-Encoding", "br") // of the answer that could not be given
	w.Header().Set("Etag", `"1"`)
	w.Header().Set("Server", "Caddy")
	w.Header().Set("Vary", "Origin")
	e.WriteHTTP(w, request("GET", browserAccept))
	want := map[string]string{
		"Iottunnel-Error": "device_offline", "Cache-Control": "no-store", "X-Robots-Tag": "noindex",
		"Retry-After": "2", "X-Content-Type-Options": "nosniff", "Content-Type": "text/html; charset=utf-8",
		"Content-Length": fmt.Sprint(w.Body.Len()), "Content-Encoding": "", "Etag": "", "Server": "Caddy",
	}
	for name, value := range want {
		if got := w.Header().Get(name); got != value {
			t.Errorf("%s: %q, want %q", name, got, value)
		}
	}
	if got := strings.Join(w.Header().Values("Vary"), ", "); got != "Origin, Accept" {
		t.Errorf("Vary: %s", got)
	}
	if got := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(got, "default-src 'none'; style-src 'sha256-") {
		t.Errorf("Content-Security-Policy: %s", got)
	}
	for _, c := range []struct {
		after time.Duration
		want  string
	}{{0, ""}, {-time.Second, ""}, {1, "1"}, {time.Second, "1"}, {time.Second + 1, "2"}, {10 * time.Minute, "600"}} {
		w := visit(&Error{Code: wire.Unavailable, RetryAfter: c.after}, "GET", "*/*")
		if got := w.Header().Get("Retry-After"); got != c.want {
			t.Errorf("RetryAfter %v gives Retry-After %q, want %q", c.after, got, c.want)
		}
	}
}

func TestHead(t *testing.T) {
	for _, accept := range []string{browserAccept, "application/json", "*/*"} {
		e := &Error{Code: wire.DeviceOffline, LastSeen: seen}
		get, head := visit(e, "GET", accept), visit(e, "HEAD", accept)
		if head.Body.Len() != 0 {
			t.Errorf("Accept %s: HEAD has a body of %d bytes", accept, head.Body.Len())
		}
		if g, h := fmt.Sprint(get.Code, get.Header()), fmt.Sprint(head.Code, head.Header()); g != h {
			t.Errorf("Accept %s:\nGET  %s\nHEAD %s", accept, g, h)
		}
	}
}

// TestRefresh: who may be asked again by a browser, and when.
func TestRefresh(t *testing.T) {
	for _, c := range []struct {
		method string
		err    Error
		want   string
	}{
		{"GET", Error{Code: wire.DeviceOffline}, `content="15"`},
		{"HEAD", Error{Code: wire.DeviceOffline}, ""},
		{"POST", Error{Code: wire.DeviceOffline}, ""},
		{"GET", Error{Code: wire.DeviceOffline, RetryAfter: time.Second}, `content="5"`},
		{"GET", Error{Code: wire.DeviceOffline, RetryAfter: 29 * time.Second}, `content="29"`},
		{"GET", Error{Code: wire.DeviceOffline, RetryAfter: time.Hour}, `content="120"`},
		{"GET", Error{Code: wire.DeviceTimeout}, `content="15"`},
		{"GET", Error{Code: wire.DeviceBusy}, `content="10"`},
		{"GET", Error{Code: wire.Unavailable}, `content="10"`},
		{"GET", Error{Code: wire.UnknownDevice, RetryAfter: time.Second}, ""},
		{"GET", Error{Code: wire.TooMany, RetryAfter: time.Second}, ""},
	} {
		body := visit(&c.err, c.method, browserAccept).Body.String()
		if got := strings.Contains(body, "http-equiv"); got != (c.want != "") || !strings.Contains(body, c.want) {
			t.Errorf("%s %s after %v: refresh %v, want %q", c.method, c.err.Code, c.err.RetryAfter, got, c.want)
		}
		if strings.Contains(body, "by itself") != (c.want != "") && c.method != "HEAD" {
			t.Errorf("%s %s: the page does not say what happens", c.method, c.err.Code)
		}
	}
}

// TestHostile: nothing that a stranger put into a message gets out of its place.
func TestHostile(t *testing.T) {
	e := &Error{Code: wire.BadRequest, Message: evil}
	page := visit(e, "GET", "text/html").Body.String()
	for _, bad := range []string{"<script", "onload=\"", "\x00", "\r", "\xff", "\u202e", "{{"} {
		if strings.Contains(strings.ReplaceAll(page, "{{code}}&#34;", ""), bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	if !strings.Contains(page, "{{code}}&#34;") {
		t.Error("a variable in a message was replaced")
	}
	if !utf8.ValidString(page) {
		t.Error("the page is not UTF-8")
	}
	var body wire.ErrorBody
	if err := json.Unmarshal(visit(e, "GET", "application/json").Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	if want := "</code><script>alert('x')</script>{{code}}\" onload=\"x   Set-Cookie: a=b\uFFFD &amp;"; body.Message != want {
		t.Errorf("message %q, want %q", body.Message, want)
	}
	if text := visit(e, "GET", "*/*").Body.String(); strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "bad_request: </code>") {
		t.Errorf("text %q", text)
	}
}

func TestMessageLength(t *testing.T) {
	for _, c := range []struct {
		in, want string
	}{
		{"", ""},
		{" a\tb ", "a b"},
		{strings.Repeat("x", MessageMax), strings.Repeat("x", MessageMax)},
		{strings.Repeat("x", MessageMax+1), strings.Repeat("x", MessageMax) + "…"},
		{strings.Repeat("x", MessageMax-1) + "é", strings.Repeat("x", MessageMax-1) + "…"},
		{strings.Repeat("x", MessageMax-2) + "é", strings.Repeat("x", MessageMax-2) + "é"},
		{strings.Repeat("\xff", 10*MessageMax), strings.Repeat("\uFFFD", MessageMax/3) + "…"},
	} {
		if got := oneLine(c.in); got != c.want {
			t.Errorf("oneLine(%q) = %q, want %q", c.in, got, c.want)
		}
	}
	long := &Error{Code: wire.BadRequest, Message: strings.Repeat("\u202e", 1<<20) + "end"}
	if got := long.message(); got != "…" {
		t.Errorf("a long message of nothing is %q", got)
	}
	blank := &Error{Code: wire.BadRequest, Message: " \n"}
	if got := blank.message(); got != "the request was not understood" {
		t.Errorf("a blank message is %q", got)
	}
}

func TestWriteJSON(t *testing.T) {
	w := httptest.NewRecorder()
	(&Error{Code: wire.Unauthorized, Message: `no "such" device & <token>`}).WriteJSON(w)
	if want := `{"error":"unauthorized","message":"no \"such\" device & <token>"}` + "\n"; w.Body.String() != want {
		t.Errorf("got %s, want %s", w.Body, want)
	}
	if w.Code != 401 || w.Header().Get("Www-Authenticate") != "Bearer" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
}

type timeoutError struct{ error }

func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return false }

func TestFrom(t *testing.T) {
	if From(nil) != nil {
		t.Error("From(nil) is not nil")
	}
	own := &Error{Code: wire.DeviceBusy, Cause: context.DeadlineExceeded}
	if got := From(fmt.Errorf("dial: %w", own)); got != own {
		t.Errorf("an *Error in the chain became %v", got)
	}
	for _, c := range []struct {
		err  error
		want wire.Code
	}{
		{context.Canceled, wire.Unavailable},
		{&net.OpError{Op: "read", Err: context.Canceled}, wire.Unavailable},
		{context.DeadlineExceeded, wire.DeviceTimeout},
		{os.ErrDeadlineExceeded, wire.DeviceTimeout},
		{timeoutError{errors.New("awaiting headers")}, wire.DeviceTimeout},
		{io.EOF, wire.DeviceRefused},
		{io.ErrUnexpectedEOF, wire.DeviceRefused},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, wire.DeviceRefused},
		{errors.New("registry is gone"), wire.Unavailable},
	} {
		got := From(fmt.Errorf("stream: %w", c.err))
		if got.Code != c.want || !errors.Is(got, c.err) {
			t.Errorf("From(%v) = %v, want %s with its cause", c.err, got, c.want)
		}
	}
}

func TestErrorString(t *testing.T) {
	e := &Error{Code: wire.DeviceOffline, Cause: errors.New("no\nroute")}
	if got, want := e.Error(), "device_offline: the device is not connected: no\nroute"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func visit(e *Error, method, accept string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	e.WriteHTTP(w, request(method, accept))
	return w
}

func request(method, accept string) *http.Request {
	r := httptest.NewRequest(method, "http://x4.devices.example.net/", nil)
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	return r
}

func contains(codes []wire.Code, code wire.Code) bool {
	for _, c := range codes {
		if c == code {
			return true
		}
	}
	return false
}
