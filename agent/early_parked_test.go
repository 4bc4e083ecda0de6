package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// A parked socket that is dead as it is used, and one that is never answered: the
// stream gets another, and loses nothing.
func TestEarlyParkedIsDead(t *testing.T) {
	for name, test := range map[string]struct {
		edge  func(t *testing.T, s *edgeTransfer)
		after time.Duration
	}{
		"closed by the edge as it is used": {func(_ *testing.T, s *edgeTransfer) { s.ReadMessage(wire.MaxText); s.Close() }, 0},
		"unknown to the edge":              {func(_ *testing.T, s *edgeTransfer) { s.ReadMessage(wire.MaxText); s.WriteClose(1000, "", time.Second) }, 0},
		"never answered":                   {func(_ *testing.T, s *edgeTransfer) { s.ReadMessage(wire.MaxText) }, attachTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse")
				parked := x.park(1)
				go test.edge(t, parked)
				c := x.open(2, 65536)
				began := time.Now()
				write(t, c, "early")
				x.expect(2, "early")
				s := x.transfer(2)
				if d := time.Since(began); d != 20*time.Millisecond+test.after {
					t.Errorf("dialled after %v", d)
				}
				x.expectFrame(wire.FrameMove, 2)
				x.frame(wire.FrameMove, 2, "")
				write(t, c, " and late")
				s.expect(t, " and late")
				c.Close()
				s.expect(t, "")
				s.send(t, "")
				x.settled(0)
			})
		})
	}
}

// park lets a stream end on a transfer socket that is parked then.
func (x *early) park(number uint32) *edgeTransfer {
	x.tb.Helper()
	c := x.open(number, 65536)
	s := x.transfer(number)
	x.expectFrame(wire.FrameMove, number)
	x.frame(wire.FrameMove, number, "")
	s.send(x.tb, "")
	c.Close()
	s.expect(x.tb, "")
	x.settled(0)
	return s
}

// answerAttachOf answers an attach for a stream.
func answerAttachOf(t *testing.T, s *edgeTransfer, number uint32) {
	_, text, err := s.ReadMessage(wire.MaxText)
	if m, derr := wire.Decode(text); err != nil || derr != nil || *m.(*wire.Attach) != (wire.Attach{Stream: number, ID: idOf(number)}) {
		t.Errorf("edge: got %q, %v", text, err)
	}
	s.WriteMessage(socket.Text, wire.Encode(&wire.Attached{Stream: number}))
}

// What is parked goes with its tunnel, and with its secret.
func TestEarlyParkedGoWithTheirSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		s := x.park(1)
		x.greetWith("early,reuse", "900") // again, with the same secret
		c := x.open(2, 65536)
		answerAttachOf(t, s, 2)
		x.expectFrame(wire.FrameMove, 2)
		x.frame(wire.FrameMove, 2, "")
		s.send(t, "")
		c.Close()
		s.expect(t, "")
		x.settled(0)
		x.say(strings.Replace(readyText("early,reuse", "900"), "s3cret", "another", 1))
		if code := goodbye(t, s); code != wire.CloseNormal {
			t.Errorf("with another secret: %d", code)
		}
	})
}
