// Package socket carries WebSocket messages over a net.Conn.
//
// gorilla/websocket makes the handshakes, and only here; the frames after it are
// read and written by this package (RFC 6455), because a tunnel needs what a
// general library does not give: reads that go on after a deadline, payload that
// is read and masked where it lies, one write per frame, and no buffer kept for
// an idle socket but a small one.
package socket

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Opcode is the kind of a data message (RFC 6455 §5.2).
type Opcode byte

// The data opcodes.
const (
	Text   Opcode = 1
	Binary Opcode = 2
)

const (
	opContinuation = 0
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// maxControl bounds the payload of a control frame (RFC 6455 §5.5).
const maxControl = 125

// Headroom is the most that a frame header takes: WriteInPlace wants that many
// bytes in front of the payload.
const Headroom = 14

// CloseError is how a socket ended: the code and reason of the peer's close
// frame, or CloseAbnormal when there was none.
type CloseError struct {
	Code   int
	Reason string
}

// CloseAbnormal and CloseNoStatus are the codes of RFC 6455 §7.4.1 that no frame
// may carry: the connection ended without a close frame, or with an empty one.
const (
	CloseNoStatus = 1005
	CloseAbnormal = 1006
)

func (e *CloseError) Error() string {
	switch {
	case e.Code == CloseAbnormal:
		return "socket: connection ended without a close frame"
	case e.Reason == "":
		return fmt.Sprintf("socket: closed with code %d", e.Code)
	}
	return fmt.Sprintf("socket: closed with code %d: %s", e.Code, e.Reason)
}

// epoch is what pingAt counts from, on the monotonic clock.
var epoch = time.Now()

// ErrTooBig is ReadMessage's answer to a message above its limit.
var ErrTooBig = errors.New("socket: message too big")

// FrameError says how the peer broke RFC 6455. The socket cannot be read on.
type FrameError struct{ Reason string }

func (e *FrameError) Error() string { return "socket: " + e.Reason }

// Socket is one WebSocket after its handshake. One goroutine may read while
// others write; Next, Read and ReadMessage belong to the reader. Pings are
// answered and close frames echoed by whoever reads.
//
// A read that fails with a deadline may be tried again later, and loses nothing.
// A write that fails in any way leaves the socket unable to write.
type Socket struct {
	conn   net.Conn
	br     *bufio.Reader
	client bool // we mask, and the peer must not; the other way round on the server's side

	// The reader's state.
	op        Opcode // of the message being read
	remaining int64  // bytes of the current frame not read yet
	final     bool   // the current frame is the last of its message
	open      bool   // inside a message: its end was not returned yet
	mask      [4]byte
	readErr   error // sticky, deadlines excepted

	heard atomic.Uint32 // grows with each frame and each piece of payload that came in

	pingAt atomic.Int64 // when the unanswered ping was sent, in ns since epoch; 0: none is
	rtt    atomic.Int64 // of the last ping that was answered, in ns

	// writeMu guards the writing side of conn and the fields below it.
	writeMu      sync.Mutex
	writeErr     error
	writeTimeout time.Duration
	closeSent    bool
	vec          [2][]byte // for writev without an allocation
	bufs         net.Buffers

	// pongMu guards pong, the answer due to the last ping; nil when none is.
	// Held only to copy; taken inside writeMu.
	pongMu  sync.Mutex
	pong    []byte
	pongDue atomic.Bool
}

func newSocket(conn net.Conn, br *bufio.Reader, client bool) *Socket {
	return &Socket{conn: conn, br: br, client: client}
}

// SetWriteTimeout bounds each write from now on; 0 lets writes take as long as
// the peer likes. It is set before the socket is shared.
func (s *Socket) SetWriteTimeout(d time.Duration) { s.writeTimeout = d }

// SetReadDeadline, SetWriteDeadline: as of net.Conn. A write deadline has no
// lasting effect on a socket with a write timeout.
func (s *Socket) SetReadDeadline(t time.Time) error  { return s.conn.SetReadDeadline(t) }
func (s *Socket) SetWriteDeadline(t time.Time) error { return s.conn.SetWriteDeadline(t) }

// LocalAddr and RemoteAddr are those of the connection.
func (s *Socket) LocalAddr() net.Addr  { return s.conn.LocalAddr() }
func (s *Socket) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// Heard is a number that changes whenever something came in.
func (s *Socket) Heard() uint32 { return s.heard.Load() }

// RTT is the round trip of the last ping that was answered; 0 before.
func (s *Socket) RTT() time.Duration { return time.Duration(s.rtt.Load()) }

// Close ends the connection at once, without a close frame.
func (s *Socket) Close() error { return s.conn.Close() }

// Next waits for the next data message and returns its opcode; what is left of
// the current one is skipped. Errors: *CloseError, *FrameError, or the
// connection's.
func (s *Socket) Next() (Opcode, error) {
	for s.open {
		if _, err := s.discard(); err == io.EOF {
			break
		} else if err != nil {
			return 0, err
		}
	}
	if err := s.frame(); err != nil {
		return 0, err
	}
	return s.op, nil
}

// Read reads payload of the current message into p; io.EOF is the message's end.
func (s *Socket) Read(p []byte) (int, error) {
	if err := s.more(); err != nil {
		return 0, err
	}
	if int64(len(p)) > s.remaining {
		p = p[:s.remaining]
	}
	n, err := s.br.Read(p)
	if n > 0 {
		if !s.client {
			s.mask = applyMask(p[:n], s.mask)
		}
		s.remaining -= int64(n)
		s.heard.Add(1)
		return n, nil
	}
	return 0, s.failed(err)
}

// discard skips payload of the current message.
func (s *Socket) discard() (int, error) {
	if err := s.more(); err != nil {
		return 0, err
	}
	n, err := s.br.Discard(int(min(s.remaining, 1<<20)))
	s.remaining -= int64(n)
	if n > 0 {
		// The mask has moved on by n.
		for range n % 4 {
			s.mask[0], s.mask[1], s.mask[2], s.mask[3] = s.mask[1], s.mask[2], s.mask[3], s.mask[0]
		}
		return n, nil
	}
	return 0, s.failed(err)
}

// more makes sure that the current message has unread payload: it goes on to
// continuation frames, and returns io.EOF at the message's end.
func (s *Socket) more() error {
	for s.remaining == 0 {
		if !s.open || s.final {
			s.open = false
			return io.EOF
		}
		if err := s.frame(); err != nil {
			return err
		}
	}
	return nil
}

// ReadMessage reads the next message whole. One longer than limit is ErrTooBig.
func (s *Socket) ReadMessage(limit int) (Opcode, []byte, error) {
	op, err := s.Next()
	if err != nil {
		return 0, nil, err
	}
	var b []byte
	for {
		if s.remaining > int64(limit-len(b)) {
			return 0, nil, ErrTooBig
		}
		if free := cap(b) - len(b); s.remaining > int64(free) {
			b = append(make([]byte, 0, len(b)+int(s.remaining)), b...)
		}
		for s.remaining > 0 {
			n, err := s.Read(b[len(b) : len(b)+int(s.remaining)])
			b = b[:len(b)+n]
			if err != nil {
				return 0, nil, err
			}
		}
		if err := s.more(); err == io.EOF {
			return op, b, nil
		} else if err != nil {
			return 0, nil, err
		}
	}
}

// frame reads headers until that of a data frame, and leaves its payload to
// Read. It takes nothing from the buffer before a header (and a control frame's
// payload) is complete, so that a deadline loses nothing.
func (s *Socket) frame() error {
	if s.readErr != nil {
		return s.readErr
	}
	for {
		head, err := s.br.Peek(2)
		if err != nil {
			return s.failed(err)
		}
		fin, op := head[0]&0x80 != 0, head[0]&0x0f
		masked, code := head[1]&0x80 != 0, head[1]&0x7f
		if reason := s.illegal(head[0], masked, code); reason != "" {
			return s.broken(reason)
		}
		size := 2
		switch code {
		case 126:
			size += 2
		case 127:
			size += 8
		}
		if masked {
			size += 4
		}
		if op >= opClose {
			size += int(code)
		}
		if head, err = s.br.Peek(size); err != nil {
			return s.failed(err)
		}
		length, rest := int64(code), head[2:]
		switch code {
		case 126:
			length, rest = int64(binary.BigEndian.Uint16(rest)), rest[2:]
			if length < 126 {
				return s.broken("length not in its shortest form")
			}
		case 127:
			length, rest = int64(binary.BigEndian.Uint64(rest)), rest[8:]
			if length>>16 <= 0 { // negative: the most significant bit must be 0
				return s.broken("length not in its shortest form")
			}
		}
		if masked {
			copy(s.mask[:], rest)
			rest = rest[4:]
		}
		s.heard.Add(1)
		if op >= opClose {
			if masked {
				applyMask(rest, s.mask)
			}
			err := s.control(op, rest)
			s.br.Discard(size) // cannot fail: those bytes are buffered
			if err != nil {
				return err
			}
			continue
		}
		s.br.Discard(size)
		if op != opContinuation {
			s.op = Opcode(op)
		}
		s.open, s.final, s.remaining = true, fin, length
		return nil
	}
}

// illegal says what RFC 6455 §5.2 has against the first two bytes of a frame.
func (s *Socket) illegal(first byte, masked bool, code byte) string {
	fin, op := first&0x80 != 0, first&0x0f
	switch {
	case first&0x70 != 0:
		return "reserved bits set"
	case masked == s.client:
		return "wrong masking" // §5.1: clients mask, servers do not
	case op >= opClose && op <= opPong:
		if !fin || code > maxControl {
			return "control frame fragmented or too long" // §5.5
		}
	case op > byte(Binary):
		return "unknown opcode"
	case op == opContinuation && !s.open:
		return "continuation without a message"
	case op != opContinuation && s.open:
		return "new message inside another"
	}
	return ""
}

// control handles a control frame; its payload is valid until it returns.
func (s *Socket) control(op byte, payload []byte) error {
	switch op {
	case opPing:
		s.answer(payload)
	case opPong:
		if at := s.pingAt.Swap(0); at != 0 {
			s.rtt.Store(int64(time.Since(epoch)) - at)
		}
	case opClose:
		e := &CloseError{Code: CloseNoStatus}
		if len(payload) == 1 {
			return s.broken("close frame of one byte")
		}
		if len(payload) >= 2 {
			e.Code, e.Reason = int(binary.BigEndian.Uint16(payload)), string(payload[2:])
		}
		s.readErr = e
		if s.writeMu.TryLock() { // else a write is under way, and will fail soon
			if !s.closeSent {
				// §5.5.1: echo the code. The peer may be gone already.
				_ = s.writeCloseLocked(e.Code, "", time.Second)
			}
			s.unlock()
		}
		return e
	}
	return nil
}

// answer sends a pong. The reader must never wait behind a blocked writer, or
// two peers that both do would block each other for ever: when a write is under
// way, the pong follows it.
func (s *Socket) answer(payload []byte) {
	s.pongMu.Lock()
	s.pong = append(s.pong[:0], payload...) // only the last one counts (§5.5.3)
	s.pongMu.Unlock()
	s.pongDue.Store(true)
	if s.writeMu.TryLock() {
		s.unlock()
	}
}

// broken records and announces a violation of RFC 6455.
func (s *Socket) broken(reason string) error {
	s.readErr = &FrameError{reason}
	if s.writeMu.TryLock() {
		_ = s.writeCloseLocked(wire.CloseProtocol, reason, time.Second) // best effort: the peer is faulty
		s.unlock()
	}
	return s.readErr
}

// failed makes the connection's error the reader's. Deadlines do not stick.
func (s *Socket) failed(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		err = &CloseError{Code: CloseAbnormal}
	}
	s.readErr = err
	return err
}
