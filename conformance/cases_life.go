package conformance

import (
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func goodbye(t *T) {
	u := t.up(t.caps())
	if err := t.rig.agent.Stop(); err != nil {
		t.skip("this system cannot ask the agent to end: %v", err)
	}
	want := "an agent that is asked to end (SIGTERM) closes its control socket with 1000 or 1001"
	e := u.awaitEnd(want, t.patience()+10*time.Second)
	t.check(e.code() == wire.CloseNormal || e.code() == wire.CloseGoingAway, want, "%v", e)
}

// outlives is a stream of the basic profile that its control socket does not take
// along.
func outlives(t *T) {
	u := t.up(0)
	tr := t.visit(u).transfer()
	want := "the stream goes on when the control socket has ended"
	tr.binary([]byte("before"))
	tr.gather(want, 6)
	t.lost(u).greet(t, 0).awaitPong()
	tr.binary([]byte("behind"))
	t.check(tr.gather(want, 6) == "behind", want, "other bytes")
}

// inUse fails the rule when a tunnel ends. An agent that has no room for two may end
// it, without a close frame: false.
func (t *T) inUse(u *tunnel, want string) bool {
	limit := time.Now().Add(moment)
	for {
		e, ok := u.next(time.Until(limit))
		switch {
		case !ok:
			u.awaitPong()
			return true
		case e.op == opClose:
			t.fail(want, "%v", e)
		case e.op == opEnd:
			return false
		}
	}
}

// noRoom is why a case is not tried.
const noRoom = "the agent has no room for two control sockets, and ends the old one first"

// drained asks the agent to come back, and waits for it.
func (t *T) drained(u *tunnel) *handshake {
	u.text(`{"type":"drain","within_s":0}`)
	return t.awaitRetry("a new control socket", t.rig.cfg.MaxBackoff+t.soonest()) // a young tunnel is not left at once
}

func drain(t *T) {
	u := t.up(t.caps())
	h := t.drained(u)
	before, after := u.from.request.URL.Query().Get("instance"), h.request.URL.Query().Get("instance")
	t.check(before == after, "a new control socket with the same instance, "+before, "instance=%s", after)
	two := t.inUse(u, "the old one is in use until `ready` has come on the new one")
	n := h.greet(t, t.caps())
	n.awaitPong()
	if two {
		want := "the old one is closed with 1000"
		e := u.awaitEnd(want, t.patience()+10*time.Second)
		t.check(e.code() == wire.CloseNormal, want, "%v", e)
	}
}

func drainStreams(t *T) {
	u := t.up(0)
	tr := t.visit(u).transfer()
	want := "streams run on over a `drain`"
	tr.binary([]byte("before"))
	tr.gather(want, 6)
	t.drained(u).greet(t, 0).awaitPong()
	u.awaitEnd("the end of the old tunnel", t.patience()+10*time.Second)
	tr.binary([]byte("behind"))
	t.check(tr.gather(want, 6) == "behind", want, "other bytes")
}

func drainFails(t *T) {
	u := t.up(t.caps())
	t.drained(u).refuse(503)
	want := "the old one is in use while the new one fails"
	if !t.inUse(u, want) {
		t.skip(noRoom)
	}
	t.serves(u, want)
	t.awaitRetry("another attempt", t.rig.cfg.MaxBackoff+t.soonest()).greet(t, t.caps()).awaitPong()
	u.awaitEnd("the end of the old one", t.patience()+10*time.Second)
}

// drainEnded has the edge end the old tunnel as the new one comes.
func drainEnded(t *T) {
	u := t.up(t.caps())
	n := t.drained(u).greet(t, t.caps())
	u.finish(wire.CloseReplaced)
	n.quiet("the code of the old tunnel's end does not count (5.5)", moment, func(e event) bool { return e.op == opClose || e.op == opEnd })
	n.awaitPong()
}

func drainTwice(t *T) {
	u := t.up(t.caps())
	u.text(`{"type":"drain","within_s":0}`)
	h := t.drained(u)
	want := "a second `drain` on the same socket changes nothing"
	if second := t.tryControl(moment); second != nil {
		t.fail(want, "another handshake, with %s", second.request.URL.RequestURI())
	}
	h.greet(t, t.caps()).awaitPong()
	if second := t.tryControl(moment); second != nil {
		t.fail(want, "another handshake, with %s", second.request.URL.RequestURI())
	}
}

func transferEndDoesNotCount(t *T) {
	u := t.up(0)
	tr := t.visit(u).transfer()
	tr.binary([]byte("x"))
	tr.gather("a stream", 1)
	tr.sendClose(wire.CloseReplaced)
	u.quiet("a code on a transfer socket says nothing about the tunnel", moment, func(e event) bool { return e.op == opClose || e.op == opEnd })
	tr.cut()
	t.serves(u, "a code on a transfer socket says nothing about the tunnel")
}
