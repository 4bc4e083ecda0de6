package c_test

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The C compiler that the tests use, and what it is told: sanitizers end the
// program with what they find.
var compiler = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "iott")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "puppet")
	out, err := exec.Command("cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-g", "-O1",
		"-fsanitize=address,undefined,bounds-strict", "-fno-sanitize-recover=all", "-o", bin, "../puppet/puppet.c", "../iott.c", "../iott_bridge.c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cc: %w\n%s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if bin, err := compiler(); err == nil {
		os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(status)
}

// puppet is a client whose system, clock and program are the test.
type puppet struct {
	t    *testing.T
	in   io.WriteCloser
	out  *bufio.Reader
	sent map[int]string // hex of what the client has sent on a socket and no one has looked at
	said []string       // other lines that no one has looked at
	now  int
}

// newPuppet starts a client of the profile, with `init`'s further arguments. A command
// runs it otherwise than with sanitizers.
func newPuppet(t *testing.T, init string, command ...string) *puppet {
	t.Helper()
	p := start(t, command...)
	p.do("init %s", init)
	if line := p.next(); !strings.HasSuffix(line, " ok") {
		t.Fatalf("init: %s", line)
	}
	return p
}

// start is newPuppet without `init`.
func start(t *testing.T, command ...string) *puppet {
	t.Helper()
	if len(command) == 0 {
		bin, err := compiler()
		if err != nil {
			t.Fatal(err)
		}
		command = []string{bin}
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &puppet{t: t, in: in, out: bufio.NewReaderSize(out, 1<<20), sent: make(map[int]string), now: 1000}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("client: %v", err)
		}
	})
	return p
}

// do has the puppet carry out one command.
func (p *puppet) do(format string, args ...any) {
	p.t.Helper()
	fmt.Fprintf(p.in, format+"\n", args...)
	for {
		line, err := p.out.ReadString('\n')
		if err != nil {
			p.t.Fatalf("the client has died after %q", fmt.Sprintf(format, args...))
		}
		line = strings.TrimSuffix(line, "\n")
		var sock int
		var data string
		switch n, _ := fmt.Sscanf(line, "sent %d %s", &sock, &data); {
		case line == ".":
			return
		case n == 2:
			p.sent[sock] += data
		case strings.HasPrefix(line, "wait "):
		default:
			p.said = append(p.said, line)
		}
	}
}

// poll lets the client act after ms milliseconds.
func (p *puppet) poll(ms int) {
	p.t.Helper()
	p.now += ms
	p.do("poll %d", p.now)
}

// next is the oldest line that the client has said.
func (p *puppet) next() string {
	p.t.Helper()
	if len(p.said) == 0 {
		return ""
	}
	line := p.said[0]
	p.said = p.said[1:]
	return line
}

// expect reads one line and wants it to be this.
func (p *puppet) expect(want string) {
	p.t.Helper()
	if got := p.next(); got != want {
		p.t.Fatalf("client said %q, want %q", got, want)
	}
}

// await reads lines up to this one.
func (p *puppet) await(want string) {
	p.t.Helper()
	for line := p.next(); line != want; line = p.next() {
		if line == "" {
			p.t.Fatalf("client did not say %q", want)
		}
	}
}

// takeSent returns what was sent on a socket, and forgets it.
func (p *puppet) takeSent(sock int) string {
	s := p.sent[sock]
	delete(p.sent, sock)
	return s
}

// feed gives the client bytes of the edge.
func (p *puppet) feed(sock int, hexed string) {
	p.t.Helper()
	p.do("feed %d %s", sock, hexed)
}

// text is a frame of the edge with a text message.
func text(payload string) string { return message(0x81, []byte(payload)) }

func message(first byte, payload []byte) string {
	head := []byte{first}
	switch n := len(payload); {
	case n < 126:
		head = append(head, byte(n))
	case n < 1<<16:
		head = append(head, 126, byte(n>>8), byte(n))
	default:
		head = append(head, 127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return hex.EncodeToString(append(head, payload...))
}

// upgraded is the edge's answer to the key of the puppet.
var upgraded = hex.EncodeToString([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Accept: " + puppetAccept + "\r\nSec-WebSocket-Protocol: iottunnel.v1\r\n\r\n"))

const puppetAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" // RFC 6455 §1.3

// ready is what an edge says first.
func ready(caps, more string) string {
	return text(`{"type":"ready","tunnel":"9f86d081884c7d659a2feaa0c55ad015","caps":"` + caps + `","heartbeat_s":25,"label":"k3qz7h5mwx2c4v6b",` +
		`"hostname":"k3qz7h5mwx2c4v6b.devices.example.net","lease_s":2592000,"streams":256,"message_max":65536,` + more +
		`"transfer":"/.iottunnel/v1/transfer?node=edge-1&tunnel=9f86d081884c7d659a2feaa0c55ad015","secret":"60303ae22b998861bce3b28f33eec1be"}`)
}

// up brings a client to where its tunnel is up.
func up(t *testing.T, profile string) *puppet {
	t.Helper()
	p := newPuppet(t, profile+" 2 1024 0 wss://edge.example.com cam-17 cam-17-token 80 22")
	p.up(profile)
	return p
}

// up is up for a client that has connected to nothing yet.
func (p *puppet) up(profile string) {
	p.t.Helper()
	p.poll(0)
	p.expect("dial 0 edge.example.com 443 1")
	p.do("connected 0 1")
	p.poll(1)
	p.feed(0, upgraded)
	caps, more := "", ""
	if profile == "inline" {
		caps, more = "early,inline", `"early":1024,"early_total":2048,`
	}
	p.feed(0, ready(caps, more))
	p.poll(1)
	p.expect("ready k3qz7h5mwx2c4v6b k3qz7h5mwx2c4v6b.devices.example.net 25 256")
	p.takeSent(0)
}

type vector struct {
	Name, Input, Error string
	Expected           map[string]any
}

func load[T any](t *testing.T, name string) (list []T) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../../tunnelcore/wire/testdata", name))
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// closedWith is the end of a client's output when it closed with a code: the
// close frame's payload under the puppet's mask.
func closedWith(code int) string {
	return fmt.Sprintf("888237fa213d%02x%02x", byte(code>>8)^0x37, byte(code)^0xfa)
}

// Every message that the edge may send, and those that it must not (protocol
// §4): the same vectors as the Go agent's.
func TestMessages(t *testing.T) {
	agents := map[string]bool{"refused": true, "attach": true, "attached": true} // what an edge does not send to this agent
	for _, v := range load[vector](t, "messages.json") {
		t.Run(v.Name, func(t *testing.T) {
			kind, _ := v.Expected["type"].(string)
			var parsed struct{ Type string }
			json.Unmarshal([]byte(v.Input), &parsed) // of malformed ones as far as it goes
			if agents[kind] || agents[parsed.Type] {
				t.Skip("no message to an agent without reuse")
			}
			p := up(t, "basic")
			p.feed(0, text(v.Input))
			p.poll(1)
			sent := p.takeSent(0)
			if bad := v.Error == "malformed"; bad != strings.HasSuffix(sent, closedWith(4100)) {
				t.Errorf("the client sent %q", sent)
			}
			switch line := p.next(); {
			case v.Error != "":
			case kind == "ready":
				if want := fmt.Sprintf("ready %s %s %v %v", v.Expected["label"], v.Expected["hostname"], v.Expected["heartbeat_s"], v.Expected["streams"]); line != want {
					t.Errorf("the client said %q, want %q", line, want)
				}
			case kind == "open" && (v.Expected["port"] == 80.0 || v.Expected["port"] == 22.0):
				from, _ := v.Expected["from"].(string)
				if want := fmt.Sprintf("open 0 %v %s", v.Expected["port"], from); line != want {
					t.Errorf("the client said %q, want %q", line, want)
				}
			}
		})
	}
}

type step struct{ Name, Socket, From, Kind, Payload, Hex string }
