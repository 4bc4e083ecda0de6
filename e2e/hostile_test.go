package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestBadHandshakes makes each mistake that an agent can make before its socket is
// up, and wants an answer that says which it was.
func TestBadHandshakes(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		d := f.NewDevice(t)
		other := f.NewDevice(t)
		good := func(params string) string { return harness.ControlPath + "?" + params }
		instance := harness.NewInstance()
		with := func(device, ports, instance, more string) string {
			return good("device=" + url.QueryEscape(device) + "&ports=" + url.QueryEscape(ports) + "&instance=" + url.QueryEscape(instance) + more)
		}
		const v = "/.iottunnel/"
		for _, c := range []struct {
			name   string
			path   string
			token  string
			origin string
			status int
			code   string
			says   string // part of the message
		}{
			{"no token", good(harness.Query(d.ID)), "", "", 401, "unauthorized", ""},
			{"wrong token", good(harness.Query(d.ID)), "wrong", "", 401, "unauthorized", ""},
			{"another device's token", good(harness.Query(d.ID)), other.Token, "", 401, "unauthorized", ""},
			{"unknown device", good(harness.Query("nobody-here")), d.Token, "", 401, "unauthorized", ""},
			{"a browser's Origin", good(harness.Query(d.ID)), d.Token, "http://evil.example", 403, "forbidden", ""},
			{"a browser's secure Origin", good(harness.Query(d.ID)), d.Token, "https://evil.example", 403, "forbidden", ""},
			{"no device", good("ports=80&instance=" + instance), d.Token, "", 400, "bad_request", "device"},
			{"empty device", with("", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device in capitals", with("DEV", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device with --", with("a--b", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device with a dot", with("a.b", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device with a slash", with("../etc", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device with a line break", with("a\r\nX-Evil: 1", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device with a NUL", with("a\x00b", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device not ASCII", with("gerät", "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device too long", with(strings.Repeat("a", 64), "80", instance, ""), d.Token, "", 400, "bad_request", "device"},
			{"device twice", good(harness.Query(d.ID) + "&device=" + other.ID), d.Token, "", 400, "bad_request", "device"},
			{"no ports", good("device=" + d.ID + "&instance=" + instance), d.Token, "", 400, "bad_request", "ports"},
			{"port 0", with(d.ID, "0", instance, ""), d.Token, "", 400, "bad_request", "ports"},
			{"port 65536", with(d.ID, "65536", instance, ""), d.Token, "", 400, "bad_request", "ports"},
			{"port twice", with(d.ID, "80,80", instance, ""), d.Token, "", 400, "bad_request", "ports"},
			{"odd kind", with(d.ID, "80/gopher", instance, ""), d.Token, "", 400, "bad_request", "ports"},
			{"33 ports", with(d.ID, manyPorts(33), instance, ""), d.Token, "", 400, "bad_request", "ports"},
			{"no instance", good("device=" + d.ID + "&ports=80"), d.Token, "", 400, "bad_request", "instance"},
			{"short instance", with(d.ID, "80", "abc", ""), d.Token, "", 400, "bad_request", "instance"},
			{"odd streams", with(d.ID, "80", instance, "&streams=-1"), d.Token, "", 400, "bad_request", "streams"},
			{"odd message_max", with(d.ID, "80", instance, "&message_max=1"), d.Token, "", 400, "bad_request", "message_max"},
			{"odd heartbeat", with(d.ID, "80", instance, "&heartbeat=1e9"), d.Token, "", 400, "bad_request", "heartbeat"},
			{"malformed query", good("device=%zz"), d.Token, "", 400, "bad_request", ""},
			{"unknown version", v + "v9/control?" + harness.Query(d.ID), d.Token, "", 426, "upgrade_required", ""},
			{"unknown socket", v + "v1/backdoor", d.Token, "", 400, "bad_request", ""},
			{"transfer of nothing", v + "v1/transfer", d.Token, "", 0, "", ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				h := harness.Bearer(c.token)
				if c.origin != "" {
					h.Set("Origin", c.origin)
				}
				ws, resp, err := harness.DialSocket(t.Context(), f, c.path, h)
				if err == nil {
					ws.Close()
					t.Fatal("the handshake was accepted")
				}
				a := harness.Refusal(resp)
				if c.status != 0 && a.Status != c.status || a.Status < 400 || a.Status > 499 {
					t.Fatalf("want %d %s, got %v", c.status, c.code, a)
				}
				if c.code != "" && (a.Code != c.code || a.Message == "" || !strings.Contains(a.Message, c.says)) {
					t.Errorf("want %s that speaks of %q, got %v", c.code, c.says, a)
				}
				if strings.ContainsAny(a.Body, "\x00") || strings.Contains(a.Body, "<") {
					t.Errorf("the answer repeats what was sent: %q", a.Body)
				}
			})
		}
		t.Run("an app's Origin is no browser's", func(t *testing.T) {
			h := harness.Bearer(d.Token)
			h.Set("Origin", "null")
			ws, resp, err := harness.DialSocket(t.Context(), f, good(harness.Query(d.ID)), h)
			if err == nil {
				ws.Close()
			} else if a := harness.Refusal(resp); a.Status != 403 {
				t.Errorf("%v: want a tunnel, or 403", a)
			}
		})
	})
}

func manyPorts(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprint(1000+i))
	}
	return strings.Join(list, ",")
}

// TestRawHandshakes sends bytes that are no agent's handshake: each gets an answer
// or a closed connection, in time.
func TestRawHandshakes(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		d := f.NewDevice(t)
		head := func(lines ...string) string {
			return "GET " + harness.ControlPath + "?" + harness.Query(d.ID) + " HTTP/1.1\r\nHost: localhost\r\n" +
				"Authorization: Bearer " + d.Token + "\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
		}
		upgrade := []string{"Connection: Upgrade", "Upgrade: websocket"}
		key := "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
		const v13 = "Sec-WebSocket-Version: 13"
		const sub = "Sec-WebSocket-Protocol: " + harness.Subprotocol
		for _, c := range []struct {
			name, text string
			status     []int
		}{
			{"no upgrade", head("Accept: */*"), []int{400, 426}},
			{"no key", head(append(upgrade, v13, sub)...), []int{400}},
			{"short key", head(append(upgrade, v13, sub, "Sec-WebSocket-Key: abc")...), []int{400}},
			{"old WebSocket", head(append(upgrade, key, sub, "Sec-WebSocket-Version: 8")...), []int{400, 426}},
			{"POST", strings.Replace(head(append(upgrade, key, v13, sub)...), "GET ", "POST ", 1), []int{400, 405}},
			{"other subprotocol", head(append(upgrade, key, v13, "Sec-WebSocket-Protocol: mqtt")...), []int{400, 426}},
			{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400, 0}},
			{"HTTP/0.9", "GET " + harness.ControlPath + "\r\n\r\n", []int{400, 0, 505}},
			{"oversized headers", head("X-Filler: " + strings.Repeat("f", 70_000)), []int{431, 400, 0}},
			{"headers above the limit of handshakes", head(append(upgrade, key, v13, sub, "X-Filler: "+strings.Repeat("f", 12_000))...), []int{431, 400}},
			{"a thousand headers", head(strings.Split(strings.TrimSuffix(strings.Repeat("X-A: b\n", 3000), "\n"), "\n")...), []int{431, 400, 0}},
		} {
			t.Run(c.name, func(t *testing.T) {
				a := harness.RawRequest(t, f, 20*time.Second, c.text)
				for _, status := range c.status {
					if a.Status == status {
						return
					}
				}
				t.Errorf("want one of %v, got %v", c.status, a)
			})
		}
	})
}

// TestGuessing guesses tokens from one address until the edge has had enough: then
// it answers 429 and says when to come again. Devices that are connected do not
// notice, and a right token is welcome afterwards.
func TestGuessing(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Limits: []string{"unauthenticated_per_address 30"}}) // a minute empties it
		s := newSite(t, f)
		d := f.NewDevice(t)
		guess := func(token string) harness.Answer {
			ws, resp, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query(d.ID), harness.Bearer(token))
			if err == nil {
				ws.Close()
				return harness.Answer{Status: 101}
			}
			return harness.Refusal(resp)
		}
		var a harness.Answer
		for i := range 100 {
			if a = guess(fmt.Sprintf("guess-%d", i)); a.Status != 401 {
				break
			}
		}
		if after, err := strconv.Atoi(a.Header.Get("Retry-After")); a.Status != 429 || a.Code != "too_many" || err != nil || after < 1 {
			t.Fatalf("100 wrong tokens, and the last answer is %v, Retry-After %q", a, a.Header.Get("Retry-After"))
		}
		s.mustServe(t)
		harness.Eventually(t, 30*time.Second, "the right token is welcome", func() error {
			if a := guess(d.Token); a.Status != 101 {
				return errors.New(a.String())
			}
			return nil
		})
	})
}

// TestSlowHandshakes writes a handshake byte by byte, for ever. Until its header is
// complete it is Caddy's alone, which cuts it after `timeouts { read_header }`.
func TestSlowHandshakes(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{Servers: []string{"timeouts {", "\tread_header 2s", "}"}})
		d := f.NewDevice(t)
		for _, c := range []struct{ name, first string }{
			{"in the headers", "GET " + harness.ControlPath + "?" + harness.Query(d.ID) + " HTTP/1.1\r\nHost: localhost\r\n"},
			{"in the request line", "GET "},
			{"silent", ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				conn, _, err := f.DialAgent(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				io.WriteString(conn, c.first)
				if c.first != "" {
					go func() { // ends when the connection does
						for {
							if _, err := io.WriteString(conn, "a"); err != nil {
								return
							}
							time.Sleep(100 * time.Millisecond) // the attack itself
						}
					}()
				}
				const most = 15 * time.Second
				conn.SetReadDeadline(time.Now().Add(most))
				began := time.Now()
				_, err = io.Copy(io.Discard, conn)
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("the edge let it go on for %v", most)
				}
				t.Logf("cut after %v", time.Since(began).Round(100*time.Millisecond))
			})
		}
	})
}

// frame is a masked WebSocket frame (RFC 6455 §5.2), with a length that need not be
// true.
func frame(first byte, length int, payload []byte) []byte {
	b := []byte{first}
	switch {
	case length < 126:
		b = append(b, 0x80|byte(length))
	case length < 1<<16:
		b = append(b, 0x80|126, byte(length>>8), byte(length))
	default:
		b = append(b, 0x80|127, 0, 0, 0, byte(length>>32), byte(length>>24), byte(length>>16), byte(length>>8), byte(length))
	}
	b = append(b, 0, 0, 0, 0) // a mask of zeros changes nothing
	return append(b, payload...)
}

// badFrames are what an agent may not send once its socket is up.
var badFrames = []struct {
	name  string
	bytes []byte
	codes []int // with which the edge may close
}{
	{"text that is no JSON", frame(0x81, 5, []byte("hello")), []int{4100}},
	{"text without a type", frame(0x81, 2, []byte("{}")), []int{4100}},
	{"JSON of the wrong shape", frame(0x81, 37, []byte(`{"type":"refused","stream":"x","a":1}`)), []int{4100}},
	{"JSON that never ends", frame(0x81, 4000, bytes.Repeat([]byte("["), 4000)), []int{4100}},
	{"text not UTF-8", frame(0x81, 4, []byte("\xff\xfe\"}")), []int{4100, 1007}},
	{"text above 4 KiB", frame(0x81, 5000, bytes.Repeat([]byte(" "), 5000)), []int{1009, 4100}},
	{"text of 2^40 bytes", frame(0x81, 1<<40, nil), []int{1009, 4100, 1002}},
	{"length with the top bit", []byte{0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}, []int{1002, 1009, 4100}},
	{"frame without a mask", []byte{0x81, 0x02, '{', '}'}, []int{1002, 4100}},
	{"reserved bits", frame(0xf1, 2, []byte("{}")), []int{1002, 4100}},
	{"unknown opcode", frame(0x83, 2, []byte("{}")), []int{1002, 4100}},
	{"continuation of nothing", frame(0x80, 2, []byte("{}")), []int{1002, 4100}},
	{"ping too long", frame(0x89, 126, make([]byte, 126)), []int{1002, 4100}},
	{"fragmented ping", frame(0x09, 2, []byte("hi")), []int{1002, 4100}},
	{"close with one byte", frame(0x88, 1, []byte{3}), []int{1002, 4100}},
	{"oversized binary", frame(0x82, 10<<20, nil), []int{1009, 4100}},
	{"endless fragments", bytes.Join([][]byte{frame(0x01, 1, []byte("{")), bytes.Repeat(frame(0x00, 100, bytes.Repeat([]byte(" "), 100)), 100)}, nil), []int{1009, 4100}},
}

// TestBadFrames breaks the protocol on a live control socket in each way: it is
// closed with a code, the log names the device, and other tunnels do not notice.
func TestBadFrames(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		s := newSite(t, f)
		up := s.agent.Stdout.Mark()
		for _, c := range badFrames {
			t.Run(c.name, func(t *testing.T) {
				d := f.NewDevice(t)
				mark := f.Log().Mark()
				h := harness.DialHand(t, f, d)
				if _, err := h.NetConn().Write(c.bytes); err != nil {
					t.Fatal(err)
				}
				code := harness.CloseCode(t, h.Conn, 10*time.Second)
				ok := false
				for _, want := range c.codes {
					ok = ok || code == want
				}
				if !ok {
					t.Errorf("closed with %d, want one of %v", code, c.codes)
				}
				waitLog(t, f, mark, d.ID)
			})
		}
		t.Run("messages to ignore", func(t *testing.T) {
			h := harness.DialHand(t, f, f.NewDevice(t))
			for _, text := range []string{
				`{"type":"news","from":"tomorrow"}`,
				`{"type":"refused","stream":4000000,"reason":"no such stream","more":[1,{"a":2}]}`,
			} {
				if err := h.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			wantOpen(t, f, h) // it is still a tunnel
		})
		s.mustServe(t)
		if lines := s.agent.Stdout.Since(up); len(lines) > 0 {
			t.Errorf("another agent came up again: %q", lines)
		}
	})
}

// waitLog waits for a line of the edge's log that names the device, at a level
// that operators see.
func waitLog(t *testing.T, f harness.Face, mark int, device string) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, fmt.Errorf("the edge logs nothing of %s", device))
	defer cancel()
	_, _, err := f.Log().Wait(ctx, mark, func(line string) bool {
		return strings.Contains(line, device) && !strings.Contains(line, `"level":"debug"`)
	})
	if err != nil {
		t.Error(err)
	}
}

// visit sends a request to a hand-made tunnel, whose answer comes on the channel.
func visit(t *testing.T, f harness.Face, h *harness.Hand) <-chan reply {
	t.Helper()
	c := harness.Visitor(t, f, true)
	c.Timeout = 90 * time.Second
	got := make(chan reply, 1)
	req := request(t, "GET", f.URL(h.Ready.Hostname, "/"), nil, "Accept", "application/json")
	go func() { // ends with the client's timeout
		r, err := try(c, req)
		if err != nil {
			r = reply{Response: &http.Response{}, body: err.Error()}
		}
		got <- r
	}()
	return got
}

// outcome is what became of a visitor's request.
type outcome struct {
	r   reply
	err error
}

// answering has a visitor ask a device by hand, and returns its transfer socket, from
// which the request has been read and on which an answer is to be written, and what
// the visitor gets.
func answering(t *testing.T, f harness.Face, h *harness.Hand) (*websocket.Conn, <-chan outcome) {
	t.Helper()
	client, got := harness.Visitor(t, f, true), make(chan outcome, 1)
	go func() { // ends with the client's timeout
		r, err := try(client, request(t, "GET", f.URL(h.Ready.Hostname, "/"), nil))
		got <- outcome{r, err}
	}()
	var open harness.Open
	h.Next(t, "open", &open)
	ws, resp, err := h.DialTransfer(t.Context(), open.ID)
	if err != nil {
		t.Fatalf("%v %v", err, harness.Refusal(resp))
	}
	t.Cleanup(func() { ws.Close() })
	harness.ReadRequest(t, ws)
	return ws, got
}

// wantOpen has a visitor come, and serves it: the tunnel works.
func wantOpen(t *testing.T, f harness.Face, h *harness.Hand) {
	t.Helper()
	got := visit(t, f, h)
	var open harness.Open
	h.Next(t, "open", &open)
	ws, resp, err := h.DialTransfer(t.Context(), open.ID)
	if err != nil {
		t.Fatalf("transfer socket: %v %v", err, harness.Refusal(resp))
	}
	defer ws.Close()
	h.ServeOnce(t, ws, "by hand")
	if r := <-got; r.body != "by hand" {
		t.Errorf("the visitor got %v", r)
	}
}

// TestTransferIDs uses the ids of streams twice, guessed, as another device and late.
func TestTransferIDs(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		refused := func(t *testing.T, h *harness.Hand, id string) {
			t.Helper()
			ws, resp, err := h.DialTransfer(t.Context(), id)
			if err == nil {
				ws.Close()
				t.Fatal("the transfer socket was accepted")
			}
			if a := harness.Refusal(resp); a.Status < 400 || a.Status > 499 || a.Code == "" || a.Message == "" {
				t.Errorf("%v: want a refusal that says why", a)
			}
		}
		t.Run("by hand", func(t *testing.T) {
			t.Parallel()
			wantOpen(t, f, harness.DialHand(t, f, f.NewDevice(t)))
		})
		t.Run("twice", func(t *testing.T) {
			t.Parallel()
			h := harness.DialHand(t, f, f.NewDevice(t))
			got := visit(t, f, h)
			var open harness.Open
			h.Next(t, "open", &open)
			ws, resp, err := h.DialTransfer(t.Context(), open.ID)
			if err != nil {
				t.Fatalf("%v %v", err, harness.Refusal(resp))
			}
			defer ws.Close()
			refused(t, h, open.ID)
			h.ServeOnce(t, ws, "the first one")
			if r := <-got; r.body != "the first one" {
				t.Errorf("the visitor got %v", r)
			}
			refused(t, h, open.ID) // nor after its stream
		})
		t.Run("guessed", func(t *testing.T) {
			t.Parallel()
			h := harness.DialHand(t, f, f.NewDevice(t))
			for _, id := range []string{harness.NewInstance(), "", "0", strings.Repeat("0", 32), strings.Repeat("f", 4000), "..%2f..%00"} {
				refused(t, h, id)
			}
			wantOpen(t, f, h)
		})
		t.Run("by another device", func(t *testing.T) {
			t.Parallel()
			h := harness.DialHand(t, f, f.NewDevice(t))
			thief := harness.DialHand(t, f, f.NewDevice(t))
			got := visit(t, f, h)
			var open harness.Open
			h.Next(t, "open", &open)
			refused(t, thief, open.ID)
			for _, token := range []string{"", "wrong", thief.Device.Token, thief.Ready.Secret} {
				ws, resp, err := harness.DialSocket(t.Context(), f, h.Ready.Transfer+"&id="+open.ID, harness.Bearer(token))
				if err == nil {
					ws.Close()
					t.Fatalf("accepted with token %q", token)
				}
				if a := harness.Refusal(resp); a.Status < 400 || a.Status > 499 {
					t.Errorf("with token %q: %v", token, a)
				}
			}
			ws, resp, err := h.DialTransfer(t.Context(), open.ID) // the owner still can
			if err != nil {
				t.Fatalf("%v %v", err, harness.Refusal(resp))
			}
			defer ws.Close()
			h.ServeOnce(t, ws, "the owner")
			if r := <-got; r.body != "the owner" {
				t.Errorf("the visitor got %v", r)
			}
		})
		t.Run("late", func(t *testing.T) {
			t.Parallel()
			h := harness.DialHand(t, f, f.NewDevice(t))
			got := visit(t, f, h)
			var open harness.Open
			h.Next(t, "open", &open)
			r := <-got // the event to wait for: the edge has given up
			wantJSON(t, r, 504, "device_timeout")
			inTime(t, "a visitor waits for a device that does not open", r.took, 40*time.Second)
			refused(t, h, open.ID)
			wantOpen(t, f, h)
		})
		t.Run("a visitor who left", func(t *testing.T) {
			t.Parallel()
			h := harness.DialHand(t, f, f.NewDevice(t))
			ctx, cancel := context.WithCancel(t.Context())
			req := request(t, "GET", f.URL(h.Ready.Hostname, "/"), nil).WithContext(ctx)
			gone := make(chan struct{})
			go func() { // ends with ctx
				try(harness.Visitor(t, f, true), req)
				close(gone)
			}()
			var open harness.Open
			h.Next(t, "open", &open)
			cancel()
			<-gone
			harness.Eventually(t, 10*time.Second, "the id is void", func() error {
				ws, _, err := h.DialTransfer(t.Context(), open.ID)
				if err != nil {
					return nil
				}
				defer ws.Close() // it came before the news: then it is closed soon
				ws.SetReadDeadline(time.Now().Add(5 * time.Second))
				for {
					if _, _, err := ws.ReadMessage(); err != nil {
						return nil
					}
				}
			})
			wantOpen(t, f, h)
		})
	})
}

// TestBrokenTransfers breaks off a transfer socket in each way in the middle of an
// answer whose end is the end of the connection: no visitor may take the half of it
// for the whole.
func TestBrokenTransfers(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		send := func(ws *websocket.Conn, kind int, text string) { ws.WriteMessage(kind, []byte(text)) }
		for _, c := range []struct {
			name string
			end  func(ws *websocket.Conn)
			code int // with which the edge closes; 0: any, or none
			full bool
		}{
			{"an end", func(ws *websocket.Conn) { send(ws, 2, "") }, 0, true},
			{"TCP ends", func(ws *websocket.Conn) { ws.NetConn().Close() }, 0, false},
			{"close 1000", func(ws *websocket.Conn) { send(ws, 8, "\x03\xe8") }, 0, false},
			{"close 1001", func(ws *websocket.Conn) { send(ws, 8, "\x03\xe9") }, 0, false},
			{"close without a code", func(ws *websocket.Conn) { send(ws, 8, "") }, 0, false},
			{"a text", func(ws *websocket.Conn) { send(ws, 1, "text") }, 4100, false},
			{"an empty text", func(ws *websocket.Conn) { send(ws, 1, "") }, 4100, false},
			{"reserved bits", func(ws *websocket.Conn) { ws.NetConn().Write(frame(0xf2, 0, nil)) }, 0, false},
			{"half a frame", func(ws *websocket.Conn) {
				ws.NetConn().Write(frame(0x82, 1000, []byte("half")))
				ws.NetConn().Close()
			}, 0, false},
			{"half a message", func(ws *websocket.Conn) {
				ws.NetConn().Write(frame(0x02, 4, []byte("half")))
				ws.NetConn().Close()
			}, 0, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				h := harness.DialHand(t, f, f.NewDevice(t))
				ws, got := answering(t, f, h)
				send(ws, 2, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe first part")
				c.end(ws)
				if c.code != 0 {
					if code := harness.CloseCode(t, ws, 10*time.Second); code != c.code {
						t.Errorf("closed with %d, want %d", code, c.code)
					}
				}
				o := <-got
				if whole := o.err == nil && o.r.StatusCode == 200; whole != c.full {
					t.Errorf("the visitor got %v, %v", o.r, o.err)
				}
				if !c.full && o.err == nil && o.r.code() == "" {
					t.Errorf("the visitor got %v", o.r)
				}
				wantOpen(t, f, h) // the tunnel lives on
			})
		}
	})
}

// TestNothingIsLeft attacks an edge in many ways, and wants it to be as small after
// as it was before.
func TestNothingIsLeft(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{
			Tunnel: []string{"wait 100ms"},
		})
		s := newSite(t, f)
		attack := func(rounds int) {
			for range rounds {
				for _, c := range badFrames {
					h := harness.DialHand(t, f, f.NewDevice(t))
					h.NetConn().Write(c.bytes)
					harness.CloseCode(t, h.Conn, 10*time.Second)
					h.Close()
				}
			}
			for i := range 40 * rounds {
				ws, _, err := harness.DialSocket(t.Context(), f, harness.ControlPath+"?"+harness.Query("nobody"), harness.Bearer("wrong"))
				if err == nil {
					ws.Close()
					t.Fatal("accepted")
				}
				conn, _, err := f.DialAgent(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(conn, "GET "+strings.Repeat("x", i))
				conn.Close()
				c := harness.Visitor(t, f, true)
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // leaves before the answer
				try(c, request(t, "GET", s.url("/slow?ms=50"), nil).WithContext(ctx))
				cancel()
				do(t, c, request(t, "GET", f.URL(fmt.Sprintf("nobody-%d.%s", i, f.Domain()), "/"), nil))
				c.CloseIdleConnections()
			}
			h := harness.DialHand(t, f, f.NewDevice(t))
			visit(t, f, h) // whose device dies without an answer
			h.Next(t, "open", nil)
			h.NetConn().Close()
		}
		attack(1) // what is allocated once is allocated now
		settled := func(base harness.Footprint, slack harness.Footprint) (now harness.Footprint) {
			harness.Eventually(t, 60*time.Second, "the edge is as small as before", func() error {
				s.mustServe(t)
				s.client.CloseIdleConnections()
				now = f.Footprint(t)
				if now.Goroutines > base.Goroutines+slack.Goroutines || now.Descriptors > base.Descriptors+slack.Descriptors || now.Heap > base.Heap+slack.Heap {
					return fmt.Errorf("now %v, before %v", now, base)
				}
				return nil
			})
			return now
		}
		var base harness.Footprint
		harness.Eventually(t, 60*time.Second, "the edge is at rest", func() error {
			before := base
			s.client.CloseIdleConnections()
			base = f.Footprint(t)
			time.Sleep(time.Second) // between two looks
			if base.Goroutines != before.Goroutines || base.Descriptors != before.Descriptors {
				return fmt.Errorf("%v, then %v", before, base)
			}
			return nil
		})
		attack(4)
		now := settled(base, harness.Footprint{Goroutines: 4 * base.Edges, Descriptors: 4 * base.Edges, Heap: 3 << 20})
		t.Logf("before %v, after %v", base, now)
	})
}
