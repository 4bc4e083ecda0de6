package conformance

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// elsewhereRefused asks for a port that the agent does not forward, where the tool
// listens.
func elsewhereRefused(t *T) {
	t.script()
	_, port, _ := net.SplitHostPort(t.rig.vars.Echo) // a listener's address has one
	n, _ := strconv.ParseUint(port, 10, 16)
	if t.rig.forwards(uint16(n)) {
		t.skip("the agent forwards port %d, where the service is", n)
	}
	u := t.up(t.caps())
	credit := ""
	if u.ready.Early > 0 {
		credit = fmt.Sprintf(`,"early":%d`, u.ready.Early)
	}
	u.text(fmt.Sprintf(`{"type":"open","stream":1,"id":"%s","port":%d,"from":"%s","host":"%s","target":"%s"%s}`,
		wire.NewID(), n, t.rig.vars.Echo, t.rig.vars.Echo, t.rig.vars.Echo, credit))
	if s := t.tryService(2 * moment); s != nil {
		t.fail("no connection for a port that the agent's configuration does not have", "one to %s", t.rig.vars.Echo)
	}
	u.awaitPong()
}

func opens(t *T) {
	u := t.up(t.caps())
	t.serves(u, "the agent connects to the service of the port, and passes bytes on")
}

func opensPage(t *T) {
	if !t.rig.forwards(t.rig.cfg.HTTPPort) {
		t.skip("the agent forwards no port %d: give it one, to {http}", t.rig.cfg.HTTPPort)
	}
	u := t.up(t.caps())
	s := u.open(t.rig.cfg.HTTPPort, u.ready.Early)
	const request = "GET / HTTP/1.1\r\nHost: " + hostname + "\r\nConnection: close\r\n\r\n"
	const want = "a page for a request on the port of a web server"
	var got string
	if s.credit > 0 {
		s.send(request)
		got = s.gather(want, 5)
	} else {
		tr := s.transfer()
		tr.binary([]byte(request))
		got = tr.gather(want, 5)
	}
	t.check(strings.HasPrefix(got, "HTTP/"), want, "%q", got)
}

// send sends data frames as the profile inline wants them: within the credit.
func (s *stream) send(text string) {
	left := s.credit
	for len(text) > 0 {
		for left == 0 {
			left = wire.Credit(s.awaitFrame("credit, for what the service takes", wire.FrameCredit, s.t.patience()))
		}
		n := min(len(text), left, wire.MaxFrame, s.u.ready.MessageMax-wire.FrameHeader)
		s.frame(wire.FrameData, text[:n])
		text, left = text[n:], left-n
	}
}

func idOnce(t *T) {
	u := t.up(0)
	s := t.visit(u)
	tr := s.transfer()
	tr.binary([]byte("x"))
	tr.gather("a stream", 1)
	tr.cut()
	if h := s.tryHandshake(2 * moment); h != nil {
		t.fail("an id is used once", "another handshake with the id %s, whose transfer socket has been", s.id)
	}
}

func transferRequest(t *T) {
	u := t.up(0)
	h := t.visit(u).handshake()
	r := h.request
	want := u.ready.Transfer + "&id="
	t.check(strings.HasPrefix(r.URL.RequestURI(), want) && wire.ValidID(strings.TrimPrefix(r.URL.RequestURI(), want)),
		"path and query of `transfer`, and &id= with the id of `open`: "+want+"…", "%q", r.URL.RequestURI())
	t.check(r.Host == u.from.request.Host, "host and port of the control socket: "+u.from.request.Host, "%q", r.Host)
}

// transferSecret is 2.4 on a transfer socket.
func transferSecret(t *T) {
	u := t.up(0)
	r := t.visit(u).handshake().request
	t.check(r.Header.Get("Authorization") == "Bearer "+u.ready.Secret, "Authorization: Bearer with `secret` out of `ready`", "%q", r.Header.Get("Authorization"))
}

func latestReady(t *T) {
	u := t.up(0)
	before := u.ready.Secret
	u.ready.Transfer, u.ready.Secret = transfers+"another", "an0ther-secret"
	u.text(string(wire.Encode(&u.ready)))
	u.ports()
	if !u.alive() {
		t.skip("the agent does not take a second `ready`: see 4.1")
	}
	r := t.visit(u).handshake().request
	if got := r.Header.Get("Authorization"); got != "Bearer "+before && got != "Bearer "+u.ready.Secret {
		t.skip("the credential is no `secret` at all: see 2.4")
	}
	t.check(strings.HasPrefix(r.URL.RequestURI(), u.ready.Transfer+"&id="), "`transfer` out of the latest `ready`: "+u.ready.Transfer, "%q", r.URL.RequestURI())
	t.check(r.Header.Get("Authorization") == "Bearer "+u.ready.Secret, "`secret` out of the latest `ready`", "%q", r.Header.Get("Authorization"))
}

// transferFails answers the handshake of a transfer socket with an error: the stream
// is given up, and the tunnel lives.
func transferFails(t *T) {
	t.script()
	u := t.up(0)
	for _, status := range []int{404, 401, 302, 500} {
		s := t.visit(u)
		var header []string
		if status == 302 {
			header = []string{"Location: " + u.ready.Transfer}
		}
		s.handshake().refuse(status, header...)
		want := fmt.Sprintf("after %d the agent gives the stream up, and closes its connection to the service", status)
		if local := t.tryService(moment); local != nil { // it may have been connected at the same time
			if got, how := local.read(1, t.patience()); got != "" || how == silent {
				t.fail(want, "the service got %q, then %s", got, how)
			}
			local.conn.Close()
		}
		if h := s.tryHandshake(moment); h != nil {
			t.fail(want, "another handshake with the id")
		}
		u.awaitPong()
	}
}

// refusedDead is about a service that does not accept.
func refusedDead(t *T) {
	u := t.up(t.caps())
	refusal(t, u, u.open(t.rig.cfg.DeadPort, u.ready.Early), "`refused` for a service that is not there")
}

func refusedUnknown(t *T) {
	u := t.up(t.caps())
	refusal(t, u, u.open(t.rig.unforwarded(), u.ready.Early), "`refused` for a port that the agent does not forward")
}

func refusal(t *T, u *tunnel, s *stream, want string) {
	e := u.await(want, t.patience()+10*time.Second, func(e event) bool { return e.op == opText })
	m, err := wire.Decode(e.data)
	r, ok := m.(*wire.Refused)
	t.check(err == nil && ok && r.Stream == s.number, want+fmt.Sprintf(", with the number %d", s.number), "%v", e)
	var reason struct{ Reason string }
	_ = json.Unmarshal(e.data, &reason) // Decode has, and cuts a reason
	t.check(reason.Reason != "" && len(reason.Reason) <= wire.MaxReason && utf8.ValidString(reason.Reason), "a reason of at most 123 bytes of UTF-8", "%d bytes: %q", len(reason.Reason), reason.Reason)
	u.awaitPong()
}

func refusedGivenUp(t *T) {
	u := t.up(0)
	s := t.visit(u)
	s.handshake().refuse(500)
	s.awaitRefused("`refused`, when the agent has given up getting a transfer socket", t.patience()+10*time.Second)
}

// joined is a stream of the basic profile: its transfer socket, and the agent's
// connection to the service.
func (t *T) joined() (u *tunnel, tr *sock, local *local) {
	t.script()
	u = t.up(0)
	tr = t.visit(u).transfer()
	return u, tr, t.service()
}

func bytesBothWays(t *T) {
	_, tr, local := t.joined()
	tr.binary([]byte("to the "))
	tr.binary([]byte("service"))
	local.expect(t, "messages are pieces of a stream of bytes", "to the service")
	local.say("from the service")
	want := "what the service sends"
	t.check(tr.gather(want, 16) == "from the service", want, "other bytes")
}

func bulk(t *T) {
	const size = 1 << 20
	u := t.up(0)
	tr := t.visit(u).transfer()
	var block [256]byte
	for i := range block {
		block[i] = byte(i)
	}
	text := strings.Repeat(string(block[:]), size/256)
	t.rig.wg.Go(func() {
		piece := min(u.ready.MessageMax, 8000)
		for at := 0; at < size; at += piece {
			tr.binary([]byte(text[at:min(at+piece, size)]))
		}
	})
	want := "1 MiB, through the service that sends it back"
	t.check(tr.gather(want, size) == text, want, "other bytes")
}

func visitorEnds(t *T) {
	_, tr, local := t.joined()
	tr.binary([]byte("question"))
	tr.binary(nil)
	local.expect(t, "the bytes before the end", "question")
	local.expectHow(t, "an empty message ends the direction: the service sees an orderly end", ended, t.patience())
	local.say("answer")
	want := "the other direction goes on behind an end"
	t.check(tr.gather(want, 6) == "answer", want, "other bytes")
	local.end()
	tr.await("an empty binary message, for the end of the service", t.patience(), func(e event) bool { return e.op == opBinary && len(e.data) == 0 })
}

func serviceEnds(t *T) {
	_, tr, local := t.joined()
	local.say("answer")
	local.end()
	want := "what the service sends, and an empty binary message for its end"
	t.check(tr.gather(want, 6) == "answer", want, "other bytes")
	e := tr.await(want, t.patience(), func(e event) bool { return e.op == opBinary || e.op == opClose })
	t.check(e.op == opBinary && len(e.data) == 0, want, "%v", e)
	tr.binary([]byte("more"))
	local.expect(t, "the other direction goes on behind an end", "more")
	tr.quiet("nothing behind the empty message", moment, func(e event) bool { return e.op == opBinary })
}

// slowService takes nothing: the agent stops reading, and its control socket is not
// in the way.
func slowService(t *T) {
	u, tr, _ := t.joined()
	const most = 64 << 20
	piece := whole(opBinary, make([]byte, u.ready.MessageMax)).bytes()
	t.logf("edge → agent", tr.name, nil, "messages of %d bytes, as long as the agent takes them", u.ready.MessageMax)
	sent := 0
	for sent < most {
		_ = tr.conn.SetWriteDeadline(time.Now().Add(2 * moment)) // if it fails, so does the write
		n, err := tr.conn.Write(piece)
		sent += n
		if err != nil {
			break
		}
	}
	t.check(sent < most, "an agent that cannot pass bytes on stops reading", "it took %d bytes that the service did not take", sent)
	u.awaitPong()
}

// bothEnd ends both directions of a stream.
func bothEnd(tr *sock, local *local) {
	tr.binary([]byte("x"))
	tr.binary(nil)
	local.expect(tr.t, "a stream", "x")
	_, _ = local.read(1, tr.t.patience()) // its end; that it comes is 6.5
	local.end()
}

func closes(t *T) {
	_, tr, local := t.joined()
	bothEnd(tr, local)
	want := "a close frame with 1000 when both directions have ended"
	e := tr.awaitEnd(want, t.patience())
	t.check(e.code() == wire.CloseNormal, want, "%v", e)
	want = "the agent reads on until the edge's close frame has come, and sends no second one"
	tr.quiet(want, 2*moment, func(e event) bool { return true })
	tr.sendClose(wire.CloseNormal)
	e = tr.awaitEnd("then it closes TCP", t.patience()+10*time.Second)
	t.check(e.op == opEnd, want, "%v", e)
}

// closesSecond has the edge say close first.
func closesSecond(t *T) {
	_, tr, local := t.joined()
	bothEnd(tr, local)
	tr.await("an empty message, for the end of the service", t.patience(), func(e event) bool { return e.op == opBinary && len(e.data) == 0 })
	tr.sendClose(wire.CloseNormal)
	want := "one close frame with 1000, and the end of TCP"
	e := tr.awaitEnd(want, t.patience())
	t.check(e.code() == wire.CloseNormal, want, "%v", e)
	e = tr.awaitEnd(want, t.patience()+10*time.Second)
	t.check(e.op == opEnd, want, "%v", e)
}

func closesAnyway(t *T) {
	_, tr, local := t.joined()
	bothEnd(tr, local)
	tr.await("a close frame", t.patience(), func(e event) bool { return e.op == opClose })
	tr.await("without an answer, the agent closes TCP after 10 s", 10*time.Second+2*t.slack(), func(e event) bool { return e.op == opEnd })
}

// edgeAborts ends the transfer socket before both directions have ended.
func edgeAborts(what string, abort func(*sock)) func(*T) {
	return func(t *T) {
		_, tr, local := t.joined()
		tr.binary([]byte("half of it"))
		local.expect(t, "a stream", "half of it")
		abort(tr)
		local.expectHow(t, "an abort is no end: the agent resets its connection to the service when there was "+what, aborted, t.patience())
	}
}

func serviceResets(t *T) {
	_, tr, local := t.joined()
	local.say("half of it")
	tr.gather("a stream", 10)
	local.reset()
	want := "the agent aborts when the service has: it closes without an empty message"
	e := tr.await(want, t.patience(), func(e event) bool { return e.op == opClose || e.op == opEnd || e.op == opBinary })
	t.check(e.op != opBinary, want, "%v", e)
}

func transferPing(t *T) {
	_, tr, local := t.joined()
	for _, payload := range []string{"", "are you there?"} {
		tr.send(whole(opPing, []byte(payload)))
		want := event{op: opPong, data: []byte(payload)}.String() + " on the transfer socket"
		e := tr.await(want, t.patience(), func(e event) bool { return e.op == opPong })
		t.check(string(e.data) == payload, want, "%v", e)
	}
	tr.binary([]byte("on"))
	local.expect(t, "pings are no part of the stream", "on")
}

func longSilence(t *T) {
	u, tr, local := t.joined()
	want := "a stream may be silent for as long as it likes"
	for range 40 {
		tr.quiet(want, 10*time.Second, func(e event) bool { return e.op == opClose || e.op == opEnd })
		u.awaitPong()
	}
	tr.binary([]byte("on"))
	local.expect(t, want, "on")
}

// violates sends what may not be on a transfer socket.
func violates(what string, send func(*sock)) func(*T) {
	return func(t *T) {
		_, tr, local := t.joined()
		tr.binary([]byte("x"))
		local.expect(t, "a stream", "x")
		send(tr)
		want := what + " is an abort, and closed with 4100"
		e := tr.awaitEnd(want, t.patience())
		t.check(e.code() == wire.CloseMalformed, want, "%v", e)
		if got, how := local.read(1, t.patience()); got != "" || how == silent {
			t.fail(want+": the service's connection ends", "%q, then %s", got, how)
		}
	}
}

func textOnTransfer(tr *sock) { tr.text(`{"type":"weather"}`) }
func dataBehindEnd(tr *sock) {
	tr.binary(nil)
	tr.binary([]byte("more"))
}

// fullStrings fills the strings that an agent has room for.
func fullStrings(t *T) {
	const most = 512
	u := t.control().greet(t, t.caps(), func(r *wire.Ready) {
		r.Transfer += "&" + strings.Repeat("p", most-len(r.Transfer)-1)
		r.Secret = strings.Repeat("s", 128)
		r.Label = strings.Repeat("l", 63)
		r.Hostname = strings.Repeat("h", 253)
	})
	u.awaitPong()
	u.number = 4294967294
	s := &stream{t: t, u: u, number: 4294967295, id: wire.NewID(), credit: u.ready.Early}
	from := "[2001:0db8:0000:0000:0000:0000:0000:0009%" + strings.Repeat("e", 14) + "]:65535"
	from = from[:min(len(from), 64)]
	u.text(string(wire.Encode(&wire.Open{Stream: s.number, ID: s.id, Port: t.echoPort(), From: from, Early: s.credit})))
	want := "a stream, where every string has its greatest length"
	if s.credit > 0 {
		s.frame(wire.FrameData, "hello")
		s.gather(want, 5)
		return
	}
	h := s.tryHandshake(t.patience())
	t.check(h != nil, want, "no handshake for it")
	if !strings.HasPrefix(h.request.URL.RequestURI(), transfers) || !strings.HasPrefix(h.request.Header.Get("Authorization"), "Bearer ss") {
		t.skip("the request is not made of `transfer` and `secret`: see 6.3 and 2.4")
	}
	t.check(strings.HasPrefix(h.request.URL.RequestURI(), u.ready.Transfer), want, "%q", h.request.URL.RequestURI())
	t.check(h.request.Header.Get("Authorization") == "Bearer "+u.ready.Secret, want, "%q", h.request.Header.Get("Authorization"))
}
