package socket

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// FuzzFrames gives arbitrary bytes to a socket in both roles. It must not panic,
// keep no more of a message than its limit, read the same however the bytes
// arrive, and read what gorilla reads, as far as it goes along.
func FuzzFrames(f *testing.F) {
	for _, frames := range [][]byte{
		cat(masked(0x81, "Hello"), masked(0x89, "ping"), masked(0x88, "\x03\xe8bye")),
		cat(masked(0x01, "Hel"), masked(0x8a, ""), masked(0x00, ""), masked(0x80, "lo")),
		cat(plain(0x82, strings.Repeat("x", 126)), plain(0x82, ""), plain(0x88, "")),
		cat(plain(0x02, strings.Repeat("x", 600)), plain(0x80, strings.Repeat("y", 65536))),
		masked(0x88, "\x0f\xa1replaced"), plain(0x88, "\x03\xed"),
		{0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
		{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5},
		{0xc1, 0x80, 1, 2, 3, 4},
	} {
		f.Add(frames, false, uint8(1))
		f.Add(frames, true, uint8(100))
	}
	f.Fuzz(func(t *testing.T, in []byte, client bool, step uint8) {
		const limit = 1 << 17
		read := func(limit int, step uint8, stutter bool) ([]string, error) {
			s := on(&script{in: in, step: int(step), stutter: stutter}, client)
			got, err := all(s, limit)
			settle(s)
			return got, err
		}
		got, err := read(limit, 0, false)
		if pieced, pieceErr := read(limit, step, true); !slices.Equal(got, pieced) || fmt.Sprint(err) != fmt.Sprint(pieceErr) {
			t.Fatalf("in one read %.200q, %v; in reads of %d %.200q, %v", got, err, step, pieced, pieceErr)
		}
		small, _ := read(10, step, false)
		for i, m := range small {
			if m != "too big" && m != got[i] || len(m) > 2+10 {
				t.Fatalf("with a limit of 10: message %d is %.100q, not %.100q", i, m, got[i])
			}
		}
		if slices.Contains(got, "too big") {
			return
		}
		theirs, theirErr := gorillaReads(in, client)
		if len(theirs) < len(got) || !slices.Equal(theirs[:len(got)], got) {
			t.Fatalf("we read %.200q, %v; gorilla %.200q, %v", got, err, theirs, theirErr)
		}
		var broken *FrameError
		if !errors.As(err, &broken) && len(theirs) > len(got) {
			t.Fatalf("we end with %v after %.200q; gorilla goes on: %.200q", err, got, theirs)
		}
	})
}

// gorillaReads gives in to gorilla, behind a handshake.
func gorillaReads(in []byte, client bool) (messages []string, err error) {
	var c *websocket.Conn
	if client {
		d := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return &answering{after: in}, nil }}
		c, _, err = d.Dial("ws://edge.test/", nil)
	} else {
		r, _ := http.NewRequest("GET", "/", nil)
		r.Header = http.Header{
			"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		}
		c, err = new(websocket.Upgrader).Upgrade(hijacker{conn: &script{in: in}}, r, nil)
	}
	if err != nil {
		panic(err)
	}
	for {
		op, b, err := c.ReadMessage()
		if err != nil {
			return messages, err
		}
		messages = append(messages, fmt.Sprintf("%d:%s", op, b))
	}
}

// hijacker is a ResponseWriter that gives conn away, with nothing read from it.
type hijacker struct {
	http.ResponseWriter // never called
	conn                net.Conn
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// answering is a connection to a server whose answer is made of the request by
// answer, a 101 if that is nil, with after behind it.
type answering struct {
	script
	answer func(*http.Request) string
	after  []byte
	ready  bool
}

func (c *answering) Read(p []byte) (int, error) {
	if !c.ready {
		c.ready = true
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(c.written())))
		if err != nil {
			return 0, err
		}
		if c.answer == nil {
			c.answer = switching
		}
		c.in = append([]byte(c.answer(r)), c.after...)
	}
	return c.script.Read(p)
}

// FuzzAnswer gives arbitrary answers to a client's handshake. KEY in one stands
// for the right key. Dial must not panic, and when it succeeds, what follows the
// answer's header is all there.
func FuzzAnswer(f *testing.F) {
	good := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: KEY\r\nSec-WebSocket-Protocol: " + subprotocol + "\r\n\r\n"
	for _, answer := range []string{
		good, good + "\x81\x05Hello\x88\x00", strings.ReplaceAll(good, "\r\n", "\n") + "\x81\x00", good + "\r\n\r\n",
		strings.Replace(good, " 101", "  101", 1) + "x",
		strings.Replace(good, "Upgrade:", "X: folded\r\n \r\n\t lines\r\nUpgrade:", 1) + "x",
		"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nbody", "HTTP/1.1 100 Continue\r\n\r\n" + good,
		"HTTP/1.1 302 Found\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "HTTP/1.0 500\r\n\r\n", "\r\n", "",
	} {
		f.Add([]byte(answer), uint8(0))
		f.Add([]byte(answer), uint8(1))
	}
	f.Fuzz(func(t *testing.T, answer []byte, step uint8) {
		conn := &answering{script: script{step: int(step)}}
		var sent []byte
		conn.answer = func(r *http.Request) string {
			sent = bytes.ReplaceAll(answer, []byte("KEY"), []byte(keyAnswer(r.Header.Get("Sec-WebSocket-Key"))))
			return string(sent)
		}
		s, err := Dial(t.Context(), conn, target, nil, subprotocol, SmallBuffer)
		var refused *StatusError
		switch {
		case (s == nil) == (err == nil):
			t.Fatal(s, err)
		case errors.As(err, &refused) && (refused.Status == 101 || len(refused.Body) > 1024):
			t.Fatalf("%+v", refused)
		case err != nil:
			return
		}
		rest, err := io.ReadAll(s.br)
		head, ok := bytes.CutSuffix(sent, rest)
		if err != nil || !ok || !bytes.HasSuffix(head, []byte("\n\r\n")) && !bytes.HasSuffix(head, []byte("\n\n")) {
			t.Fatalf("%q was left of %q, %v", rest, sent, err)
		}
		if n := bytes.Count(head, []byte("\n\r\n")) + bytes.Count(head, []byte("\n\n")); n != 1 {
			t.Fatalf("the header ends inside %q", head)
		}
	})
}
