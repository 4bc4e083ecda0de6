package conformance

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// connectTime is how long an agent may take to make its first control socket.
const connectTime = 10 * time.Second

// logf notes what crossed.
func (t *T) logf(direction, where string, raw []byte, format string, args ...any) {
	t.rig.logf(direction, where, raw, format, args...)
}

// control waits for a handshake of a control socket.
func (t *T) control() *handshake {
	within := connectTime + t.patience()
	if t.rig.agent == nil {
		if h := t.tryControl(max(t.patience(), t.rig.cfg.MaxBackoff+t.slack())); h != nil {
			return h
		}
		within = t.rig.cfg.ResetWithin
		t.rig.cfg.Say("%s %s: waiting for the device; reset it, if it does not come by itself", t.c.rule, t.c.name)
	}
	h := t.tryControl(within)
	switch {
	case h == nil && t.rig.agent == nil:
		t.skip("the device has not come within %v", within)
	case h == nil:
		t.fail("a handshake of a control socket", "none within %v%s", within, lastWords(t.rig.agent))
	}
	return h
}

// lastWords is what an agent said, and whether it has ended.
func lastWords(p Process) string {
	select {
	case <-p.Done():
		return "; the agent has ended: " + oneLine(p.Output())
	default:
		return "; the agent said: " + oneLine(p.Output())
	}
}

// tryControl is control; nil if nothing comes in time.
func (t *T) tryControl(within time.Duration) *handshake {
	return t.tryHandshake(t.rig.controls, within)
}

func (t *T) tryHandshake(queue chan *handshake, within time.Duration) *handshake {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case h := <-queue:
		return h
	case <-timer.C:
	case <-t.rig.ctx.Done():
		t.skip("interrupted")
	}
	return nil
}

// answer writes an answer as it is given, line by line, and leaves the connection open.
func (h *handshake) answer(lines ...string) {
	text := strings.Join(lines, "\r\n") + "\r\n\r\n"
	h.rig.logf("edge → agent", "answer", []byte(text), "")
	_ = h.conn.SetWriteDeadline(time.Now().Add(h.rig.cfg.Patience)) // if it fails, so does the write
	_, _ = h.conn.Write([]byte(text))                               // seen by who waits for what the agent does
}

// refuse answers with a status that is none of a WebSocket, and ends the connection.
func (h *handshake) refuse(status int, header ...string) {
	code := "unavailable"
	body := fmt.Sprintf(`{"error":%q,"message":"this is a test"}`, code)
	h.answer(append([]string{
		fmt.Sprintf("HTTP/1.1 %d %s", status, http.StatusText(status)), "Content-Type: application/json",
		fmt.Sprintf("Content-Length: %d", len(body)), "Connection: close",
	}, header...)...)
	_, _ = h.conn.Write([]byte(body)) // it may be gone, and the status is what counts
	h.conn.Close()
}

// upgrade is the answer 101, line by line.
func (h *handshake) upgrade() []string {
	sum := sha1.Sum([]byte(h.request.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return []string{
		"HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Accept: " + base64.StdEncoding.EncodeToString(sum[:]), "Sec-WebSocket-Protocol: " + wire.Subprotocol,
	}
}

// stays fails the rule if the agent ends the connection, and returns what it sends.
func (h *handshake) stays(t *T, want string, during time.Duration) []byte {
	_ = h.conn.SetReadDeadline(time.Now().Add(during)) // if it fails, so does the read
	came, err := io.ReadAll(h.br)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.fail(want, "the end of the connection: %v", err)
	}
	_ = h.conn.SetReadDeadline(time.Time{})
	return came
}

// silent fails the rule if the agent sends something before its answer.
func (h *handshake) silent(t *T, want string, during time.Duration) {
	if came := h.stays(t, want, during); len(came) > 0 {
		t.fail(want, "% x", head(came, 32))
	}
}

// accept answers 101.
func (h *handshake) accept(t *T) *sock {
	h.answer(h.upgrade()...)
	name, echo := "control socket", true
	if !h.control() {
		name, echo = "transfer socket", false
	}
	s := newSock(t, name, h.conn, h.br, echo)
	t.pause() // that frames come with the 101 is for a case of 2.10 to try
	return s
}

// tunnel is a control socket, seen from the edge.
type tunnel struct {
	*sock
	from   *handshake
	hello  wire.Hello
	ready  wire.Ready
	number uint32 // of the last stream
}

// greeting is a `ready` with those capabilities and what the agent can hold.
func (h *handshake) greeting(caps wire.Caps) wire.Ready {
	hello := h.query()
	id := wire.NewID()
	r := wire.Ready{
		Tunnel: id, Caps: caps.String(), Heartbeat: 25, Label: label, Hostname: hostname, Lease: 2592000,
		Streams: or(hello.Streams, wire.DefaultStreams), MessageMax: or(hello.MessageMax, wire.DefaultMessage),
		Transfer: transfers + id, Secret: wire.NewID(),
	}
	if caps.Has(wire.Early) {
		r.Early, r.EarlyTotal = or(hello.Early, wire.DefaultEarly), or(hello.EarlyTotal, wire.DefaultEarlyTotal)
		r.Early = min(r.Early, r.EarlyTotal)
	}
	return r
}

func or(n, other int) int {
	if n == 0 {
		return other
	}
	return n
}

// greet answers 101, and says `ready` as it was adjusted, and `port`.
func (h *handshake) greet(t *T, caps wire.Caps, adjust ...func(*wire.Ready)) *tunnel {
	u := &tunnel{from: h, hello: h.query(), ready: h.greeting(caps)}
	for _, a := range adjust {
		a(&u.ready)
	}
	u.sock = h.accept(t)
	if t.tunnel == nil {
		t.rig.forgetServices()
	}
	u.text(string(wire.Encode(&u.ready)))
	u.ports()
	t.tunnel = u
	return u
}

// pause lets the agent read what was sent.
func (t *T) pause() {
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.rig.ctx.Done():
	}
}

// ports says where the agent's ports are reached.
func (u *tunnel) ports() {
	for _, p := range u.hello.Ports {
		info := wire.PortInfo{Port: p.Number, Kind: p.Kind}
		if p.Kind == wire.TCP {
			info.Addr = "tcp.devices.example.net:20022"
		} else {
			info.URL = "https://" + hostname + "/"
		}
		u.text(string(wire.Encode(&info)))
	}
}

// caps are in force where a case has no wish of its own.
func (t *T) caps() wire.Caps {
	if inlined := wire.Early | wire.Inline; t.rig.caps.Has(inlined) {
		return inlined
	}
	return 0
}

// up waits for the agent and makes a tunnel with those capabilities.
func (t *T) up(caps wire.Caps, adjust ...func(*wire.Ready)) *tunnel {
	u := t.control().greet(t, caps, adjust...)
	u.awaitPong()
	return u
}

// stream is a stream that the edge has opened.
type stream struct {
	t      *T
	u      *tunnel
	number uint32
	id     string
	credit int
}

// open says `open` for a port, with as much credit.
func (u *tunnel) open(port uint16, credit int) *stream {
	u.number++
	s := &stream{t: u.t, u: u, number: u.number, id: wire.NewID(), credit: credit}
	u.text(string(wire.Encode(&wire.Open{Stream: s.number, ID: s.id, Port: port, From: "203.0.113.9:51234", Early: credit})))
	return s
}

// visit opens a stream to the echo service, with all its credit if there is such.
func (t *T) visit(u *tunnel) *stream { return u.open(t.echoPort(), u.ready.Early) }

// echoPort is the port of the echo service; without one, the case is not tried.
func (t *T) echoPort() uint16 {
	if !t.rig.forwards(t.rig.cfg.EchoPort) {
		t.skip("the agent forwards no port %d: give it one, to {echo}", t.rig.cfg.EchoPort)
	}
	return t.rig.cfg.EchoPort
}

// handshake waits for that of the stream's transfer socket.
func (s *stream) handshake() *handshake {
	h := s.tryHandshake(s.t.patience())
	if h == nil {
		s.t.fail("a handshake of a transfer socket, with the id of `open`", "none within %v", s.t.patience())
	}
	return h
}

// tryHandshake is handshake; nil if none comes in time. Those of other ids are
// answered with 404.
func (s *stream) tryHandshake(within time.Duration) *handshake {
	limit := time.Now().Add(within)
	for {
		h := s.t.tryHandshake(s.t.rig.transfers, time.Until(limit))
		if h == nil || strings.Contains(h.request.URL.RawQuery, s.id) {
			return h
		}
		h.refuse(http.StatusNotFound)
	}
}

// transfer waits for the stream's transfer socket, and accepts it.
func (s *stream) transfer() *sock { return s.handshake().accept(s.t) }

// frame sends a frame of the stream, on the control socket.
func (s *stream) frame(kind wire.FrameKind, payload string) {
	s.u.binary(append(wire.AppendFrameHeader(nil, kind, s.number), payload...))
}

// parse takes an event apart that is a frame of the stream.
func (s *stream) parse(e event) (kind wire.FrameKind, payload []byte, ok bool) {
	if e.op != opBinary {
		return 0, nil, false
	}
	k, n, payload, err := wire.ParseFrame(e.data)
	return k, payload, err == nil && n == s.number
}

// awaitFrame waits for a frame of a kind, and fails the rule if the stream is reset or
// refused before.
func (s *stream) awaitFrame(want string, kind wire.FrameKind, within time.Duration) []byte {
	var payload []byte
	s.u.await(want, within, func(e event) bool {
		k, p, ok := s.parse(e)
		if ok && k == wire.FrameReset && kind != wire.FrameReset {
			s.t.fail(want, "%v", e)
		}
		if s.refused(e) {
			s.t.fail(want, "%v", e)
		}
		payload = p
		return ok && k == kind
	})
	return payload
}

// refused reports whether e says that there will be no such stream.
func (s *stream) refused(e event) bool {
	if e.op != opText {
		return false
	}
	m, err := wire.Decode(e.data)
	r, ok := m.(*wire.Refused)
	return err == nil && ok && r.Stream == s.number
}

// awaitRefused waits for `refused`.
func (s *stream) awaitRefused(want string, within time.Duration) {
	s.u.await(want, within, s.refused)
}

// gather reads as many bytes of data frames.
func (s *stream) gather(want string, n int) string {
	var all []byte
	for len(all) < n {
		all = append(all, s.awaitFrame(want, wire.FrameData, s.t.patience())...)
	}
	return string(all)
}

// gather reads as many bytes of binary messages.
func (s *sock) gather(want string, n int) string {
	var all []byte
	for len(all) < n {
		e := s.await(want, s.t.patience(), func(e event) bool { return e.op == opBinary || e.op == opClose })
		if e.op == opClose || len(e.data) == 0 {
			s.t.fail(want, "%d of %d bytes, then %v", len(all), n, e)
		}
		all = append(all, e.data...)
	}
	return string(all)
}
