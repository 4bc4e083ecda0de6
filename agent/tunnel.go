package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// controlWrite is how long the edge may take nothing of what a control socket
	// has to send, or acknowledge nothing: longer than a link goes away for a
	// moment, shorter than the wait for two heartbeats.
	controlWrite = 30 * time.Second
	// closeTime is how long the edge may take to answer a close frame.
	closeTime = time.Second
)

var (
	errSilent = errors.New("the edge is silent: two heartbeats are missing")
	errNoTime = errors.New("no ready came in time")
)

// tunnel is a live control socket.
type tunnel struct {
	agent *Agent
	route route // of its transfer sockets
	sock  *socket.Socket
	conn  *hearing // below sock
	since time.Time
	// open is called by run for each visitor.
	open func(*tunnel, *wire.Open) error

	offered wire.Caps
	asked   time.Duration // heartbeat
	// What is in force for as long as the tunnel lives, set by the first `ready`.
	caps    wire.Caps
	early   int         // most credit of a stream
	mux     *stream.Mux // nil in the basic profile
	parking parking

	measured atomic.Int64 // when the round trip was last asked for, in ns after since

	buf   []byte    // of text; most messages are short
	armed time.Time // the socket's read deadline

	changed chan struct{}      // buffered; ports are told, or others
	drained chan time.Duration // buffered; the edge wants to be left within
	ended   chan struct{}      // closed when run has returned
	err     error              // why; valid once ended is closed

	mu    sync.Mutex // guards what follows
	ready *wire.Ready
	ports map[uint16]wire.PortInfo // told since the last ready
}

// hearing is a connection that remembers when it last brought something. It lies
// below TLS, where a socket that it ends finds it.
type hearing struct {
	net.Conn
	meter *meter
	began time.Time
	at    atomic.Int64 // nanoseconds after began

	long     atomic.Int64 // silence that is counted, in nanoseconds; 0: none is
	silences atomic.Int64
}

// on makes h that connection.
func (h *hearing) on(c net.Conn) net.Conn {
	h.Conn, h.began = c, time.Now()
	return h
}

// NetConn is what lies below.
func (h *hearing) NetConn() net.Conn { return h.Conn }

func (h *hearing) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		h.meter.received.Add(int64(n))
		now := int64(time.Since(h.began))
		before := h.at.Swap(now)
		if long := h.long.Load(); long > 0 && now-before >= long {
			h.silences.Add(1)
		}
	}
	return n, err
}

func (h *hearing) Write(p []byte) (int, error) {
	n, err := h.Conn.Write(p)
	h.meter.sent.Add(int64(n))
	return n, err
}

func (h *hearing) heard() time.Time { return h.began.Add(time.Duration(h.at.Load())) }

// openTunnel makes a control socket for u, which offers those capabilities, and
// waits for `ready` on it.
func (a *Agent) openTunnel(ctx context.Context, u *url.URL, offered wire.Caps, token string) (*tunnel, error) {
	r, err := a.dialer.route(u)
	if err != nil {
		return nil, err
	}
	// No TCP keep-alive: the edge's pings are enough, and each costs money on a
	// cellular link.
	h := &hearing{meter: &a.dialer.meter}
	conn, err := a.dialer.connect(ctx, r, -1, h.on)
	if err != nil {
		return nil, err
	}
	socket.TuneControl(conn, controlWrite)
	buffer := socket.SmallBuffer
	if offered.Has(wire.Early) {
		buffer = socket.LargeBuffer // frames come in swarms
	}
	s, err := upgrade(ctx, conn, u, token, buffer)
	if err != nil {
		if !errors.As(err, new(*RefusedError)) { // else somebody answers there
			a.dialer.failed(ctx, r, conn)
		}
		return nil, err
	}
	s.SetWriteTimeout(controlWrite)
	r.addr = directAddr(s, r)
	t := &tunnel{
		agent: a, route: r, sock: s, conn: h, since: time.Now(), open: a.streams.open,
		offered: offered, asked: a.heartbeat(), parking: parking{wg: &a.streams.wg},
		changed: make(chan struct{}, 1), drained: make(chan time.Duration, 1), ended: make(chan struct{}),
	}
	if err := t.greet(ctx); err != nil {
		a.dialer.failed(ctx, r, conn)
		s.Close()
		return nil, &HopError{"ready", err}
	}
	return t, nil
}

// greet waits for `ready`.
func (t *tunnel) greet(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { t.sock.Close() })
	defer stop()
	limit := time.Now().Add(readyTimeout)
	m, err := t.receive(func() time.Time { return limit })
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errSilent):
		return errNoTime
	case err != nil:
		return err
	}
	if _, ok := m.(*wire.Ready); !ok {
		return t.malformed(errors.New("first message is not ready"))
	}
	return t.handle(m)
}

// run serves the tunnel until it ends, and returns why. The socket is closed
// then, and streams that need it are aborted.
func (t *tunnel) run() error {
	err := t.serve()
	if errors.Is(err, errSilent) && t.route.proxy == nil {
		t.agent.dialer.avoid.add(t.conn.RemoteAddr())
	}
	t.sock.Close()
	t.parking.close()
	if t.mux != nil {
		t.mux.End(err)
	}
	return err
}

func (t *tunnel) serve() error {
	if t.mux != nil {
		t.measure()
	}
	for {
		m, err := t.receive(t.deadline)
		if err != nil {
			return err
		}
		if err := t.handle(m); err != nil {
			return err
		}
	}
}

// deadline is when the edge has been silent for too long (protocol §5.2).
func (t *tunnel) deadline() time.Time {
	if r := t.agent.rhythm; r != nil && !r.proven(t.heartbeat()) {
		return t.conn.heard().Add(t.late() + 2*askAfter)
	}
	return t.conn.heard().Add(2*time.Duration(t.latest().Heartbeat)*time.Second + 10*time.Second)
}

// heartbeat is how often the edge pings.
func (t *tunnel) heartbeat() time.Duration {
	return time.Duration(t.latest().Heartbeat) * time.Second
}

// late is the silence after which a ping of the edge is overdue.
func (t *tunnel) late() time.Duration { return t.heartbeat() * 11 / 10 }

// latest is the `ready` in force.
func (t *tunnel) latest() *wire.Ready {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ready
}

// close says goodbye and waits until run has returned.
func (t *tunnel) close(code int, reason string) {
	// A peer that does not take the frame sees the connection's end.
	_ = t.sock.WriteClose(code, reason, closeTime)
	limit := time.NewTimer(closeTime)
	defer limit.Stop()
	select {
	case <-t.ended:
	case <-limit.C:
		t.sock.Close()
		<-t.ended
	}
}

// receive returns the next text message that this version knows; frames go to
// their streams. It waits until deadline, which may move.
func (t *tunnel) receive(deadline func() time.Time) (wire.Message, error) {
	for {
		op, b, err := t.message(deadline)
		if err != nil {
			return nil, err
		}
		if op == socket.Binary {
			continue
		}
		m, err := wire.Decode(b)
		switch {
		case err == nil:
			return m, nil
		case !errors.Is(err, wire.ErrUnknownMessage):
			return nil, t.malformed(err)
		}
	}
}

// message reads a text, which aliases buf and is valid until the next call, or a
// frame, of which nothing is left to do.
func (t *tunnel) message(deadline func() time.Time) (op socket.Opcode, text []byte, err error) {
	if err = t.patiently(deadline, func() (err error) { op, err = t.sock.Next(); return err }); err != nil {
		return 0, nil, err
	}
	if op == socket.Binary {
		if t.mux == nil {
			return 0, nil, t.malformed(errors.New("binary message without a capability for it"))
		}
		err = t.patiently(deadline, t.mux.ReadFrame)
		if errors.Is(err, stream.ErrProtocol) {
			err = t.malformed(err)
		}
		return op, nil, err
	}
	text = t.buf[:0]
	err = t.patiently(deadline, func() (err error) { text, err = t.sock.Append(text, wire.MaxText); return err })
	if errors.Is(err, socket.ErrTooBig) {
		err = t.malformed(fmt.Errorf("text message longer than %d bytes", wire.MaxText))
	}
	if err != nil {
		return 0, nil, err
	}
	t.buf = text
	return op, text, nil
}

// patiently reads until deadline, which may have moved when it is reached.
func (t *tunnel) patiently(deadline func() time.Time, read func() error) error {
	for {
		// Left alone when it is too early: it then fires for nothing, once, instead
		// of being set for each message.
		if limit := deadline(); t.armed.IsZero() || limit.Before(t.armed) {
			if err := t.sock.SetReadDeadline(limit); err != nil {
				return err
			}
			t.armed = limit
		}
		err := read()
		if err == nil {
			return nil
		}
		var closed *socket.CloseError
		switch {
		case errors.As(err, &closed) && closed.Code != socket.CloseAbnormal && closed.Code != socket.CloseNoStatus:
			return &ClosedError{closed.Code, printable(closed.Reason, wire.MaxReason)}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case !deadline().After(time.Now()):
			return errSilent
		}
		t.armed = time.Time{}
	}
}

// malformed tells the edge that it broke the protocol (§4.5).
func (t *tunnel) malformed(err error) error {
	_ = t.sock.WriteClose(wire.CloseMalformed, err.Error(), closeTime) // the peer is faulty; it may as well be gone
	return fmt.Errorf("the edge broke the protocol: %w", err)
}

// handle acts on a message of the edge.
func (t *tunnel) handle(m wire.Message) error {
	switch m := m.(type) {
	case *wire.Ready:
		if _, err := t.transferURL(m, ""); err != nil {
			return t.malformed(err)
		}
		if err := t.agree(m); err != nil {
			return t.malformed(err)
		}
	case *wire.PortInfo:
		if !t.agent.forwards(m.Port) {
			return nil
		}
		t.mu.Lock()
		t.ports[m.Port] = *m
		told := len(t.ports) == len(t.agent.cfg.Forwards)
		t.mu.Unlock()
		if told {
			poke(t.changed, struct{}{})
		}
	case *wire.Open:
		if err := t.accept(m); err != nil {
			return t.malformed(err)
		}
	case *wire.Drain:
		poke(t.drained, time.Duration(m.Within)*time.Second)
	}
	return nil // messages that only an agent sends are none of ours
}

// agree puts m in force. Capabilities stay as they were (protocol §10.1).
func (t *tunnel) agree(m *wire.Ready) error {
	t.mu.Lock()
	before := t.ready
	t.ready, t.ports = m, make(map[uint16]wire.PortInfo)
	t.mu.Unlock()
	if before != nil {
		if before.Secret != m.Secret || before.Transfer != m.Transfer {
			t.parking.drop()
		}
		return nil
	}
	t.caps = inForce(t.offered, wire.ParseCaps(m.Caps))
	if !t.caps.Has(wire.Early) {
		return nil
	}
	switch {
	case m.Early < 1 || m.EarlyTotal < 1:
		return errors.New("ready: early without its bounds")
	case m.Early > wire.DefaultEarly || m.EarlyTotal > wire.DefaultEarlyTotal: // as it has asked for (protocol §10.1)
		return errors.New("ready: more early bytes than this agent holds")
	}
	t.early = m.Early
	t.mux = stream.NewMux(t.sock, stream.MuxOptions{Inline: t.caps.Has(wire.Inline), Owner: t.parking.wg})
	return nil
}

// accept serves a visitor.
func (t *tunnel) accept(o *wire.Open) error {
	switch {
	case t.mux != nil && o.Early > t.early:
		return errors.New("open: more credit than ready has said")
	case t.caps.Has(wire.Inline) && o.Early < 1:
		return errors.New("open: no credit")
	}
	return t.open(t, o)
}

// measure finds out the round trip to the edge, if it is not known or was measured
// long ago.
func (t *tunnel) measure() {
	now, last := int64(time.Since(t.since)), t.measured.Load()
	if last != 0 && now-last < int64(measureEvery) || !t.measured.CompareAndSwap(last, now) {
		return
	}
	t.sock.PingSoon()
}

// poke puts v into c, unless something is in it already.
func poke[T any](c chan T, v T) {
	select {
	case c <- v:
	default:
	}
}

// up describes the tunnel as the edge told it last; false while ports are
// missing.
func (t *tunnel) up() (Up, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := Up{Server: t.route.url.Scheme + "://" + t.route.url.Host, Label: t.ready.Label, Hostname: t.ready.Hostname}
	for _, f := range t.agent.cfg.Forwards {
		p, told := t.ports[f.Port]
		if !told {
			return Up{}, false
		}
		port := Port{Number: p.Port, Kind: Kind(p.Kind), URL: p.URL}
		if port.URL == "" && p.Addr != "" {
			port.URL = "tcp://" + p.Addr
		}
		u.Ports = append(u.Ports, port)
	}
	return u, true
}

// transfer returns the URL of the transfer socket for a stream's id, and the
// secret for it.
func (t *tunnel) transfer(id string) (*url.URL, string, error) {
	ready := t.latest()
	u, err := t.transferURL(ready, id)
	return u, ready.Secret, err
}

// transferURL resolves `transfer` on scheme, host and port of the control socket
// (protocol §6.3).
func (t *tunnel) transferURL(ready *wire.Ready, id string) (*url.URL, error) {
	path, query, _ := strings.Cut(ready.Transfer, "?") // Decode has checked it
	unescaped, err := url.PathUnescape(path)
	if err != nil {
		return nil, errors.New("ready: transfer is not a path")
	}
	return &url.URL{
		Scheme: t.route.url.Scheme, Host: t.route.url.Host,
		Path: unescaped, RawPath: path, RawQuery: query + "&id=" + id,
	}, nil
}

// refuse tells the edge that there will be no such stream.
func (t *tunnel) refuse(o *wire.Open, reason string) {
	err := t.sock.WriteMessage(socket.Text, wire.Encode(&wire.Refused{Stream: o.Stream, Reason: reason}))
	if err != nil {
		t.sock.Close() // it cannot write any more: run ends, if it has not
	}
}

// visitor reads `from` of open.
func visitor(from string) netip.AddrPort {
	addr, err := netip.ParseAddrPort(from)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Addr().Unmap().WithZone(""), addr.Port())
}
