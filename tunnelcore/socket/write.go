package socket

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math/bits"
	"net"
	"sync"
	"time"
)

// copyBelow is the payload up to which copying it behind its header is cheaper
// than a vectored write.
const copyBelow = 4 << 10

// ErrClosed is a write after a close frame.
var ErrClosed = errors.New("socket: closed")

// scratch holds buffers for frames that are put together before they are
// written.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, Headroom+copyBelow); return &b }}

// Ping sends a ping without payload. It returns at once, with false, when a
// write is under way: then the connection is not idle, or is stuck.
func (s *Socket) Ping() (sent bool, err error) {
	if !s.writeMu.TryLock() {
		return false, nil
	}
	defer s.unlock()
	s.pingAt.Store(int64(time.Since(epoch)))
	return true, s.writeLocked(opPing, nil)
}

// WriteMessage sends payload as one frame. It copies what it must change, and
// may be called concurrently.
func (s *Socket) WriteMessage(op Opcode, payload []byte) error {
	s.writeMu.Lock()
	defer s.unlock()
	return s.writeLocked(byte(op), payload)
}

// WriteInPlace sends buf[Headroom:] as one frame, with one write and no copy: it
// puts the header into the headroom, and masks the payload where it lies.
func (s *Socket) WriteInPlace(op Opcode, buf []byte) error {
	s.writeMu.Lock()
	defer s.unlock()
	if err := s.readyLocked(byte(op)); err != nil {
		return err
	}
	return s.sendLocked(s.seal(byte(op), buf))
}

// WriteClose sends a close frame, once; what is written after it is ErrClosed.
// It waits no longer than timeout for a write under way, or for the peer.
func (s *Socket) WriteClose(code int, reason string, timeout time.Duration) error {
	if !s.writeMu.TryLock() {
		// Somebody writes: give that write the same time.
		if err := s.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		s.writeMu.Lock()
	}
	defer s.unlock()
	return s.writeCloseLocked(code, reason, timeout)
}

// writeCloseLocked wants writeMu.
func (s *Socket) writeCloseLocked(code int, reason string, timeout time.Duration) error {
	if s.closeSent {
		return nil
	}
	var payload []byte
	if code != CloseNoStatus && code != CloseAbnormal {
		if len(reason) > maxControl-2 {
			reason = reason[:maxControl-2]
		}
		payload = append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...)
	}
	old := s.writeTimeout
	s.writeTimeout = timeout
	err := s.writeLocked(opClose, payload)
	s.writeTimeout = old
	s.closeSent = true
	return err
}

// readyLocked says why nothing can be written, and arms the write timeout. It
// wants writeMu.
func (s *Socket) readyLocked(op byte) error {
	switch {
	case s.writeErr != nil:
		return s.writeErr
	case s.closeSent && op < opClose:
		return ErrClosed
	case s.writeTimeout > 0:
		return s.conn.SetWriteDeadline(time.Now().Add(s.writeTimeout))
	}
	return nil
}

// writeLocked sends one frame. It wants writeMu.
func (s *Socket) writeLocked(op byte, payload []byte) error {
	if err := s.readyLocked(op); err != nil {
		return err
	}
	if _, tcp := s.conn.(*net.TCPConn); tcp && !s.client && len(payload) > copyBelow {
		var head [Headroom]byte
		s.vec = [2][]byte{head[s.header(op, &head, len(payload)):], payload}
		s.bufs = s.vec[:]
		_, err := s.bufs.WriteTo(s.conn)
		s.vec = [2][]byte{}
		s.writeErr = err
		return err
	}
	b := scratch.Get().(*[]byte)
	defer scratch.Put(b)
	*b = append(append((*b)[:0], make([]byte, Headroom)...), payload...)
	return s.sendLocked(s.seal(op, *b))
}

func (s *Socket) sendLocked(frame []byte) error {
	_, err := s.conn.Write(frame)
	s.writeErr = err
	return err
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

// unlock sends the pong that came due while writeMu was held, and lets it go.
func (s *Socket) unlock() {
	for {
		if s.pongDue.Swap(false) {
			var copied [maxControl]byte
			s.pongMu.Lock()
			n := copy(copied[:], s.pong)
			s.pongMu.Unlock()
			_ = s.writeLocked(opPong, copied[:n]) // sticks in writeErr
		}
		s.writeMu.Unlock()
		// A ping may have come between the two; whoever gets the lock answers.
		if !s.pongDue.Load() || !s.writeMu.TryLock() {
			return
		}
	}
}

// applyMask XORs b with the mask, and returns the mask for the byte after b.
func applyMask(b []byte, mask [4]byte) [4]byte {
	key := binary.LittleEndian.Uint32(mask[:])
	wide := uint64(key)<<32 | uint64(key)
	for len(b) >= 32 {
		// Four words at a time: the bounds are checked once.
		c := b[:32]
		binary.LittleEndian.PutUint64(c[0:], binary.LittleEndian.Uint64(c[0:])^wide)
		binary.LittleEndian.PutUint64(c[8:], binary.LittleEndian.Uint64(c[8:])^wide)
		binary.LittleEndian.PutUint64(c[16:], binary.LittleEndian.Uint64(c[16:])^wide)
		binary.LittleEndian.PutUint64(c[24:], binary.LittleEndian.Uint64(c[24:])^wide)
		b = b[32:]
	}
	for i := range b {
		b[i] ^= mask[i&3]
	}
	binary.LittleEndian.PutUint32(mask[:], bits.RotateLeft32(key, -8*(len(b)&3)))
	return mask
}
