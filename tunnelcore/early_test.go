package tunnelcore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// offering is hello with capabilities.
func offering(device string, caps wire.Caps) wire.Hello {
	h := hello(device)
	h.Caps = caps
	return h
}

// begin dials port 80 and writes what the visitor sends first. Both are with the
// agent then.
func (a *fakeAgent) begin(first string) (*stream.Stream, *wire.Open) {
	a.e.t.Helper()
	c, err := a.e.hub.Dial(context.Background(), "cam-17", 80, visitor)
	if err != nil {
		a.e.t.Fatal(err)
	}
	a.e.t.Cleanup(c.(*stream.Stream).Abort)
	write(a.e.t, c, first)
	o := a.receive().(*wire.Open)
	if first != "" {
		a.frames(frame{wire.FrameData, o.Stream, first})
	}
	return c.(*stream.Stream), o
}

func write(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if text == "" {
		return
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// reads expects text from r.
func reads(t *testing.T, r io.Reader, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(r, got); string(got) != text {
		t.Fatalf("read %q, %v; want %q", got[:n], err, text)
	}
}

// ends expects that r is at its end.
func ends(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want an end", n, err)
	}
}

// binary sends a piece of a stream on a transfer socket; an empty one ends it.
func binary(t *testing.T, s *socket.Socket, piece string) {
	t.Helper()
	if err := s.WriteMessage(socket.Binary, []byte(piece)); err != nil {
		t.Fatal(err)
	}
}

// piece reads one of a stream from a transfer socket.
func piece(t *testing.T, s *socket.Socket, want string) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	if op, got, err := s.ReadMessage(wire.MaxMessage); err != nil || op != socket.Binary || string(got) != want {
		t.Fatalf("read %d %q, %v; want %q", op, got, err, want)
	}
}

// closes expects a close frame.
func closes(t *testing.T, s *socket.Socket, code int) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := s.Next()
	var closed *socket.CloseError
	if !errors.As(err, &closed) || closed.Code != code {
		t.Fatalf("got %v, want a close with %d", err, code)
	}
}

// idle waits until nothing is left of any stream.
func (e *edge) idle() {
	e.t.Helper()
	eventually(e.t, "no stream is left", func() bool { return e.hub.Stats().Streams == 0 })
	for _, t := range e.hub.live() {
		t.credit.mu.Lock()
		credit := t.credit.left
		t.credit.mu.Unlock()
		t.mu.Lock()
		openings := len(t.opening)
		t.mu.Unlock()
		_, s := t.device.live()
		s.slots.mu.Lock()
		used := s.slots.used
		s.slots.mu.Unlock()
		if credit != t.credit.total || openings > 0 || used > 0 || t.device.streaming() {
			e.t.Errorf("%s: credit %d of %d, %d openings, %d slots, streams: %v", t.holder.Device, credit, t.credit.total, openings,
				used, t.device.streaming())
		}
	}
}

// Capabilities are in force where both have them, and those that lean on early not
// without it.
func TestCapabilities(t *testing.T) {
	const e, r, i = wire.Early, wire.Reuse, wire.Inline
	for _, c := range []struct{ offered, without, want wire.Caps }{
		{0, 0, 0},
		{e, 0, e},
		{e | r, 0, e | r},
		{e | i, 0, e | i},
		{e | r | i, 0, e | i},
		{r, 0, 0},
		{i, 0, 0},
		{r | i, 0, 0},
		{e | r | wire.Redirect, 0, e | r},
		{e | r, r, e},
		{e | i, i, e},
		{e | r | i, i, e | r},
		{e | r, e, 0},
		{e | i, e, 0},
		{e | r | i, e | r | i, 0},
	} {
		t.Run(fmt.Sprintf("%v without %v", c.offered, c.without), func(t *testing.T) {
			e := startEdge(t, func(s *Settings) { s.Without = c.without })
			a := e.connect(offering("cam-17", c.offered))
			if got := wire.ParseCaps(a.ready.Caps); got != c.want {
				t.Fatalf("in force: %q, want %q", a.ready.Caps, c.want)
			}
			if early := c.want.Has(wire.Early); (a.ready.Early == wire.DefaultEarly) != early || (a.ready.EarlyTotal == wire.DefaultEarlyTotal) != early {
				t.Errorf("early %d, %d", a.ready.Early, a.ready.EarlyTotal)
			}
			a.serve(c.want)
			for range 2 {
				v, err := e.hub.Dial(context.Background(), "cam-17", 80, visitor)
				if err != nil {
					t.Fatal(err)
				}
				write(t, v, "ping\n")
				reads(t, v, "ping\n")
				write(t, v, strings.Repeat("x", 100000)+"\n")
				reads(t, v, strings.Repeat("x", 100000)+"\n")
				v.Close()
			}
			e.idle()
		})
	}
}

// serve plays an agent whose service echoes, by package stream.
func (a *fakeAgent) serve(caps wire.Caps) {
	var mux *stream.Mux
	if caps.Has(wire.Early) {
		mux = stream.NewMux(a.sock, stream.MuxOptions{Inline: caps.Has(wire.Inline), Owner: &a.owner})
	}
	echo := func(c *stream.Stream) {
		_, err := io.Copy(c, c)
		if err != nil {
			c.Abort()
		} else {
			c.Close()
		}
	}
	options := stream.Options{Owner: &a.owner}
	if caps.Has(wire.Reuse) {
		options.Parked = func(s *socket.Socket) { s.Close() }
	}
	a.owner.Go(func() {
		_ = a.sock.SetReadDeadline(time.Time{})
		for {
			op, err := a.sock.Next()
			if err == nil && op == socket.Binary {
				if err = mux.ReadFrame(); err == nil {
					continue
				}
			}
			var text []byte
			if err == nil {
				text, err = a.sock.Append(nil, wire.MaxText)
			}
			if err != nil {
				if mux != nil {
					mux.End(err)
				}
				return
			}
			m, err := wire.Decode(text)
			o, ok := m.(*wire.Open)
			switch {
			case err != nil || !ok:
			case mux == nil:
				a.owner.Go(func() {
					if s, err := a.e.dial(a.ready.Transfer+"&id="+o.ID, a.ready.Secret); err == nil {
						echo(stream.New(s, options))
					}
				})
			default:
				options.Wanted = func(c *stream.Stream) {
					// A failure is that of a stream which is over.
					if s, err := a.e.dial(a.ready.Transfer+"&id="+o.ID, a.ready.Secret); err == nil {
						_ = c.Attach(s)
					}
				}
				c, err := mux.Open(o.Stream, o.Early, options)
				switch {
				case err == nil:
					a.owner.Go(func() { echo(c) })
				case errors.Is(err, stream.ErrEnded): // a write has failed: the next read does, and ends mux
				default:
					a.e.t.Error(err) // the streams that are open go on until the end
				}
			}
		}
	})
}

// A stream that is short never has a transfer socket.
func TestEarlyStream(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	v, o := a.begin("question")
	if o.Stream != 1 || o.Port != 80 || o.From != visitor.String() || o.Early != wire.DefaultEarly {
		t.Errorf("open: %+v", o)
	}
	if s := e.hub.Stats(); s != (Stats{Tunnels: 1, Streams: 1}) {
		t.Errorf("stats: %+v", s)
	}
	a.say(frame{wire.FrameData, o.Stream, "ans"}, frame{wire.FrameData, o.Stream, "wer"}, frame{wire.FrameFin, o.Stream, ""})
	reads(t, v, "answer")
	ends(t, v)
	if err := v.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	a.frames(frame{wire.FrameFin, o.Stream, ""})
	if received, sent := v.Transferred(); received != int64(len("answer")) || sent != int64(len("question")) {
		t.Errorf("transferred: %d, %d", received, sent)
	}
	v.Close()
	e.idle()
	if status, body, _ := e.refusal(a.ready.Transfer+"&id="+o.ID, a.ready.Secret); status != 404 || body.Error != wire.UnknownStream {
		t.Errorf("transfer socket of a stream that is over: %d %+v", status, body)
	}
	_, o = a.begin("again")
	if o.Stream != 2 {
		t.Errorf("open: %+v", o)
	}
}

// A device that speaks first is asked although the visitor says nothing.
func TestEarlyDeviceSpeaksFirst(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	v, o := a.begin("")
	a.say(frame{wire.FrameData, o.Stream, "SSH-2.0"})
	reads(t, v, "SSH-2.0")
}

// What lasts moves to a transfer socket, in the middle of what it carries.
func TestEarlyMoves(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	v, o := a.begin("one ")
	a.say(frame{wire.FrameData, o.Stream, "eins "})
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	binary(t, s, "zwei") // is held back until move
	a.say(frame{wire.FrameMove, o.Stream, ""})
	reads(t, v, "eins zwei")
	write(t, v, "two")
	piece(t, s, "two")
	if status, _, _ := e.refusal(a.ready.Transfer+"&id="+o.ID, a.ready.Secret); status != 404 {
		t.Errorf("the id is used, and answered with %d", status)
	}
	// All credit but what the agent, or the edge, may hold still is back.
	tunnel := e.tunnel("cam-17")
	eventually(t, "credit is back", func() bool {
		tunnel.credit.mu.Lock()
		defer tunnel.credit.mu.Unlock()
		return tunnel.credit.left >= tunnel.credit.total-len("eins ") && tunnel.credit.left < tunnel.credit.total
	})
	binary(t, s, "")
	ends(t, v)
	if err := v.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	piece(t, s, "")
	v.Close()
	closes(t, s, wire.CloseNormal)
	e.idle()
}

// tunnel is the live one of a device.
func (e *edge) tunnel(device string) *tunnel {
	e.hub.mu.Lock()
	defer e.hub.mu.Unlock()
	t, _ := e.hub.devices[device].live()
	return t
}

func TestEarlyRefused(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	v, o := a.begin("question")
	a.say(&wire.Refused{Stream: o.Stream, Reason: "connection refused"}, &wire.Refused{Stream: 99, Reason: "never asked"})
	_, err := v.Read(make([]byte, 1))
	wantCode(t, err, wire.DeviceRefused)
	if !strings.Contains(err.Error(), "connection refused") || errors.Is(err, ErrLost) {
		t.Errorf("read: %v", err)
	}
	_, err = v.Write([]byte("more"))
	wantCode(t, err, wire.DeviceRefused)
	v.Close()
	e.idle()
}

// The agent breaks off before it answers.
func TestEarlyReset(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	v, o := a.begin("question")
	a.say(frame{wire.FrameReset, o.Stream, ""})
	if _, err := v.Read(make([]byte, 1)); !errors.Is(err, stream.ErrAborted) || errors.Is(err, ErrLost) {
		t.Errorf("read: %v", err)
	}
	v.Close()
	e.idle()
	// And the visitor does.
	v, o = a.begin("question")
	v.Abort()
	a.frames(frame{wire.FrameReset, o.Stream, ""})
	e.idle()
}

// An agent that says nothing does not keep visitors waiting.
func TestEarlySilence(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.OpenTimeout = 50 * time.Millisecond })
	a := e.connect(offering("cam-17", wire.Early))
	v, o := a.begin("question")
	_, err := v.Read(make([]byte, 1))
	wantCode(t, err, wire.DeviceTimeout)
	a.frames(frame{wire.FrameReset, o.Stream, ""})
	v.Close()
	e.idle()
}

// One that has said something, or has got a transfer socket, may be slow.
func TestEarlySlow(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	tunnel := e.tunnel("cam-17")
	opening := func(o *wire.Open) *opening {
		tunnel.mu.Lock()
		defer tunnel.mu.Unlock()
		return tunnel.opening[o.ID]
	}
	v1, o1 := a.begin("one")
	a.say(frame{wire.FrameData, o1.Stream, "x"})
	reads(t, v1, "x")
	opening(o1).silent()
	a.say(frame{wire.FrameData, o1.Stream, "y"})
	reads(t, v1, "y")
	v2, o2 := a.begin("two")
	second := opening(o2)
	s := a.fetch(o2)
	a.frames(frame{wire.FrameMove, o2.Stream, ""})
	second.silent()
	a.say(frame{wire.FrameMove, o2.Stream, ""})
	binary(t, s, "z")
	reads(t, v2, "z")
}

// The handshake for a transfer socket may fail, and be tried again with the same
// id.
func TestEarlyHandshakeFails(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	v, o := a.begin("question")
	conn, err := net.Dial("tcp", e.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s&id=%s HTTP/1.1\r\nHost: edge\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Protocol: %s\r\nAuthorization: Bearer %s\r\n\r\n", a.ready.Transfer, o.ID, wire.Subprotocol, a.ready.Secret)
	reads(t, conn, "HTTP/1.1 400")
	conn.Close()
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	a.say(frame{wire.FrameMove, o.Stream, ""})
	binary(t, s, "answer")
	reads(t, v, "answer")
}

// A burst finds credit, until all is spent; it comes back with the end of streams.
func TestEarlyCredit(t *testing.T) {
	e := startEdge(t, nil)
	h := offering("cam-17", wire.Early)
	h.Early, h.EarlyTotal = 20000, 50000
	a := e.connect(h)
	if a.ready.Early != 20000 || a.ready.EarlyTotal != 50000 {
		t.Errorf("ready: %+v", a.ready)
	}
	var all []*stream.Stream
	left := 50000
	for left >= leastCredit {
		v, o := a.begin("x")
		all = append(all, v)
		if o.Early < leastCredit || o.Early > 20000 || o.Early > left {
			t.Fatalf("credit %d of %d", o.Early, left)
		}
		left -= o.Early
	}
	if len(all) < 5 {
		t.Errorf("credit for only %d streams", len(all))
	}
	c, err := e.hub.Dial(context.Background(), "cam-17", 80, visitor)
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, c.(*stream.Stream))
	o := a.receive().(*wire.Open)
	if o.Early != 0 {
		t.Errorf("credit %d when none is left", o.Early)
	}
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	write(t, c, "no credit needed")
	piece(t, s, "no credit needed")
	for _, v := range all {
		v.Abort()
	}
	e.idle()
}

// The operator's bound holds, whatever the agent asks for.
func TestBufferPerDevice(t *testing.T) {
	e := startEdge(t, func(s *Settings) { s.Limits.BufferPerDevice = 64 << 10 })
	h := offering("cam-17", wire.Early)
	h.Early, h.EarlyTotal = wire.MaxMessage, wire.MaxEarlyTotal
	if a := e.connect(h); a.ready.Early != 32<<10 || a.ready.EarlyTotal != 32<<10 {
		t.Errorf("ready: %+v", a.ready)
	}
}

// With its tunnel ends what has not moved; what has lives on.
func TestEarlyTunnelEnds(t *testing.T) {
	e := startEdge(t, nil)
	h := offering("cam-17", wire.Early)
	a := e.connect(h)
	moved, o := a.begin("one")
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	a.say(frame{wire.FrameMove, o.Stream, ""})
	sent, _ := a.begin("two")
	half, o := a.begin("three")
	s3 := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	unsent, _ := a.begin("")
	binary(t, s, "x")
	reads(t, moved, "x")
	a.sock.Close()
	for _, c := range []struct {
		v      *stream.Stream
		unsent bool
	}{{sent, false}, {half, false}, {unsent, true}} {
		_, err := c.v.Read(make([]byte, 1))
		wantCode(t, err, wire.DeviceOffline)
		if !errors.Is(err, ErrLost) || errors.Is(err, ErrUnsent) != c.unsent {
			t.Errorf("read: %v", err)
		}
		if got := answers.From(err); got.RetryAfter == 0 {
			t.Errorf("answer: %+v", got)
		}
		c.v.Close()
	}
	if _, err := s3.Next(); err == nil {
		t.Error("the transfer socket of a stream that was lost lives on")
	}
	a = e.connect(h)
	binary(t, s, "y")
	reads(t, moved, "y")
	write(t, moved, "z")
	piece(t, s, "z")
	moved.Abort()
	e.idle()
	// The next tunnel serves.
	v, o := a.begin("again")
	a.say(frame{wire.FrameData, o.Stream, "served"})
	reads(t, v, "served")
}

// Tunnels that break while visitors come and go, in whatever state their streams
// are, leave nothing behind, and no visitor gets what is not its own.
func TestEarlyTunnelsBreak(t *testing.T) {
	for _, caps := range []wire.Caps{wire.Early, wire.Early | wire.Reuse, wire.Early | wire.Inline} {
		t.Run(caps.String(), func(t *testing.T) {
			e := startEdge(t, func(s *Settings) { s.Limits.StreamsPerDevice = 6 })
			h := offering("cam-17", caps)
			h.Early, h.EarlyTotal = 8000, 30000
			a := e.connect(h)
			a.serve(caps)
			var served atomic.Int64
			stop := make(chan struct{})
			var visitors sync.WaitGroup
			for i := range 8 {
				visitors.Go(func() {
					text := strings.Repeat(string(rune('a'+i)), 3000*i+1)
					for {
						select {
						case <-stop:
							return
						default:
						}
						if e.echoes(text) {
							served.Add(1)
						}
					}
				})
			}
			for range 8 {
				before := served.Load()
				eventually(t, "visitors are served", func() bool { return served.Load() > before+5 })
				a.sock.Close()
				a = e.connect(h)
				a.serve(caps)
			}
			close(stop)
			visitors.Wait()
			e.idle()
		})
	}
}

// echoes is a visitor of a device that echoes: false when its stream broke.
func (e *edge) echoes(text string) bool {
	c, err := e.hub.Dial(context.Background(), "cam-17", 80, visitor)
	if err != nil {
		if answer := (*answers.Error)(nil); !errors.As(err, &answer) {
			e.t.Errorf("dial: %v", err)
		}
		return false
	}
	defer c.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(c, text) // a failure shows in the read, too
	}()
	got := make([]byte, len(text))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != text[:n] {
		e.t.Errorf("%d of %d bytes are not the visitor's own", n, len(text))
	}
	if err != nil {
		c.(*stream.Stream).Abort()
	}
	<-sent
	return err == nil
}

// A frame that is none, and frames without a capability for them, end the tunnel.
func TestEarlyMalformed(t *testing.T) {
	e := startEdge(t, nil)
	instance := wire.NewID()
	connect := func(caps wire.Caps) *fakeAgent {
		h := offering("cam-17", caps)
		h.Instance = instance
		return e.connect(h)
	}
	for caps, f := range map[wire.Caps]frame{
		0:          {wire.FrameData, 1, "x"},
		wire.Early: {wire.FrameFin, 1, "x"},
	} {
		a := connect(caps)
		a.say(f)
		if c := a.closed(); c.Code != wire.CloseMalformed {
			t.Errorf("%v: close %v", caps, c)
		}
	}
	a := connect(wire.Early)
	a.say(frame{wire.FrameData, 1, strings.Repeat("x", wire.MaxFrame+1)})
	if c := a.closed(); c.Code != wire.CloseMalformed && c.Code != wire.CloseTooBig {
		t.Errorf("close %v", c)
	}
	// One of a stream that nobody knows is no error.
	a = connect(wire.Early)
	a.say(frame{wire.FrameData, 99, "x"}, frame{wire.FrameReset, 98, ""})
	v, o := a.begin("hello")
	a.say(frame{wire.FrameData, o.Stream, "x"})
	reads(t, v, "x")
}

// Who takes the device over, or takes it away, ends its streams.
func TestEarlyStreamsDropped(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	v, _ := a.begin("one")
	a2 := e.connect(offering("cam-17", wire.Early)) // answers no ping: a reboot
	if _, err := v.Read(make([]byte, 1)); err == nil {
		t.Error("the stream of another instance lives on")
	}
	v.Close()
	v, _ = a2.begin("two")
	e.change(nobody)
	if _, err := v.Read(make([]byte, 1)); err == nil {
		t.Error("the stream of a device that is not let in lives on")
	}
	v.Close()
	e.idle()
}

// Visitors of public ports begin early, too.
func TestEarlyPublicPort(t *testing.T) {
	e := startPorts(t, 1, nil)
	a := e.connect(offering("cam-17", wire.Early))
	c, err := net.Dial("tcp", a.public())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	write(t, c, "question")
	o := a.receive().(*wire.Open)
	a.frames(frame{wire.FrameData, o.Stream, "question"})
	a.say(frame{wire.FrameData, o.Stream, "answer"}, frame{wire.FrameFin, o.Stream, ""})
	if got, err := io.ReadAll(c); err != nil || string(got) != "answer" {
		t.Fatalf("read %q, %v", got, err)
	}
	write(t, c, "more")
	a.frames(frame{wire.FrameData, o.Stream, "more"})
	c.(*net.TCPConn).CloseWrite()
	a.frames(frame{wire.FrameFin, o.Stream, ""})
	e.idle()
	// A refusal is no end.
	c, err = net.Dial("tcp", a.public())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o = a.receive().(*wire.Open)
	a.say(&wire.Refused{Stream: o.Stream, Reason: "connection refused"})
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the visitor took a refusal for an end")
	}
}

// With inline nothing but the control socket carries a stream.
func TestInline(t *testing.T) {
	e := startEdge(t, nil)
	h := offering("cam-17", wire.Early|wire.Inline)
	h.Early, h.EarlyTotal = 4, 8
	a := e.connect(h)
	v, o := a.begin("1234")
	if o.Early != 4 {
		t.Errorf("open: %+v", o)
	}
	if status, _, _ := e.refusal(a.ready.Transfer+"&id="+o.ID, a.ready.Secret); status != 404 {
		t.Errorf("a transfer socket with inline: %d", status)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := io.WriteString(v, "56")
		wrote <- err
	}()
	a.say(frame{wire.FrameCredit, o.Stream, "\x00\x00\x00\x02"})
	a.frames(frame{wire.FrameData, o.Stream, "56"})
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	a.say(frame{wire.FrameData, o.Stream, "abcd"})
	reads(t, v, "abcd")
	credit := 0
	for credit < 4 {
		_, f := a.next(a.sock)
		if f.kind != wire.FrameCredit || f.stream != o.Stream {
			t.Fatalf("got %+v", f)
		}
		credit += wire.Credit([]byte(f.payload))
	}
	// A stream that finds no window waits for one.
	a.begin("5678")
	got := e.visit("cam-17", 80)
	window := &e.tunnel("cam-17").credit
	eventually(t, "a visitor waits for a window", func() bool {
		window.mu.Lock()
		defer window.mu.Unlock()
		return window.freed != nil
	})
	v.Abort()
	a.frames(frame{wire.FrameReset, o.Stream, ""})
	d := <-got
	if d.err == nil {
		d.Close()
	}
}

func TestInlineWaits(t *testing.T) {
	c := credit{each: 10, total: 10, left: 10}
	if n, err := c.wait(t.Context(), nil); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.wait(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	over := make(chan struct{})
	close(over)
	_, err := c.wait(t.Context(), over)
	wantCode(t, err, wire.DeviceOffline)
	got := make(chan int)
	go func() {
		n, _ := c.wait(context.Background(), nil)
		got <- n
	}()
	c.giveBack(10)
	if n := <-got; n != 10 {
		t.Errorf("got %d", n)
	}
}

// A hub that stops lets early streams go on as long as it has patience.
func TestEarlyShutdown(t *testing.T) {
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := startEdgeOver(t, reg, nil)
	a := e.connect(offering("cam-17", wire.Early))
	moved, o := a.begin("one")
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	a.say(frame{wire.FrameMove, o.Stream, ""})
	short, o := a.begin("two")
	late, o3 := a.begin("three")
	done := make(chan error, 1)
	go func() { done <- e.hub.Shutdown(context.Background()) }()
	eventually(t, "the hub stops", e.hub.isStopping)
	// What would end with the tunnel is waited for, and may still move.
	s3 := a.fetch(o3)
	a.frames(frame{wire.FrameMove, o3.Stream, ""})
	a.say(frame{wire.FrameData, o.Stream, "answer"}, frame{wire.FrameFin, o.Stream, ""})
	reads(t, short, "answer")
	ends(t, short)
	short.Close()
	a.frames(frame{wire.FrameFin, o.Stream, ""})
	a.say(frame{wire.FrameMove, o3.Stream, ""})
	if c := a.closed(); c.Code != wire.CloseRestart {
		t.Errorf("close: %v", c)
	}
	binary(t, s3, "answer")
	reads(t, late, "answer")
	late.Abort()
	binary(t, s, "still here")
	reads(t, moved, "still here")
	moved.Abort()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
