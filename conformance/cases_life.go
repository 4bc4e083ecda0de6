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
	u.cut()
	n := t.awaitRetry("a new control socket", soonest).greet(t, 0)
	n.awaitPong()
	tr.binary([]byte("behind"))
	t.check(tr.gather(want, 6) == "behind", want, "other bytes")
}

func drain(t *T) {
	u := t.up(t.caps())
	u.text(`{"type":"drain","within_s":0}`)
	want := "a new control socket with the same instance"
	h := t.awaitRetry(want, t.rig.cfg.MaxBackoff+soonest) // a young tunnel is not left at once
	t.check(h.request.URL.Query().Get("instance") == u.from.request.URL.Query().Get("instance"), want,
		"instance=%s", h.request.URL.Query().Get("instance"))
	u.quiet("the old one is in use until `ready` has come on the new one", moment, func(e event) bool { return e.op == opClose || e.op == opEnd })
	u.awaitPong()
	h.greet(t, t.caps())
	want = "the old one is closed with 1000"
	e := u.awaitEnd(want, t.patience()+10*time.Second)
	t.check(e.code() == wire.CloseNormal, want, "%v", e)
	t.tunnel.awaitPong()
}

func drainStreams(t *T) {
	u := t.up(0)
	tr := t.visit(u).transfer()
	want := "streams run on over a `drain`"
	tr.binary([]byte("before"))
	tr.gather(want, 6)
	u.text(`{"type":"drain","within_s":0}`)
	t.awaitRetry("a new control socket", t.rig.cfg.MaxBackoff+soonest).greet(t, 0)
	u.awaitEnd("the end of the old one", t.patience()+10*time.Second)
	tr.binary([]byte("behind"))
	t.check(tr.gather(want, 6) == "behind", want, "other bytes")
}

func drainFails(t *T) {
	u := t.up(t.caps())
	u.text(`{"type":"drain","within_s":0}`)
	t.awaitRetry("a new control socket", t.rig.cfg.MaxBackoff+soonest).refuse(503)
	want := "the old one is in use while the new one fails"
	u.quiet(want, moment, func(e event) bool { return e.op == opClose || e.op == opEnd })
	t.serves(u, want)
	t.awaitRetry("another attempt", t.rig.cfg.MaxBackoff+soonest).greet(t, t.caps())
	u.awaitEnd("the end of the old one", t.patience()+10*time.Second)
}

// drainEnded has the edge end the old tunnel as the new one comes: its code does not
// count.
func drainEnded(t *T) {
	u := t.up(t.caps())
	u.text(`{"type":"drain","within_s":0}`)
	h := t.awaitRetry("a new control socket", t.rig.cfg.MaxBackoff+soonest)
	n := h.greet(t, t.caps())
	u.finish(wire.CloseReplaced)
	n.quiet("the code of the old tunnel's end does not count (5.5)", moment, func(e event) bool { return e.op == opClose || e.op == opEnd })
	n.awaitPong()
}

func drainTwice(t *T) {
	u := t.up(t.caps())
	u.text(`{"type":"drain","within_s":0}`)
	u.text(`{"type":"drain","within_s":0}`)
	h := t.awaitRetry("a new control socket", t.rig.cfg.MaxBackoff+soonest)
	if second := t.tryControl(moment); second != nil {
		t.fail("a second `drain` on the same socket changes nothing", "another handshake, with %s", second.request.URL.RequestURI())
	}
	h.greet(t, t.caps()).awaitPong()
	if second := t.tryControl(moment); second != nil {
		t.fail("a second `drain` on the same socket changes nothing", "another handshake, with %s", second.request.URL.RequestURI())
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
