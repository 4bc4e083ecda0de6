package socket

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// copyBelow is the payload up to which copying it behind its header is cheaper
// than a vectored write.
const copyBelow = 4 << 10

// pieceSize is what a connection other than TCP is given at a time, so that a
// slow peer is told from a stuck one. A TLS record is no larger (RFC 8446 §5.1).
const pieceSize = 16 << 10

// replyTimeout bounds the answer to a close frame, or to a broken one.
const replyTimeout = time.Second

// scratch holds buffers for frames that are put together before they are
// written: an `open` and a frame of a stream fit.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, scratchSize); return &b }}

const scratchSize = Headroom + wire.MaxFlat + Headroom + wire.FrameHeader + max(copyBelow, wire.MaxFrame)

// vectorMost is how many frames leave with one write.
const vectorMost = 4

// vector is frames that are written from several places.
type vector struct {
	heads  [vectorMost][Headroom]byte
	places [2 * vectorMost][]byte
	bufs   net.Buffers // the places that are used
}

// free puts v back without what it held.
func (v *vector) free() {
	clear(v.places[:])
	v.bufs = nil
	vectors.Put(v)
}

var vectors = sync.Pool{New: func() any { return new(vector) }}

// Ping sends a ping without payload. It returns at once, with false, when a
// write is under way: then the connection is not idle, or is stuck. Otherwise it
// takes as long as a write may.
func (s *Socket) Ping() (sent bool, err error) {
	if !s.turns.tryTake() {
		return false, nil
	}
	defer s.unlock()
	return true, s.writePingLocked()
}

// PingSoon sends a ping as Ping does, but when a write is under way, the ping
// follows it, before all that waits: PingSoon does not wait for that. An error
// shows with the next write.
func (s *Socket) PingSoon() {
	s.pingDue.Store(true)
	if s.turns.tryTake() {
		s.unlock()
	}
}

// writePingLocked wants the turn.
func (s *Socket) writePingLocked() error {
	// A pong answers the first ping without an answer, if it is slow.
	s.pingAt.CompareAndSwap(0, int64(time.Since(epoch)))
	return s.writeLocked(opPing, nil)
}

// WriteMessage sends payload as one frame. It copies what it must change, and
// may be called concurrently.
func (s *Socket) WriteMessage(op Opcode, payload []byte) error {
	s.lock(classOf(op))
	defer s.unlock()
	return s.writeLocked(byte(op), payload)
}

// Message is what WriteMessages sends: Head and Body, one behind the other.
type Message struct {
	Op         Opcode
	Head, Body []byte
}

// batchMost is up to how many bytes messages of several callers leave with one
// write.
const batchMost = 8 << 10

// WriteMessages sends some short messages with one write, and is as urgent as the
// first of them. It copies them, and may be called concurrently. Whoever has t,
// which is not nil, can end the wait for its turn.
//
// Messages of others that come at the same time leave with them, in as few packets
// as can be: a congestion window counts those, not bytes, and a system call costs
// more than what it carries.
func (s *Socket) WriteMessages(t *Turn, all ...Message) error {
	if s.turns.tryTake() {
		runtime.Gosched() // who is about to write comes along
	} else if sent, err := s.turns.take(classOf(all[0].Op), t, all); sent || err != nil {
		return err
	}
	defer s.unlock()
	b := scratch.Get().(*[]byte)
	defer scratch.Put(b)
	var err error
	if *b, err = s.appendLocked((*b)[:0], all); err != nil {
		return err
	}
	var others [16]*Turn
	n := 0
	for n < len(others) && len(*b) < batchMost {
		o := s.turns.join()
		if o == nil {
			break
		}
		more, err := s.appendLocked(*b, o.all)
		if err != nil { // a close frame is to be next
			o.joined(err)
			break
		}
		*b, others[n] = more, o
		n++
	}
	err = s.sendLocked(*b)
	for _, o := range others[:n] {
		o.joined(err)
	}
	return err
}

// appendLocked appends messages as they go over the wire. It wants the turn.
func (s *Socket) appendLocked(b []byte, all []Message) ([]byte, error) {
	for _, m := range all {
		if err := s.readyLocked(byte(m.Op)); err != nil {
			return b, err
		}
		start := len(b)
		b = append(append(append(b, headroom[:]...), m.Head...), m.Body...)
		frame := s.seal(byte(m.Op), b[start:])
		b = b[:start+copy(b[start:], frame)]
	}
	return b, nil
}

var headroom [Headroom]byte

// WriteInPlace sends buf[Headroom:] as one frame, with one write and no copy: it
// puts the header into the headroom, and masks the payload where it lies. It
// may be called concurrently.
func (s *Socket) WriteInPlace(op Opcode, buf []byte) error {
	s.lock(classOf(op))
	defer s.unlock()
	if err := s.readyLocked(byte(op)); err != nil {
		return err
	}
	return s.sendLocked(s.seal(byte(op), buf))
}

// WritePieces is WriteInPlace for a message of some frames' length: it sends messages
// of at most most bytes, as many as need be.
func (s *Socket) WritePieces(op Opcode, buf []byte, most int) error {
	s.lock(classOf(op))
	defer s.unlock()
	if s.tcp && len(buf) > Headroom+most {
		if err := s.readyLocked(byte(op)); err != nil {
			return err
		}
		return s.sendVectorLocked(byte(op), buf[Headroom:], most)
	}
	for len(buf) > Headroom {
		if err := s.readyLocked(byte(op)); err != nil {
			return err
		}
		piece := buf[:min(len(buf), Headroom+most)]
		buf = buf[len(piece)-Headroom:] // what was sent is headroom then
		if err := s.sendLocked(s.seal(byte(op), piece)); err != nil {
			return err
		}
	}
	return nil
}

// WriteClose sends a close frame, once; what is written after it is ErrClosed.
// It waits no longer than timeout for writes under way and for the peer, and not
// at all for writes that have not begun.
func (s *Socket) WriteClose(code int, reason string, timeout time.Duration) error {
	s.closeWithin(timeout)
	s.lock(urgent)
	defer s.unlock()
	return s.writeCloseLocked(code, reason)
}

// replyClose sends a close frame on behalf of the reader. When a write is under
// way, the frame follows it.
func (s *Socket) replyClose(code int, reason string) {
	s.closeWithin(replyTimeout)
	s.closeDue.Store(&CloseError{code, reason})
	s.replies.Store(true)
	if s.turns.tryTake() {
		s.unlock()
	}
}

// answer sends a pong. The reader must never wait for the peer to read, or two
// peers that both do would block each other for ever: the pong follows a write
// under way, and else has a goroutine, of which there is one at most. It ends
// with its write, and Close waits for it.
func (s *Socket) answer(payload []byte) {
	s.dueMu.Lock()
	s.pong = append(s.pong[:0], payload...) // only the last one counts (RFC 6455 §5.5.3)
	s.dueMu.Unlock()
	s.pongDue.Store(true)
	if !s.turns.tryTake() {
		return
	}
	if s.writeErr != nil {
		s.unlock()
		return
	}
	go s.unlock()
}

// unlock sends what came due meanwhile, and ends the turn.
func (s *Socket) unlock() {
	for {
		if s.pongDue.Swap(false) {
			s.writePongLocked()
		}
		if s.pingDue.Swap(false) {
			_ = s.writePingLocked() // sticks in writeErr
		}
		if e := s.closeDue.Swap(nil); e != nil {
			_ = s.writeCloseLocked(e.Code, e.Reason) // the reader's error tells more
		}
		s.turns.pass()
		// Something may have come due between the two; whose turn it is sends it.
		if !s.pongDue.Load() && !s.pingDue.Load() && s.closeDue.Load() == nil || !s.turns.tryTake() {
			return
		}
	}
}

// writePongLocked wants the turn.
func (s *Socket) writePongLocked() {
	b := scratch.Get().(*[]byte)
	defer scratch.Put(b)
	s.dueMu.Lock()
	*b = append((*b)[:0], s.pong...)
	s.dueMu.Unlock()
	_ = s.writeLocked(opPong, *b) // sticks in writeErr
}

// writeCloseLocked wants the turn, and closeWithin called before.
func (s *Socket) writeCloseLocked(code int, reason string) error {
	if s.closeSent.Load() {
		return nil
	}
	var payload []byte
	if code != CloseNoStatus && code != CloseAbnormal {
		payload = append(binary.BigEndian.AppendUint16(nil, uint16(code)), cutReason(reason)...)
	}
	err := s.writeLocked(opClose, payload)
	s.closeSent.Store(err == nil)
	return err
}

// cutReason makes reason fit a close frame, and UTF-8 (RFC 6455 §5.5.1).
func cutReason(reason string) string {
	reason = strings.ToValidUTF8(reason, "?")
	if n := maxControl - 2; len(reason) > n {
		for !utf8.RuneStart(reason[n]) {
			n--
		}
		reason = reason[:n]
	}
	return reason
}

// readyLocked says why nothing can be written, and arms the deadlines. It wants
// the turn.
func (s *Socket) readyLocked(op byte) error {
	switch {
	case s.writeErr != nil:
		return s.writeErr
	case s.closeSent.Load():
		return ErrClosed
	}
	return s.arm(op < opClose)
}

// writeLocked sends one frame. It wants the turn.
func (s *Socket) writeLocked(op byte, payload []byte) error {
	if err := s.readyLocked(op); err != nil {
		return err
	}
	if s.tcp && !s.client && len(payload) > copyBelow {
		return s.sendVectorLocked(op, payload, len(payload))
	}
	b := scratch.Get().(*[]byte)
	defer scratch.Put(b)
	*b = append(append((*b)[:0], headroom[:]...), payload...)
	return s.sendLocked(s.seal(op, *b))
}

// sendVectorLocked sends payload as frames of at most most bytes, without copying
// it; a client's is masked where it lies. It wants the turn, and the deadlines
// armed.
func (s *Socket) sendVectorLocked(op byte, payload []byte, most int) error {
	v := vectors.Get().(*vector)
	defer v.free()
	for len(payload) > 0 {
		v.bufs = v.places[:0]
		for i := range v.heads {
			piece := payload[:min(len(payload), most)]
			if payload = payload[len(piece):]; len(piece) == 0 {
				break
			}
			head := &v.heads[i]
			start := s.header(op, head, len(piece))
			if s.client {
				applyMask(piece, [4]byte(head[Headroom-4:]))
			}
			v.bufs = append(v.bufs, head[start:], piece)
		}
		for {
			n, err := v.bufs.WriteTo(s.conn)
			if again, err := s.wroteLocked(n, err); err != nil {
				return err
			} else if !again {
				break
			}
		}
		if len(payload) > 0 {
			if err := s.arm(false); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendLocked sends a frame. It wants the turn, and the deadlines armed.
func (s *Socket) sendLocked(frame []byte) error {
	for {
		piece := frame
		if !s.tcp {
			piece = frame[:min(len(frame), s.piece)]
		}
		n, err := s.conn.Write(piece)
		frame = frame[n:]
		if err == nil && len(frame) > 0 {
			err = s.arm(false)
		}
		if again, err := s.wroteLocked(int64(n), err); !again && (err != nil || len(frame) == 0) {
			return err
		}
	}
}

// wroteLocked takes the result of a write. The write timeout is for a peer that
// takes nothing: one that took a part in time gets it again. On TCP alone, as a
// TLS connection cannot go on after a deadline. It wants the turn.
func (s *Socket) wroteLocked(n int64, err error) (again bool, _ error) {
	if s.tcp && n > 0 && s.writeTimeout > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		if err = s.arm(false); err == nil {
			return true, nil
		}
	}
	s.writeErr = err
	return false, err
}

// seal turns buf, headroom and payload, into a frame: the part of buf to send.
func (s *Socket) seal(op byte, buf []byte) []byte {
	payload := buf[Headroom:]
	start := s.header(op, (*[Headroom]byte)(buf), len(payload))
	if s.client {
		applyMask(payload, [4]byte(buf[Headroom-4:]))
	}
	return buf[start:]
}

// header writes the header of a final frame so that it ends where head ends, and
// returns where it begins. A client's ends with a fresh mask (RFC 6455 §5.3).
func (s *Socket) header(op byte, head *[Headroom]byte, length int) (start int) {
	end := Headroom
	var maskBit byte
	if s.client {
		rand.Read(head[Headroom-4:]) // never fails (crypto/rand)
		maskBit = 0x80
		end -= 4
	}
	switch {
	case length < 126:
		start = end - 2
		head[start+1] = byte(length) | maskBit
	case length < 1<<16:
		start = end - 4
		head[start+1] = 126 | maskBit
		binary.BigEndian.PutUint16(head[start+2:], uint16(length))
	default:
		start = end - 10
		head[start+1] = 127 | maskBit
		binary.BigEndian.PutUint64(head[start+2:], uint64(length))
	}
	head[start] = 0x80 | op
	return start
}
