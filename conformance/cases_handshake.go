package conformance

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

func deviceID(t *T) {
	id := t.control().request.URL.Query().Get("device")
	t.check(id == t.rig.vars.Device, "the id that it was given: device="+t.rig.vars.Device, "device=%s", id)
	ok := len(id) >= 1 && len(id) <= 63 && id[0] != '-' && id[len(id)-1] != '-' && !strings.Contains(id, "--") &&
		!strings.ContainsFunc(id, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' })
	t.check(ok, "1 to 63 of a-z, 0-9 and -, no - at the ends, no two in a row", "device=%s", id)
}

func controlPath(t *T) {
	path := t.control().request.URL.Path
	t.check(path == wire.ControlPath, "the path "+wire.ControlPath, "%q", path)
}

// handshakeForm is what RFC 6455 §4.1 wants of a request.
func handshakeForm(t *T) {
	r := t.control().request
	t.check(r.Method == "GET" && r.ProtoMajor == 1 && r.ProtoMinor == 1, "GET in HTTP/1.1", "%s in %s", r.Method, r.Proto)
	t.check(r.Host != "", "a header Host", "none")
	for _, want := range []struct{ name, token string }{{"Connection", "upgrade"}, {"Upgrade", "websocket"}, {"Sec-WebSocket-Version", "13"}} {
		t.check(lists(r.Header, want.name, want.token), fmt.Sprintf("%s: %s", want.name, want.token), "%q", r.Header.Values(want.name))
	}
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key"))
	t.check(err == nil && len(key) == 16, "Sec-WebSocket-Key: 16 bytes in base64", "%q", r.Header.Get("Sec-WebSocket-Key"))
}

// lists reports whether a header that is a list has a token, in any case.
func lists(h http.Header, name, token string) bool {
	return slices.ContainsFunc(h.Values(name), func(line string) bool {
		return slices.ContainsFunc(strings.Split(line, ","), func(item string) bool { return strings.EqualFold(strings.TrimSpace(item), token) })
	})
}

func newKeys(t *T) {
	h := t.control()
	first := h.request.Header.Get("Sec-WebSocket-Key")
	second := t.again(h.greet(t, t.caps())).request.Header.Get("Sec-WebSocket-Key")
	t.check(first != second, "a Sec-WebSocket-Key that is drawn anew for each handshake", "%q twice", first)
}

func serverName(t *T) {
	h := t.control()
	want := hostOf(strings.TrimPrefix(t.rig.vars.URL, "wss://"))
	if net.ParseIP(want) != nil {
		t.skip("the edge is an address, %s, which SNI does not know", want)
	}
	t.check(h.hello.ServerName == want, "SNI with "+want, "%q", h.hello.ServerName)
}

func alpn(t *T) {
	protos := t.control().hello.SupportedProtos
	t.check(len(protos) == 0 || len(protos) == 1 && protos[0] == "http/1.1", "ALPN with http/1.1 alone", "%q", protos)
}

// untrusted has the edge show a certificate that must not be accepted: the next
// connection has to end before a request.
func untrusted(want string, by func(*T) (*authority, string)) func(*T) {
	return func(t *T) {
		u := t.up(t.caps())
		a, name := by(t)
		cert, err := a.issue(name)
		if err != nil {
			t.skip("%v", err)
		}
		t.rig.cert.Store(cert)
		u.finish(wire.CloseRestart)
		timer := time.NewTimer(t.patience())
		defer timer.Stop()
		select {
		case h := <-t.rig.controls:
			t.fail(want, "the agent goes on, and sends: %.60q", h.head)
		case err := <-t.rig.failures:
			t.logf("agent → edge", "TLS", nil, "%v", err)
		case <-timer.C:
			t.fail("another attempt to connect", "none within %v", t.patience())
		}
	}
}

func strangeAuthority(t *T) (*authority, string) {
	a, err := newAuthority()
	if err != nil {
		t.skip("%v", err)
	}
	return a, hostOf(strings.TrimPrefix(t.rig.vars.URL, "wss://"))
}

func strangeName(t *T) (*authority, string) { return t.rig.authority, "other.example.com" }

func subprotocolAsked(t *T) {
	h := t.control()
	t.check(lists(h.request.Header, "Sec-WebSocket-Protocol", wire.Subprotocol), "Sec-WebSocket-Protocol: "+wire.Subprotocol,
		"%q", h.request.Header.Values("Sec-WebSocket-Protocol"))
	ext := h.request.Header.Values("Sec-WebSocket-Extensions")
	t.check(len(ext) == 0, "no Sec-WebSocket-Extensions", "%q", ext)
}

// badUpgrade answers 101 with a line replaced or added: the agent has to close.
func badUpgrade(want, prefix, line string) func(*T) {
	return func(t *T) {
		h := t.control()
		lines := slices.DeleteFunc(h.upgrade(), func(l string) bool { return prefix != "" && strings.HasPrefix(l, prefix) })
		if line != "" {
			lines = append(lines, line)
		}
		h.answer(lines...)
		s := newSock(t, "control socket", h.conn, h.br, true)
		ready := h.greeting(t.caps())
		s.text(string(wire.Encode(&ready)))
		s.awaitEnd(want, t.patience())
	}
}

func credential(t *T) {
	h := t.control()
	want := "Bearer " + t.rig.vars.Token
	got := h.request.Header.Get("Authorization")
	scheme, rest, _ := strings.Cut(got, " ") // the scheme's case does not matter (RFC 9110 §11.1)
	t.check(strings.EqualFold(scheme, "Bearer") && rest == t.rig.vars.Token, "Authorization: "+want, "%q", got)
	t.check(!strings.Contains(h.request.URL.RequestURI(), t.rig.vars.Token), "no credential in the URL", "%q", h.request.URL.RequestURI())
}

// proxyAnswers answers as a proxy on the way would, without a word of the edge.
func proxyAnswers(t *T) {
	h := t.control()
	h.answer("HTTP/1.0 502 Bad Gateway", "Content-Type: text/html")
	h.conn.Write([]byte(`<html>{"error":"unauthorized","message":"no"}</html>`))
	h.conn.Close()
	t.awaitRetry("an attempt within max_backoff, as after any 502", t.rig.cfg.MaxBackoff)
}

func bodyIgnored(t *T) {
	h := t.control()
	body := `{"error":"unauthorized","message":"device or token is wrong"}`
	h.answer("HTTP/1.1 503 Service Unavailable", "Iottunnel-Error: unauthorized", "Content-Type: application/json",
		fmt.Sprintf("Content-Length: %d", len(body)), "Connection: close")
	h.conn.Write([]byte(body))
	h.conn.Close()
	t.awaitRetry("an attempt within max_backoff: the status decides, not the body", t.rig.cfg.MaxBackoff)
}

func answerInPieces(t *T) {
	h := t.control()
	text := strings.Join(h.upgrade(), "\r\n") + "\r\n\r\n"
	h.rig.logf("edge → agent", "answer, byte by byte", []byte(text), "")
	for _, b := range []byte(text) {
		h.conn.Write([]byte{b}) // seen by who waits
	}
	t.pause()
	s := newSock(t, "control socket", h.conn, h.br, true)
	ready := h.greeting(t.caps())
	s.text(string(wire.Encode(&ready)))
	s.awaitPong()
}

func answerLate(t *T) {
	h := t.control()
	h.stays(t, "the agent waits for the answer for 15 s", 14*time.Second)
	h.greet(t, t.caps()).awaitPong()
}

func answerNever(t *T) {
	h := t.control()
	const most = 10 * time.Minute
	_ = h.conn.SetReadDeadline(time.Now().Add(most)) // if it fails, so does the read
	_, err := io.Copy(io.Discard, h.br)
	if e, ok := err.(net.Error); ok && e.Timeout() {
		t.fail("the agent gives up at some time", "the connection is open after %v", most)
	}
	t.awaitRetry("and tries again", t.rig.cfg.MaxBackoff)
}

func noOrigin(t *T) {
	origin := t.control().request.Header.Get("Origin")
	t.check(!strings.HasPrefix(origin, "http:") && !strings.HasPrefix(origin, "https:"), "no Origin of http or https", "%q", origin)
}

// plainElsewhere starts the agent with the URL of an address of this machine that is
// not loopback: over ws, it must not say its credential.
func plainElsewhere(t *T) {
	host := t.rig.cfg.Elsewhere()
	if host == "" {
		t.skip("this machine has no address but loopback")
	}
	l, err := t.rig.edge(net.JoinHostPort(host, "0"))
	if err != nil {
		t.skip("%v", err)
	}
	vars := t.rig.vars
	vars.URL = t.rig.urlOf(host, l)
	vars.URL2 = vars.URL
	t.launch(vars)
	limit := time.NewTimer(4 * moment)
	defer limit.Stop()
	select {
	case h := <-t.rig.controls:
		t.check(h.request.Header.Get("Authorization") == "", "no credential over a plain connection to "+host+
			" (an agent that its command allows this cannot be tried: take that out)", "Authorization: %q", h.request.Header.Get("Authorization"))
	case <-t.rig.agent.Done():
	case <-limit.C:
	}
}

// redirected answers the first handshake with a redirect.
func (t *T) redirected(h *handshake, status int, location string) {
	h.refuse(status, "Location: "+location)
}

// elsewhere is a URL of the control socket on another listener, with the query of h.
func (h *handshake) elsewhere(t *T, host, path, more string) string {
	l, err := t.rig.edge(net.JoinHostPort(host, "0"))
	if err != nil {
		t.skip("%v", err)
	}
	base := strings.Replace(t.rig.urlOf(host, l), "ws", "http", 1)
	return base + path + "?" + h.request.URL.RawQuery + more
}

// here is the host by which the agent knows the edge.
func (t *T) here() string {
	u, err := url.Parse(t.rig.vars.URL)
	if err != nil {
		t.skip("%v", err)
	}
	return u.Hostname()
}

func redirectFollowed(t *T) {
	h := t.control()
	for _, status := range []int{302, 307} {
		to := h.elsewhere(t, t.here(), wire.ControlPath, "&redirect=t0ken.of-the_edge~")
		t.redirected(h, status, to)
		want := "a handshake for " + to + " as it stands"
		n := t.tryControl(t.patience())
		t.check(n != nil, want, "none within %v", t.patience())
		u, _ := url.Parse(to) // made above
		t.check(n.request.Host == u.Host, want, "Host: %s", n.request.Host)
		t.check(n.request.URL.RequestURI() == u.RequestURI(), want, "%q", n.request.URL.RequestURI())
		t.check(n.request.Header.Get("Authorization") == h.request.Header.Get("Authorization"), "the same credential", "%q", n.request.Header.Get("Authorization"))
		n.greet(t, t.caps()).awaitPong()
		h = t.again(t.tunnel)
	}
}

// redirectRefused answers with a redirect that the agent must not follow: it goes back
// to the edge at once, and asks for no other.
func redirectRefused(what string, location func(t *T, h *handshake) string) func(*T) {
	return func(t *T) {
		h := t.control()
		t.redirected(h, 302, location(t, h))
		t.backWithout(h, "the agent does not follow "+what+": at once, a handshake with the edge that redirected, without `redirect` in caps")
	}
}

// backWithout wants the handshake that follows a redirect that led to nothing.
func (t *T) backWithout(from *handshake, want string) *handshake {
	n := t.tryControl(t.patience())
	t.check(n != nil, want, "none within %v", t.patience())
	select {
	case err := <-t.rig.failures:
		t.fail(want, "a connection: %v", err)
	default:
	}
	t.check(n.request.Host == from.request.Host && !n.query().Caps.Has(wire.Redirect), want,
		"Host: %s, %q", n.request.Host, n.request.URL.RequestURI())
	return n
}

func otherHost(t *T, h *handshake) string { return h.elsewhere(t, "127.0.0.2", wire.ControlPath, "") }
func otherPath(t *T, h *handshake) string { return h.elsewhere(t, t.here(), "/login", "") }

// downgrade leads to a listener without TLS, which no agent may reach.
func downgrade(t *T, h *handshake) string {
	l, err := t.rig.cfg.Network("tcp", net.JoinHostPort(t.here(), "0"))
	if err != nil {
		t.skip("%v", err)
	}
	t.rig.serve(l, func(conn net.Conn) {
		select {
		case t.rig.failures <- errors.New("it has come without TLS"):
		case <-t.rig.ctx.Done():
		}
		conn.Close()
	})
	return strings.Replace(t.rig.urlOf(t.here(), l), "wss:", "http:", 1) + wire.ControlPath + "?" + h.request.URL.RawQuery
}

func redirectToNothing(t *T) {
	h := t.control()
	to := h.elsewhere(t, t.here(), wire.ControlPath, "&redirect=t0ken")
	t.redirected(h, 302, to)
	n := t.control()
	n.refuse(503)
	t.backWithout(h, "what the redirect leads to fails: at once, a handshake with the edge that redirected, without `redirect` in caps").greet(t, t.caps()).awaitPong()
}

func redirectAgain(t *T) {
	h := t.control()
	to := h.elsewhere(t, t.here(), wire.ControlPath, "&redirect=t0ken")
	t.redirected(h, 302, to)
	t.control().refuse(503)
	n := t.backWithout(h, "at once, a handshake without `redirect` in caps")
	t.redirected(n, 302, to)
	t.awaitSlow("a redirect for one that did not ask for it is like 403: slowly")
}

func nothingBefore101(t *T) {
	h := t.control()
	h.silent(t, "no frame before the 101", moment)
	h.greet(t, t.caps()).awaitPong()
}

func withAnswer(t *T) {
	h := t.control()
	text := strings.Join(h.upgrade(), "\r\n") + "\r\n\r\n"
	ready := h.greeting(t.caps())
	all := append([]byte(text), whole(opText, wire.Encode(&ready)).bytes()...)
	all = append(all, whole(opPing, []byte("!")).bytes()...)
	h.rig.logf("edge → agent", "answer, ready and a ping in one piece", all, "")
	h.conn.Write(all) // seen by who waits
	s := newSock(t, "control socket", h.conn, h.br, true)
	s.await("a pong for the ping that came with the answer", t.patience(), func(e event) bool { return e.op == opPong })
}

func masked(t *T) {
	u := t.up(t.caps())
	for range 3 {
		u.awaitPong()
	}
	for range 2 {
		u.open(t.rig.unforwarded(), u.ready.Early)
		u.await("an answer to `open`", t.patience()+10*time.Second, func(e event) bool { return e.op == opText })
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.violations) > 0 {
		t.fail("frames as RFC 6455 has them", "%s", u.violations[0])
	}
	first := u.masks[0]
	t.check(slices.ContainsFunc(u.masks, func(m [4]byte) bool { return m != first }), "a mask that is drawn anew for each frame (RFC 6455 §5.3)",
		"% x for %d frames", first, len(u.masks))
}

// unforwarded is a port that the agent does not forward.
func (r *rig) unforwarded() uint16 {
	port := uint16(4711)
	for r.forwards(port) {
		port++
	}
	return port
}

// forbidden sends what RFC 6455 forbids: the agent closes with 1002.
func forbidden(t *T) {
	for _, c := range []struct {
		what  string
		bytes []byte
	}{
		{"a masked frame", frame{fin: true, op: opText, masked: true, mask: [4]byte{1, 2, 3, 4}, data: []byte(`{"type":"x"}`)}.bytes()},
		{"a reserved bit", frame{fin: true, rsv: 4, op: opText, data: []byte(`{"type":"x"}`)}.bytes()},
		{"opcode 3", frame{fin: true, op: 3, data: []byte("x")}.bytes()},
		{"opcode 11", frame{fin: true, op: 11}.bytes()},
		{"a ping in pieces", frame{op: opPing}.bytes()},
		{"a ping of 126 bytes", whole(opPing, make([]byte, 126)).bytes()},
		{"a piece of no message", frame{fin: true, op: opContinuation, data: []byte("x")}.bytes()},
	} {
		u := t.up(t.caps())
		u.sendRaw(c.bytes, c.what)
		want := "a close frame with 1002 for " + c.what
		e := u.awaitEnd(want, t.patience())
		t.check(e.code() == wire.CloseProtocol, want, "%v", e)
		u.conn.Close()
	}
}

func parameters(t *T) {
	h := t.control()
	_, err := wire.ParseHello(h.request.URL.RawQuery)
	if p := new(wire.ParamError); asParam(err, &p) && p.Name != "instance" && p.Name != "ports" {
		t.fail("the parameters of 3.1", "%v, in %q", err, h.request.URL.RawQuery)
	}
	t.check(!h.request.URL.Query().Has("redirect"), "no parameter `redirect` of its own (2.8)", "%q", h.request.URL.RawQuery)
}

func asksNothing(t *T) {
	h := t.control()
	t.check(!h.request.URL.Query().Has("probe"), "no parameter `probe`, as the agent wants a tunnel", "%q", h.request.URL.RawQuery)
}

func instance(t *T) {
	h := t.control()
	first := h.request.URL.Query().Get("instance")
	t.check(wire.ValidID(first), "instance: 32 lower-case hexadecimal digits", "%q", first)
	second := t.again(h.greet(t, t.caps())).request.URL.Query().Get("instance")
	t.check(first == second, "the same instance for as long as the agent runs", "%q, then %q", first, second)
}

func instanceAnew(t *T) {
	first := t.control().request.URL.Query().Get("instance")
	t.rig.agent.Kill()
	for t.tryControl(0) != nil {
	}
	t.launch(t.rig.vars)
	second := t.control().request.URL.Query().Get("instance")
	t.check(first != second, "an instance that is drawn when the agent starts, and not stored", "%q after a restart too", first)
}

// launch starts the agent; the one before it was killed.
func (t *T) launch(v Vars) {
	agent, err := t.rig.cfg.Launch(v)
	if err != nil {
		t.skip("%v", err)
	}
	t.rig.agent = agent
}

func ports(t *T) {
	h := t.control()
	_, err := wire.ParseHello(h.request.URL.RawQuery)
	if p := new(wire.ParamError); asParam(err, &p) && p.Name == "ports" {
		t.fail("a list of ports as 3.3 has it", "%v, in %q", err, h.request.URL.RawQuery)
	}
}

// asParam reports whether err is about a parameter.
func asParam(err error, to **wire.ParamError) bool {
	p, ok := err.(*wire.ParamError)
	if ok {
		*to = p
	}
	return ok
}

// asManyStreams opens as many streams at once as the agent takes.
func asManyStreams(t *T) {
	const most = 32
	u := t.up(t.caps())
	n := min(u.ready.Streams, most)
	credit := u.ready.Early
	if credit > 0 {
		n = min(n, u.ready.EarlyTotal/credit)
	}
	var streams []*stream
	for range n {
		streams = append(streams, u.open(t.echoPort(), credit))
	}
	want := fmt.Sprintf("%d streams at once, as the agent has offered", n)
	if credit > 0 {
		for i, s := range streams {
			s.frame(wire.FrameData, fmt.Sprint("stream ", i))
			got := s.awaitFrame(want, wire.FrameData, t.patience())
			t.check(string(got) == fmt.Sprint("stream ", i), want, "%q on the stream %d", got, i)
		}
		return
	}
	for range streams {
		h := t.tryHandshake(t.rig.transfers, t.patience())
		t.check(h != nil, want, "no handshake for one of them")
		h.accept(t)
	}
}

func longMessage(t *T) {
	u := t.up(t.caps())
	s := t.visit(u)
	if u.ready.Early > 0 {
		text := strings.Repeat("x", min(u.ready.Early, wire.MaxFrame, u.ready.MessageMax-wire.FrameHeader))
		want := fmt.Sprintf("a frame of %d bytes comes through", len(text))
		s.frame(wire.FrameData, text)
		t.check(s.gather(want, len(text)) == text, want, "other bytes")
		return
	}
	tr := s.transfer()
	text := strings.Repeat("0123456789abcdef", u.ready.MessageMax/16)
	want := fmt.Sprintf("a message of %d bytes comes through", len(text))
	tr.binary([]byte(text))
	t.check(tr.gather(want, len(text)) == text, want, "other bytes")
}

// offers is about what an agent says that it can do.
func offers(t *T) {
	h := t.control()
	caps := h.query().Caps
	t.check(caps.Has(wire.Early) || caps&(wire.Reuse|wire.Inline) == 0, "`reuse` and `inline` with `early` alone", "caps=%s", caps)
	want := profiles[t.rig.cfg.Profile] &^ wire.Redirect
	t.check(t.rig.cfg.Profile == "auto" || caps.Has(want), "the capabilities of the profile: "+want.String(), "caps=%s", caps)
}

// without has an edge that knows no capability: streams work all the same, or are
// refused by an agent that cannot have a second connection.
func without(t *T) {
	u := t.control().greet(t, 0)
	s := u.open(t.echoPort(), 0)
	want := "a transfer socket for `open`, or `refused`, where `ready` has no capability"
	timer := time.NewTimer(t.patience())
	defer timer.Stop()
	for {
		select {
		case h := <-t.rig.transfers:
			tr := h.accept(t)
			tr.binary([]byte("hello"))
			t.check(tr.gather(want, 5) == "hello", want, "other bytes")
			return
		case e := <-u.events:
			if s.refused(e) {
				return
			}
			if e.op == opClose || e.op == opEnd {
				t.check(t.rig.caps.Has(wire.Inline), want, "%v", e)
				u.conn.Close()
				t.awaitRetry("another attempt", t.rig.cfg.MaxBackoff)
				return
			}
		case <-timer.C:
			t.fail(want, "neither within %v", t.patience())
		}
	}
}

func strangeCaps(t *T) {
	u := t.up(t.caps(), func(r *wire.Ready) {
		r.Caps = strings.TrimPrefix(r.Caps+",teleport,v2.beam", ",")
	})
	u.awaitPong()
}

func unknownStatus(t *T) {
	h := t.control()
	for _, status := range []int{418, 599} {
		h.refuse(status)
		h = t.awaitRetry(fmt.Sprintf("an attempt within max_backoff after %d", status), t.rig.cfg.MaxBackoff)
	}
}

func headSize(t *T) {
	h := t.control()
	t.check(len(h.head) <= 8192, "a request of at most 8192 bytes", "%d", len(h.head))
}
