package c_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
)

// fill has the network take nothing, and the client hold as much for it as it can: pongs.
func (p *puppet) fill() {
	p.t.Helper()
	p.do("room 0")
	for _, n := range []int{125, 125, 125, 125, 125, 43} { // 704 bytes
		p.feed(0, message(0x89, make([]byte, n)))
		p.poll(1)
	}
}

// Credit, and the end of a stream, for which there is no room go when there is.
func TestFullNetwork(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":64`))
	p.poll(1)
	p.takeSent(0)
	p.fill()
	p.feed(0, frameOf(1, 1, strings.Repeat("x", 64)))
	p.poll(1)
	p.do("finish 0")
	p.poll(1)
	p.do("room 4096")
	p.poll(1)
	p.poll(1)
	sent := p.takeSent(0)
	for _, want := range []string{"828937fa213d32fa213d36fa213d77", "828537fa213d35fa213d36"} { // credit of 64, fin
		if strings.Count(sent, want) != 1 {
			t.Errorf("no %s in what the client sent: %s", want, sent)
		}
	}
}

// Where the network takes one frame at a time, streams speak in turn (9.4), though each has
// something to say again at once: here credit.
func TestTurnsOfFrames(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":64`)+open(2, `,"early":64`))
	p.poll(1)
	p.takeSent(0)
	p.fill()
	p.feed(0, frameOf(1, 1, strings.Repeat("x", 64))+frameOf(1, 2, strings.Repeat("y", 64)))
	p.poll(1)
	for _, stream := range []byte{1, 2, 1, 2} {
		p.do("room %d", 2+4+9)
		p.poll(1)
		p.feed(0, frameOf(1, stream, strings.Repeat("x", 64))) // for the credit on its way
		p.poll(1)
	}
	p.do("room 4096")
	p.poll(1)
	credits := ""
	for _, credit := range regexp.MustCompile("828937fa213d32fa213d(..)").FindAllStringSubmatch(p.takeSent(0), -1) {
		credits += credit[1] + " "
	}
	if !strings.HasPrefix(credits, "36 35 36 35 ") {
		t.Errorf("credit came back in the order of %s(36: of the first stream, 35: of the second)", credits)
	}
}

// A program whose streams have all something to write is asked for the bytes of each in turn.
func TestTurnsOfPrograms(t *testing.T) {
	p := up(t, "inline")
	p.feed(0, open(1, `,"early":1024`)+open(2, `,"early":1024`))
	p.poll(1)
	for _, turn := range []struct{ first, then int }{{0, 1}, {1, 0}, {0, 1}} {
		p.do("room 0")
		p.do("write %d %s", turn.first, strings.Repeat("61", 500)) // all the room there is
		p.do("write %d %s", turn.then, strings.Repeat("61", 500))
		p.await("wrote 0")
		p.do("room 4096")
		p.poll(1)
		p.expect(fmt.Sprint("writable ", turn.then))
		p.expect(fmt.Sprint("writable ", turn.first))
	}
}

// The bridge passes on what services send in turn, where the network takes less than the first
// has.
func TestTurnsOfServices(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := start(t)
	p.do("serve 80 %d", ln.Addr().(*net.TCPAddr).Port)
	p.do("init inline 2 1024 0 wss://edge.example.com cam-17 cam-17-token 80")
	p.next()
	p.up("inline")
	p.feed(0, open(1, `,"early":1024`)+open(2, `,"early":1024`))
	p.poll(1)
	for range 2 {
		conn, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(make([]byte, 32<<10)); err != nil {
			t.Fatal(err)
		}
	}
	got := make(map[byte]int)
	var sent []byte
	for got[1]+got[2] < 24<<10 {
		p.do("room 300")
		p.poll(1)
		raw, err := hex.DecodeString(p.takeSent(0))
		if err != nil {
			t.Fatal(err)
		}
		sent = append(sent, raw...)
		for {
			r := bytes.NewReader(sent)
			frame, err := readMasked(r)
			if err != nil {
				break // not all of it has come
			}
			sent = sent[len(sent)-r.Len():]
			if n := len(frame) - 5; n > 0 && frame[0] == 1 {
				got[frame[4]] += n
				p.feed(0, frameOf(5, frame[4], string([]byte{0, 0, byte(n >> 8), byte(n)})))
			}
		}
	}
	if one, two := got[1], got[2]; max(one, two) > 3*min(one, two) {
		t.Errorf("the services sent %d and %d bytes", one, two)
	}
}
