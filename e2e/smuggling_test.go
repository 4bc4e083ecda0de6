package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// recorder is an HTTP service on a device that keeps every byte it receives, by
// connection, and answers as it is told.
type recorder struct {
	addr string

	mu      sync.Mutex
	conns   []*bytes.Buffer   // guarded by mu, as is what follows
	answers map[string]string // by path; others are told their path
	over    map[string]bool   // paths that were asked for on connections that have ended
}

func startRecorder(t *testing.T) *recorder {
	r := &recorder{answers: make(map[string]string), over: make(map[string]bool)}
	r.addr = harness.ServeTCP(t, r.serve)
	return r
}

func (r *recorder) serve(c *net.TCPConn) {
	seen := new(bytes.Buffer)
	r.mu.Lock()
	r.conns = append(r.conns, seen)
	r.mu.Unlock()
	br := bufio.NewReader(writesTo{c, func(p []byte) {
		r.mu.Lock()
		seen.Write(p)
		r.mu.Unlock()
	}})
	var paths []string
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, path := range paths {
			r.over[path] = true
		}
	}()
	for ended := false; !ended; {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		paths = append(paths, req.URL.Path)
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		r.mu.Lock()
		answer, ok := r.answers[req.URL.Path]
		r.mu.Unlock()
		answer, ended = strings.CutSuffix(answer, endOfConn)
		if !ok {
			answer = fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(req.RequestURI), req.RequestURI)
		}
		if _, err := io.WriteString(c, answer); err != nil {
			return
		}
	}
}

// writesTo reads from r, and shows what it read.
type writesTo struct {
	r    io.Reader
	show func(p []byte)
}

func (w writesTo) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.show(p[:n])
	return n, err
}

// endOfConn behind an answer has the device end the connection.
const endOfConn = "\x00(end)"

// answer sets what a path is answered with, byte by byte.
func (r *recorder) answer(path, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[path] = text
}

// waitOver waits until the connection has ended on which path was asked for.
func (r *recorder) waitOver(t *testing.T, path string) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, "the edge gives up the connection to the device on which "+path+" was asked for", func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.over[path] {
			return errors.New("not yet")
		}
		return nil
	})
}

// take returns what each connection has received since the last call.
func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, c := range r.conns {
		if c.Len() > 0 {
			all = append(all, c.String())
			c.Reset()
		}
	}
	return all
}

// newRecorded brings a device up whose port 80 is a recorder.
func newRecorded(t *testing.T, f harness.Face, flags ...string) (*site, *recorder) {
	t.Helper()
	r := startRecorder(t)
	a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + r.addr}, Flags: flags})
	return &site{face: f, agent: a, host: a.Up(t).Hostname(t, 80), client: harness.Visitor(t, f, false)}, r
}

// message is an HTTP/1.1 message as the strictest reader of RFC 9112 has it.
type message struct {
	first   string
	fields  []field
	body    string
	trailer []field
}

type field struct{ name, value string }

// get returns the values of a header field.
func (m message) get(name string) (values []string) {
	for _, f := range m.fields {
		if strings.EqualFold(f.name, name) {
			values = append(values, f.value)
		}
	}
	return values
}

// strictFields reads lines up to the empty one.
func strictFields(raw string) (fields []field, rest string, err error) {
	for {
		line, after, ok := strings.Cut(raw, "\r\n")
		switch {
		case !ok:
			return nil, "", fmt.Errorf("no end of the header in %.200q", raw)
		case line == "":
			return fields, after, nil
		case strings.ContainsAny(line, "\r\n\x00"):
			return nil, "", fmt.Errorf("a bare CR, LF or NUL in %q", line)
		case line[0] == ' ' || line[0] == '\t':
			return nil, "", fmt.Errorf("a folded line %q", line)
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool {
			return r <= ' ' || r > '~' || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
		}) {
			return nil, "", fmt.Errorf("not a field: %q", line)
		}
		fields = append(fields, field{name, strings.Trim(value, " \t")})
		raw = after
	}
}

// notInTrailers lists fields that a reader of trailers might take for the header's.
var notInTrailers = []string{"content-length", "transfer-encoding", "host", "authorization", "connection", "x-forwarded-for", "content-type", "set-cookie"}

// strictMessage reads one message. bodyless says that it is an answer that has no
// body whatever it says; toEnd that a body without a length lasts until the end.
func strictMessage(raw string, bodyless func(first string) bool, toEnd bool) (m message, rest string, err error) {
	first, raw, ok := strings.Cut(raw, "\r\n")
	if !ok || strings.ContainsAny(first, "\r\n\x00") {
		return m, "", fmt.Errorf("first line of %.200q", first)
	}
	m.first = first
	if m.fields, raw, err = strictFields(raw); err != nil {
		return m, "", err
	}
	lengths, codings := m.get("Content-Length"), m.get("Transfer-Encoding")
	switch {
	case len(lengths)+len(codings) > 1:
		return m, "", fmt.Errorf("more than one length: %q %q", lengths, codings)
	case bodyless(first):
		return m, raw, nil
	case len(codings) == 1:
		if codings[0] != "chunked" {
			return m, "", fmt.Errorf("coding %q", codings[0])
		}
		return m.strictChunks(raw)
	case len(lengths) == 1:
		n, err := strconv.ParseUint(lengths[0], 10, 31)
		if err != nil || strings.TrimLeft(lengths[0], "0123456789") != "" {
			return m, "", fmt.Errorf("length %q", lengths[0])
		}
		if int(n) > len(raw) {
			return m, "", fmt.Errorf("%w: %d of %d bytes", errCut, len(raw), n)
		}
		m.body, raw = raw[:n], raw[n:]
	case toEnd:
		m.body, raw = raw, ""
	}
	return m, raw, nil
}

// errCut is that a message ends before its end: nobody takes it for the whole.
var errCut = errors.New("cut short")

func (m message) strictChunks(raw string) (_ message, rest string, err error) {
	for {
		size, after, ok := strings.Cut(raw, "\r\n")
		if !ok {
			return m, "", fmt.Errorf("%w: no chunk in %.100q", errCut, raw)
		}
		n, err := strconv.ParseUint(size, 16, 31)
		if err != nil || strings.TrimLeft(size, "0123456789abcdefABCDEF") != "" {
			return m, "", fmt.Errorf("size of a chunk %.100q", size)
		}
		if n == 0 {
			m.trailer, raw, err = strictFields(after)
			for _, f := range m.trailer {
				for _, name := range notInTrailers {
					if strings.EqualFold(f.name, name) {
						return m, "", fmt.Errorf("%s in the trailer", name)
					}
				}
			}
			return m, raw, err
		}
		if len(after) < int(n)+2 {
			return m, "", fmt.Errorf("%w: %d of a chunk of %d bytes", errCut, len(after), n)
		}
		if after[n:n+2] != "\r\n" {
			return m, "", fmt.Errorf("a chunk of %d bytes ends with %q", n, after[n:n+2])
		}
		m.body += after[:n]
		raw = after[n+2:]
	}
}

// strictRequests reads what a device has received on one connection. Each request
// must be one that the edge has seen as such, and has said so.
func strictRequests(raw string) (targets []string, err error) {
	for raw != "" {
		var m message
		if m, raw, err = strictMessage(raw, func(string) bool { return false }, false); err != nil {
			return targets, err
		}
		parts := strings.Split(m.first, " ")
		if len(parts) != 3 || parts[2] != "HTTP/1.1" || parts[0] != strings.ToUpper(parts[0]) {
			return targets, fmt.Errorf("request line %q", m.first)
		}
		targets = append(targets, parts[1])
		if from := m.get("X-Forwarded-For"); len(from) != 1 || from[0] != "127.0.0.1" {
			return targets, fmt.Errorf("a request that the edge has not looked at: %q, from %q", m.first, from)
		}
		if hosts := m.get("Host"); len(hosts) != 1 || strings.Contains(hosts[0], "evil") {
			return targets, fmt.Errorf("%q, Host %q", m.first, hosts)
		}
		for _, f := range append(m.fields, m.trailer...) {
			if name := strings.ToLower(f.name); strings.HasPrefix(name, "iottunnel") || strings.Contains(f.value, "evil") {
				return targets, fmt.Errorf("%q, %s: %s", m.first, f.name, f.value)
			}
		}
	}
	return targets, nil
}

// inside is a request hidden in another one's body.
const inside = "GET /smuggled HTTP/1.1\r\nHost: evil\r\nX-Forwarded-For: 6.6.6.6\r\nIottunnel-Owner: evil\r\nX-Ignored: "

// TestSmugglingToDevice sends requests whose end two readers see at two places, and
// reads byte by byte what the device received: what the edge took for a request, in
// the one form that all read alike, or nothing.
func TestSmugglingToDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s, device := newRecorded(t, harness.Shared(t, k))
		post := func(lines string, body string) string {
			return "POST /first HTTP/1.1\r\nHost: " + s.hostPort() + "\r\n" + lines + "\r\n" + body
		}
		chunked := "Transfer-Encoding: chunked\r\n"
		length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }
		all := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inside), inside)
		for _, c := range []struct {
			name, text string
			refused    bool // nothing may reach the device
		}{
			{"CL.TE", post(length(len("0\r\n\r\n"+inside))+chunked, "0\r\n\r\n"+inside), false},
			{"TE.CL", post(chunked+length(4), all), false},
			{"TE.TE", post(chunked+"Transfer-Encoding: identity\r\n", "0\r\n\r\n"+inside), true},
			{"TE twice", post(chunked+chunked, "0\r\n\r\n"+inside), true},
			{"TE in disguise", post("Transfer-Encoding: xchunked\r\n"+length(4), all), true},
			{"TE with a tab", post("Transfer-Encoding:\tchunked\r\n"+length(4), all), false},
			{"TE with a vertical tab", post("Transfer-Encoding: \vchunked\r\n"+length(4), all), true},
			{"TE before a space", post("Transfer-Encoding : chunked\r\n"+length(4), all), true},
			{"TE after a line break", post("X-A: b\nTransfer-Encoding: chunked\r\n"+length(len(all)), all), false},
			{"TE folded", post("Transfer-Encoding:\r\n chunked\r\n"+length(4), all), false},
			{"TE of two codings", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"+inside), true},
			{"TE of HTTP/1.0", strings.Replace(post(chunked+length(4), all), "HTTP/1.1", "HTTP/1.0", 1), false},
			{"TE kept from the next one", post(chunked+"Connection: Transfer-Encoding\r\n", all), false},
			{"CL kept from the next one", post(length(len(inside))+"Connection: Content-Length\r\n", inside), false},
			{"two lengths", post(length(4)+length(len(inside)), inside), true},
			{"two equal lengths", post(length(4)+length(4), "body"), false},
			{"a list of lengths", post(fmt.Sprintf("Content-Length: 4, %d\r\n", len(inside)), inside), true},
			{"length with a sign", post("Content-Length: +4\r\n", "body"+inside), true},
			{"negative length", post("Content-Length: -1\r\n", inside), true},
			{"hexadecimal length", post("Content-Length: 0x4\r\n", inside), true},
			{"length of 2^64", post("Content-Length: 18446744073709551616\r\n", inside), true},
			{"length with a space", post("Content-Length : 4\r\n", "body"+inside), true},
			{"empty length", post("Content-Length: \r\n", inside), true},
			{"GET with a body", strings.Replace(post(length(len(inside)), inside), "POST", "GET", 1), false},
			{"obs-fold", post("X-A: b\r\n Content-Length: 0\r\n\tIottunnel-Owner: folded\r\n"+length(4), "body"), false},
			{"bare LF", strings.ReplaceAll(post("X-A: b\r\n"+length(4), "body"), "\r\n", "\n"), false},
			{"bare CR", post("X-A: b\rIottunnel-Owner: evil\r\n"+length(4), "body"), true},
			{"NUL", post("X-A: b\x00c\r\n"+length(4), "body"), true},
			{"no colon", post("Content-Length 4\r\n", "body"), true},
			{"chunk extension", post(chunked, "4;a=b;c=\"\r\n\r\nGET /smuggled\"\r\nbody\r\n0;x\r\n\r\n"), false},
			{"chunk extension with a bare LF", post(chunked, "4;a\nGET /smuggled HTTP/1.1\r\nbody\r\n0\r\n\r\n"), false},
			{"chunk size above 2^64", post(chunked, "10000000000000004\r\nbody\r\n0\r\n\r\n"), false},
			{"chunk size with a sign", post(chunked, "+4\r\nbody\r\n0\r\n\r\n"), false},
			{"chunk size 0x4", post(chunked, "0x4\r\nbody\r\n0\r\n\r\n"), false},
			{"chunk with a wrong end", post(chunked, "4\r\nbodyXX0\r\n\r\n"+inside), false},
			{"trailers with forbidden fields", post(chunked+"Trailer: X-Sum, Content-Length, Host, Authorization\r\n",
				"4\r\nbody\r\n0\r\nX-Sum: 1\r\nContent-Length: 400\r\nTransfer-Encoding: chunked\r\nHost: evil\r\nAuthorization: Basic ZXZpbA==\r\n"+
					"X-Forwarded-For: 6.6.6.6\r\nIottunnel-Owner: evil\r\nIottunnel_Owner: evil\r\n\r\n"), false},
			{"trailers without announcement", post(chunked, "4\r\nbody\r\n0\r\nX-Sum: 1\r\nHost: evil\r\nAuthorization: Basic ZXZpbA==\r\n"+
				"X-Forwarded-For: 6.6.6.6\r\nIottunnel-Owner: evil\r\nIottunnel_Owner: evil\r\nContent-Length: 400\r\nTransfer-Encoding: chunked\r\n\r\n"), false},
			{"absolute form", strings.Replace(post(length(4), "body"), "/first", "http://evil/first", 1), true},
			{"two hosts", post("Host: evil\r\n"+length(4), "body"), true},
			{"space in the target", strings.Replace(post(length(4), "body"), "/first", "/first HTTP/1.1 /x", 1), true},
			{"an upgrade to h2c", post("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"+length(4), "body"), false},
			{"an upgrade and a request behind it", post("Connection: Upgrade\r\nUpgrade: websocket\r\n"+length(0), inside+"\r\n\r\n"), false},
		} {
			t.Run(c.name, func(t *testing.T) {
				device.take()
				conn, err := s.face.DialVisitor(t.Context(), s.host)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(harness.VisitorTimeout))
				if _, err := io.WriteString(conn, c.text); err != nil {
					t.Fatal(err)
				}
				resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: "POST"})
				status := 0 // closed without an answer
				if err == nil {
					resp.Body.Close()
					status = resp.StatusCode
				}
				conn.Close()
				reached := besidesInnocent(t, s, device, c.name)
				t.Logf("status %d; the device saw %q", status, reached)
				if c.refused && len(reached) > 0 {
					t.Errorf("status %d, and the device saw %q", status, reached)
				}
			})
		}
	})
}

// besidesInnocent has others ask on the connections that are kept, who must get their
// own answers, and returns what else the device has seen, all of it well-formed.
func besidesInnocent(t *testing.T, s *site, device *recorder, name string) (reached []string) {
	t.Helper()
	for i := range 3 {
		path := fmt.Sprintf("/innocent/%s/%d", strings.NewReplacer(" ", "-", "^", "").Replace(name), i)
		if r := s.get(t, path); r.StatusCode != 200 || r.body != path {
			t.Errorf("another visitor asked for %s and got %v", path, r)
		}
	}
	for _, raw := range device.take() {
		targets, err := strictRequests(raw)
		if err != nil && !errors.Is(err, errCut) {
			t.Errorf("%v\nthe device received %q", err, raw)
		}
		for _, target := range targets {
			if !strings.HasPrefix(target, "/innocent/") {
				reached = append(reached, target)
			}
		}
	}
	return reached
}

// frames is an HTTP/2 connection written by hand: clients refuse to send what is
// tried here.
type frames struct {
	*http2.Framer
	conn net.Conn
	head bytes.Buffer
	enc  *hpack.Encoder
	next uint32
}

// dialFrames opens one as visitors do: by ALPN, or with prior knowledge.
func dialFrames(t *testing.T, s *site) *frames {
	t.Helper()
	conn, err := net.Dial("tcp", s.face.VisitorAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	if config := s.face.VisitorTLS(); config != nil {
		config.NextProtos, config.ServerName = []string{"h2"}, s.host
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		conn = secure
	}
	f := &frames{Framer: http2.NewFramer(conn, conn), conn: conn, next: 1}
	f.AllowIllegalWrites = true
	f.enc = hpack.NewEncoder(&f.head)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask sends a request with header fields as they stand, and returns its status; 0
// when the stream or the connection was ended without one.
func (f *frames) ask(t *testing.T, fields []field, body string) (status int) {
	t.Helper()
	f.head.Reset()
	for _, h := range fields {
		f.enc.WriteField(hpack.HeaderField{Name: h.name, Value: h.value})
	}
	id := f.next
	f.next += 2
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.head.Bytes(), EndHeaders: true, EndStream: body == ""})
	if err == nil && body != "" {
		err = f.WriteData(id, true, []byte(body))
	}
	if err != nil {
		return 0 // the edge may have closed it
	}
	dec := hpack.NewDecoder(4096, func(h hpack.HeaderField) {
		if h.Name == ":status" {
			status, _ = strconv.Atoi(h.Value)
		}
	})
	for {
		frame, err := f.ReadFrame()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatal("no answer")
		}
		if err != nil {
			return status
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				f.WriteSettingsAck()
			}
		case *http2.HeadersFrame:
			dec.Write(frame.HeaderBlockFragment())
		case *http2.GoAwayFrame:
			return status
		case *http2.RSTStreamFrame:
			if frame.StreamID == id {
				return status
			}
		}
		if h := frame.Header(); h.StreamID == id && h.Flags.Has(http2.FlagDataEndStream) && status != 0 {
			return status
		}
	}
}

// TestSmugglingByHTTP2 puts into HTTP/2 what HTTP/1.1 would read as something else:
// the device is sent nothing that the edge has not understood alike.
func TestSmugglingByHTTP2(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s, device := newRecorded(t, harness.Shared(t, k))
		scheme, authority, _ := strings.Cut(s.url(""), "://")
		usual := func(method, path string, more ...field) []field {
			return append([]field{{":method", method}, {":scheme", scheme}, {":authority", authority}, {":path", path}}, more...)
		}
		const hidden = " HTTP/1.1\r\nHost: evil\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil\r\n\r\n"
		for _, c := range []struct {
			name   string
			fields []field
			body   string
		}{
			{"a length too short", usual("POST", "/first", field{"content-length", "0"}), inside},
			{"a length too long", usual("POST", "/first", field{"content-length", "500"}), "body"},
			{"two lengths", usual("POST", "/first", field{"content-length", "4"}, field{"content-length", "500"}), "body"},
			{"transfer-encoding", usual("POST", "/first", field{"transfer-encoding", "chunked"}), "0\r\n\r\n" + inside},
			{"connection", usual("POST", "/first", field{"connection", "content-length"}), inside},
			{"a line break in a value", usual("GET", "/first", field{"x-a", "b\r\nIottunnel-Owner: evil"}), ""},
			{"a line feed in a value", usual("GET", "/first", field{"x-a", "b\nTransfer-Encoding: chunked"}), ""},
			{"a line break in a name", usual("GET", "/first", field{"x-a: b\r\niottunnel-owner", "evil"}), ""},
			{"a colon in a name", usual("GET", "/first", field{"iottunnel-owner: evil", ""}), ""},
			{"a request in the path", usual("GET", "/first"+hidden), ""},
			{"a space in the path", usual("GET", "/first HTTP/1.1"), ""},
			{"a request in the method", usual("GET /first"+hidden, "/first"), ""},
			{"a line break in the authority", []field{{":method", "GET"}, {":scheme", scheme}, {":authority", authority + "\r\nIottunnel-Owner: evil"}, {":path", "/first"}}, ""},
			{"another host", usual("GET", "/first", field{"host", "evil"}), ""},
			{"two paths", usual("GET", "/first", field{":path", "/smuggled"}), ""},
			{"a pseudo-header at the end", usual("GET", "/first", field{"x-a", "b"}, field{":authority", "evil"}), ""},
			{"capitals", usual("GET", "/first", field{"Iottunnel-Owner", "evil"}), ""},
			{"an upgrade", usual("GET", "/first", field{"upgrade", "websocket"}, field{"connection", "upgrade"}), ""},
			{"CONNECT", []field{{":method", "CONNECT"}, {":authority", authority}}, ""},
			{"a path that is none", usual("GET", "*"), ""},
			{"an absolute path", usual("GET", "http://evil/first"), ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				device.take()
				status := dialFrames(t, s).ask(t, c.fields, c.body)
				t.Logf("status %d; the device saw %q", status, besidesInnocent(t, s, device, c.name))
			})
		}
	})
}

// strictAnswer reads what a visitor has received on a connection that was closed
// after: informational answers, and one final one.
func strictAnswer(raw, method string) (final message, early []message, err error) {
	bodyless := func(first string) bool {
		return method == "HEAD" || strings.HasPrefix(first, "HTTP/1.1 1") || strings.HasPrefix(first, "HTTP/1.1 204 ") || strings.HasPrefix(first, "HTTP/1.1 304 ")
	}
	for {
		var m message
		if m, raw, err = strictMessage(raw, bodyless, true); err != nil {
			return final, early, err
		}
		if !strings.HasPrefix(m.first, "HTTP/1.1 ") {
			return final, early, fmt.Errorf("status line %q", m.first)
		}
		if strings.HasPrefix(m.first, "HTTP/1.1 1") {
			early = append(early, m)
			continue
		}
		if raw != "" {
			return m, early, fmt.Errorf("behind the answer: %.300q", raw)
		}
		return m, early, nil
	}
}

// TestSmugglingFromDevice has a device send answers whose end two readers see at
// two places, answers that are none, and more of them than were asked for: a visitor
// gets one answer in the one form that all read alike, and the next visitor his own.
func TestSmugglingFromDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s, device := newRecorded(t, harness.Shared(t, k))
		const second = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nIottunnel-Error: evil\r\n\r\nsmuggled"
		ok := func(lines, body string) string { return "HTTP/1.1 200 OK\r\n" + lines + "\r\n" + body }
		for _, c := range []struct {
			name, answer string
			method       string // GET
			bad          bool   // the visitor must not be told that this was a good answer
			more         bool   // bytes follow the answer: its connection must not be used again
		}{
			{"CL.TE", ok("Content-Length: 100\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+second), "", false, true},
			{"TE.CL", ok("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "4\r\nbody\r\n0\r\n\r\n"), "", false, false},
			{"TE twice", ok("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"+second), "", true, false},
			{"TE of an unknown coding", ok("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"+second), "", true, false},
			{"TE identity", ok("Transfer-Encoding: identity\r\nContent-Length: 4\r\n", "body"+second), "", true, false},
			{"two lengths", ok("Content-Length: 4\r\nContent-Length: 90\r\n", "body"+second), "", true, false},
			{"two equal lengths", ok("Content-Length: 4\r\nContent-Length: 4\r\n", "body"), "", false, false},
			{"a list of lengths", ok("Content-Length: 4, 90\r\n", "body"+second), "", true, false},
			{"length with a sign", ok("Content-Length: +4\r\n", "body"+second), "", true, false},
			{"negative length", ok("Content-Length: -1\r\n", "body"), "", true, false},
			{"hexadecimal length", ok("Content-Length: 0x4\r\n", "body"), "", true, false},
			{"obs-fold", ok("X-A: b\r\n Content-Length: 0\r\nContent-Length: 4\r\n", "body"), "", false, false},
			{"bare LF", "HTTP/1.1 200 OK\nContent-Length: 4\nX-A: b\n\nbody", "", false, false},
			{"bare CR", ok("X-A: b\rIottunnel-Error: evil\r\nContent-Length: 4\r\n", "body"), "", false, false},
			{"NUL", ok("X-A: b\x00c\r\nContent-Length: 4\r\n", "body"), "", false, false},
			{"no colon", ok("Content-Length 4\r\n", "body"), "", true, false},
			{"space before the colon", ok("Content-Length : 4\r\n", "body"+endOfConn), "", false, false},
			{"chunk extension", ok("Transfer-Encoding: chunked\r\n", "4;a=\"\r\n\r\n\"\r\nbody\r\n0\r\n\r\n"), "", false, false},
			{"chunk size above 2^64", ok("Transfer-Encoding: chunked\r\n", "10000000000000004\r\nbody\r\n0\r\n\r\n"), "", true, false},
			{"chunk with a wrong end", ok("Transfer-Encoding: chunked\r\n", "4\r\nbodyXX0\r\n\r\n"+second), "", true, false},
			{"endless chunk size", ok("Transfer-Encoding: chunked\r\n", strings.Repeat("0", 100_000)+"4\r\nbody\r\n0\r\n\r\n"), "", true, false},
			{"trailers with forbidden fields", ok("Transfer-Encoding: chunked\r\nTrailer: X-Sum, Content-Length\r\n",
				"4\r\nbody\r\n0\r\nX-Sum: 1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), "", true, false},
			{"trailers without announcement", ok("Transfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\niottunnel-error: evil\r\nIottunnel-Owner: evil\r\nX-Sum: 1\r\n\r\n"), "", false, false},
			{"endless trailers", ok("Transfer-Encoding: chunked\r\n", "4\r\nbody\r\n0\r\n"+strings.Repeat("X-A: b\r\n", 100_000)), "", true, false},
			{"two answers", ok("Content-Length: 4\r\n", "body"+second), "", false, true},
			{"an answer to HEAD with a body", ok("Content-Length: 93\r\n", second), "HEAD", false, true},
			{"204 with a body", "HTTP/1.1 204 No Content\r\nContent-Length: 93\r\n\r\n" + second, "", false, true},
			{"304 with a body", "HTTP/1.1 304 Not Modified\r\nContent-Length: 93\r\n\r\n" + second, "", false, true},
			{"103 with a length", "HTTP/1.1 103 Early Hints\r\nContent-Length: 93\r\nIottunnel-Error: evil\r\nLink: </a>\r\n\r\n" + ok("Content-Length: 4\r\n", "body"), "", false, false},
			{"a thousand informational answers", strings.Repeat("HTTP/1.1 102 Processing\r\nX-Filler: "+strings.Repeat("f", 1000)+"\r\n\r\n", 1000) + ok("Content-Length: 4\r\n", "body"), "", false, false},
			{"101 that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + second, "", true, false},
			{"status 099", "HTTP/1.1 099 Odd\r\nContent-Length: 4\r\n\r\nbody", "", true, false},
			{"status 1000", "HTTP/1.1 1000 Odd\r\nContent-Length: 4\r\n\r\nbody", "", true, false},
			{"status -01", "HTTP/1.1 -01 Odd\r\nContent-Length: 4\r\n\r\nbody", "", true, false},
			{"no status", "HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", "", true, false},
			{"another version", "HTTP/3.7 200 OK\r\nContent-Length: 4\r\n\r\nbody", "", false, false},
			{"a line break in the reason", "HTTP/1.1 200 OK\rIottunnel-Error: evil\r\nContent-Length: 4\r\n\r\nbody", "", false, false},
			{"HTTP/1.0 with chunks", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + second + endOfConn, "", false, false},
			{"HTTP/0.9", "<h1>page</h1>" + endOfConn, "", true, false},
			{"a header too long", ok("X-Filler: "+strings.Repeat("f", 200_000)+"\r\nContent-Length: 4\r\n", "body"), "", true, false},
			{"a header without end", ok(strings.Repeat("X-Filler: f\r\n", 100_000), ""), "", true, false},
			{"another protocol", "SSH-2.0-OpenSSH_9.2\r\n", "", true, false},
			{"binary", "\x16\x03\x01\x00\xff\x00\x00\r\n\r\n", "", true, false},
			{"silence, and an end", endOfConn, "", true, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				method := c.method
				if method == "" {
					method = "GET"
				}
				path := "/" + strings.NewReplacer(" ", "-", "^", "").Replace(c.name)
				device.answer(path, c.answer)
				conn, err := s.face.DialVisitor(t.Context(), s.host)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(harness.VisitorTimeout))
				fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nTE: trailers\r\n\r\n", method, path, s.hostPort())
				got := make(chan []byte, 1)
				go func() { // ends with the connection's deadline
					raw, _ := io.ReadAll(conn) // what came counts
					got <- raw
				}()
				var raw []byte
				select {
				case raw = <-got:
				case <-time.After(2 * time.Second): // the device keeps its connection, and the visitor waits: he leaves
					conn.SetReadDeadline(time.Now())
					raw = <-got
				}
				final, early, err := strictAnswer(string(raw), method)
				whole := err == nil && strings.HasPrefix(final.first, "HTTP/1.1 2")
				if err != nil && !errors.Is(err, errCut) && len(raw) > 0 && !strings.Contains(err.Error(), "no end of the header") {
					t.Errorf("%v\nthe visitor received %.500q", err, raw)
				}
				if c.bad && whole {
					t.Errorf("the visitor was told that this is the device's answer: %.300q", raw)
				}
				told := append(append(early, final), message{fields: final.trailer})
				for _, m := range told {
					for _, h := range append(m.get("Iottunnel-Error"), m.get("Iottunnel-Owner")...) {
						if strings.Contains(h, "evil") {
							t.Errorf("the visitor was told Iottunnel-Error: %q", h)
						}
					}
				}
				t.Logf("%d informational, then %q, %d bytes, %v", len(early), final.first, len(final.body), err)
				if c.more {
					device.waitOver(t, path)
				}
				for i := range 3 {
					path := fmt.Sprintf("/innocent%s/%d", path, i)
					if r := s.get(t, path); r.StatusCode != 200 || r.body != path {
						t.Errorf("another visitor asked for %s and got %v", path, r)
					}
				}
			})
		}
	})
}
