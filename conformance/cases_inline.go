package conformance

import (
	"io"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func neverDials(t *T) {
	s, _ := t.begun(0)
	if h := s.tryHandshake(2 * moment); h != nil {
		t.fail("no transfer socket, ever", "a handshake for %q", h.request.URL.RequestURI())
	}
}

// grant gives the agent credit for its direction.
func (s *stream) grant(n int) { s.u.binary(wire.AppendCredit(nil, s.number, n)) }

func window(t *T) {
	s, local := t.begun(0)
	w := s.credit
	t.rig.wg.Go(func() { local.say(strings.Repeat("x", 2*w)) })
	want := "as many bytes as the window, and no more before `credit`"
	got := s.gather(want, w)
	t.check(len(got) == w, want, "%d bytes, where the window is %d", len(got), w)
	// Longer than the 10 s of 10.8, which does not apply.
	s.u.quiet("the agent waits for credit for as long as it takes", 11*time.Second, func(e event) bool { _, _, ok := s.parse(e); return ok || e.op == opEnd || e.op == opClose })
	s.grant(w)
	want = "the rest, once there is credit"
	got = s.gather(want, w)
	t.check(len(got) == w, want, "%d bytes for credit of %d", len(got), w)
}

func givesCredit(t *T) {
	s, local := t.begun(0)
	w := s.credit
	t.rig.wg.Go(func() { _, _ = io.Copy(io.Discard, local.conn) }) // until the rig is taken down
	const rounds = 4
	sent, given := 0, 0
	text := strings.Repeat("x", min(wire.MaxFrame, s.u.ready.MessageMax-wire.FrameHeader))
	want := "credit for what the service takes, so that no more than the window is on its way"
	for {
		for left := min(w+given, rounds*w) - sent; left > 0; {
			n := min(left, len(text))
			s.frame(wire.FrameData, text[:n])
			sent, left = sent+n, left-n
		}
		if sent == rounds*w {
			break
		}
		given += wire.Credit(s.awaitFrame(want, wire.FrameCredit, t.patience()))
		t.check(given <= sent, want, "credit of %d for %d bytes", given, sent)
	}
	s.u.quiet(want, moment, func(e event) bool {
		k, p, ok := s.parse(e)
		if ok && k == wire.FrameCredit {
			given += wire.Credit(p)
		}
		// An agent that holds us to less than it has given resets the stream.
		return given > sent || ok && k == wire.FrameReset
	})
}

func creditBeyond(t *T) {
	s, local := t.begun(0)
	s.grant(1)
	s.awaitFrame("`reset` for credit beyond the window", wire.FrameReset, t.patience())
	local.expectHow(t, "and an abort towards the service", aborted, t.patience())
	s.u.awaitPong()
}

func creditForEnded(t *T) {
	s, local := t.begun(0)
	local.end()
	s.awaitFrame("`fin` for the end of the service", wire.FrameFin, t.patience())
	s.grant(1)
	s.frame(wire.FrameData, "on")
	local.expect(t, "`credit` for a direction that has ended is ignored", "on")
}
