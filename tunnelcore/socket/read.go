package socket

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Next waits for the next data message and returns its opcode; what is left of
// the current one is skipped. Errors: *CloseError, *FrameError, or the
// connection's.
func (s *Socket) Next() (Opcode, error) {
	s.whole, s.message = false, nil
	if s.ahead {
		s.ahead = false
		return s.op, nil
	}
	for s.open {
		if err := s.discard(); err == io.EOF {
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

// Peek waits for the next data message as Next does, and leaves it to the next
// call of Next or ReadMessage.
func (s *Socket) Peek() (Opcode, error) {
	op, err := s.Next()
	s.ahead = err == nil
	return op, err
}

// Read reads payload of the current message into p; io.EOF is the message's end.
func (s *Socket) Read(p []byte) (int, error) { return s.Fill(p, len(p)) }

// discard skips payload of the current message; io.EOF is its end.
func (s *Socket) discard() error {
	if err := s.More(); err != nil {
		return err
	}
	n, err := s.br.Discard(int(min(s.remaining, 1<<20)))
	s.remaining -= int64(n)
	s.mask = rotate(s.mask, n)
	if n > 0 {
		s.heard.Add(1)
		return nil
	}
	return s.failed(err)
}

// More waits until the current message has payload for Read, of which some may
// still be on its way; io.EOF is the message's end. It lets a reader wait without
// a buffer.
func (s *Socket) More() error {
	for s.remaining == 0 {
		if !s.open || s.final {
			s.open = false
			return io.EOF
		}
		if err := s.frame(); err != nil {
			return err
		}
	}
	return s.readErr
}

// ReadMessage reads the next message whole; what it returns is the caller's. One
// longer than limit, in bytes, is ErrTooBig: the next call skips it.
func (s *Socket) ReadMessage(limit int) (Opcode, []byte, error) {
	if !s.whole { // else a deadline interrupted the last call
		if _, err := s.Next(); err != nil {
			return 0, nil, err
		}
		s.whole = true
	}
	var err error
	s.message, err = s.Append(s.message, limit)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil, err
	}
	message := s.message
	s.whole, s.message = false, nil
	if err != nil {
		return 0, nil, err
	}
	return s.op, message, nil
}

// Append appends what is left of the current message to b, which may be as long
// as limit then, in bytes. Above that it is ErrTooBig, and Next skips the rest.
// After a deadline it returns what it has; called with that, it goes on.
func (s *Socket) Append(b []byte, limit int) ([]byte, error) {
	for {
		if s.remaining > int64(limit-len(b)) {
			return nil, ErrTooBig
		}
		b = slices.Grow(b, int(s.remaining)) // grows by more than asked when fragments are many and small
		for s.remaining > 0 {
			had := len(b)
			n, err := s.Read(b[had : had+int(s.remaining)])
			b = b[:had+n]
			if err != nil {
				return b, err
			}
		}
		switch err := s.More(); err {
		case nil:
		case io.EOF:
			return b, nil
		default:
			return b, err
		}
	}
}

// frame reads headers until that of a data frame, and leaves its payload to
// Read. It takes nothing from the buffer before a header (and a control frame's
// payload) is complete, so that a deadline loses nothing.
func (s *Socket) frame() error {
	for {
		if s.readErr != nil {
			return s.readErr
		}
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
			if length < 0 {
				return s.broken("length with its highest bit set") // §5.2
			}
			if length < 1<<16 {
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
			s.control(op, rest)
			s.br.Discard(size) // cannot fail: those bytes are buffered
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
func (s *Socket) control(op byte, payload []byte) {
	switch op {
	case opPong:
		if at := s.pingAt.Swap(0); at != 0 {
			s.rtt.Store(int64(time.Since(epoch)) - at)
		}
	case opPing:
		s.answer(payload)
	case opClose:
		s.closed(payload)
	}
}

// closed handles the payload of a close frame (RFC 6455 §5.5.1, §7.4).
func (s *Socket) closed(payload []byte) {
	e := &CloseError{Code: CloseNoStatus}
	switch {
	case len(payload) == 1:
		s.broken("close frame of one byte")
		return
	case len(payload) >= 2:
		e.Code, e.Reason = int(binary.BigEndian.Uint16(payload)), string(payload[2:])
		if !sendable(e.Code) {
			s.broken("close code that no frame may carry")
			return
		}
		if !utf8.ValidString(e.Reason) {
			s.broken("close reason that is not UTF-8")
			return
		}
	}
	s.readErr = e
	s.ended.Store(e)
	s.replyClose(e.Code, "") // §5.5.1: echo the code
}

// sendable reports whether a close frame may carry the code: those of RFC 6455
// §7.4.1 that are not for local use, those registered since (1012 to 1014), and
// those left to libraries and applications.
func sendable(code int) bool {
	switch {
	case code >= 1000 && code <= 1003, code >= 1007 && code <= 1014, code >= 3000 && code <= 4999:
		return true
	}
	return false
}

// broken records and announces a violation of RFC 6455.
func (s *Socket) broken(reason string) error {
	s.readErr = &FrameError{reason}
	s.replyClose(wire.CloseProtocol, reason)
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
