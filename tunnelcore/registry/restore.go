package registry

import (
	"context"
	"time"
)

// Held is what a live tunnel holds, as its claim was granted and its ports leased.
type Held struct {
	Holder
	Label    string
	Instance string
	Node     NodeRef
	Lease    time.Duration // Claim.Lease
	Ports    map[uint16]uint16
}

// A Restorer is a Registry that can forget what it was told. Whoever owns live
// tunnels listens to Lost and calls Restore with all that they hold.
type Restorer interface {
	// Lost delivers a value when what is held should be written again: the registry
	// has lost data, this node was silent for so long that others may have taken its
	// devices, or it is to be reached elsewhere. Several reasons may come as one value.
	Lost() <-chan struct{}
	// Restore writes again what is held, where it is missing, and returns the
	// holders that have been replaced or released meanwhile. Until it has succeeded
	// after a loss, no new label or port is leased, for 15 s at most, and no holder
	// is told that it is lost unless a newer one is known. It may be called at any
	// time, and again after an error, of which Lost tells anew.
	Restore(ctx context.Context, held []Held) (lost []Holder, err error)
}
