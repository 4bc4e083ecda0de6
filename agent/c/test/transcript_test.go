package c_test

import (
	"encoding/hex"
	"strings"
	"testing"
)

// What the document shows byte by byte (protocol §13) happens so.
func TestTranscriptBasic(t *testing.T) { transcriptBasic(t) }

func transcriptBasic(t *testing.T, command ...string) {
	t.Helper()
	p := newPuppet(t, "basic 2 1024 25 wss://edge.example.com cam-17 cam-17-token 80 22", command...)
	p.poll(0)
	p.expect("dial 0 edge.example.com 443 1")
	p.do("connected 0 1")
	sockets := map[string]int{"control": 0, "transfer": 1}
	steps := load[step](t, "transcript.json")
	for i, s := range steps {
		sock := sockets[s.Socket]
		if s.From == "edge" {
			p.feed(sock, s.Hex)
			p.poll(1)
			continue
		}
		switch s.Name {
		case "what the service answers":
			p.do("write 0 %s", hex.EncodeToString([]byte(s.Payload)))
			p.await("wrote 65")
		case "the service has sent everything":
			p.do("finish 0")
		case "nothing listens there":
			p.await("open 0 22 [2001:db8::9]:40000")
			p.do("refuse 0 connection refused")
		case "the agent has reached its port 80 and asks for a transfer socket":
			p.await("dial 1 edge.example.com 443 1")
			p.do("connected 1 1")
		}
		p.poll(1)
		got, want := p.takeSent(sock), s.Hex
		if s.Kind == "http" {
			got, want = request(t, got), request(t, want)
		}
		if got != want {
			t.Fatalf("step %d, %s: the client sent\n%s, want\n%s", i+1, s.Name, got, want)
		}
	}
}

// request brings a handshake into a form in which the order of parameters does not
// matter, nor those that this client always sends.
func request(t *testing.T, hexed string) string {
	t.Helper()
	raw, err := hex.DecodeString(hexed)
	if err != nil {
		t.Fatal(err)
	}
	line, rest, _ := strings.Cut(string(raw), "\r\n")
	target := strings.Fields(line)[1]
	path, query, _ := strings.Cut(target, "?")
	have := make(map[string]string)
	for _, pair := range strings.Split(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if name != "streams" {
			have[name] = value
		}
	}
	var b strings.Builder
	b.WriteString(path)
	for _, name := range []string{"device", "ports", "instance", "caps", "message_max", "early", "heartbeat", "node", "tunnel", "id"} {
		if v, ok := have[name]; ok {
			b.WriteString(" " + name + "=" + v)
			delete(have, name)
		}
	}
	if len(have) > 0 {
		t.Errorf("further parameters: %v", have)
	}
	return b.String() + "\n" + rest
}

func TestTranscriptInline(t *testing.T) { transcriptInline(t) }

func transcriptInline(t *testing.T, command ...string) {
	t.Helper()
	p := newPuppet(t, "inline 2 64 25 wss://edge.example.com cam-17 cam-17-token 80", command...)
	p.poll(0)
	p.expect("dial 0 edge.example.com 443 1")
	p.do("connected 0 1")
	answer, left := "", ""
	steps := load[step](t, "transcript_inline.json")
	for _, s := range steps {
		if s.From == "agent" && s.Kind == "binary" && s.Payload[0] == 1 {
			answer += s.Payload[5:]
		}
	}
	left = hex.EncodeToString([]byte(answer))
	for i, s := range steps {
		if s.From == "edge" {
			p.feed(0, s.Hex)
			p.poll(1)
			continue
		}
		switch s.Name {
		case "as much of the answer as the window holds", "the rest":
			p.do("write 0 %s", left)
			left = left[2*len(s.Payload[5:]):]
		case "that was everything":
			p.do("finish 0")
		}
		p.poll(1)
		got, want := p.takeSent(0), s.Hex
		if s.Kind == "http" {
			got, want = request(t, got), request(t, want)
		}
		if got != want {
			t.Fatalf("step %d, %s: the client sent\n%s, want\n%s", i+1, s.Name, got, want)
		}
	}
	p.await("over 0")
}
