package harness

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Origin is the HTTP service on a device: what an agent forwards to. Each path
// is one habit of the services that devices have, good and bad.
type Origin struct {
	Addr string // 127.0.0.1:port

	mu   sync.Mutex
	seen []Seen // guarded by mu
	gone chan string
}

// Seen is a request as it reached the service. /echo sends it back as JSON.
type Seen struct {
	Method   string
	URI      string
	Host     string
	Proto    string
	Header   http.Header
	Trailer  http.Header
	Length   int64 // -1: chunked
	Bytes    int64
	SHA256   string
	From     string
	Continue bool // the visitor sent Expect: 100-continue
}

// StartOrigin starts a service for the length of the test.
func StartOrigin(tb testing.TB) *Origin {
	tb.Helper()
	o := &Origin{gone: make(chan string, 1024)}
	server := httptest.NewUnstartedServer(o.handler())
	server.Config.MaxHeaderBytes = 1 << 20
	server.Config.ErrorLog = quiet()
	server.Start()
	o.Addr = server.Listener.Addr().String()
	tb.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return o
}

// Seen returns the requests for a path so far.
func (o *Origin) Seen(path string) []Seen {
	o.mu.Lock()
	defer o.mu.Unlock()
	var found []Seen
	for _, s := range o.seen {
		if p, _, _ := strings.Cut(s.URI, "?"); p == path {
			found = append(found, s)
		}
	}
	return found
}

// WaitGone waits until a visitor of a path that only ends with its visitor
// (/hang, /sse, /ws) has left.
func (o *Origin) WaitGone(tb testing.TB, path string, within time.Duration) {
	tb.Helper()
	within = max(within, Patience)
	deadline := time.After(within)
	for {
		select {
		case p := <-o.gone:
			if p == path {
				return
			}
		case <-deadline:
			tb.Fatalf("the device's %s still serves a visitor that left %v ago", path, within)
		}
	}
}

func (o *Origin) leave(path string) {
	select {
	case o.gone <- path:
	default: // nobody reads: a case that does not ask
	}
}

func (o *Origin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", o.echo)
	mux.HandleFunc("/bytes", serveBytes)
	mux.HandleFunc("/sum", o.echo) // its answer has bytes and hash
	mux.HandleFunc("/sse", o.events)
	mux.HandleFunc("/ws", o.socket)
	mux.HandleFunc("/trailers", trailers)
	mux.HandleFunc("/chunked", chunked)
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(number(r, "code", 200)) })
	mux.HandleFunc("/etag", etag)
	mux.HandleFunc("/reject", func(w http.ResponseWriter, r *http.Request) { // before any body is read: no 100
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusExpectationFailed)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		pause(r, "ms", 1000)
		fmt.Fprintf(w, "slow %s\n", r.URL.Query().Get("id"))
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Filler", strings.Repeat("f", number(r, "bytes", 1000)))
		io.WriteString(w, "filled\n")
	})
	mux.HandleFunc("/early-close", func(w http.ResponseWriter, r *http.Request) {
		raw(w, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", 1000))
	})
	mux.HandleFunc("/reset", func(w http.ResponseWriter, r *http.Request) { // its end would be the answer's
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"+strings.Repeat("x", 1000))
		time.Sleep(100 * time.Millisecond) // lets the agent read: a reset discards what is under way
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	})
	mux.HandleFunc("/no-answer", func(w http.ResponseWriter, r *http.Request) { raw(w, "") })
	mux.HandleFunc("/garbage", func(w http.ResponseWriter, r *http.Request) {
		raw(w, "\x16\x03\x01 this is not HTTP \x00\xff\r\n\r\n")
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		o.record(r)
		<-r.Context().Done()
		o.leave("/hang")
	})
	mux.HandleFunc("/forge", forge)
	mux.HandleFunc("/page", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, "<!doctype html><title>device</title><h1>the device's page</h1>\n")
	})
	return mux
}

func (o *Origin) record(r *http.Request) *Seen {
	s := Seen{
		Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header.Clone(),
		Length: r.ContentLength, From: r.RemoteAddr, Continue: r.Header.Get("Expect") != "",
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, s)
	return &s
}

func (o *Origin) echo(w http.ResponseWriter, r *http.Request) {
	s := o.record(r)
	hash := sha256.New()
	s.Bytes, _ = io.Copy(hash, r.Body) // a cut body shows in the count
	s.SHA256 = hex.EncodeToString(hash.Sum(nil))
	s.Trailer = r.Trailer
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(s)
}

// serveBytes answers ?n= bytes that a Pattern of the same length repeats.
func serveBytes(w http.ResponseWriter, r *http.Request) {
	n := number(r, "n", 1024)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(n))
	if r.Method == http.MethodHead {
		return
	}
	pattern, every := NewPattern(int64(n)), time.Duration(number(r, "pause_ms", 0))*time.Millisecond
	if every == 0 {
		io.Copy(w, pattern) // the visitor may leave
		return
	}
	for { // a download that lasts: piece by piece
		if _, err := io.CopyN(w, pattern, int64(number(r, "piece", 1024))); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		select {
		case <-time.After(every):
		case <-r.Context().Done():
			return
		}
	}
}

func (o *Origin) events(w http.ResponseWriter, r *http.Request) {
	o.record(r)
	defer o.leave("/sse")
	every := time.Duration(number(r, "ms", 50)) * time.Millisecond
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	for i := range number(r, "n", 1<<30) {
		if _, err := fmt.Fprintf(w, "id: %d\ndata: tick %d\n\n", i, i); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		select {
		case <-time.After(every):
		case <-r.Context().Done():
			return
		}
	}
}

func (o *Origin) socket(w http.ResponseWriter, r *http.Request) {
	o.record(r)
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }, Subprotocols: []string{"echo.v1"}}
	c, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer o.leave("/ws")
	defer c.Close()
	for {
		kind, data, err := c.ReadMessage()
		if err != nil {
			return
		}
		if c.WriteMessage(kind, data) != nil {
			return
		}
	}
}

func trailers(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "X-Sum, X-Count")
	io.WriteString(w, "body before trailers\n")
	http.NewResponseController(w).Flush()
	w.Header().Set("X-Sum", "42")
	w.Header().Set("X-Count", "1")
}

func chunked(w http.ResponseWriter, r *http.Request) {
	for i := range number(r, "n", 5) {
		fmt.Fprintf(w, "piece %d\n", i)
		http.NewResponseController(w).Flush()
	}
}

func etag(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"v1"`)
	if r.Header.Get("If-None-Match") == `"v1"` {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	io.WriteString(w, "version 1\n")
}

// forge answers with all that a device must not be able to tell a visitor.
func forge(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Iottunnel-Error", "device_offline")
	w.WriteHeader(http.StatusEarlyHints) // 103, with the forged header
	h.Set("Iottunnel-Owner", "evil")
	h.Set("Trailer", "Iottunnel-Late, X-Late")
	_, parent, _ := strings.Cut(hostOnly(r.Host), ".")
	h.Add("Set-Cookie", "parent=1; Domain="+parent)
	h.Add("Set-Cookie", "dotted=1; Domain=."+parent+"; Path=/")
	h.Add("Set-Cookie", "upper=1; doMAIN="+strings.ToUpper(parent))
	h.Add("Set-Cookie", "own=1; Path=/")
	h.Add("Set-Cookie", "self=1; Domain="+hostOnly(r.Host))
	io.WriteString(w, "forged\n")
	http.NewResponseController(w).Flush()
	h.Set("Iottunnel-Late", "evil")
	h.Set("X-Late", "fine")
}

func hostOnly(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return host
}

// raw takes the connection over, writes text and closes it.
func raw(w http.ResponseWriter, text string) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err) // the service speaks HTTP/1.1 only
	}
	io.WriteString(c, text)
	c.Close()
}

func number(r *http.Request, name string, def int) int {
	if n, err := strconv.Atoi(r.URL.Query().Get(name)); err == nil {
		return n
	}
	return def
}

func pause(r *http.Request, name string, def int) {
	select {
	case <-time.After(time.Duration(number(r, name, def)) * time.Millisecond):
	case <-r.Context().Done():
	}
}

// Pattern is a stream of n bytes that are the same each time and nowhere repeat,
// so that a lost, doubled or swapped piece changes the checksum.
type Pattern struct {
	word uint64
	left int64
	buf  [8]byte
	rest int // bytes of buf not handed out yet
}

// NewPattern returns a pattern of n bytes.
func NewPattern(n int64) *Pattern { return &Pattern{left: n} }

// Read fills p; io.EOF follows the last byte.
func (p *Pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.left)]
	n := copy(b, p.buf[len(p.buf)-p.rest:])
	p.rest -= n
	for len(b)-n >= 8 {
		binary.LittleEndian.PutUint64(b[n:], p.next())
		n += 8
	}
	if n < len(b) {
		binary.LittleEndian.PutUint64(p.buf[:], p.next())
		k := copy(b[n:], p.buf[:])
		n, p.rest = n+k, len(p.buf)-k
	}
	p.left -= int64(n)
	return n, nil
}

// next is SplitMix64.
func (p *Pattern) next() uint64 {
	p.word += 0x9e3779b97f4a7c15
	z := p.word
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// PatternSum is the SHA-256 of a pattern of n bytes, in hex.
func PatternSum(n int64) string {
	hash := sha256.New()
	io.Copy(hash, NewPattern(n)) // neither end fails
	return hex.EncodeToString(hash.Sum(nil))
}

// Sum reads r to its end and returns how many bytes there were and their SHA-256.
func Sum(r io.Reader) (int64, string, error) {
	hash := sha256.New()
	n, err := io.Copy(hash, r)
	return n, hex.EncodeToString(hash.Sum(nil)), err
}
