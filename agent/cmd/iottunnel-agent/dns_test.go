package main

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// nameServer answers each question with an address, and counts them.
func nameServer(t *testing.T, answers bool) (addr string, asked func() int) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var count int
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			mu.Lock()
			count++
			mu.Unlock()
			if !answers {
				continue
			}
			end := 12
			for b[end] != 0 {
				end += int(b[end]) + 1
			}
			end += 5 // the root, type and class
			answer := append([]byte{b[0], b[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, b[12:min(end, n)]...)
			if b[end-3] == 1 { // A
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 192, 0, 2, 1)
			}
			conn.WriteTo(answer, from)
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return conn.LocalAddr().String(), func() int { mu.Lock(); defer mu.Unlock(); return count }
}

// The first name server that answers is asked from then on.
func TestNameServersTakeOver(t *testing.T) {
	dead, deadAsked := nameServer(t, false)
	live, liveAsked := nameServer(t, true)
	r, err := resolver([]string{dead + "," + live})
	if err != nil {
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		addrs, err := r.LookupHost(ctx, "edge.test.")
		if err != nil || len(addrs) != 1 || addrs[0] != "192.0.2.1" {
			t.Fatalf("%v, %v", addrs, err)
		}
	}
	look()
	before := deadAsked()
	if before == 0 {
		t.Error("the first was not asked")
	}
	look()
	if deadAsked() != before || liveAsked() < 2 {
		t.Errorf("the dead one was asked %d times, then %d; the other %d", before, deadAsked(), liveAsked())
	}
}
