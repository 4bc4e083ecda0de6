package tunnelcore

import (
	"fmt"
	"strings"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Reasons for which tunnels end, as registries keep them. What is not among them is
// whyLost and an error.
const (
	whyLost       = "connection lost: "
	whyHandshake  = "connection lost during the handshake"
	whyGoodbye    = "agent said goodbye"
	whyWithdrawn  = "authorisation withdrawn"
	whyExpired    = "credential expired"
	whyOperator   = "ended by an operator"
	whyCut        = "disconnected by an operator"
	whyRenamed    = "hostnames have changed"
	whyStopping   = "edge is stopping"
	whyTaken      = "another process has this node's id"
	whyLapsed     = "the lease has run out"
	whyReplaced   = "replaced by a newer tunnel"
	whyNoBinary   = "binary message without a capability for it"
	whyBadFrame   = "malformed frame"
	whyBadMessage = "malformed message"
	whyLong       = "message longer than 4096 bytes"
)

var closeCodes = map[string]int{
	whyHandshake:         socket.CloseAbnormal,
	registry.WhyNodeGone: socket.CloseAbnormal,
	whyGoodbye:           wire.CloseNormal,
	whyWithdrawn:         wire.CloseRevoked,
	whyExpired:           wire.CloseExpired,
	whyOperator:          wire.CloseRestart,
	whyCut:               wire.CloseRestart,
	whyRenamed:           wire.CloseRestart,
	whyStopping:          wire.CloseRestart,
	whyTaken:             wire.CloseRestart,
	whyLapsed:            wire.CloseRestart,
	whyReplaced:          wire.CloseReplaced,
	whyNoBinary:          wire.CloseMalformed,
	whyBadFrame:          wire.CloseMalformed,
	whyBadMessage:        wire.CloseMalformed,
	whyLong:              wire.CloseTooBig,
}

// CloseCode is the close code (protocol §5.5) with which a tunnel has ended whose
// registry.Record tells why: 1006 when nobody closed it, 0 when a node of another
// release has a reason that this one does not know.
func CloseCode(why string) int {
	code, known := closeCodes[why]
	lost, isLost := strings.CutPrefix(why, whyLost)
	switch {
	case known:
		return code
	case !isLost:
		return 0
	}
	if _, err := fmt.Sscanf(lost, socket.ClosedWithCode, &code); err != nil {
		return socket.CloseAbnormal
	}
	return code
}
