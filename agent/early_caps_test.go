package agent

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// The capabilities that an edge may echo, whatever the agent has offered: a stream
// works with all.
func TestCapabilities(t *testing.T) {
	const (
		basic = iota
		early
		inline
	)
	offers := map[Profile]wire.Caps{
		ProfileFull:   wire.Redirect | wire.Early | wire.Reuse,
		ProfileBasic:  wire.Redirect,
		ProfileInline: wire.Redirect | wire.Early | wire.Inline,
	}
	for _, test := range []struct {
		echo string
		how  map[Profile]int
	}{
		{"", nil},
		{"redirect", nil},
		{"reuse", nil},
		{"inline", nil},
		{"reuse,inline", nil},
		{"something,else", nil},
		{"early", map[Profile]int{ProfileFull: early, ProfileInline: early}},
		{"early,reuse", map[Profile]int{ProfileFull: early, ProfileInline: early}},
		{"early,inline", map[Profile]int{ProfileFull: early, ProfileInline: inline}},
		{"redirect,early,reuse,inline,future", map[Profile]int{ProfileFull: early, ProfileInline: inline}},
	} {
		for profile, offered := range offers {
			t.Run(string(profile)+"/"+test.echo, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					x := startEarly(t, profile, test.echo)
					if h := x.hello; h.Caps != offered || (h.Early == 65536) != h.Caps.Has(wire.Early) || (h.EarlyTotal == 1<<20) != h.Caps.Has(wire.Early) {
						t.Errorf("hello %+v", h)
					}
					if test.how[profile] == basic {
						s := x.edge.open(x.edgeTunnel, "7")
						c := receive(t, x.accepted)
						defer c.Close()
						write(t, c, "hello")
						b := make([]byte, 5)
						if _, err := io.ReadFull(s, b); err != nil || string(b) != "hello" {
							t.Errorf("read %q, %v", b, err)
						}
						x.frame(wire.FrameData, 1, "what is this") // there are no frames
						if code := receive(t, x.bye); code != wire.CloseMalformed {
							t.Errorf("closed with %d after a frame", code)
						}
						return
					}
					c := x.open(1, 65536)
					write(t, c, "hello")
					x.expect(1, "hello")
					if test.how[profile] == early {
						x.transfer(1)
						x.expectFrame(wire.FrameMove, 1)
					} else {
						time.Sleep(time.Minute)
						if len(x.edge.transfers) != 0 {
							t.Error("a transfer socket with inline")
						}
					}
					c.Close()
				})
			})
		}
	}
}

// Capabilities and bounds stay what the first ready said.
func TestCapabilitiesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		x.greetWith("", "900")
		c := x.open(1, 65536)
		write(t, c, "early")
		x.expect(1, "early")
	})
}
