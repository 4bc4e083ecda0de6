package tunnelcore

import (
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// park makes a parked transfer socket: that of a stream which has ended cleanly.
func (a *fakeAgent) park() *socket.Socket {
	a.e.t.Helper()
	v, o := a.begin("question")
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	a.say(frame{wire.FrameMove, o.Stream, ""})
	binary(a.e.t, s, "answer")
	binary(a.e.t, s, "")
	reads(a.e.t, v, "answer")
	ends(a.e.t, v)
	if err := v.CloseWrite(); err != nil {
		a.e.t.Fatal(err)
	}
	piece(a.e.t, s, "")
	v.Close()
	return s
}

// attach gives a parked socket to a stream, and expects that the edge does.
func (a *fakeAgent) attach(s *socket.Socket, o *wire.Open) {
	a.e.t.Helper()
	if err := s.WriteMessage(socket.Text, wire.Encode(&wire.Attach{Stream: o.Stream, ID: o.ID})); err != nil {
		a.e.t.Fatal(err)
	}
	if m, f := a.next(s); m == nil || *m.(*wire.Attached) != (wire.Attached{Stream: o.Stream}) {
		a.e.t.Fatalf("got %+v %+v, want attached", m, f)
	}
}

func (e *edge) parked(want int) {
	e.t.Helper()
	eventually(e.t, "as many sockets are parked", func() bool { return e.hub.Stats().Parked == want })
}

// A transfer socket carries one stream after the other.
func TestReuse(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early|wire.Reuse))
	s := a.park()
	e.parked(1)
	for range 3 {
		v, o := a.begin("question ")
		a.say(frame{wire.FrameData, o.Stream, "an"})
		a.attach(s, o)
		a.frames(frame{wire.FrameMove, o.Stream, ""})
		e.parked(0)
		a.say(frame{wire.FrameMove, o.Stream, ""})
		binary(t, s, "swer")
		reads(t, v, "answer")
		write(t, v, "more")
		piece(t, s, "more")
		// The visitor ends first this time.
		if err := v.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		piece(t, s, "")
		binary(t, s, "")
		ends(t, v)
		v.Close()
		e.parked(1)
	}
	e.idle()
}

// `attach` may overtake the fin of the stream before, which is on another socket.
func TestReuseOvertakes(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early|wire.Reuse))
	v, o := a.begin("question")
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	if err := v.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	piece(t, s, "")
	v2, o2 := a.begin("question")
	if err := s.WriteMessage(socket.Text, wire.Encode(&wire.Attach{Stream: o2.Stream, ID: o2.ID})); err != nil {
		t.Fatal(err)
	}
	a.say(frame{wire.FrameData, o.Stream, "answer"}, frame{wire.FrameFin, o.Stream, ""})
	reads(t, v, "answer")
	ends(t, v)
	v.Close()
	if m, f := a.next(s); m == nil || *m.(*wire.Attached) != (wire.Attached{Stream: o2.Stream}) {
		t.Fatalf("got %+v %+v, want attached", m, f)
	}
	a.frames(frame{wire.FrameMove, o2.Stream, ""})
	a.say(frame{wire.FrameMove, o2.Stream, ""})
	binary(t, s, "answer")
	reads(t, v2, "answer")
}

// What an agent may get wrong closes a parked socket, and no stream is the worse.
func TestParkedWrong(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early|wire.Reuse))
	v, o := a.begin("question")
	for name, c := range map[string]struct {
		op      socket.Opcode
		message []byte
		code    int
	}{
		"unknown id":     {socket.Text, wire.Encode(&wire.Attach{Stream: o.Stream, ID: wire.NewID()}), wire.CloseNormal},
		"another number": {socket.Text, wire.Encode(&wire.Attach{Stream: o.Stream + 1000, ID: o.ID}), wire.CloseNormal},
		"binary":         {socket.Binary, []byte("bytes"), wire.CloseMalformed},
		"no JSON":        {socket.Text, []byte("{"), wire.CloseMalformed},
		"another message": {
			socket.Text, wire.Encode(&wire.Refused{Stream: o.Stream, Reason: "no"}), wire.CloseMalformed,
		},
		"too long": {socket.Text, make([]byte, wire.MaxText+1), wire.CloseTooBig},
	} {
		t.Run(name, func(t *testing.T) {
			s := a.park()
			if err := s.WriteMessage(socket.Text, []byte(`{"type":"later"}`)); err != nil { // is ignored
				t.Fatal(err)
			}
			if err := s.WriteMessage(c.op, c.message); err != nil {
				t.Fatal(err)
			}
			closes(t, s, c.code)
		})
	}
	e.parked(0)
	s := a.park()
	a.attach(s, o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	a.say(frame{wire.FrameMove, o.Stream, ""})
	binary(t, s, "answer")
	reads(t, v, "answer")
}

// Parked sockets are few, and not for long.
func TestParkedBounds(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early|wire.Reuse))
	var all []*socket.Socket
	for range wire.MaxParked {
		all = append(all, a.park())
	}
	e.parked(wire.MaxParked)
	closes(t, a.park(), wire.CloseNormal)
	e.parked(wire.MaxParked)
	// Those of a tunnel go with it.
	a.sock.Close()
	for _, s := range all {
		closes(t, s, wire.CloseNormal)
	}
	e.parked(0)
}

func TestParkedIdle(t *testing.T) {
	e := startEdge(t, nil)
	e.hub.parkedFor = 20 * time.Millisecond
	a := e.connect(offering("cam-17", wire.Early|wire.Reuse))
	closes(t, a.park(), wire.CloseNormal)
	e.parked(0)
}

// Without reuse a transfer socket is closed with its stream.
func TestParkedNever(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early))
	closes(t, a.park(), wire.CloseNormal)
	if n := e.hub.Stats().Parked; n != 0 {
		t.Errorf("%d parked", n)
	}
}

// A stream that has moved outlives its tunnel; its socket is not parked then.
func TestParkedAfterTunnel(t *testing.T) {
	e := startEdge(t, nil)
	a := e.connect(offering("cam-17", wire.Early|wire.Reuse))
	v, o := a.begin("question")
	s := a.fetch(o)
	a.frames(frame{wire.FrameMove, o.Stream, ""})
	a.say(frame{wire.FrameMove, o.Stream, ""})
	binary(t, s, "answer")
	reads(t, v, "answer")
	a.sock.Close()
	e.event("offline cam-17")
	binary(t, s, "")
	ends(t, v)
	if err := v.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	piece(t, s, "")
	v.Close()
	closes(t, s, wire.CloseNormal)
}
