package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// controlWrite bounds each write to a control socket.
	controlWrite = 15 * time.Second
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
	open func(*tunnel, *wire.Open)

	buf []byte // of text; most messages are short

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
	began time.Time
	at    atomic.Int64 // nanoseconds after began
}

// on makes h that connection.
func (h *hearing) on(c net.Conn) net.Conn {
	h.Conn, h.began = c, time.Now()
	return h
}

func (h *hearing) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		h.at.Store(int64(time.Since(h.began)))
	}
	return n, err
}

func (h *hearing) heard() time.Time { return h.began.Add(time.Duration(h.at.Load())) }

// openTunnel makes a control socket for u and waits for `ready` on it.
func (a *Agent) openTunnel(ctx context.Context, u *url.URL, token string) (*tunnel, error) {
	r, err := a.dialer.route(u)
	if err != nil {
		return nil, err
	}
	// No TCP keep-alive: the edge's pings are enough, and each costs money on a
	// cellular link.
	h := new(hearing)
	conn, err := a.dialer.connect(ctx, r, -1, h.on)
	if err != nil {
		return nil, err
	}
	s, err := upgrade(ctx, conn, u, token, socket.SmallBuffer)
	if err != nil {
		return nil, err
	}
	s.SetWriteTimeout(controlWrite)
	r.addr = directAddr(s, r)
	t := &tunnel{
		agent: a, route: r, sock: s, conn: h, since: time.Now(), open: a.streams.open,
		changed: make(chan struct{}, 1), drained: make(chan time.Duration, 1), ended: make(chan struct{}),
	}
	if err := t.greet(ctx); err != nil {
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
// then.
func (t *tunnel) run() error {
	defer t.sock.Close()
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
	return t.conn.heard().Add(2*time.Duration(t.latest().Heartbeat)*time.Second + 10*time.Second)
}

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

// receive returns the next message that this version knows. It waits until
// deadline, which may move.
func (t *tunnel) receive(deadline func() time.Time) (wire.Message, error) {
	for {
		text, err := t.text(deadline)
		if err != nil {
			return nil, err
		}
		m, err := wire.Decode(text)
		switch {
		case err == nil:
			return m, nil
		case !errors.Is(err, wire.ErrUnknownMessage):
			return nil, t.malformed(err)
		}
	}
}

// text reads a text message. It aliases buf: it is valid until the next call.
func (t *tunnel) text(deadline func() time.Time) ([]byte, error) {
	var op socket.Opcode
	err := t.patiently(deadline, func() (err error) { op, err = t.sock.Next(); return err })
	if err != nil {
		return nil, err
	}
	if op != socket.Text {
		return nil, t.malformed(errors.New("binary message without a capability for it"))
	}
	if t.buf == nil {
		t.buf = make([]byte, 0, wire.MaxFlat)
	}
	b := t.buf[:0]
	for {
		if len(b) > wire.MaxText {
			return nil, t.malformed(fmt.Errorf("text message longer than %d bytes", wire.MaxText))
		}
		b = slices.Grow(b, 1)
		var n int
		err := t.patiently(deadline, func() (err error) { n, err = t.sock.Read(b[len(b):cap(b)]); return err })
		b = b[:len(b)+n]
		if err == io.EOF {
			t.buf = b
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// patiently reads until deadline, which may have moved when it is reached.
func (t *tunnel) patiently(deadline func() time.Time, read func() error) error {
	for {
		limit := deadline()
		if err := t.sock.SetReadDeadline(limit); err != nil {
			return err
		}
		err := read()
		var closed *socket.CloseError
		switch {
		case errors.As(err, &closed) && closed.Code != socket.CloseAbnormal && closed.Code != socket.CloseNoStatus:
			return &ClosedError{closed.Code, printable(closed.Reason, wire.MaxReason)}
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case !deadline().After(time.Now()):
			return errSilent
		}
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
		t.mu.Lock()
		t.ready, t.ports = m, make(map[uint16]wire.PortInfo)
		t.mu.Unlock()
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
		t.open(t, m)
	case *wire.Drain:
		poke(t.drained, time.Duration(m.Within)*time.Second)
	}
	return nil // messages that only an agent sends are none of ours
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
