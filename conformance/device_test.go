package conformance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// device is an agent that keeps every rule, in as few lines as that takes, or all but
// one: bug names what is broken.
type device struct {
	net      *memNet
	vars     Vars
	caps     wire.Caps // that it offers
	bug      string
	instance string

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	stop   chan struct{}
	done   chan struct{}

	mu       sync.Mutex // guards what follows
	conns    []io.Closer
	failures int // attempts that have failed in a row
}

const maxBackoff = 10 * time.Second // of the device

// launcher starts devices with a bug.
func launcher(n *memNet, caps wire.Caps, bug string) Launcher {
	stored := wire.NewID()
	return func(v Vars) (Process, error) {
		d := &device{net: n, vars: v, caps: caps, bug: bug, instance: wire.NewID(), stop: make(chan struct{}), done: make(chan struct{})}
		if bug == "instance is stored" {
			d.instance = stored
		}
		d.ctx, d.cancel = context.WithCancel(context.Background())
		d.wg.Go(func() { defer close(d.done); d.run() })
		return d, nil
	}
}

func (d *device) Stop() error           { close(d.stop); return nil }
func (d *device) Done() <-chan struct{} { return d.done }
func (d *device) Output() string        { return d.bug }
func (d *device) Kill() {
	d.cancel()
	d.mu.Lock()
	conns := d.conns
	d.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	d.wg.Wait()
}

func (d *device) own(c io.Closer) {
	d.mu.Lock()
	d.conns = append(d.conns, c)
	d.mu.Unlock()
	if d.ctx.Err() != nil {
		c.Close()
	}
}

// has reports whether the device has that bug.
func (d *device) has(bug string) bool { return d.bug == bug }

// sleep waits; false when the device ends.
func (d *device) sleep(t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-d.ctx.Done():
		return false
	}
}

// failure says when to come back.
type failure struct {
	class wire.Retry
	after time.Duration // Retry-After
	lost  bool          // there was no answer
}

func (f *failure) Error() string { return fmt.Sprintf("%+v", *f) }

var lost = &failure{class: wire.RetrySoon, lost: true}

func (d *device) pause(f *failure) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case f.after > 0 && !d.has("Retry-After is ignored"):
		after := f.after
		if !d.has("Retry-After has no bound") {
			after = min(after, 10*time.Minute)
		}
		return after + mathrand.N(after/5)
	case f.class == wire.RetrySlow:
		return 5*time.Minute + mathrand.N(10*time.Minute)
	case f.class == wire.RetryBackoff:
		return mathrand.N(maxBackoff)
	}
	n := min(500*time.Millisecond<<min(d.failures, 10), maxBackoff)
	d.failures++
	if d.has("pauses are not random") {
		return 250 * time.Millisecond
	}
	if d.has("lasting tunnels count as failures") {
		return n
	}
	return mathrand.N(n)
}

// run keeps a tunnel.
func (d *device) run() {
	for d.ctx.Err() == nil {
		t, err := d.attempt()
		for err == nil {
			t, err = d.keep(t)
		}
		if f := new(failure); errors.As(err, &f) {
			if !d.sleep(d.pause(f)) {
				return
			}
			continue
		}
		return // stopped
	}
}

// keep serves a tunnel until it ends, or another has taken its place.
func (d *device) keep(t *dtunnel) (*dtunnel, error) {
	for {
		select {
		case <-t.ended:
			if time.Since(t.since) > 30*time.Second && !d.has("lasting tunnels count as failures") {
				d.mu.Lock()
				d.failures = 0
				d.mu.Unlock()
			}
			return nil, t.why
		case <-t.drained:
			if d.has("leaves before it has another tunnel") {
				t.ws.close(1000)
				<-t.ended
				return d.attempt()
			}
			n, err := d.attempt()
			var f *failure
			switch {
			case errors.As(err, &f) && d.has("leaves when the new tunnel fails"):
				t.ws.close(1000)
				return nil, err
			case errors.As(err, &f):
				if !d.sleep(d.pause(f)) {
					return nil, d.ctx.Err()
				}
				poke(t.drained)
				continue
			case err != nil:
				return nil, err
			}
			if d.has("streams end with a drain") {
				t.abortAll(true)
			}
			code := 1000
			if d.has("the old tunnel is left with 1001") {
				code = 1001
			}
			t.ws.close(code)
			select {
			case <-t.ended:
			case <-time.After(time.Second):
				t.ws.conn.Close()
				<-t.ended
			}
			if d.has("the old tunnel's code counts") {
				if f := new(failure); errors.As(t.why, &f) && f.class == wire.RetrySlow {
					n.ws.conn.Close()
					return nil, f
				}
			}
			return n, nil
		case <-d.stop:
			code := 1001
			if d.has("leaves without a goodbye") {
				t.ws.conn.Close()
			}
			t.ws.close(code)
			<-t.ended
			return nil, context.Canceled
		case <-d.ctx.Done():
			t.ws.conn.Close()
			<-t.ended
			return nil, d.ctx.Err()
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// attempt tries each edge once.
func (d *device) attempt() (t *dtunnel, err error) {
	servers := []string{d.vars.URL}
	if d.vars.URL2 != "" && !d.has("one edge alone") {
		servers = append(servers, d.vars.URL2)
	}
	mathrand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	for _, s := range servers {
		u, _ := url.Parse(s) // the tool's own
		if u.Scheme == "ws" && !loopback(u.Hostname()) && !d.has("the credential goes over ws to anyone") {
			err = &failure{class: wire.RetrySlow}
			continue
		}
		var failed error
		if t, failed = d.control(u); failed == nil {
			return t, nil
		}
		if f := new(failure); err == nil || errors.As(failed, &f) && !f.lost {
			err = failed // of two, the one with an answer
		}
	}
	return nil, err
}

func loopback(host string) bool { return host == "localhost" || strings.HasPrefix(host, "127.") }

// control makes a control socket, and follows a redirect.
func (d *device) control(u *url.URL) (*dtunnel, error) {
	caps := d.caps
	u.Path, u.RawQuery = wire.ControlPath, d.query(caps)
	if d.has("another path") {
		u.Path = "/control"
	}
	t, status, header, err := d.open(u, caps)
	if status < 300 || status > 399 || status == 304 {
		return t, err
	}
	if to, ok := d.follows(u, header.Get("Location")); ok {
		if d.has("redirects lose their query") {
			to.RawQuery = u.RawQuery
		}
		t, _, _, err := d.open(to, caps)
		if err == nil || d.has("no second way behind a redirect") {
			return t, err
		}
	}
	if !d.has("redirect is asked for again") {
		caps &^= wire.Redirect
	}
	u.RawQuery = d.query(caps)
	t, status, _, err = d.open(u, caps)
	if status >= 300 && status <= 399 {
		err = &failure{class: wire.RetrySlow}
		if d.has("a second redirect is nothing special") {
			err = lost
		}
	}
	return t, err
}

func (d *device) follows(at *url.URL, location string) (*url.URL, bool) {
	to, err := url.Parse(location)
	if err != nil {
		return nil, false
	}
	to.Scheme = strings.Replace(to.Scheme, "http", "ws", 1)
	return to, (to.Host != "" && to.Hostname() == at.Hostname() || d.has("redirects go anywhere")) &&
		(to.Path == wire.ControlPath || d.has("redirects go to any path")) &&
		(to.Scheme == at.Scheme || d.has("redirects go from TLS to plain"))
}

func (d *device) query(caps wire.Caps) string {
	h := wire.Hello{Device: d.vars.Device, Instance: d.instance, Caps: caps, Streams: 8, MessageMax: 65536}
	if caps.Has(wire.Early) {
		h.Early, h.EarlyTotal = 16384, 131072
	}
	h.Ports = []wire.Port{{Number: 7, Kind: wire.TCP}, {Number: 80, Kind: wire.HTTP}, {Number: 9, Kind: wire.TCP}}
	q := h.Query()
	switch d.bug {
	case "device in capitals":
		q = strings.Replace(q, "device=c", "device=C", 1)
	case "a number with a zero in front":
		q = strings.Replace(q, "streams=8", "streams=08", 1)
	case "streams twice":
		q += "&streams=8"
	case "asks only":
		q += "&probe=1"
	case "short instance":
		q = strings.Replace(q, d.instance, d.instance[:8], 1)
	case "a kind in capitals":
		q = strings.Replace(q, "ports=7", "ports=7/TCP", 1)
	case "reuse without early":
		q = strings.Replace(q, "early,", "", 1)
	case "token in the URL":
		q += "&token=" + d.vars.Token
	}
	return q
}

// request is a handshake's.
func (d *device) request(u *url.URL, key, credential string) string {
	sub, version, origin, connection := wire.Subprotocol, "13", "", "Upgrade"
	switch d.bug {
	case "no subprotocol":
		sub = "mqtt"
	case "an old WebSocket":
		version = "8"
	case "an Origin":
		origin = "Origin: https://example.com\r\n"
	case "an extension":
		origin = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
	case "a long request":
		origin = "X-Padding: " + strings.Repeat("p", 8192) + "\r\n"
	case "no credential":
		if u.Path == wire.ControlPath {
			credential = "none"
		}
	case "no secret":
		if u.Path != wire.ControlPath {
			credential = d.vars.Token
		}
	}
	return "GET " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nUpgrade: websocket\r\nConnection: " + connection + "\r\nSec-WebSocket-Version: " + version +
		"\r\nSec-WebSocket-Key: " + key + "\r\nSec-WebSocket-Protocol: " + sub + "\r\n" + origin + "Authorization: Bearer " + credential + "\r\n\r\n"
}

// dial makes a WebSocket.
func (d *device) dial(u *url.URL, credential string) (*dsock, int, http.Header, error) {
	conn, err := d.net.dial(u.Host)
	if err != nil {
		return nil, 0, nil, lost
	}
	d.own(conn)
	if u.Scheme == "wss" {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(d.vars.CA)
		c := &tls.Config{RootCAs: pool, ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}}
		switch d.bug {
		case "any certificate":
			c.InsecureSkipVerify = true
		case "no SNI":
			c.InsecureSkipVerify, c.ServerName = true, ""
			c.VerifyConnection = d.verify(pool, u.Hostname())
		case "the name is not verified":
			c.InsecureSkipVerify = true
			c.VerifyConnection = d.verify(pool, "")
		case "h2 in ALPN":
			c.NextProtos = []string{"h2", "http/1.1"}
		}
		secure := tls.Client(conn, c)
		if err := secure.HandshakeContext(d.ctx); err != nil {
			conn.Close()
			return nil, 0, nil, lost
		}
		conn = secure
		d.own(conn)
	}
	if !d.has("waits for an answer for ever") {
		most := 20 * time.Second
		if d.has("waits for an answer for 3 s") {
			most = 3 * time.Second
		}
		_ = conn.SetDeadline(time.Now().Add(most))
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	if d.has("the same key") {
		nonce = [16]byte{}
	}
	key := base64.StdEncoding.EncodeToString(nonce[:])
	text := d.request(u, key, credential)
	if d.has("a frame before the 101") {
		text += string(frame{fin: true, op: opPing, masked: true}.bytes())
	}
	_, _ = io.WriteString(conn, text)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, &http.Request{Method: "GET"})
	if err != nil {
		conn.Close()
		return nil, 0, nil, lost
	}
	if resp.StatusCode != 101 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		conn.Close()
		f := &failure{class: wire.RetryAfterStatus(resp.StatusCode)}
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && (resp.StatusCode == 503 || resp.StatusCode == 429) {
			f.after = time.Duration(n) * time.Second
		}
		switch {
		case d.has("403 is tried with backoff") && resp.StatusCode == 403, d.has("401 is tried soon") && resp.StatusCode == 401:
			f.class = wire.RetryBackoff
		case d.has("409 is tried slowly") && resp.StatusCode == 409:
			f.class = wire.RetrySlow
		case d.has("unknown statuses are tried slowly") && (resp.StatusCode == 418 || resp.StatusCode == 599):
			f.class = wire.RetrySlow
		case d.has("the body decides") && bytes.Contains(body, []byte(`"unauthorized"`)):
			f.class = wire.RetrySlow
		}
		return nil, resp.StatusCode, resp.Header, f
	}
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	if resp.Header.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) && !d.has("any accept") ||
		resp.Header.Get("Sec-WebSocket-Protocol") != wire.Subprotocol && !d.has("any subprotocol") ||
		resp.Header.Get("Sec-WebSocket-Extensions") != "" && !d.has("any extension") {
		conn.Close()
		return nil, 0, nil, lost
	}
	_ = conn.SetDeadline(time.Time{})
	if d.has("what comes with the 101 is lost") && u.Path == wire.ControlPath {
		br.Discard(br.Buffered())
	}
	return &dsock{d: d, conn: conn, br: br, turn: make(chan struct{}, 1)}, 101, nil, nil
}

// verify verifies a chain, and the name if there is one.
func (d *device) verify(pool *x509.CertPool, name string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: name})
		return err
	}
}

// dsock is the device's end of a WebSocket.
type dsock struct {
	d    *device
	conn net.Conn
	br   *bufio.Reader

	turn   chan struct{} // who may write, and look at what follows
	closed bool
}

func (s *dsock) write(op byte, data []byte) {
	f := frame{fin: true, op: op, masked: true, data: data}
	rand.Read(f.mask[:])
	switch s.d.bug {
	case "no mask":
		f.masked = false
	case "the same mask":
		f.mask = [4]byte{1, 2, 3, 4}
	case "a reserved bit":
		f.rsv = 2
	}
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.closed {
		return
	}
	s.closed = op == opClose
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Minute))
	_, _ = s.conn.Write(f.bytes())
}

func (s *dsock) close(code int) { s.write(opClose, closing(code, "")) }

// read returns the next frame; what RFC 6455 forbids is an error that was answered.
func (s *dsock) read() (frame, error) {
	f, err := readFrame(s.br)
	switch {
	case err != nil:
		return f, err
	case (f.masked && !s.d.has("masked frames are taken")) || f.rsv != 0 || f.op > opBinary && f.op < opClose || f.op > opPong || f.op == opContinuation ||
		(f.op >= opClose && (!f.fin || len(f.data) > 125)):
		if s.d.has("forbidden frames are ignored") {
			return s.read()
		}
		code := 1002
		if s.d.has("forbidden frames are closed with 4100") {
			code = 4100
		}
		s.close(code)
		return f, errors.New("forbidden")
	}
	return f, nil
}

// dtunnel is a control socket.
type dtunnel struct {
	d       *device
	ws      *dsock
	u       *url.URL
	caps    wire.Caps
	since   time.Time
	ended   chan struct{}
	drained chan struct{}
	why     error // once ended

	mu      sync.Mutex // guards what follows
	ready   *wire.Ready
	first   *wire.Ready
	streams map[uint32]*dstream
	parked  []*dpark
	drains  int
}

// open makes a control socket and waits for ready.
func (d *device) open(u *url.URL, caps wire.Caps) (*dtunnel, int, http.Header, error) {
	ws, status, header, err := d.dial(u, d.vars.Token)
	if err != nil {
		return nil, status, header, err
	}
	t := &dtunnel{d: d, ws: ws, u: u, since: time.Now(), ended: make(chan struct{}), drained: make(chan struct{}, 1), streams: make(map[uint32]*dstream)}
	up := make(chan struct{})
	d.wg.Go(func() { t.serve(up) })
	select {
	case <-up:
	case <-t.ended:
		return nil, status, nil, t.why
	}
	return t, status, nil, nil
}

// serve reads the control socket until it ends.
func (t *dtunnel) serve(up chan struct{}) {
	defer close(t.ended)
	d := t.d
	patience := 30 * time.Second
	if d.has("waits for ready for ever") {
		patience = time.Hour
	}
	limit := time.Now().Add(patience)
	for {
		_ = t.ws.conn.SetReadDeadline(limit)
		f, err := t.ws.read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.end(lost)
			return
		}
		if err != nil {
			if d.has("the end of TCP is taken for slowly") && errors.Is(err, io.EOF) {
				t.end(&failure{class: wire.RetrySlow})
				return
			}
			t.end(lost)
			return
		}
		t.mu.Lock()
		ready := t.ready
		t.mu.Unlock()
		if ready != nil {
			silence := 2*time.Duration(ready.Heartbeat)*time.Second + 10*time.Second
			switch d.bug {
			case "no watchdog":
				silence = time.Hour
			case "an impatient watchdog":
				silence = 11 * time.Second
			}
			limit = time.Now().Add(silence)
		}
		switch f.op {
		case opPing:
			if d.has("pongs are empty") {
				f.data = nil
			}
			t.ws.write(opPong, f.data)
		case opPong:
		case opClose:
			code := event{op: opClose, data: f.data}.code()
			t.ws.close(code)
			fail := &failure{class: wire.RetryAfterClose(code), lost: true}
			switch {
			case d.has("4001 is soon") && code == 4001, d.has("4050 is soon") && code == 4050:
				fail.class = wire.RetrySoon
			case d.has("1012 is slow") && code == 1012, d.has("4150 is slow") && code == 4150:
				fail.class = wire.RetrySlow
			}
			t.end(fail)
			return
		case opText:
			if code := t.text(f.data); code != 0 {
				t.ws.close(code)
				t.end(lost)
				return
			}
			if up != nil && t.ready != nil {
				close(up)
				up = nil
			}
		case opBinary:
			if code := t.frame(f.data); code != 0 {
				t.ws.close(code)
				t.end(lost)
				return
			}
		}
	}
}

// end notes why, and aborts the streams that need the control socket.
func (t *dtunnel) end(why error) {
	t.why = why
	t.ws.conn.Close()
	t.abortAll(false)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.parked {
		p.ws.close(1000)
	}
}

func (t *dtunnel) abortAll(all bool) {
	t.mu.Lock()
	streams := slices.Collect(maps.Values(t.streams))
	t.mu.Unlock()
	for _, s := range streams {
		s.mu.Lock()
		needs := s.ws == nil || s.send == sendEarly || !s.recvMoved && !s.recvFin || s.sendEnded && s.send != sendMoved && s.ws == nil
		s.mu.Unlock()
		switch {
		case t.d.has("streams survive their control socket") && s.ws == nil:
		case needs || all || t.d.has("streams end with the control socket") && s.basic && t.drains == 0 || t.d.has("moved streams end with the control socket") && !s.basic:
			s.abort(false)
		}
	}
}

// text acts on a text message; the answer is the code to close with, or 0.
func (t *dtunnel) text(b []byte) int {
	d := t.d
	if d.has("messages of 4096 bytes are too long") && len(b) > 4000 {
		return 1009
	}
	if d.has("type has to be first") && !bytes.HasPrefix(b, []byte(`{"type":"`)) {
		return 4100
	}
	if d.has("unknown fields are malformed") && bytes.Contains(b, []byte(`"colour"`)) {
		return 4100
	}
	m, err := wire.Decode(b)
	if errors.Is(err, wire.ErrUnknownMessage) {
		if d.has("unknown messages are malformed") {
			return 4100
		}
		return 0
	}
	if err != nil {
		if bytes.HasPrefix(b, []byte(`{"type":"ready"`)) && d.has("ready is not checked") {
			return 0
		}
		switch {
		case bytes.HasPrefix(b, []byte(`{"type":"ready"`)):
		case d.has("malformed messages are ignored"):
			return 0
		case d.has("malformed messages are closed with 1002"):
			return 1002
		}
		return 4100
	}
	switch m := m.(type) {
	case *wire.Ready:
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.ready == nil {
			t.caps = d.caps & wire.ParseCaps(m.Caps)
			t.first = m
			if d.has("unknown capabilities are malformed") && strings.Contains(m.Caps, "teleport") {
				return 4100
			}
			if d.has("says hello") {
				t.ws.write(opText, []byte(`{"type":"hello"}`))
			}
		} else if d.has("a second ready is malformed") {
			return 4100
		}
		t.ready = m
	case *wire.PortInfo:
		if d.has("a port without an address is malformed") && m.URL == "" && m.Addr == "" {
			return 4100
		}
	case *wire.Drain:
		t.drains++
		if t.drains == 1 || d.has("each drain counts") {
			if d.has("each drain counts") && t.drains == 2 {
				d.wg.Go(func() {
					if ws, _, _, err := d.dial(t.u, d.vars.Token); err == nil {
						_, _ = ws.read()
					}
				})
				return 0
			}
			if d.has("drain is ignored") {
				return 0
			}
			poke(t.drained)
		}
	case *wire.Open:
		t.visit(m)
	}
	return 0
}

// frame acts on a binary message.
func (t *dtunnel) frame(b []byte) int {
	d := t.d
	if !t.caps.Has(wire.Early) {
		if d.has("binary messages are ignored") {
			return 0
		}
		return 4100
	}
	kind, number, payload, err := wire.ParseFrame(b)
	if err != nil {
		if d.has("malformed frames are ignored") {
			return 0
		}
		return 4100
	}
	t.mu.Lock()
	s := t.streams[number]
	t.mu.Unlock()
	if s == nil {
		if d.has("frames of unknown streams are malformed") {
			return 4100
		}
		return 0
	}
	if d.has("a slow service blocks the control socket") {
		for {
			s.mu.Lock()
			n := s.queued
			s.mu.Unlock()
			if n < 2000 || !d.sleep(100*time.Millisecond) {
				break
			}
		}
	}
	s.take(kind, bytes.Clone(payload))
	return 0
}
