package wire

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/golden"
)

// step is an element of testdata/transcript.json, transcript_early.json and
// transcript_inline.json: what one side sends in one go.
type step struct {
	Name   string `json:"name"`
	Socket string `json:"socket"` // control or transfer
	From   string `json:"from"`   // agent or edge
	Kind   string `json:"kind"`   // http, text, binary, ping, pong, close
	// Frame names the kind, the stream and the number of bytes of a binary message
	// on a control socket, for people.
	Frame string `json:"frame,omitempty"`
	// Payload is the head of an HTTP message or the unmasked payload of a frame;
	// of a close frame the reason, while Code is its code.
	Payload string `json:"payload"`
	Code    int    `json:"code,omitempty"`
	Hex     string `json:"hex"` // every byte on the connection
}

// The keys of RFC 6455 §1.3 and §5.7. A real agent draws new ones.
const (
	handshakeKey = "dGhlIHNhbXBsZSBub25jZQ=="
	acceptValue  = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

var maskKey = [4]byte{0x37, 0xfa, 0x21, 0x3d}

// transcript is a whole session of a device with a visitor on its port 80 and one
// on its port 22. Frame headers are put together here, by hand (RFC 6455 §5.2);
// the messages come from Encode, the control URL from Query.
func transcript(t *testing.T) []step {
	t.Helper()
	if sum := sha1.Sum([]byte(handshakeKey + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")); base64.StdEncoding.EncodeToString(sum[:]) != acceptValue {
		t.Fatal("the accept value is not that of the key")
	}
	hello := Hello{Device: "cam-17", Ports: []Port{{80, HTTP}, {22, TCP}}, Instance: instance, Heartbeat: 25}
	const visitor, service = "GET / HTTP/1.1\r\nHost: k3qz7h5mwx2c4v6b.devices.example.net\r\nConnection: close\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\n21.5 \xc2\xb0C"
	return []step{
		handshake("the agent asks for a control socket", "control", ControlPath+"?"+hello.Query(), "cam-17-token"),
		switched("the edge agrees", "control"),
		message("the tunnel is up", "edge", ready()),
		message("where port 80 is reached", "edge", &PortInfo{Port: 80, Kind: HTTP, URL: "https://k3qz7h5mwx2c4v6b.devices.example.net/"}),
		message("where port 22 is reached", "edge", &PortInfo{Port: 22, Kind: TCP, Addr: "tcp.devices.example.net:20022"}),
		frame("a heartbeat", "control", "edge", "ping", "7"),
		frame("its answer, with the payload of the ping", "control", "agent", "pong", "7"),
		message("a visitor wants port 80", "edge", &Open{Stream: 1, ID: streamID, Port: 80, From: "203.0.113.9:51234"}),
		handshake("the agent has reached its port 80 and asks for a transfer socket", "transfer", transfer+"&id="+streamID, secret),
		switched("the edge agrees", "transfer"),
		frame("what the visitor sends", "transfer", "edge", "binary", visitor),
		frame("what the service answers", "transfer", "agent", "binary", service),
		frame("the service has sent everything", "transfer", "agent", "binary", ""),
		frame("the visitor has sent everything", "transfer", "edge", "binary", ""),
		closing("both directions have ended", "transfer", "edge", CloseNormal, ""),
		closing("so say both", "transfer", "agent", CloseNormal, ""),
		message("a visitor wants port 22", "edge", &Open{Stream: 2, ID: "c1a5298f939e87e8f962a5edfc206918", Port: 22, From: "[2001:db8::9]:40000"}),
		message("nothing listens there", "agent", &Refused{Stream: 2, Reason: "connection refused"}),
		closing("the edge is about to restart", "control", "edge", CloseRestart, "restart"),
		closing("the agent echoes the code, and the edge closes TCP", "control", "agent", CloseRestart, ""),
	}
}

// transcriptEarly is a session with early and reuse in force: a stream that needs
// no transfer socket, one that gets one, one that gets the same socket again, and
// one whose visitor leaves.
func transcriptEarly(t *testing.T) []step {
	t.Helper()
	hello := Hello{
		Device: "cam-17", Ports: []Port{{80, HTTP}}, Instance: instance,
		Caps: Early | Reuse, Early: 16384, EarlyTotal: 262144, Heartbeat: 25,
	}
	up := ready()
	up.Caps, up.Early, up.EarlyTotal = (Early | Reuse).String(), 16384, 262144
	const (
		request  = "GET / HTTP/1.1\r\nHost: k3qz7h5mwx2c4v6b.devices.example.net\r\nConnection: close\r\n\r\n"
		answer   = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\n21.5 \xc2\xb0C"
		watch    = "GET /watch HTTP/1.1\r\nHost: k3qz7h5mwx2c4v6b.devices.example.net\r\nConnection: close\r\n\r\n"
		head     = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
		event    = "data: 21.5\n\n"
		second   = "c1a5298f939e87e8f962a5edfc206918"
		third    = "0c7d1a5e5f2b4f6c9be1f0d3a2c4e687"
		fourth   = "e3b0c44298fc1c149afbf4c8996fb924"
		visitors = "203.0.113.9:"
	)
	return []step{
		handshake("the agent offers early, with bounds of its own, and reuse", "control", ControlPath+"?"+hello.Query(), "cam-17-token"),
		switched("the edge agrees", "control"),
		message("the tunnel is up, and both are in force", "edge", up),
		message("where port 80 is reached", "edge", &PortInfo{Port: 80, Kind: HTTP, URL: "https://k3qz7h5mwx2c4v6b.devices.example.net/"}),

		message("a visitor wants port 80", "edge", &Open{Stream: 1, ID: streamID, Port: 80, From: visitors + "51234", Early: 16384}),
		data("what the visitor sends follows at once", "edge", 1, request),
		data("the service has answered", "agent", 1, answer),
		word("and has sent everything", "agent", FrameFin, 1),
		word("so has the visitor: the stream is over", "edge", FrameFin, 1),

		message("another visitor", "edge", &Open{Stream: 2, ID: second, Port: 80, From: visitors + "51235", Early: 16384}),
		data("what it sends", "edge", 2, watch),
		data("the service answers, and goes on answering", "agent", 2, head),
		handshake("two round trips later the agent asks for a transfer socket", "transfer", transfer+"&id="+second, secret),
		switched("the edge agrees: the stream is attached for it", "transfer"),
		word("what the visitor sends goes on there", "edge", FrameMove, 2),
		word("and so does what the service sends", "agent", FrameMove, 2),
		frame("the service sends", "transfer", "agent", "binary", event),
		frame("it has sent everything", "transfer", "agent", "binary", ""),
		frame("so has the visitor: the stream is over, and the socket is parked", "transfer", "edge", "binary", ""),

		message("a third visitor", "edge", &Open{Stream: 3, ID: third, Port: 80, From: visitors + "51236", Early: 16384}),
		data("what it sends", "edge", 3, watch),
		word("and that is everything", "edge", FrameFin, 3),
		on("transfer", message("two round trips later the agent gives the stream the parked socket", "agent", &Attach{Stream: 3, ID: third})),
		on("transfer", message("the edge agrees; it has nothing to move", "edge", &Attached{Stream: 3})),
		word("the service's direction moves before a byte", "agent", FrameMove, 3),
		frame("the service sends", "transfer", "agent", "binary", head+event),
		frame("it has sent everything: the stream is over, and the socket is parked again", "transfer", "agent", "binary", ""),

		message("a fourth visitor", "edge", &Open{Stream: 4, ID: fourth, Port: 80, From: visitors + "51237", Early: 16384}),
		word("has left before it was served", "edge", FrameReset, 4),
		closing("the parked socket has been idle for 20 s", "transfer", "edge", CloseNormal, ""),
		closing("the agent echoes the code, and the edge closes TCP", "transfer", "agent", CloseNormal, ""),
	}
}

// transcriptInline is a session with inline in force, and windows that are smaller
// than what is sent.
func transcriptInline(t *testing.T) []step {
	t.Helper()
	hello := Hello{
		Device: "cam-17", Ports: []Port{{80, HTTP}}, Instance: instance,
		Caps: Early | Inline, Streams: 2, MessageMax: 512, Early: 64, EarlyTotal: 128, Heartbeat: 25,
	}
	up := ready()
	up.Caps, up.Streams, up.MessageMax, up.Early, up.EarlyTotal = (Early | Inline).String(), 2, 512, 64, 128
	const (
		request = "GET / HTTP/1.1\r\nHost: k3qz7h5mwx2c4v6b.devices.example.net\r\nConnection: close\r\n\r\n"
		answer  = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\n21.5 \xc2\xb0C"
	)
	return []step{
		handshake("the agent offers early and inline, with bounds of its own", "control", ControlPath+"?"+hello.Query(), "cam-17-token"),
		switched("the edge agrees", "control"),
		message("the tunnel is up, and both are in force", "edge", up),
		message("where port 80 is reached", "edge", &PortInfo{Port: 80, Kind: HTTP, URL: "https://k3qz7h5mwx2c4v6b.devices.example.net/"}),
		message("a visitor wants port 80", "edge", &Open{Stream: 1, ID: streamID, Port: 80, From: "203.0.113.9:51234", Early: 64}),
		data("as much of what it sends as the window holds", "edge", 1, request[:64]),
		grant("the service has taken that", "agent", 1, 64),
		data("the rest", "edge", 1, request[64:]),
		data("as much of the answer as the window holds", "agent", 1, answer[:64]),
		grant("the visitor has taken that", "edge", 1, 64),
		data("the rest", "agent", 1, answer[64:]),
		word("that was everything", "agent", FrameFin, 1),
		word("and the visitor has nothing more to send: the stream is over", "edge", FrameFin, 1),
	}
}

// grant is a frame of credit on the control socket.
func grant(name, from string, stream uint32, n int) step {
	s := frame(name, "control", from, "binary", string(AppendCredit(nil, stream, n)))
	s.Frame = fmt.Sprintf("credit, stream %d, %d", stream, n)
	return s
}

// data is a data frame on the control socket.
func data(name, from string, stream uint32, payload string) step {
	s := frame(name, "control", from, "binary", string(AppendFrameHeader(nil, FrameData, stream))+payload)
	s.Frame = fmt.Sprintf("data, stream %d, %d bytes", stream, len(payload))
	return s
}

// word is a frame on the control socket that has no payload.
func word(name, from string, k FrameKind, stream uint32) step {
	s := frame(name, "control", from, "binary", string(AppendFrameHeader(nil, k, stream)))
	s.Frame = fmt.Sprintf("%s, stream %d", frameKinds[k], stream)
	return s
}

// on is s on another socket.
func on(socket string, s step) step {
	s.Socket = socket
	return s
}

func handshake(name, socket, target, bearer string) step {
	return httpHead(name, socket, "agent", "GET "+target+" HTTP/1.1",
		"Host: edge.example.com", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: "+handshakeKey,
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: "+Subprotocol, "Authorization: Bearer "+bearer)
}

func switched(name, socket string) step {
	return httpHead(name, socket, "edge", "HTTP/1.1 101 Switching Protocols",
		"Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: "+acceptValue, "Sec-WebSocket-Protocol: "+Subprotocol)
}

func httpHead(name, socket, from string, lines ...string) step {
	head := strings.Join(lines, "\r\n") + "\r\n\r\n"
	return step{Name: name, Socket: socket, From: from, Kind: "http", Payload: head, Hex: hex.EncodeToString([]byte(head))}
}

func message(name, from string, m Message) step {
	return frame(name, "control", from, "text", string(Encode(m)))
}

func closing(name, socket, from string, code int, reason string) step {
	s := frame(name, socket, from, "close", string([]byte{byte(code >> 8), byte(code)})+reason)
	s.Payload, s.Code = reason, code
	return s
}

// frame spells a whole message in one frame: FIN and opcode, MASK and length, the
// key, the payload. The agent is the WebSocket client, which masks.
func frame(name, socket, from, kind, payload string) step {
	opcode := map[string]byte{"text": 0x1, "binary": 0x2, "close": 0x8, "ping": 0x9, "pong": 0xa}[kind]
	b := []byte{0x80 | opcode}
	mask := byte(0)
	if from == "agent" {
		mask = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = append(b, mask|126, byte(n>>8), byte(n))
	default:
		panic("no message of the transcript is that long")
	}
	if mask != 0 {
		b = append(b, maskKey[:]...)
		for i := range len(payload) {
			b = append(b, payload[i]^maskKey[i%4])
		}
	} else {
		b = append(b, payload...)
	}
	return step{Name: name, Socket: socket, From: from, Kind: kind, Payload: payload, Hex: hex.EncodeToString(b)}
}

// TestTranscriptDecodes reads the messages of the transcript back, in case the
// one who wrote them and the one who encodes them agree on what is wrong.
func TestTranscriptDecodes(t *testing.T) {
	for i, s := range slices.Concat(transcript(t), transcriptEarly(t), transcriptInline(t)) {
		if s.Frame != "" {
			if _, _, _, err := ParseFrame([]byte(s.Payload)); err != nil {
				t.Errorf("step %d: %v", i+1, err)
			}
		}
		if s.Kind == "text" {
			if _, err := Decode([]byte(s.Payload)); err != nil {
				t.Errorf("step %d: %v", i+1, err)
			}
		}
		if target, ok := strings.CutPrefix(s.Payload, "GET "+ControlPath+"?"); ok && s.Kind == "http" {
			query, _, _ := strings.Cut(target, " ")
			if _, err := ParseHello(query); err != nil {
				t.Errorf("step %d: %v", i+1, err)
			}
		}
	}
}

// TestTranscriptDocumented holds the last section of docs/protocol.md to the
// transcripts. With -update it writes them.
func TestTranscriptDocumented(t *testing.T) {
	checkTranscript(t, "transcript", transcript(t))
	checkTranscript(t, "transcript with early", transcriptEarly(t))
	checkTranscript(t, "transcript with inline", transcriptInline(t))
}

func checkTranscript(t *testing.T, name string, steps []step) {
	t.Helper()
	begin, end := "<!-- "+name+": go test ./tunnelcore/wire -update -->\n", "<!-- end of "+name+" -->\n"
	path := filepath.Join("..", "..", "docs", "protocol.md")
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := bytes.Cut(doc, []byte(begin))
	got, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the %s", path, name)
	}
	want := []byte(readable(steps))
	if bytes.Equal(got, want) {
		return
	}
	if !golden.Update() {
		t.Fatalf("%s shows another %s than testdata; go test -update", path, name)
	}
	doc = bytes.Join([][]byte{before, []byte(begin), want, []byte(end), after}, nil)
	if err := os.WriteFile(path, doc, 0o644); err != nil {
		t.Fatal(err)
	}
}

// readable is the transcript in Markdown: HTTP as text, frames as text and hex.
func readable(steps []step) string {
	var b strings.Builder
	for i, s := range steps {
		to := map[string]string{"agent": "edge", "edge": "agent"}[s.From]
		fmt.Fprintf(&b, "%d. %s → %s, %s socket: %s\n\n", i+1, s.From, to, s.Socket, s.Name)
		b.WriteString("   ```\n")
		if s.Kind == "http" {
			for line := range strings.SplitSeq(strings.TrimSuffix(s.Payload, "\r\n"), "\r\n") {
				b.WriteString(strings.TrimRight("   "+line, " ") + "\n")
			}
			b.WriteString("   ```\n\n")
			continue
		}
		what := s.Kind
		if s.Frame != "" {
			what += " (" + s.Frame + ")"
		}
		if s.Code != 0 {
			what += fmt.Sprintf(" %d", s.Code)
		}
		if s.Payload != "" {
			what += ": " + spelled(s.Payload)
		} else if s.Code == 0 {
			what += ", empty"
		}
		fmt.Fprintf(&b, "   %s\n", what)
		raw := s.Hex
		for len(raw) > 0 {
			n := min(len(raw), 64)
			fmt.Fprintf(&b, "   %s\n", spaced(raw[:n]))
			raw = raw[n:]
		}
		b.WriteString("   ```\n\n")
	}
	return b.String()
}

// spelled is a payload on one line: what is not printable ASCII as in C.
func spelled(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\n':
			b.WriteString(`\n`)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// spaced puts a space between two bytes of hex.
func spaced(digits string) string {
	var b strings.Builder
	for i := 0; i < len(digits); i += 2 {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(digits[i : i+2])
	}
	return b.String()
}
