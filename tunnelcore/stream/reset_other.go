//go:build !unix

package stream

import "net"

// wasReset is for systems that report a reset to one call only.
func wasReset(net.Conn) bool { return false }
