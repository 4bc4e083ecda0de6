package tunnelcore

import (
	"net/netip"
	"time"
)

// The kinds of a Visit.
const (
	VisitTCP     = "tcp"     // at a public port
	VisitSNI     = "sni"     // by TLS for LABEL--PORT.domain
	VisitConnect = "connect" // by a grant, at ConnectPath
)

// Visit is a visitor's connection to a device that is over.
type Visit struct {
	Kind   string
	Device string
	Port   uint16
	From   netip.AddrPort // port 0: not known
	Grant  string         // id of the grant that let it in, if one did
	By     string         // who made that grant
	Began  time.Time
	// In and Out are the bytes that the visitor has sent and got.
	In, Out int64
	Err     error // how it ended; nil: both sides have
}

// audit tells the host of a visit, if it wants to know.
func (h *Hub) audit(v Visit) {
	if f := h.settings.Load().Audit; f != nil {
		f(v)
	}
}
