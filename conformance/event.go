package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// event is what came in on a socket: a whole message, a control frame, or the end of
// the connection.
type event struct {
	op   byte
	data []byte
	err  error // of opEnd: io.EOF, or what the connection said
}

// code is that of a close frame: 1005 when it has none, 1006 when the connection
// ended without a frame.
func (e event) code() int {
	switch {
	case e.op == opEnd:
		return 1006
	case len(e.data) < 2:
		return 1005
	}
	return int(binary.BigEndian.Uint16(e.data))
}

func (e event) String() string {
	switch e.op {
	case opText:
		return "text " + quote(e.data)
	case opBinary:
		if k, n, p, err := wire.ParseFrame(e.data); err == nil && n < 1<<16 && k <= wire.FrameCredit {
			return fmt.Sprintf("binary, as a frame: %s of stream %d, %d bytes of payload", kindName(k), n, len(p))
		}
		return fmt.Sprintf("binary of %d bytes: %s", len(e.data), quote(e.data))
	case opClose:
		if len(e.data) < 2 {
			return "a close frame without a code"
		}
		return strings.TrimSuffix(fmt.Sprintf("a close frame with %d %s", e.code(), quote(e.data[2:])), ` ""`)
	case opPing:
		return "ping " + quote(e.data)
	case opPong:
		return "pong " + quote(e.data)
	case opEnd:
		if errors.Is(e.err, io.EOF) {
			return "the end of the connection, without a close frame"
		}
		return fmt.Sprintf("the end of the connection: %v", e.err)
	}
	return fmt.Sprintf("opcode %d, %d bytes", e.op, len(e.data))
}

func kindName(k wire.FrameKind) string {
	names := [...]string{wire.FrameData: "data", wire.FrameFin: "fin", wire.FrameReset: "reset", wire.FrameMove: "move", wire.FrameCredit: "credit"}
	if int(k) < len(names) && names[k] != "" {
		return names[k]
	}
	return fmt.Sprintf("kind %d", k)
}

// quote shows the beginning of b.
func quote(b []byte) string {
	const most = 160
	if len(b) > most {
		return fmt.Sprintf("%q… (%d bytes)", b[:most], len(b))
	}
	return fmt.Sprintf("%q", b)
}
