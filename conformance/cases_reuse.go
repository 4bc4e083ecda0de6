package conformance

import (
	"encoding/json"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// parked is a transfer socket that is parked.
func (t *T) parked() (*tunnel, *sock) {
	u, tr := t.over()
	if e, ok := tr.next(moment / 5); ok && (e.op == opClose || e.op == opEnd) {
		t.skip("the agent parks nothing: see 11.1")
	}
	return u, tr
}

// over is a transfer socket whose stream is over.
func (t *T) over() (*tunnel, *sock) {
	s, tr, local := t.attached(wire.Early | wire.Reuse)
	tr.binary(nil)
	local.expectHow(t, "a stream that ends", ended, t.patience())
	local.end()
	tr.await("an empty message, for the end of the service", t.patience(), func(e event) bool { return e.op == opBinary && len(e.data) == 0 })
	return s.u, tr
}

func parks(t *T) {
	_, tr := t.over()
	tr.quiet("no close frame on a socket that is parked", 2*moment, func(e event) bool { return true })
	tr.sendClose(wire.CloseNormal)
	want := "the agent answers the close frame on a parked socket with its own, with 1000"
	e := tr.awaitEnd(want, t.patience())
	t.check(e.code() == wire.CloseNormal, want, "%v", e)
}

func parkedTooLong(t *T) {
	u, tr := t.over()
	want := "the agent closes a socket that was parked for 30 s"
	limit := time.Now().Add(30*time.Second + 2*t.slack())
	for time.Now().Before(limit) {
		if e, ok := tr.next(5 * time.Second); ok && (e.op == opClose || e.op == opEnd) {
			return
		}
		u.awaitPong()
	}
	t.fail(want, "it is open")
}

// attach waits for `attach` on a parked socket, for a new stream.
func (t *T) attach() (*stream, *sock, *local, event) {
	u, tr := t.parked()
	s := t.visit(u)
	local := t.service()
	e := tr.await("`attach` on the parked socket, for a stream that lasts", t.patience(), func(e event) bool { return true })
	return s, tr, local, e
}

func attaches(t *T) {
	s, _, _, e := t.attach()
	want := "`attach` with the number and the id out of `open`"
	var m struct {
		Type, ID string
		Stream   uint32
	}
	err := json.Unmarshal(e.data, &m)
	t.check(e.op == opText && err == nil && m.Type == "attach" && m.Stream == s.number && m.ID == s.id, want, "%v", e)
	if h := s.tryHandshake(moment); h != nil {
		t.fail("`attach`, and no handshake", "both")
	}
}

// say says `attached` for a stream.
func attached(tr *sock, s *stream) { tr.text(string(wire.Encode(&wire.Attached{Stream: s.number}))) }

func attachedWorks(t *T) {
	s, tr, local, _ := t.attach()
	local.say("early ")
	tr.quiet("no byte on the socket before `attached`", moment/2, func(e event) bool { return e.op == opBinary })
	want := "what the service sends before `attached`, in data frames"
	t.check(s.gather(want, 6) == "early ", want, "other bytes")
	attached(tr, s)
	s.moves()
	tr.binary([]byte("question"))
	local.expect(t, "bytes on the socket after `attached`", "question")
	local.say("answer")
	want = "bytes on the socket after `attached`"
	t.check(tr.gather(want, 6) == "answer", want, "other bytes")
}

func attachRefused(t *T) {
	s, tr, local, _ := t.attach()
	tr.finish(wire.CloseNormal)
	h := s.tryHandshake(t.patience())
	t.check(h != nil, "the edge has closed the socket instead of `attached`: a handshake with the same id", "none within %v", t.patience())
	n := h.accept(t)
	s.moves()
	n.binary([]byte("on"))
	local.expect(t, "the stream goes on", "on")
}

func attachIgnored(t *T) {
	s, tr, local, _ := t.attach()
	want := "without `attached` within 1 s, the agent closes the socket"
	tr.awaitEnd(want, 2*time.Second+t.slack())
	tr.conn.Close()
	h := s.tryHandshake(t.patience())
	t.check(h != nil, want+", and makes a handshake with the same id", "none within %v", t.patience())
	n := h.accept(t)
	s.moves()
	n.binary([]byte("on"))
	local.expect(t, "the stream goes on", "on")
}

// parkedViolation sends what may not be on a parked socket.
func parkedViolation(what string, send func(*sock)) func(*T) {
	return func(t *T) {
		_, tr := t.parked()
		send(tr)
		want := "a close frame with 4100 for " + what + " on a parked socket"
		e := tr.awaitEnd(want, t.patience())
		t.check(e.code() == wire.CloseMalformed, want, "%v", e)
	}
}

func parkedBinary(tr *sock) { tr.binary([]byte("x")) }
func parkedText(tr *sock)   { tr.text(`{"type":"attached","stream":"one"}`) }

func parkedUnknown(t *T) {
	_, tr := t.parked()
	tr.text(`{"type":"weather","degrees":21}`)
	tr.awaitPong()
}
