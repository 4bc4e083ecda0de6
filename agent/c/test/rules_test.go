package c_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

const slow, backoff, soon = "slowly", "with backoff", "soon"

// class reads a line `down STATUS CODE RETRY_MS WHY` and says how the client comes
// back (protocol 5.6). The puppet's random number is always the same: of the three
// classes only one fits.
func class(t *testing.T, line string) (status, code int, how string) {
	t.Helper()
	var ms int
	if _, err := fmt.Sscanf(line, "down %d %d %d", &status, &code, &ms); err != nil {
		t.Fatalf("the client said %q", line)
	}
	switch {
	case ms <= 500:
		how = soon
	case ms <= 30000:
		how = backoff
	case ms >= 300000 && ms <= 900000:
		how = slow
	default:
		how = fmt.Sprint(ms)
	}
	return status, code, how
}

func ascii(s string) string { return hex.EncodeToString([]byte(s)) }

func frameOf(kind byte, stream byte, payload string) string {
	return message(0x82, append([]byte{kind, 0, 0, 0, stream}, payload...))
}

func open(stream int, more string) string {
	return text(fmt.Sprintf(`{"type":"open","stream":%d,"id":"4355a46b19d348dc2f57c046f8ef63d4","port":80,"from":"203.0.113.9:51234"%s}`, stream, more))
}

// joined brings a client of the profile basic to where stream 0 has its transfer
// socket, which is socket 1.
func joined(t *testing.T) *puppet {
	t.Helper()
	p := up(t, "basic")
	p.feed(0, open(1, ""))
	p.poll(1)
	p.await("open 0 80 203.0.113.9:51234")
	p.await("dial 1 edge.example.com 443 1")
	p.do("connected 1 1")
	p.feed(1, upgraded)
	p.poll(1)
	p.poll(1)
	p.takeSent(1)
	return p
}

// What RFC 6455 and the protocol forbid ends the tunnel with the code that says so.
func TestForbiddenFrames(t *testing.T) {
	for _, c := range []struct {
		name, profile, bytes string
		code                 int
	}{
		{"masked", "basic", "81820000000061", 1002},
		{"reserved bit", "basic", "c10161", 1002},
		{"reserved opcode", "basic", "830161", 1002},
		{"reserved control opcode", "basic", "8b00", 1002},
		{"fragmented ping", "basic", "0900", 1002},
		{"long ping", "basic", message(0x89, make([]byte, 126)), 1002},
		{"continuation of nothing", "basic", "800161", 1002},
		{"message in a message", "basic", "010161810161", 1002},
		{"16 bits for a short length", "basic", "817e000161", 1002},
		{"64 bits for a short length", "basic", "817f000000000000000161", 1002},
		{"length of more than 63 bits", "basic", "817f8000000000000000", 1002},
		{"huge", "basic", "817f0000000100000000", 1009},
		{"long text", "basic", text(strings.Repeat(" ", 4097)), 1009},
		{"close of one byte", "basic", "880103", 1002},
		{"close with a code that never travels", "basic", "880203ed", 1002},
		{"close with a code below all", "basic", "880203e7", 1002},
		{"binary", "basic", "820161", 4100},
		{"empty text", "basic", "8100", 4100},
		{"open of stream 0", "basic", open(0, ""), 4100},
		{"open twice", "basic", open(1, "") + open(1, ""), 4100},
		{"frame without a stream", "inline", "820101", 4100},
		{"frame of stream 0", "inline", frameOf(1, 0, "x"), 4100},
		{"empty data", "inline", frameOf(1, 1, ""), 4100},
		{"fin with a payload", "inline", frameOf(2, 1, "x"), 4100},
		{"short credit", "inline", frameOf(5, 1, "abc"), 4100},
		{"long credit", "inline", frameOf(5, 1, "abcde"), 4100},
		{"credit of nothing", "inline", frameOf(5, 1, "\x00\x00\x00\x00"), 4100},
		{"long frame", "inline", frameOf(1, 1, strings.Repeat("x", 4097)), 4100},
		{"open without a window", "inline", open(1, ""), 4100},
		{"open with more than the window", "inline", open(1, `,"early":1025`), 4100},
		{"an address that is not ASCII", "basic", text(`{"type":"port","port":80,"kind":"http","url":"https://\u00e9.example.com/"}`), 4100},
		{"a name with a zero in it is another one", "basic", text(`{"type\u0000":"port","port":80,"kind":"http"}`), 4100},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := up(t, c.profile)
			p.feed(0, c.bytes)
			for range 4 {
				p.poll(1)
			}
			if sent := p.takeSent(0); !strings.HasSuffix(sent, closedWith(c.code)) {
				t.Errorf("the client sent %q, want a close with %d", sent, c.code)
			}
		})
	}
}

// A message of pieces, with pings between them and in any split of bytes, is one.
func TestFragments(t *testing.T) {
	for step := range 7 {
		p := up(t, "basic")
		msg := `{"type":"port","port":80,"kind":"http","url":"https://x.example.com/"}`
		all := message(0x01, []byte(msg[:10])) + "890161" + message(0x00, []byte(msg[10:30])) + "0000" + "890162" + message(0x80, []byte(msg[30:]))
		for len(all) > 0 {
			n := min(2*(step+1), len(all))
			p.feed(0, all[:n])
			all = all[n:]
			p.poll(1)
		}
		p.expect("address 80 https://x.example.com/")
		if sent := p.takeSent(0); !strings.HasSuffix(sent, "8a8137fa213d55") { // "b" under the mask
			t.Errorf("pongs: %q", sent)
		}
	}
}

// A pong leaves with the poll that has read its ping, and of a flood the last.
func TestPong(t *testing.T) {
	p := up(t, "basic")
	p.feed(0, strings.Repeat("890161", 200)+"890162")
	p.poll(1)
	if sent := p.takeSent(0); sent != "8a8137fa213d55" {
		t.Errorf("the client sent %q", sent)
	}
}

// An answer decides by its status and Retry-After when the client comes back (2.5, 5.6).
func TestAnswers(t *testing.T) {
	good := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Accept: " + puppetAccept +
		"\r\nSec-WebSocket-Protocol: iottunnel.v1\r\n\r\n"
	for _, c := range []struct {
		name, answer string
		status       int
		how          string // empty: the handshake is good
	}{
		{"good", good, 0, ""},
		{"lines without CR", strings.ReplaceAll(good, "\r", ""), 0, ""},
		{"after 100 and 103", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + good, 0, ""},
		{"401", "HTTP/1.1 401 Unauthorized\r\n\r\n", 401, slow},
		{"403", "HTTP/1.1 403 Forbidden\r\n\r\n", 403, slow},
		{"302", "HTTP/1.1 302 Found\r\nLocation: wss://evil.example.com/.iottunnel/v1/control\r\n\r\n", 302, slow},
		{"307", "HTTP/1.1 307 Temporary Redirect\r\n\r\n", 307, slow},
		{"409", "HTTP/1.1 409 Conflict\r\n\r\n", 409, backoff},
		{"200", "HTTP/1.1 200 OK\r\n\r\n", 200, backoff},
		{"502 of a proxy", "HTTP/1.0 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<html>", 502, backoff},
		{"503", "HTTP/1.1 503 x\r\n\r\n", 503, backoff},
		{"503 for a day", "HTTP/1.1 503 x\r\nRetry-After: 86400\r\n\r\n", 503, slow},
		{"429 for 20 s", "HTTP/1.1 429 x\r\nretry-after: 20\r\n\r\n", 429, backoff},
		{"no accept", strings.Replace(good, "Sec-WebSocket-Accept: "+puppetAccept+"\r\n", "", 1), 0, soon},
		{"wrong accept", strings.Replace(good, puppetAccept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOp=", 1), 0, soon},
		{"no protocol", strings.Replace(good, "Sec-WebSocket-Protocol: iottunnel.v1\r\n", "", 1), 0, soon},
		{"another protocol", strings.Replace(good, "iottunnel.v1", "iottunnel.v2", 1), 0, soon},
		{"an extension", strings.Replace(good, "Upgrade: w", "Sec-WebSocket-Extensions: permessage-deflate\r\nUpgrade: w", 1), 0, soon},
		{"an upgrade before the answer", "HTTP/1.1 103 Early Hints\r\nUpgrade: websocket\r\n\r\n" + strings.Replace(good, "Upgrade: websocket\r\n", "", 1), 0, soon},
		{"no upgrade", strings.Replace(good, "Upgrade: websocket\r\n", "", 1), 0, soon},
		{"no HTTP", "SSH-2.0-OpenSSH_9.2\r\n", 0, soon},
		{"no number", "HTTP/1.1 4x1 Unauthorized\r\n\r\n", 0, soon},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPuppet(t, "basic 2 1024 0 wss://edge.example.com cam-17 cam-17-token 80")
			p.poll(0)
			p.await("dial 0 edge.example.com 443 1")
			p.do("connected 0 1")
			p.poll(1)
			p.feed(0, ascii(c.answer))
			p.poll(1)
			if c.how == "" {
				p.feed(0, ready("", ""))
				p.poll(1)
				p.expect("ready k3qz7h5mwx2c4v6b k3qz7h5mwx2c4v6b.devices.example.net 25 256")
				return
			}
			p.await("closed 0 0")
			if status, _, how := class(t, p.next()); status != c.status || how != c.how {
				t.Errorf("status %d, %s; want %d, %s", status, how, c.status, c.how)
			}
		})
	}
}

// The code of the edge's close frame says when the client comes back (5.5), and is
// answered with the same.
func TestCloseCodes(t *testing.T) {
	for code, want := range map[int]string{
		1000: soon, 1001: soon, 1012: soon, 3000: soon, 4001: slow, 4003: slow, 4050: slow, 4100: backoff, 4101: backoff, 4102: backoff, 4150: backoff, 4200: soon,
	} {
		p := up(t, "basic")
		p.feed(0, message(0x88, []byte{byte(code >> 8), byte(code), 'b', 'y', 'e'}))
		p.poll(1)
		p.await("closed 0 0")
		if _, got, how := class(t, p.next()); got != code || how != want {
			t.Errorf("code %d, %s; want %d, %s", got, how, code, want)
		}
		if sent := p.takeSent(0); !strings.HasSuffix(sent, closedWith(code)) {
			t.Errorf("%d was answered with %q", code, sent)
		}
	}
}

// Strings that fill the room that a message has end the tunnel, and write nothing
// beyond it.
func TestLongStrings(t *testing.T) {
	p := up(t, "basic")
	p.feed(0, text(`{"type":"ready","caps":"`+strings.Repeat("x", 1300)+`","tunnel":"y","label":"z","hostname":"a","transfer":"b","secret":"c"}`))
	p.poll(1)
	if sent := p.takeSent(0); !strings.HasSuffix(sent, closedWith(4100)) {
		t.Errorf("the client sent %q", sent)
	}
}

// An edge may give a smaller window than the client has asked for: credit comes back
// in lumps of that (12.2).
func TestSmallWindow(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":64`)+frameOf(1, 1, strings.Repeat("x", 64)))
	p.poll(1)
	p.await("data 0 " + ascii(strings.Repeat("x", 64)))
	if sent := p.takeSent(0); sent != "828937fa213d32fa213d36fa213d77" {
		t.Fatalf("the client sent %q, want credit of 64", sent)
	}
	p.feed(0, frameOf(1, 1, strings.Repeat("x", 65))) // one byte beyond the credit
	p.poll(1)
	p.await("abort 0")
	if sent := p.takeSent(0); sent != "828537fa213d34fa213d36" {
		t.Errorf("the client sent %q, want a reset", sent)
	}
}

// The service's side writes as much as the window, and goes on with what comes back.
func TestCreditAtTheEdge(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":64`))
	p.poll(1)
	p.await("open 0 80 203.0.113.9:51234")
	p.do("write 0 %s", strings.Repeat("61", 70))
	p.await("wrote 64")
	p.feed(0, frameOf(5, 1, "\x00\x00\x00\x40"))
	p.poll(1)
	p.await("writable 0")
	p.feed(0, frameOf(5, 1, "\x00\x00\x00\x01")) // never spent
	p.poll(1)
	p.await("abort 0")
}

// A stream in the place of another has nothing of it: not what that has sent (12.3), nor
// that it has sent something (10.7).
func TestSecondStream(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":64`)+frameOf(2, 1, ""))
	p.poll(1)
	p.do("write 0 616263")
	p.do("finish 0")
	p.poll(1)
	p.await("over 0")
	p.feed(0, open(2, `,"early":64`))
	p.poll(1)
	p.await("open 0 80 203.0.113.9:51234")
	p.takeSent(0)
	p.do("refuse 0 not today")
	if sent := unmasked(t, p.takeSent(0)); sent != ascii(`{"type":"refused","stream":2,"reason":"not today"}`) {
		t.Errorf("the client sent %q", sent)
	}
	p.feed(0, open(3, `,"early":64`))
	p.poll(1)
	p.await("open 0 80 203.0.113.9:51234")
	p.feed(0, frameOf(5, 3, "\x00\x00\x00\x01")) // never spent
	p.poll(1)
	p.await("abort 0")
}

// A frame of an unknown kind resets its stream (9.3), and what breaks the rules of streams
// again and again ends the tunnel (10.9).
func TestBreaches(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":64`)+frameOf(9, 1, "x"))
	p.poll(1)
	p.await("abort 0")
	if sent := p.takeSent(0); sent != "828537fa213d34fa213d36" {
		t.Errorf("the client sent %q, want a reset", sent)
	}
	for stream := 2; ; stream++ {
		p.feed(0, open(stream, `,"early":64`)+frameOf(4, byte(stream), "")) // move, where nothing can
		p.poll(1)
		p.await("abort 0")
		if strings.HasSuffix(p.takeSent(0), closedWith(4100)) {
			break
		}
		if stream == 50 {
			t.Fatal("no end to it")
		}
	}
}

// A pong for which there is no room goes when there is.
func TestPongLater(t *testing.T) {
	p := up(t, "basic")
	p.do("room 0")
	for i := range 20 {
		width := 125
		if i == 5 { // fits, but for its header
			width = 45
		}
		p.feed(0, message(0x89, []byte(fmt.Sprintf("%0*d", width, i))))
		p.poll(1)
	}
	p.do("room 4096")
	p.poll(1)
	p.poll(1)
	if sent := p.takeSent(0); !strings.HasSuffix(unmasked(t, sent[len(sent)-2*131:]), ascii(fmt.Sprintf("%0125d", 19))) {
		t.Errorf("the client sent %q", sent)
	}
}

// A tunnel that has lasted sets the backoff back (5.6).
func TestBackoff(t *testing.T) {
	p := newPuppet(t, "basic 2 1024 0 wss://edge.example.com cam-17 cam-17-token 80")
	var waits [2]int // after seven failures, and after a tunnel that has lasted
	sock := 0
	for i := range 8 {
		if i < 7 {
			p.poll(0)
			p.do("connected %d -2", sock)
			p.poll(1)
			p.await(fmt.Sprintf("closed %d 0", sock))
		} else {
			p.poll(0)
			p.do("connected %d 1", sock)
			p.feed(sock, upgraded+ready("", ""))
			p.poll(1)
			for range 31 {
				p.feed(sock, "8900")
				p.poll(1000)
			}
			p.do("broken %d", sock)
			p.poll(1)
			p.await(fmt.Sprintf("closed %d 0", sock))
		}
		var wait int
		line := p.next()
		if _, err := fmt.Sscanf(line, "down 0 0 %d", &wait); err != nil {
			t.Fatalf("the client said %q", line)
		}
		waits[i/7] = wait
		p.now += wait
		sock++
	}
	if waits[0] <= 500 || waits[1] > 500 {
		t.Errorf("waits of %d and %d ms", waits[0], waits[1])
	}
}

// Of several edges each is tried once before any wait (5.7).
func TestServers(t *testing.T) {
	p := newPuppet(t, "basic 2 1024 0 wss://a.example.com,wss://b.example.com,wss://c.example.com cam-17 cam-17-token 80")
	for round := range 3 {
		seen := make(map[string]bool)
		for i := range 3 {
			p.poll(0)
			line := p.next()
			var sock, wait int
			var host string
			if _, err := fmt.Sscanf(line, "dial %d %s 443 1", &sock, &host); err != nil {
				t.Fatalf("round %d: the client said %q", round, line)
			}
			seen[host] = true
			p.do("connected %d -2", sock)
			p.poll(0)
			p.await(fmt.Sprintf("closed %d 0", sock))
			if line = p.next(); !strings.HasPrefix(line, "down 0 0 ") {
				t.Fatalf("round %d: the client said %q", round, line)
			}
			fmt.Sscanf(line, "down 0 0 %d", &wait)
			if i < 2 && wait != 0 {
				t.Errorf("round %d: a wait of %d ms after %d edges", round, wait, i+1)
			}
			p.now += wait
		}
		if len(seen) != 3 {
			t.Errorf("round %d: only %v", round, seen)
		}
	}
}

// An edge that has a crowd to let in keeps a place for the client, which asks no other edge
// until then; twice in a row, it does (5.7).
func TestCrowd(t *testing.T) {
	p := newPuppet(t, "basic 2 1024 0 wss://a.example.com,wss://b.example.com cam-17 cam-17-token 80")
	for i, told := range []struct {
		status, after int
		waits         bool
	}{{429, 20, true}, {429, 20, false}, {429, 20, true}, {503, 20, false}, {503, 20, true}, {429, 31, false}, {429, 31, true}} {
		p.poll(0)
		var sock, wait int
		var host string
		if line := p.next(); !scans(line, "dial %d %s 443 1", &sock, &host) {
			t.Fatalf("%d: the client said %q", i, line)
		}
		p.do("connected %d 1", sock)
		p.feed(sock, ascii(fmt.Sprintf("HTTP/1.1 %d Later\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n", told.status, told.after)))
		p.poll(1)
		p.await(fmt.Sprintf("closed %d 0", sock))
		if line := p.next(); !scans(line, fmt.Sprintf("down %d 0 %%d", told.status), &wait) {
			t.Fatalf("%d: the client said %q", i, line)
		}
		if told.waits != (wait >= told.after*1000) {
			t.Errorf("%d: after %+v a wait of %d ms", i, told, wait)
		}
		p.now += wait
	}
}

func scans(line, format string, into ...any) bool {
	_, err := fmt.Sscanf(line, format, into...)
	return err == nil
}

// More streams than the bound wait a moment for one that ends, then are refused.
func TestStreamsOverTheBound(t *testing.T) {
	for _, profile := range []string{"basic", "inline"} {
		early := map[string]string{"basic": "", "inline": `,"early":1024`}[profile]
		p := up(t, profile)
		p.feed(0, open(1, early)+open(2, early)+open(3, early)+open(4, early))
		p.poll(1)
		p.takeSent(0)
		p.await("open 1 80 203.0.113.9:51234")
		p.said = nil
		p.do("cut 0")
		p.poll(1)
		p.poll(1)
		p.await("open 0 80 203.0.113.9:51234")
		p.takeSent(0)
		for range 300 {
			p.poll(10)
		}
		want := message(0x81, []byte(`{"type":"refused","stream":4,"reason":"no room"}`))[4:]
		if sent := unmasked(t, p.takeSent(0)); !strings.Contains(sent, want) {
			t.Errorf("%s: the client sent %q", profile, sent)
		}
	}
}

// unmasked takes the puppet's mask off one short frame, and its header.
func unmasked(t *testing.T, hexed string) string {
	t.Helper()
	raw, err := hex.DecodeString(hexed)
	if err != nil || len(raw) < 6 {
		t.Fatalf("%q is no frame", hexed)
	}
	mask := []byte{0x37, 0xfa, 0x21, 0x3d}
	for i := range raw[6:] {
		raw[6+i] ^= mask[i%4]
	}
	return hex.EncodeToString(raw[6:])
}

// A stream that its program ends while it hears of it leaves its place to others.
func TestAbortInOpen(t *testing.T) {
	for _, profile := range []string{"basic", "inline"} {
		early := map[string]string{"basic": "", "inline": `,"early":1024`}[profile]
		p := up(t, profile)
		p.do("deny 2")
		for i := range 5 {
			p.feed(0, open(i+1, early))
			p.poll(1)
			p.await("open 0 80 203.0.113.9:51234")
		}
	}
}

// quiet lets s seconds pass in which only heartbeats come.
func (p *puppet) quiet(s int) {
	p.t.Helper()
	for range s {
		p.feed(0, "8900")
		p.poll(1000)
	}
	p.takeSent(0)
}

// A stream that was silent for long may still end one direction after the other: the
// five minutes begin with the first end (6.8).
func TestEndAfterSilence(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":1024`))
	p.quiet(400)
	p.feed(0, frameOf(2, 1, ""))
	p.poll(1)
	p.await("end 0")
	p.quiet(299)
	p.expect("")
	p.quiet(3)
	p.expect("abort 0")
}

// What has arrived before the end of TCP reaches a service that takes it later.
func TestSlowServiceAtTheEnd(t *testing.T) {
	p := joined(t)
	p.do("finish 0")
	p.do("take 0")
	p.feed(1, message(0x82, []byte("the last words"))+"8200"+"880203e8")
	p.do("eof 1")
	for range 30 {
		p.poll(1000)
	}
	p.do("take 100")
	p.poll(1)
	p.expect("data 0 " + ascii("the last words"))
	p.expect("end 0")
	p.expect("over 0")
}

// The last byte of a message counts as the others do, and an empty last piece of a longer
// message is no end (6.5).
func TestLastByte(t *testing.T) {
	p := joined(t)
	p.do("take 2")
	p.feed(1, message(0x02, []byte("abc"))+"8000")
	p.poll(1)
	p.expect("data 0 " + ascii("ab"))
	p.do("take 100")
	p.poll(1)
	p.expect("data 0 " + ascii("c"))
	p.poll(1)
	p.expect("")
	p.feed(1, "8200")
	p.poll(1)
	p.expect("end 0")
}

// A piece of a message and then the end of TCP is an abort (6.7).
func TestCutOff(t *testing.T) {
	for _, sent := range []string{"", "82", "8205" + ascii("abc"), "890561", "880203e8", "8100", "8200" + "820161"} {
		p := joined(t)
		p.feed(1, sent)
		p.do("eof 1")
		p.poll(1)
		p.await("abort 0")
		p.quiet(2)
		p.feed(0, open(2, ""))
		p.poll(1)
		p.await("open 0 80 203.0.113.9:51234") // its place is free
	}
}

// The transfer socket may be lost before the stream is joined: the edge hears of it.
func TestNeverJoined(t *testing.T) {
	for name, lose := range map[string]func(p *puppet){
		"refused":   func(p *puppet) { p.do("connected 1 -2") },
		"no answer": func(p *puppet) { p.quiet(21) },
		"404":       func(p *puppet) { p.do("connected 1 1"); p.feed(1, ascii("HTTP/1.1 404 Not Found\r\n\r\n")) },
		"eof":       func(p *puppet) { p.do("connected 1 1"); p.do("eof 1") },
		"cut":       func(p *puppet) { p.do("cut 0") },
	} {
		t.Run(name, func(t *testing.T) {
			p := up(t, "basic")
			p.feed(0, open(1, ""))
			p.poll(1)
			p.takeSent(0)
			p.said = nil
			lose(p)
			p.poll(1)
			p.poll(1)
			if name != "cut" {
				p.await("abort 0")
			}
			if name == "no answer" {
				return // its refusal went in the quiet
			}
			if sent := p.takeSent(0); !strings.Contains(unmasked(t, sent), ascii(`"refused","stream":1,`)) {
				t.Errorf("the client sent %q", sent)
			}
		})
	}
}

// A reason can be any text: what JSON would have to escape is left out of it.
func TestRefuse(t *testing.T) {
	p := joined(t)
	p.do(`refuse 0 a "quoted" \ reason`)
	if p.next() != "closed 1 1" {
		t.Error("the transfer socket is still open")
	}
	if sent := unmasked(t, p.takeSent(0)); sent != ascii(`{"type":"refused","stream":1,"reason":"a ?quoted? ? reason"}`) {
		t.Errorf("the client sent %q", sent)
	}
	p = joined(t)
	p.do("write 0 61")
	p.do("refuse 0 too late")
	if sent := p.takeSent(0); sent != "" {
		t.Errorf("after the first byte the client sent %q", sent)
	}
}

// Streams with transfer sockets outlive their control socket, but not their device's
// right to be connected.
func TestControlLost(t *testing.T) {
	p := joined(t)
	p.do("broken 0")
	p.poll(1)
	p.await("closed 0 0")
	p.do("write 0 61")
	p.await("wrote 1")
	p.feed(1, "8200")
	p.poll(1)
	p.await("end 0")
	for _, code := range []string{"0fa1", "0fa3"} {
		p := joined(t)
		p.feed(0, "8802"+code)
		p.poll(1)
		p.await("abort 0")
		p.await("closed 1 1")
	}
}

// The client says goodbye, waits for the answer, and ends all streams.
func TestStop(t *testing.T) {
	p := joined(t)
	p.do("stop")
	p.poll(1)
	p.expect("")
	if sent := p.takeSent(0); sent != closedWith(1000) {
		t.Errorf("the client sent %q", sent)
	}
	p.feed(0, open(7, "")+"880203e8") // crossed
	p.poll(1)
	p.expect("closed 0 0")
	p.expect("abort 0")
	p.expect("closed 1 1")
	p = up(t, "inline")
	p.do("stop")
	p.poll(1)
	p.poll(2001) // no answer
	p.expect("closed 0 0")
	p = joined(t)
	p.do("broken 0")
	p.poll(1)
	p.do("stop") // between two tunnels
	p.poll(1)
	p.await("abort 0")
	p.await("closed 1 1")
}

// Drain: back after a random part of the time, and without a goodbye (5.4).
func TestDrain(t *testing.T) {
	p := up(t, "basic")
	p.feed(0, text(`{"type":"drain","within_s":60}`))
	p.quiet(60)
	p.poll(1)
	p.await("closed 0 0")
	if line := p.next(); !strings.HasPrefix(line, "down 0 0 0 ") {
		t.Errorf("the client said %q", line)
	}
	p.poll(1)
	p.await("dial 1 edge.example.com 443 1")
}

// Silence ends a tunnel, also where the clock wraps around (5.2), as does an edge that
// never says ready (4.1).
func TestTimes(t *testing.T) {
	p := newPuppet(t, "inline 2 1024 0 wss://edge.example.com cam-17 cam-17-token 80")
	p.now = 1<<32 - 20_000
	p.poll(0)
	p.do("connected 0 1")
	p.feed(0, upgraded+ready("early,inline", `"early":1024,"early_total":2048,`))
	p.poll(1)
	p.await("ready k3qz7h5mwx2c4v6b k3qz7h5mwx2c4v6b.devices.example.net 25 256")
	p.now = p.now % (1 << 32)
	for range 59 {
		p.now = (p.now + 1000) % (1 << 32)
		p.do("poll %d", p.now)
	}
	p.expect("")
	p.poll(2000)
	p.await("closed 0 0")
	p = newPuppet(t, "inline 2 1024 0 wss://edge.example.com cam-17 cam-17-token 80")
	p.poll(0)
	p.do("connected 0 1")
	p.feed(0, upgraded)
	p.poll(1)
	p.quiet(32)
	p.await("closed 0 0")
}

// Names that begin like a loopback address are none (2.7).
func TestPlaintext(t *testing.T) {
	for url, ok := range map[string]bool{
		"ws://127.0.0.1:8080": true, "ws://localhost": true, "ws://127.evil.example.com": false, "ws://10.0.0.1": false, "wss://10.0.0.1": true,
	} {
		p := start(t)
		p.do("init basic 2 1024 0 %s cam-17 cam-17-token 80", url)
		if got := strings.HasSuffix(p.next(), " ok"); got != ok {
			t.Errorf("%s: %v", url, got)
		}
	}
}
