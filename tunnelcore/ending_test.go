package tunnelcore

import (
	"io"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

func TestCloseCode(t *testing.T) {
	lost := func(err error) string { return whyLost + err.Error() }
	for why, want := range map[string]int{
		whyGoodbye:                1000,
		whyWithdrawn:              4003,
		whyReplaced:               4001,
		whyExpired:                4102,
		whyStopping:               1012,
		whyBadFrame:               4100,
		whyHandshake:              1006,
		registry.WhyNodeGone:      1006,
		lost(io.ErrUnexpectedEOF): 1006,
		lost(&socket.CloseError{Code: socket.CloseAbnormal}):             1006,
		lost(&socket.CloseError{Code: 4100}):                             4100,
		lost(&socket.CloseError{Code: 1011, Reason: "out of memory: 7"}): 1011,
		"something of another release":                                   0,
		"":                                                               0,
	} {
		if got := CloseCode(why); got != want {
			t.Errorf("%q: %d, want %d", why, got, want)
		}
	}
}
