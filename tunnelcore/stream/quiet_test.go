package stream

import (
	"io"
	"testing"
)

func TestQuiet(t *testing.T) {
	ends := map[string]func(*Stream){
		"data":  func(c *Stream) { io.WriteString(c, "late") },
		"end":   func(c *Stream) { c.CloseWrite() },
		"abort": (*Stream).Abort,
	}
	check := func(t *testing.T, a, b *Stream, end func(*Stream)) {
		t.Helper()
		for range 2 {
			io.WriteString(b, "answer")
			if _, err := io.ReadFull(a, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			if !a.Quiet() {
				t.Error("not quiet, and all was read")
			}
		}
		end(b)
		wait(t, "the peer is heard", func() bool { return !a.Quiet() })
	}
	for name, end := range ends {
		t.Run("transfer socket/"+name, func(t *testing.T) {
			a, b := pair(t, "tcp", Options{})
			check(t, a, b, end)
		})
		t.Run("control socket/"+name, func(t *testing.T) {
			l := newLink(t, "tcp", MuxOptions{}, false)
			a, n := l.open(100)
			io.WriteString(a, "request")
			check(t, a, l.accept(n), end)
		})
	}
	a, _ := pair(t, "tcp", Options{})
	a.Close()
	if a.Quiet() {
		t.Error("quiet when closed")
	}
}
