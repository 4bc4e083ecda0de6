// Package wire is the iottunnel protocol, version 1, as data: its paths,
// parameters, messages, error codes, close codes and limits.
//
// It knows no socket and starts no goroutine, so that both ends, and tools that
// only look at traffic, share it. The full text, in numbered rules that the
// comments here cite, is docs/protocol.md.
package wire

import (
	"crypto/rand"
	"encoding/hex"
)

// Paths and names of the handshake (protocol §2).
const (
	// Root is the path under which every version of the protocol lives.
	Root = "/.iottunnel/"
	// ControlPath is where an agent opens its control socket.
	ControlPath = "/.iottunnel/v1/control"
	// TransferPath is where an agent opens a transfer socket.
	TransferPath = "/.iottunnel/v1/transfer"
	// Subprotocol is the value of Sec-WebSocket-Protocol on both sockets.
	Subprotocol = "iottunnel.v1"
	// Versions lists the versions served, separated by commas. It is the value of
	// VersionsHeader in the answer to an unknown one.
	Versions       = "v1"
	VersionsHeader = "Iottunnel-Versions"
)

// Limits that both ends rely on (protocol §8). Bytes, unless the name says
// otherwise.
const (
	// MaxText bounds a text message, `ready` and agents' messages included.
	MaxText = 4096
	// MaxFlat bounds every message from the edge but `ready`, so that a
	// microcontroller can keep one small buffer.
	MaxFlat = 512
	// MaxPorts bounds the ports one device forwards.
	MaxPorts = 32
	// MinMessage and MaxMessage bound the negotiated size of a binary message
	// from the edge; DefaultMessage is in force where the agent names none.
	MinMessage     = 512
	MaxMessage     = 1 << 20
	DefaultMessage = 64 << 10
	// BulkMessage is what ends ask for, and send, that never hold a message whole:
	// its header is the less of the cost, the longer it is.
	BulkMessage = 256 << 10
	// MaxStreams bounds the streams that an agent may offer; DefaultStreams is
	// what an edge allows unless it is configured otherwise.
	MaxStreams     = 65535
	DefaultStreams = 256
	// MaxEarlyTotal bounds the early bytes of all streams that an agent may offer.
	MaxEarlyTotal = 1 << 30
	// DefaultEarly and DefaultEarlyTotal are the early bytes of a stream and of all
	// streams, in each direction, where the agent names none.
	DefaultEarly      = 64 << 10
	DefaultEarlyTotal = 1 << 20
	// MaxParked bounds the parked transfer sockets of a tunnel.
	MaxParked = 8
	// MaxTransfer and MaxSecret bound `transfer` and `secret` of `ready`, so that
	// an agent can keep them in place.
	MaxTransfer = 512
	MaxSecret   = 128
	// MaxFrom bounds `from` of `open`: brackets (2), an IPv6 address (39), % and
	// the name of an interface (16), a colon and a port (6) make 63.
	MaxFrom = 64
	// MaxDrain bounds `within_s` of `drain`: a day, in seconds.
	MaxDrain = 86400
	// MaxReason bounds the reason in `refused` and in a close frame (RFC 6455
	// §5.5: a control frame carries at most 125 bytes, 2 of them the code).
	MaxReason = 123
)

// Heartbeat bounds, in seconds (protocol §5.1).
const (
	MinHeartbeat     = 1
	MaxHeartbeat     = 900
	DefaultHeartbeat = 25
)

// IDLifetime is how long, in seconds, the id of an `open` may be used
// (protocol §6.2).
const IDLifetime = 30

// NewID draws 128 random bits and returns them as 32 lower-case hex digits: the
// form of tunnel ids, instances, stream ids and transfer secrets.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// ValidID reports whether s has the form that NewID gives.
func ValidID(s string) bool {
	if len(s) != 32 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
