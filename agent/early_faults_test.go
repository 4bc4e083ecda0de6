package agent

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// An edge that breaks the rules of a stream loses it; one that breaks those of the
// tunnel, or the former again and again, loses the tunnel.
func TestEarlyViolations(t *testing.T) {
	reset := map[string]func(*early){
		"more than the credit": func(x *early) { x.send(1, strings.Repeat("x", 1001)) },
		"data after the end":   func(x *early) { x.frame(wire.FrameFin, 1, ""); x.send(1, "x") },
		"two ends":             func(x *early) { x.frame(wire.FrameFin, 1, ""); x.frame(wire.FrameFin, 1, "") },
		"credit":               func(x *early) { x.frame(wire.FrameCredit, 1, "\x00\x00\x00\x01") },
		"another kind":         func(x *early) { x.frame(99, 1, "what is this") },
	}
	for name, breach := range reset {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse")
				c, other := x.open(1, 1000), x.open(2, 1000)
				breach(x)
				x.expectFrame(wire.FrameReset, 1)
				for err := error(nil); err == nil; {
					if _, err = c.Read(make([]byte, 2000)); err != nil && err != io.EOF && !errors.Is(err, ErrAborted) {
						t.Error(err)
					}
				}
				write(t, other, "unharmed")
				x.expect(2, "unharmed")
				x.send(1, "crossing") // ignored
				x.frame(wire.FrameReset, 1, "")
				x.settled(1)
			})
		})
	}
	ends := map[string]func(*early){
		"a frame that is none": func(x *early) { x.WriteMessage(socket.Binary, []byte("\x01\x00\x00")) },
		"a frame that is too long": func(x *early) {
			x.WriteMessage(socket.Binary, append([]byte("\x01\x00\x00\x00\x01"), make([]byte, 4097)...))
		},
		"a number in use": func(x *early) { x.openEarly(1, 7, 1000) },
		"too much credit": func(x *early) { x.openEarly(2, 7, 65537) },
		"again and again": func(x *early) {
			for n := uint32(10); n < 100; n++ {
				x.WriteMessage(socket.Text, wire.Encode(&wire.Open{Stream: n, ID: idOf(n), Port: 7}))
				x.WriteMessage(socket.Binary, append(wire.AppendFrameHeader(nil, wire.FrameData, n), 'x'))
			}
		},
	}
	for name, breach := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse")
				c := x.open(1, 1000)
				breach(x)
				if code := receive(t, x.bye); code != wire.CloseMalformed {
					t.Errorf("closed with %d", code)
				}
				readEnd(t, c, ErrAborted)
			})
		})
	}
	for name, early := range map[string]string{"no bounds": "", "more than was asked for": `"early":65537,`} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "")
				x.Close()
				next := receive(t, x.edge.tunnels)
				next.say(strings.Replace(readyText("early", "900"), `"early":65536,`, early, 1))
				if code := receive(t, next.bye); code != wire.CloseMalformed {
					t.Errorf("closed with %d", code)
				}
			})
		})
	}
}
