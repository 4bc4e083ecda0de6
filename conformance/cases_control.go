package conformance

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func readyNever(t *T) {
	s := t.control().accept(t)
	for range 3 { // pings are no `ready`
		s.quiet("the agent waits for `ready` for 30 s", 9*time.Second, func(e event) bool { return e.op == opClose || e.op == opEnd })
		s.awaitPong()
	}
	e := s.awaitEnd("the agent closes when there was no `ready` for 30 s", 3*time.Second+t.slack())
	if e.op == opClose {
		s.conn.Close()
	}
	t.awaitRetry("and comes back", t.rig.cfg.MaxBackoff)
}

// readyBad has a value in `ready` that must not come into a request.
func readyBad(t *T) {
	for _, c := range []struct {
		what string
		bad  func(*wire.Ready)
	}{
		{"a line end in `secret`", func(r *wire.Ready) { r.Secret = "x\r\nX-Evil: 1" }},
		{"a space in `transfer`", func(r *wire.Ready) { r.Transfer += " HTTP/1.1\r\nX-Evil: 1\r\n\r\n" }},
		{"another host in `transfer`", func(r *wire.Ready) { r.Transfer = "//evil.example.com/x?y=" }},
		{"no query in `transfer`", func(r *wire.Ready) { r.Transfer = "/x" }},
		{"an empty `secret`", func(r *wire.Ready) { r.Secret = "" }},
		{"a `secret` of 129 characters", func(r *wire.Ready) { r.Secret = strings.Repeat("s", 129) }},
		{"a `transfer` of 513 characters", func(r *wire.Ready) { r.Transfer += strings.Repeat("t", 513-len(r.Transfer)) }},
	} {
		h := t.control()
		ready := h.greeting(t.caps())
		c.bad(&ready)
		s := h.accept(t)
		s.text(string(encode(&ready)))
		s.awaitEnd("the agent checks `ready`, and closes the socket that has "+c.what, t.patience())
		s.conn.Close()
	}
}

// encode is wire.Encode without its care for what agents must not get.
func encode(r *wire.Ready) []byte {
	b, _ := json.Marshal(r) // strings and numbers
	return append([]byte(`{"type":"ready",`), b[1:]...)
}

func readyAgain(t *T) {
	u := t.up(t.caps())
	u.ready.Heartbeat, u.ready.Label = 20, "an0ther"
	u.text(string(wire.Encode(&u.ready)))
	u.ports()
	u.awaitPong()
	t.serves(u, "a second `ready` is welcome")
}

// serves wants a stream to work.
func (t *T) serves(u *tunnel, want string) {
	s := t.visit(u)
	if s.credit > 0 {
		s.frame(wire.FrameData, "hello")
		got := s.gather(want, 5)
		t.check(got == "hello", want, "%q instead of what the service sends back", got)
		return
	}
	tr := s.transfer()
	tr.binary([]byte("hello"))
	got := tr.gather(want, 5)
	t.check(got == "hello", want, "%q instead of what the service sends back", got)
}

func portBare(t *T) {
	u := t.up(t.caps())
	u.text(`{"type":"port","port":7,"kind":"tcp"}`)
	u.text(`{"type":"port","port":65535,"kind":"https","url":"https://` + strings.Repeat("a", 253) + `/"}`)
	u.text(`{"type":"port","port":7,"kind":"tcp","addr":"[2001:db8::9]:20022"}`)
	u.awaitPong()
}

// forms are ways to write JSON that mean the same.
func forms(t *T) {
	u := t.up(t.caps())
	credit := ""
	if u.ready.Early > 0 {
		credit = fmt.Sprintf(`,"early":%d`, u.ready.Early)
	}
	for i, form := range []string{
		`{"id":"%s","port":%d,"stream":%d,"from":"203.0.113.9:51234"%s,"type":"open"}`,
		"\n { \"type\" : \"open\" ,\t\"id\" : \"%s\",\r\n\"port\": %d , \"stream\" :%d, \"from\":\"\" %s } ",
		`{"type":"\u006fpen","id":"%s","port":%d,"stream":%d,"from":"203.0.113.9\u003a51234"%s}`,
	} {
		u.number++
		s := &stream{t: t, u: u, number: u.number, id: wire.NewID(), credit: u.ready.Early}
		u.text(fmt.Sprintf(form, s.id, t.echoPort(), s.number, credit))
		want := fmt.Sprintf("a stream for `open` in the %s form: JSON is JSON", [...]string{"first", "second", "third"}[i])
		if s.credit > 0 {
			s.frame(wire.FrameData, "hello")
			s.gather(want, 5)
			s.frame(wire.FrameReset, "")
			continue
		}
		h := s.tryHandshake(t.patience())
		t.check(h != nil, want, "no handshake for it")
		h.refuse(404)
	}
}

func longest(t *T) {
	h := t.control()
	ready := h.greeting(t.caps())
	text := wire.Encode(&ready)
	text = append(text[:len(text)-1], `,"padding":"`...)
	text = append(text, strings.Repeat("p", 4096-len(text)-2)...)
	text = append(text, `"}`...)
	s := h.accept(t)
	s.text(string(text))
	pad := `{"type":"port","port":7,"kind":"tcp","addr":"tcp.devices.example.net:20022","padding":"`
	s.text(pad + strings.Repeat("p", 512-len(pad)-2) + `"}`)
	s.awaitPong()
}

// ownForm looks at what the agent says.
func ownForm(t *T) {
	u := t.up(t.caps())
	s := u.open(t.rig.unforwarded(), u.ready.Early)
	want := "a text message with one flat JSON object in UTF-8, of at most 4096 bytes"
	e := u.await(want, t.patience()+10*time.Second, func(e event) bool { return e.op == opText && strings.Contains(string(e.data), "refused") })
	t.check(len(e.data) <= wire.MaxText && utf8.Valid(e.data), want, "%v", e)
	var fields map[string]any
	err := json.Unmarshal(e.data, &fields)
	t.check(err == nil, want, "%v: %v", e, err)
	for name, value := range fields {
		switch value.(type) {
		case map[string]any, []any:
			t.fail(want, "%v: %q is no string, number, true, false or null", e, name)
		}
	}
	t.check(s.refusedBy(fields), "`stream` is the number out of `open`", "%v", e)
}

// refusedBy is loose: 6.4 says what a `refused` has.
func (s *stream) refusedBy(fields map[string]any) bool { return fields["type"] == "refused" }

func unknownText(t *T) {
	u := t.up(t.caps())
	u.text(`{"type":"weather","degrees":21,"sunny":true,"wind":null,"text":"\u00e9"}`)
	u.text(`{"type":"port","port":7,"kind":"tcp","addr":"tcp.devices.example.net:20022","colour":"red","stream":true}`)
	u.awaitPong()
	t.serves(u, "what is unknown is ignored")
}

// malformed are texts for which an agent closes.
var malformed = []struct{ what, text string }{
	{"no JSON", `hello`},
	{"an empty message", ``},
	{"JSON that is cut off", `{"type":"drain","within_s":1`},
	{"an array", `[{"type":"drain","within_s":1}]`},
	{"no `type`", `{"stream":1}`},
	{"a `type` that is a number", `{"type":1}`},
	{"`open` of stream 0", `{"type":"open","stream":0,"id":"4355a46b19d348dc2f57c046f8ef63d4","port":7,"from":""}`},
	{"`open` without an id", `{"type":"open","stream":1,"port":7,"from":""}`},
	{"`open` with an id in capitals", `{"type":"open","stream":1,"id":"4355A46B19D348DC2F57C046F8EF63D4","port":7,"from":""}`},
	{"`open` of port 0", `{"type":"open","stream":1,"id":"4355a46b19d348dc2f57c046f8ef63d4","port":0,"from":""}`},
	{"`open` of port 65536", `{"type":"open","stream":1,"id":"4355a46b19d348dc2f57c046f8ef63d4","port":65536,"from":""}`},
	{"`open` with a string for a number", `{"type":"open","stream":"1","id":"4355a46b19d348dc2f57c046f8ef63d4","port":7,"from":""}`},
	{"`drain` within -1", `{"type":"drain","within_s":-1}`},
	{"`drain` within 86401", `{"type":"drain","within_s":86401}`},
	{"a message of 4097 bytes", `{"type":"port","port":7,"kind":"tcp","padding":"` + strings.Repeat("p", 4097-49) + `"}`},
}

func malformedTexts(t *T) {
	for _, c := range malformed {
		u := t.up(t.caps())
		u.text(c.text)
		want := "a close frame with 4100 for " + c.what
		e := u.awaitEnd(want, t.patience())
		ok := e.code() == wire.CloseMalformed || e.code() == wire.CloseTooBig && len(c.text) > wire.MaxText
		t.check(ok, want, "%v", e)
		u.conn.Close()
	}
}

func strayBinary(t *T) {
	u := t.up(0)
	u.binary([]byte{1, 0, 0, 0, 1, 'x'})
	want := "a close frame with 4100 for a binary message in the basic profile"
	e := u.awaitEnd(want, t.patience())
	t.check(e.code() == wire.CloseMalformed, want, "%v", e)
}

// known is what an agent may say, besides frames where `early` is in force.
func known(t *T) {
	u := t.control().greet(t, t.caps())
	want := "`refused` and no other message"
	odd := func(e event) bool {
		if e.op == opBinary && u.ready.Early == 0 {
			return true
		}
		if e.op != opText {
			return false
		}
		var m struct{ Type string }
		return json.Unmarshal(e.data, &m) != nil || m.Type != "refused"
	}
	u.quiet(want, moment, odd)
	u.open(t.rig.unforwarded(), u.ready.Early)
	u.quiet(want, moment, odd)
	s := t.visit(u)
	if s.credit == 0 {
		tr := s.transfer()
		tr.binary([]byte("hello"))
		tr.quiet("no text on a transfer socket", moment, func(e event) bool { return e.op == opText })
	}
	u.quiet(want, moment, odd)
}

func pong(t *T) {
	u := t.up(t.caps())
	for _, payload := range []string{"7", "", strings.Repeat("0123456789", 13)[:125], "\x00\xff"} {
		u.send(whole(opPing, []byte(payload)))
		want := event{op: opPong, data: []byte(payload)}.String()
		e := u.await(want, t.patience(), func(e event) bool { return e.op == opPong })
		t.check(string(e.data) == payload, want, "%v", e)
	}
}

func pongs(t *T) {
	u := t.up(t.caps())
	for i := range 50 {
		u.send(whole(opPing, fmt.Append(nil, i)))
	}
	u.await("a pong for the last of 50 pings", t.patience(), func(e event) bool { return e.op == opPong && string(e.data) == "49" })
}

func watchdog(t *T) {
	const heartbeat = 1
	const patient = (2*heartbeat + 10) * time.Second
	u := t.control().greet(t, t.caps(), func(r *wire.Ready) { r.Heartbeat = heartbeat })
	u.awaitPong()
	want := "with heartbeat_s 1, the agent takes the tunnel for dead after 12 s of silence"
	// The edge is gone: it reads, and does not say a word, nor answer a ping.
	due := u.mute().Add(patient)
	u.quiet(want+", and not before", time.Until(due)-100*time.Millisecond, func(e event) bool { return e.op == opClose || e.op == opEnd })
	e := u.awaitEnd(want, time.Until(due)+2*t.slack())
	if e.op == opClose {
		u.conn.Close()
	}
	t.awaitRetry("and comes back", t.rig.cfg.MaxBackoff)
}
