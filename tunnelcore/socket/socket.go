// Package socket carries WebSocket messages over a net.Conn.
//
// The client's handshake is made here, the server's in package accept. The frames
// are read and written here (RFC 6455), because a tunnel needs what a general
// library does not give: reads that go on after a deadline, payload that is read and
// masked where it lies, one write per frame, and no buffer kept for an idle socket
// but a small one.
package socket

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
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

// Sizes of the buffer that a socket reads through. Payload larger than it goes
// past it, straight to the reader.
const (
	// SmallBuffer is for sockets that mostly wait, and the least there is: it
	// holds a control frame, which is at most 131 bytes.
	SmallBuffer = 512
	// StreamBuffer is for sockets that carry one stream at a time: the largest part of
	// what an idle one has on the heap, and enough for most requests.
	StreamBuffer = 1 << 10
	// AnswerBuffer is for such sockets where the answers come in: what a service says to
	// a short request, with its headers, is mostly one read.
	AnswerBuffer = 2 << 10
	// LargeBuffer is for sockets on which the frames of many streams come in swarms.
	LargeBuffer = 4 << 10
)

// CloseError is how a socket ended: the code and reason of the peer's close
// frame, or CloseAbnormal when there was none.
type CloseError struct {
	Code   int
	Reason string // UTF-8, at most 123 bytes
}

// CloseAbnormal and CloseNoStatus are the codes of RFC 6455 §7.4.1 that no frame
// may carry: the connection ended without a close frame, or with an empty one.
const (
	CloseNoStatus = 1005
	CloseAbnormal = 1006
)

// ClosedWithCode is how the text of a CloseError begins after a close frame of the peer,
// for fmt.
const ClosedWithCode = "socket: closed with code %d"

func (e *CloseError) Error() string {
	switch {
	case e.Code == CloseAbnormal:
		return "socket: connection ended without a close frame"
	case e.Reason == "":
		return fmt.Sprintf(ClosedWithCode, e.Code)
	}
	return fmt.Sprintf(ClosedWithCode+": %s", e.Code, e.Reason)
}

// ErrTooBig is ReadMessage's answer to a message above its limit.
var ErrTooBig = errors.New("socket: message too big")

// ErrClosed is a write after a close frame was sent or received.
var ErrClosed = errors.New("socket: closed")

// FrameError says how the peer broke RFC 6455. The socket cannot be read on.
type FrameError struct{ Reason string }

func (e *FrameError) Error() string { return "socket: " + e.Reason }

// Socket is one WebSocket after its handshake. One goroutine may read while
// others write; Next, Read and ReadMessage belong to the reader. Pings are
// answered and close frames echoed by whoever reads, without waiting for a peer
// that does not.
//
// Writers take turns: text, pings, pongs and close frames go before data, and else
// who came first goes first.
//
// A read that fails with a deadline may be tried again later, and loses nothing.
// A write that fails in any other way than by ErrGaveUp leaves the socket unable
// to write.
type Socket struct {
	conn   net.Conn
	br     *bufio.Reader
	client bool  // we mask, and the peer must not; the other way round on the server's side
	tcp    bool  // conn is a *net.TCPConn
	feed   *feed // what br reads from, if it is not conn

	// The reader's state.
	op        Opcode // of the message being read
	final     bool   // the current frame is the last of its message
	open      bool   // inside a message: its end was not returned yet
	mask      [4]byte
	remaining int64  // bytes of the current frame not read yet
	whole     bool   // ReadMessage is inside a message
	ahead     bool   // Peek has seen a message that Next has not returned
	message   []byte // what it has of it
	readErr   error  // sticky, deadlines excepted

	ended atomic.Pointer[CloseError] // the peer's close frame

	heard     atomic.Uint32 // grows with each frame and each piece of payload that came in
	pingAt    atomic.Int64  // when the first unanswered ping was sent, in ns since epoch; 0: none is
	rtt       atomic.Int64  // of the last ping that was answered, in ns
	closeSent atomic.Bool   // written in one's turn

	// turns guards the writing side of conn and the fields below it.
	turns        turns
	writeErr     error
	writeTimeout time.Duration
	piece        int // see SetWriteMost

	// deadlineMu guards the deadlines of writes. Taken inside a turn, held only to
	// set them.
	deadlineMu sync.Mutex
	closing    bool      // no data may follow: a close frame is about to go out
	writeBy    time.Time // SetWriteDeadline's or WriteClose's, what is earlier
	armedBy    time.Time // what the write timeout gives the write under way

	// dueMu guards pong, the payload of the pong that is due. Taken inside a turn,
	// held only to copy. Whose turn ends sends what is due.
	dueMu    sync.Mutex
	pong     []byte
	pongDue  atomic.Bool
	pingDue  atomic.Bool
	closeDue atomic.Pointer[CloseError]
	replies  atomic.Bool // the reader has had a close frame sent, or will
}

func newSocket(conn net.Conn, br *bufio.Reader, client bool) *Socket {
	_, tcp := conn.(*net.TCPConn)
	return &Socket{conn: conn, br: br, client: client, tcp: tcp, piece: pieceSize}
}

// newReader makes the buffer that a socket reads through.
func newReader(conn net.Conn, size int) *bufio.Reader {
	return bufio.NewReaderSize(conn, max(size, SmallBuffer))
}

// LocalAddr and RemoteAddr are those of the connection.
func (s *Socket) LocalAddr() net.Addr  { return s.conn.LocalAddr() }
func (s *Socket) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// Heard is a number that changes whenever something came in.
func (s *Socket) Heard() uint32 { return s.heard.Load() }

// Ended is the close frame that the reader has met; nil while there was none. It is
// for writers, whose own error would only say that nothing can be written.
func (s *Socket) Ended() *CloseError { return s.ended.Load() }

// RTT is the round trip of the last ping that was answered; 0 before.
func (s *Socket) RTT() time.Duration { return time.Duration(s.rtt.Load()) }

// epoch is what pingAt counts from, on the monotonic clock.
var epoch = time.Now()

// Close ends the connection at once, without a close frame but one that the reader
// owes the peer, for which it may wait a second. When it returns, no write is under
// way.
func (s *Socket) Close() error {
	if s.replies.Load() { // it goes out first; closeWithin bounds what is before it
		s.lock(urgent)
		s.unlock()
	}
	conn := s.conn
	if t, ok := conn.(*tls.Conn); ok && !s.closeSent.Load() {
		// TLS' own goodbye would wait, up to 5 s, for a peer that does not read,
		// and who ends without a close frame is not saying goodbye.
		conn = t.NetConn()
	}
	err := conn.Close()
	s.lock(urgent) // a write under way fails now
	if s.writeErr == nil {
		s.writeErr = net.ErrClosed
	}
	s.unlock()
	return err
}
