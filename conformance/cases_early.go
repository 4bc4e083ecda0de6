package conformance

import (
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// frameCaps are those with which streams are frames on the control socket.
func (t *T) frameCaps() wire.Caps { return t.caps() | wire.Early }

// begun is a stream that is frames on the control socket, with credit bytes of credit
// each way (0: as much as there is), and the agent's connection to the service.
func (t *T) begun(credit int) (*stream, *local) {
	t.script()
	u := t.up(t.frameCaps())
	if credit == 0 {
		credit = u.ready.Early
	}
	s := u.open(t.echoPort(), min(credit, u.ready.Early))
	return s, t.service()
}

// attached is a stream of `early` that has its transfer socket, with both directions
// moved.
func (t *T) attached(caps wire.Caps) (*stream, *sock, *local) {
	t.script()
	u := t.up(caps)
	s := t.visit(u)
	local := t.service()
	tr := s.transfer()
	s.moves()
	return s, tr, local
}

// moves moves the edge's direction, and waits until the agent has moved its own.
func (s *stream) moves() {
	s.frame(wire.FrameMove, "")
	s.awaitFrame("`move`, once the transfer socket is there", wire.FrameMove, s.t.patience())
}

func frameForm(t *T) {
	s, local := t.begun(0)
	n := min(s.credit, 4*wire.MaxFrame)
	t.rig.wg.Go(func() { local.say(strings.Repeat("x", n)) })
	want := "frames of at most 4096 bytes of payload"
	for got := 0; got < n; {
		e := s.u.await(want, t.patience(), func(e event) bool { return e.op == opBinary })
		_, _, p, err := wire.ParseFrame(e.data)
		t.check(err == nil, want, "%d bytes: %v", len(e.data), err)
		got += len(p)
	}
}

// malformedFrames are frames for which an agent closes.
var malformedFrames = []struct{ what, data string }{
	{"a frame shorter than its header", "\x01\x00\x00\x00"},
	{"an empty frame", ""},
	{"a frame of 4102 bytes", "\x01\x00\x00\x00\x01" + strings.Repeat("x", 4097)},
	{"a frame of stream 0", "\x02\x00\x00\x00\x00"},
	{"data without data", "\x01\x00\x00\x00\x01"},
	{"`fin` with a payload", "\x02\x00\x00\x00\x01x"},
	{"`reset` with a payload", "\x03\x00\x00\x00\x01x"},
	{"`move` with a payload", "\x04\x00\x00\x00\x01x"},
	{"credit of 3 bytes", "\x05\x00\x00\x00\x01\x00\x00\x01"},
	{"credit of nothing", "\x05\x00\x00\x00\x01\x00\x00\x00\x00"},
	{"credit of more than 1048576", "\x05\x00\x00\x00\x01\x00\x10\x00\x01"},
}

func badFrames(t *T) {
	for _, c := range malformedFrames {
		u := t.up(t.frameCaps())
		t.visit(u)
		u.binary([]byte(c.data))
		want := "a close frame with 4100 for " + c.what
		e := u.awaitEnd(want, t.patience())
		ok := e.code() == wire.CloseMalformed || e.code() == wire.CloseTooBig && len(c.data) > wire.MaxFrame
		t.check(ok, want, "%v", e)
		u.conn.Close()
	}
}

func unknownStream(t *T) {
	u := t.up(t.frameCaps())
	for _, data := range []string{"\x01\x00\x00\x10\x00x", "\x02\x00\x00\x10\x00", "\x03\x00\x00\x10\x00", "\x63\x00\x00\x10\x00xyz"} {
		u.binary([]byte(data))
	}
	u.awaitPong()
	s := t.visit(u)
	want := "frames of streams that it does not know change nothing"
	s.frame(wire.FrameData, "hello")
	t.check(s.gather(want, 5) == "hello", want, "other bytes")
}

func unknownKind(t *T) {
	s, local := t.begun(0)
	s.frame(99, "abc")
	s.awaitFrame("`reset` of the stream, for a frame of an unknown kind", wire.FrameReset, t.patience())
	local.expectHow(t, "and an abort towards the service", aborted, t.patience())
	s.u.awaitPong()
}

// neverBlocked fills a stream whose service takes nothing.
func neverBlocked(t *T) {
	s, _ := t.begun(0)
	s.t.logf("edge → agent", s.u.name, nil, "all the credit of stream %d", s.number)
	text := strings.Repeat("x", min(wire.MaxFrame, s.u.ready.MessageMax-wire.FrameHeader))
	for left := s.credit; left > 0; left -= len(text) {
		s.frame(wire.FrameData, text[:min(left, len(text))])
	}
	s.u.awaitPong()
	if s.u.ready.Streams < 2 || s.u.ready.EarlyTotal < 2 {
		return
	}
	other := s.u.open(t.echoPort(), min(s.u.ready.EarlyTotal-s.credit, s.credit))
	if other.credit == 0 {
		return
	}
	local := t.service()
	other.frame(wire.FrameData, "x")
	local.expect(t, "a stream whose service takes nothing does not block another", "x")
}

func allCredit(t *T) {
	t.script()
	u := t.up(t.frameCaps())
	n := min(u.ready.EarlyTotal/u.ready.Early, u.ready.Streams, 4)
	want := "an agent holds the credit that it has offered"
	for range n {
		s := t.visit(u)
		text := strings.Repeat("0123456789abcdef", u.ready.Early/16+1)[:u.ready.Early]
		for at, step := 0, min(wire.MaxFrame, u.ready.MessageMax-wire.FrameHeader); at < len(text); at += step {
			s.frame(wire.FrameData, text[at:min(at+step, len(text))])
		}
		local := t.service()
		local.expect(t, want, text)
	}
}

func withinCredit(t *T) {
	s, local := t.begun(300)
	local.say(strings.Repeat("x", 2000))
	want := "no more bytes of data than the credit, 300"
	sum := 0
	s.u.quiet(want, 2*moment, func(e event) bool {
		if k, p, ok := s.parse(e); ok && k == wire.FrameData {
			sum += len(p)
		}
		return sum > s.credit
	})
}

// short is a stream that begins and ends on the control socket.
func short(t *T) {
	s, local := t.begun(0)
	s.frame(wire.FrameData, "question")
	s.frame(wire.FrameFin, "")
	local.expect(t, "bytes of data frames", "question")
	local.expectHow(t, "`fin` ends the direction: the service sees an orderly end", ended, t.patience())
	local.say("answer")
	local.end()
	want := "what the service sends, and `fin` for its end"
	t.check(s.gather(want, 6) == "answer", want, "other bytes")
	s.awaitFrame(want, wire.FrameFin, t.patience())
	s.u.quiet("nothing of a stream that is over", moment, func(e event) bool { _, _, ok := s.parse(e); return ok })
}

// finThenAttached has the service end early, and the transfer socket come after.
func finThenAttached(t *T) {
	s, local := t.begun(0)
	h := s.handshake()
	local.end()
	s.awaitFrame("`fin` for the end of the service", wire.FrameFin, t.patience())
	tr := h.accept(t)
	s.frame(wire.FrameMove, "")
	tr.binary([]byte("on"))
	local.expect(t, "the other direction goes on", "on")
	want := "after `fin` neither `move` nor an empty message"
	s.u.quiet(want, moment, func(e event) bool { _, _, ok := s.parse(e); return ok })
	tr.quiet(want, moment, func(e event) bool { return e.op == opBinary })
}

func dialsWithoutCredit(t *T) {
	u := t.up(wire.Early)
	s := u.open(t.echoPort(), 0)
	h := s.tryHandshake(t.patience())
	t.check(h != nil, "a transfer socket for a stream without credit", "no handshake within %v", t.patience())
	tr := h.accept(t)
	s.frame(wire.FrameMove, "")
	tr.binary([]byte("hello"))
	want := "a stream without credit works on its transfer socket"
	t.check(tr.gather(want, 5) == "hello", want, "other bytes")
}

func dialsLasting(t *T) {
	s, _ := t.begun(0)
	h := s.tryHandshake(t.patience())
	t.check(h != nil, "a transfer socket for a stream that lasts", "no handshake within %v", t.patience())
}

func dialsAgain(t *T) {
	s, local := t.begun(0)
	first := s.handshake()
	from := time.Now() // before it, as the tool may be held up behind it
	first.refuse(503)
	want := "another handshake with the same id, 100 ms after the first has failed"
	h := s.tryHandshake(t.patience())
	t.check(h != nil, want, "none within %v", t.patience())
	pause := h.at.Sub(from)
	t.check(pause > 50*time.Millisecond, want, "one after %v", pause)
	tr := h.accept(t)
	s.moves()
	tr.binary([]byte("on"))
	local.expect(t, "the stream goes on", "on")
}

func dials404(t *T) {
	s, local := t.begun(0)
	s.handshake().refuse(404)
	want := "404: the edge does not know the stream; it is aborted"
	local.expectHow(t, want, aborted, t.patience()+10*time.Second)
	if h := s.tryHandshake(0); h != nil {
		t.fail(want, "another handshake")
	}
}

func moved(t *T) {
	s, local := t.begun(0)
	local.say("early ")
	t.check(s.gather("data in frames", 6) == "early ", "what the service sent", "other bytes")
	tr := s.transfer()
	s.awaitFrame("`move`, once the transfer socket is there", wire.FrameMove, t.patience())
	local.say("late")
	want := "after `move`, bytes travel on the transfer socket"
	t.check(tr.gather(want, 4) == "late", want, "other bytes")
	local.end()
	e := tr.await("an empty message ends the direction that has moved", t.patience(), func(e event) bool { return e.op == opBinary })
	t.check(len(e.data) == 0, "an empty message ends the direction that has moved", "%v", e)
	s.u.quiet("no frame behind `move`", moment, func(e event) bool { _, _, ok := s.parse(e); return ok })
}

// ordered sends on both sockets, in an order that only `move` tells.
func ordered(t *T) {
	s, local := t.begun(0)
	s.frame(wire.FrameData, "first ")
	local.expect(t, "bytes of data frames", "first ")
	tr := s.transfer()
	tr.binary([]byte("third"))
	want := "nothing is read from the transfer socket before `move`"
	if got, _ := local.read(1, moment); got != "" {
		t.fail(want, "the service got %q of it", got)
	}
	s.frame(wire.FrameData, "second ")
	s.frame(wire.FrameMove, "")
	local.expect(t, "data frames first, then what is on the transfer socket", "second third")
}

func resetByEdge(t *T) {
	s, local := t.begun(0)
	s.frame(wire.FrameReset, "")
	local.expectHow(t, "`reset` is an abort: the agent resets its connection to the service", aborted, t.patience())
	s.u.awaitPong()
}

func resetByService(t *T) {
	s, local := t.begun(0)
	local.say("half of it")
	s.gather("a stream", 10)
	local.reset()
	want := "`reset` when the service has aborted"
	e := s.u.await(want, t.patience(), func(e event) bool { k, _, ok := s.parse(e); return ok && k != wire.FrameMove })
	k, _, _ := s.parse(e)
	t.check(k == wire.FrameReset, want, "%v", e)
}

// resetAttached has the edge send `reset` when the stream is attached for the agent.
func resetAttached(t *T) {
	s, local := t.begun(0)
	s.transfer()
	s.awaitFrame("`move`, once the transfer socket is there", wire.FrameMove, t.patience())
	s.frame(wire.FrameReset, "")
	local.expectHow(t, "`reset` aborts a stream that is attached, too", aborted, t.patience())
}

func transferLost(t *T) {
	_, tr, local := t.attached(wire.Early)
	tr.cut()
	local.expectHow(t, "the end of the transfer socket before both directions have ended is an abort", aborted, t.patience())
}

func refusedEarly(t *T) {
	u := t.up(t.frameCaps())
	s := u.open(t.rig.cfg.DeadPort, u.ready.Early)
	s.frame(wire.FrameData, "question")
	want := "`refused`, and no frame of the stream"
	u.await(want, t.patience()+10*time.Second, func(e event) bool {
		if _, _, ok := s.parse(e); ok {
			t.fail(want, "%v", e)
		}
		return e.op == opText
	})
	u.quiet(want, moment, func(e event) bool { _, _, ok := s.parse(e); return ok })
}

func creditSpent(t *T) {
	s, local := t.begun(300)
	from := time.Now()
	local.say(strings.Repeat("x", 2000))
	want := "a stream without credit and without a transfer socket is aborted after 10 s"
	if len(s.gather(want, s.credit)) > s.credit {
		t.skip("the agent sends more than its credit: see 10.2")
	}
	s.awaitFrame(want, wire.FrameReset, 10*time.Second+2*t.slack())
	t.check(time.Since(from) > 9*time.Second, want, "after %d ms", time.Since(from).Milliseconds())
}

// violation sends frames that a stream may not have: it is reset, and the tunnel lives.
func violation(what string, send func(*stream)) func(*T) {
	return func(t *T) {
		s, local := t.begun(300)
		send(s)
		s.awaitFrame("`reset` for "+what, wire.FrameReset, t.patience())
		if got, how := local.read(1<<20, t.patience()); how == silent {
			t.fail("an abort towards the service", "%d bytes, then %s", len(got), how)
		}
		s.u.awaitPong()
	}
}

func tooMuch(s *stream) { s.frame(wire.FrameData, strings.Repeat("x", s.credit+1)) }
func dataBehindFin(s *stream) {
	s.frame(wire.FrameFin, "")
	s.frame(wire.FrameData, "x")
}
func finBehindMove(s *stream) {
	s.frame(wire.FrameMove, "")
	s.frame(wire.FrameFin, "")
}
func creditWithoutInline(s *stream) { s.frame(wire.FrameCredit, "\x00\x00\x00\x01") }

func abortedWithTunnel(t *T) {
	s, local := t.begun(0)
	s.u.cut()
	local.expectHow(t, "a stream that is not attached is aborted with its control socket", aborted, t.patience())
}

func movedOutlives(t *T) {
	s, tr, local := t.attached(wire.Early)
	t.lost(s.u).greet(t, wire.Early).awaitPong()
	want := "a stream of which both directions have moved goes on without its control socket"
	tr.binary([]byte("on"))
	local.expect(t, want, "on")
	local.say("and on")
	t.check(tr.gather(want, 6) == "and on", want, "other bytes")
}
