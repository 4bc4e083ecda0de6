package c_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestModel has bytes go both ways in pieces of any size, through a network that takes little
// at a time or nothing, with a service that takes little, and visitors that reset. Whatever
// happens, service and visitor get what the other has sent, in order and once, up to its end
// or a break; nobody sends more than the window; and each stream leaves its place to another.
func TestModel(t *testing.T) {
	for _, profile := range []string{"basic", "inline"} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprint(profile, " ", seed), func(t *testing.T) {
				t.Parallel()
				m := &model{t: t, random: rand.New(rand.NewPCG(seed, 1)), p: up(t, profile), inline: profile == "inline",
					cut: make(map[int]bool), slots: make(map[int]*visitor), sent: make(map[int][]byte), to: make(map[int]string)}
				for range 300 {
					for i, v := range m.visitors {
						if v == nil || v.ended {
							m.visitors[i] = m.arrive()
						}
					}
					m.p.do("room %d", []int{0, 1, 7, 100, 4096}[m.random.IntN(5)])
					m.p.do("take %d", []int{0, 1, 100, 4096}[m.random.IntN(4)])
					m.step(m.random.IntN(300), m.random.IntN(20))
				}
				for range 300 { // let all of them end
					m.p.do("room 4096")
					m.p.do("take 4096")
					m.step(1<<20, 1)
				}
				for _, v := range m.visitors {
					if !v.ended {
						t.Errorf("stream %d goes on: %d of %d bytes to the service, %d of %d from it", v.number, len(v.got), len(v.up), len(v.answer), len(v.down))
					}
				}
				if m.number < 6 {
					t.Errorf("only %d streams", m.number)
				}
			})
		}
	}
}

// model is an edge with two visitors, and the service behind a client.
type model struct {
	t        *testing.T
	random   *rand.Rand
	p        *puppet
	inline   bool
	visitors [2]*visitor
	number   int
	cut      map[int]bool     // streams that visitors have reset
	slots    map[int]*visitor // what the client calls them
	waiting  []*visitor       // opened, in the order of their opens
	to       map[int]string   // hex of the edge, and not fed yet, by socket
	sent     map[int][]byte   // of the client, and not understood yet
}

// visitor is one stream.
type visitor struct {
	number, slot, sock int
	joined             bool   // the transfer socket's request has come
	up, got            []byte // what the visitor sends, and what of it the service was given
	down, answer       []byte // what the service sends, and what of it the visitor was given
	fed, written       int    // how much of up is on the wire, and of down in the client
	credit, room, owed int    // inline: what the edge may send, the client may send, and the edge owes it
	resets             int    // the visitor resets when so much is fed; -1: never
	upEnded, finished  bool
	cut, over, ended   bool // reset; the program was told; both sides agree that it is over
	answered           bool // the end of down has come
}

func (m *model) bytes(most int) []byte {
	b := make([]byte, 1+m.random.IntN(most))
	for i := range b {
		b[i] = byte(m.random.Uint32())
	}
	return b
}

// arrive opens a stream.
func (m *model) arrive() *visitor {
	m.number++
	v := &visitor{number: m.number, slot: -1, sock: -1, up: m.bytes(4000), down: m.bytes(4000), credit: 1024, room: 1024, resets: -1}
	if m.random.IntN(3) == 0 {
		v.resets = m.random.IntN(len(v.up))
	}
	early := ""
	if m.inline {
		early = `,"early":1024`
	}
	m.to[0] += open(v.number, early)
	m.waiting = append(m.waiting, v)
	return v
}

// frame is a frame of a visitor's stream on the control socket.
func (v *visitor) frame(kind byte, payload []byte) string {
	return message(0x82, append([]byte{kind, 0, 0, byte(v.number >> 8), byte(v.number)}, payload...))
}

// step has everybody do something, and the client act on at most n bytes of each socket.
func (m *model) step(n, ms int) {
	m.t.Helper()
	for _, v := range m.visitors {
		if !v.ended && (m.inline || v.joined) {
			m.send(v)
		}
		if !v.over && v.slot >= 0 {
			m.serve(v)
		}
	}
	if m.random.IntN(3) == 0 { // its pong takes room that others want
		m.to[0] += message(0x89, make([]byte, 125))
	}
	for sock, wire := range m.to {
		k := min(len(wire)/2, n)
		m.p.feed(sock, wire[:2*k])
		m.to[sock] = wire[2*k:]
	}
	m.p.poll(ms)
	m.said()
	for sock := range m.p.sent {
		raw, err := hex.DecodeString(m.p.takeSent(sock))
		if err != nil {
			m.t.Fatal(err)
		}
		m.sent[sock] = append(m.sent[sock], raw...)
	}
	for sock := range m.sent {
		m.understand(sock)
	}
}

// send is what a visitor and its edge do.
func (m *model) send(v *visitor) {
	if m.inline && v.owed > 0 && m.random.IntN(2) == 0 {
		m.to[0] += v.frame(5, []byte{0, 0, byte(v.owed >> 8), byte(v.owed)})
		v.room += v.owed
		v.owed = 0
	}
	switch n := min(len(v.up)-v.fed, 1+m.random.IntN(500)); {
	case v.cut || v.upEnded:
	case v.resets >= 0 && v.fed >= v.resets:
		v.cut, m.cut[v.number] = true, true
		if m.inline {
			m.to[0] += v.frame(3, nil)
		} else {
			m.p.do("broken %d", v.sock)
			delete(m.to, v.sock)
		}
	case n == 0:
		v.upEnded = true
		if m.inline {
			m.to[0] += v.frame(2, nil)
		} else {
			m.to[v.sock] += "8200"
		}
	case m.inline:
		if n = min(n, v.credit); n > 0 {
			m.to[0] += v.frame(1, v.up[v.fed:v.fed+n])
			v.fed += n
			v.credit -= n
		}
	default:
		m.to[v.sock] += message(0x82, v.up[v.fed:v.fed+n])
		v.fed += n
	}
}

// serve is what the service does.
func (m *model) serve(v *visitor) {
	if v.written == len(v.down) {
		if !v.finished {
			m.p.do("finish %d", v.slot)
		}
		v.finished = true
		return
	}
	n := min(len(v.down)-v.written, 1+m.random.IntN(700))
	m.p.do("write %d %s", v.slot, hex.EncodeToString(v.down[v.written:v.written+n]))
	last := len(m.p.said) - 1
	if _, err := fmt.Sscanf(m.p.said[last], "wrote %d", &n); err != nil {
		m.t.Fatalf("the client said %q", m.p.said[last])
	}
	m.p.said = m.p.said[:last]
	v.written += n
}

// said follows what the client tells its program.
func (m *model) said() {
	m.t.Helper()
	for line := m.p.next(); line != ""; line = m.p.next() {
		var n int
		var word, rest string
		fmt.Sscanf(line, "%s %d %s", &word, &n, &rest)
		switch v := m.slots[n]; word {
		case "open":
			v, m.waiting = m.waiting[0], m.waiting[1:]
			m.slots[n], v.slot = v, n
		case "dial":
			for _, v := range m.visitors {
				if v.slot >= 0 && v.sock < 0 {
					v.sock = n
					m.p.do("connected %d 1", n)
					m.to[n] = upgraded
				}
			}
		case "data":
			piece, err := hex.DecodeString(rest)
			if err != nil || !bytes.HasPrefix(v.up[len(v.got):], piece) || v.over {
				m.t.Fatalf("the service of stream %d got other bytes after %d of %d", v.number, len(v.got), len(v.up))
			}
			v.got = append(v.got, piece...)
		case "end":
			if !v.upEnded || len(v.got) != len(v.up) {
				m.t.Fatalf("the service of stream %d got %d of %d bytes, and an end", v.number, len(v.got), len(v.up))
			}
		case "over", "abort":
			if v.cut != (word == "abort") {
				m.t.Fatalf("stream %d, reset %v: %s after %d of %d bytes", v.number, v.cut, word, len(v.got), len(v.up))
			}
			v.over = true
			v.ended = v.cut || v.answered && m.inline
		case "writable", "closed":
		default:
			m.t.Fatalf("the client said %q", line)
		}
	}
}

// understand takes whole frames out of what the client has sent on a socket.
func (m *model) understand(sock int) {
	m.t.Helper()
	var v *visitor
	for _, each := range m.visitors {
		if sock > 0 && each.sock == sock {
			v = each
		}
	}
	if sock > 0 && (v == nil || v.cut) {
		delete(m.sent, sock)
		return
	}
	if v != nil && !v.joined {
		_, rest, whole := bytes.Cut(m.sent[sock], []byte("\r\n\r\n"))
		if !whole {
			return
		}
		v.joined, m.sent[sock] = true, rest
	}
	for {
		r := bytes.NewReader(m.sent[sock])
		opcode := byte(0)
		if r.Len() > 0 {
			opcode = m.sent[sock][0] & 15
		}
		payload, err := readMasked(r)
		if err != nil {
			return // not there yet
		}
		m.sent[sock] = m.sent[sock][len(m.sent[sock])-r.Len():]
		switch {
		case opcode == 10:
		case v != nil && opcode == 8:
			if !v.answered || !v.upEnded || hex.EncodeToString(payload) != "03e8" {
				m.t.Fatalf("stream %d: close frame %x", v.number, payload)
			}
			v.ended = true
			m.to[sock] += "880203e8"
		case v != nil:
			m.answer(v, payload, len(payload) == 0)
		case opcode == 2 && len(payload) >= 5:
			for _, each := range m.visitors {
				if each.number == int(payload[3])<<8|int(payload[4]) && !each.cut {
					m.frame(each, payload[0], payload[5:])
				}
			}
		default:
			var number int
			fmt.Sscanf(string(payload), `{"type":"refused","stream":%d,`, &number)
			if m.inline || !m.cut[number] { // before the client has read the answer to its handshake
				m.t.Fatalf("the client sent %d %q", opcode, payload)
			}
		}
	}
}

// frame is a frame of the client on the control socket.
func (m *model) frame(v *visitor, kind byte, payload []byte) {
	m.t.Helper()
	switch kind {
	case 1, 2:
		v.room -= len(payload)
		v.owed += len(payload)
		if v.room < 0 {
			m.t.Fatalf("stream %d: %d bytes more than the window", v.number, -v.room)
		}
		m.answer(v, payload, kind == 2)
	case 5:
		v.credit += int(payload[2])<<8 | int(payload[3])
		if v.credit > 1024 {
			m.t.Fatalf("stream %d: credit beyond the window", v.number)
		}
	default:
		m.t.Fatalf("stream %d: a frame of kind %d", v.number, kind)
	}
}

// answer is a piece of what the service sends, or its end.
func (m *model) answer(v *visitor, piece []byte, end bool) {
	m.t.Helper()
	if v.answered || !bytes.HasPrefix(v.down[len(v.answer):], piece) {
		m.t.Fatalf("the visitor of stream %d got other bytes after %d of %d", v.number, len(v.answer), len(v.down))
	}
	v.answer = append(v.answer, piece...)
	if !end {
		return
	}
	if len(v.answer) != len(v.down) {
		m.t.Fatalf("the visitor of stream %d got %d of %d bytes, and an end", v.number, len(v.answer), len(v.down))
	}
	v.answered = true
	v.ended = m.inline && v.over
}
