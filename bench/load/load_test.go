//go:build linux

package load

import (
	"strings"
	"testing"
	"time"
)

func TestAnswer(t *testing.T) {
	whole := "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX: y\r\n\r\nhello"
	for size := 1; size <= len(whole); size++ { // however it is cut
		var a answer
		for at := 0; at < len(whole); at += size {
			piece := whole[at:min(at+size, len(whole))]
			done, err := a.take([]byte(piece))
			if err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
			if done != (at+size >= len(whole)) {
				t.Fatalf("pieces of %d: whole is %v after %d bytes", size, done, at+len(piece))
			}
		}
	}
	for _, bad := range []string{
		"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n",
		whole + "more",
		strings.Repeat("x", 3000),
	} {
		if _, err := new(answer).take([]byte(bad)); err == nil {
			t.Errorf("no error of %.60q", bad)
		}
	}
}

// startService is the service within the test's process, for as long as that runs.
func startService(t *testing.T) Target {
	t.Helper()
	listener, at, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process
		if err := serve(listener); err != nil {
			t.Errorf("service: %v", err)
		}
	}()
	return Target{Addr: at.String(), Host: at.String()}
}

// TestLoads runs each load against the service itself, as a way without anything
// between.
func TestLoads(t *testing.T) {
	target := startService(t)
	probed := 0
	window := Window{Length: 30 * time.Millisecond, Probe: func() CPU { probed++; return CPU{Edge: time.Duration(probed)} }}
	for _, r := range []Requests{{Visitors: 3, Path: "/small"}, {Visitors: 3, Path: "/tiny", Fresh: true}} {
		a, err := r.Run(target, window)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		if a.Count == 0 || len(a.Waits) < a.Count-r.Visitors || len(a.Waits) > a.Count+r.Visitors || a.Took < window.Length || a.CPU.Edge != 1 {
			t.Errorf("%+v: %d answers, %d waits, in %v, CPU %v", r, a.Count, len(a.Waits), a.Took, a.CPU)
		}
	}
	a, err := Requests{Visitors: 4, Each: 3, Path: "/small"}.Run(target, Window{})
	if err != nil || len(a.Earliest) != 12 {
		t.Errorf("4 visitors with 3 requests each: %d first bytes, %v", len(a.Earliest), err)
	}
	for _, b := range []Bulk{{Streams: 2}, {Streams: 2, Up: true}} {
		m, err := b.Run(target, window)
		if err != nil || m.Bytes == 0 || m.Took < window.Length {
			t.Errorf("%+v: %+v, %v", b, m, err)
		}
	}
	for _, hold := range []func(Target, int) (*Held, error){Hold, Stall} {
		h, err := hold(target, 3)
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
	}
	if _, err := (Requests{Visitors: 1, Path: "/other"}).Run(target, window); err == nil {
		t.Error("no error of an answer 404")
	}
}
