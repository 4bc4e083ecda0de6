//go:build linux

package fleet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"
)

// Opcodes (RFC 6455 §5.2).
const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10
)

// socket is the client's side of a WebSocket, as much of it as an edge needs, which
// does not fragment. Its buffer is as large as the frame that it waits for. One
// goroutine reads and writes.
type socket struct {
	conn net.Conn
	buf  []byte // what has come
	used int    // of buf: the frame that read returned last
}

// idleBuffer is enough for a ping.
const idleBuffer = 160

// maxFrame bounds what a socket holds of the edge's.
const maxFrame = 1 << 17

// read returns the next frame's opcode and payload, which is valid until the next
// call.
func (s *socket) read() (op byte, payload []byte, err error) {
	s.buf = append(s.buf[:0], s.buf[s.used:]...)
	s.used = 0
	if len(s.buf) == 0 && cap(s.buf) > idleBuffer {
		s.buf = nil // it was for something rare
	}
	if err := s.fill(2); err != nil {
		return 0, nil, err
	}
	head, size := 2, int(s.buf[1])
	switch size {
	case 126:
		head = 4
	case 127:
		head = 10
	}
	if err := s.fill(head); err != nil {
		return 0, nil, err
	}
	switch head {
	case 4:
		size = int(binary.BigEndian.Uint16(s.buf[2:]))
	case 10:
		size = int(min(binary.BigEndian.Uint64(s.buf[2:]), maxFrame+1))
	}
	if size > maxFrame {
		return 0, nil, errors.New("a frame that is too large")
	}
	if err := s.fill(head + size); err != nil {
		return 0, nil, err
	}
	s.used = head + size
	return s.buf[0] & 15, s.buf[head:s.used], nil
}

// fill reads until buf holds n bytes.
func (s *socket) fill(n int) error {
	for len(s.buf) < n {
		if cap(s.buf) < n {
			s.buf = append(make([]byte, 0, max(n, idleBuffer)), s.buf...)
		}
		got, err := s.conn.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+got]
		if err != nil && len(s.buf) < n {
			return err
		}
	}
	return nil
}

// write sends one frame, masked.
func (s *socket) write(op byte, payload []byte) error {
	frame := append(make([]byte, 0, 14+len(payload)), 0x80|op)
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, 0x80|byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x80|126), uint16(n))
	default:
		return errors.New("a frame that is too large")
	}
	frame = binary.LittleEndian.AppendUint32(frame, rand.Uint32())
	mask, body := frame[len(frame)-4:], len(frame)
	frame = append(frame, payload...)
	for i := range payload {
		frame[body+i] ^= mask[i%4]
	}
	_, err := s.conn.Write(frame)
	return err
}

// upgrade makes the handshake (protocol §2). The key is always the same: nothing
// between the two caches.
func (s *socket) upgrade(path, host, token string) error {
	_, err := fmt.Fprintf(s.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: iottunnel.v1\r\n"+
		"Authorization: Bearer %s\r\n\r\n", path, host, token)
	if err != nil {
		return err
	}
	end := -1
	for end < 0 {
		if len(s.buf) > 8<<10 {
			return errors.New("an answer without an end")
		}
		if err := s.fill(len(s.buf) + 1); err != nil {
			return err
		}
		end = bytes.Index(s.buf, []byte("\r\n\r\n"))
	}
	head := string(s.buf[:end+2])
	s.used = end + 4
	if strings.HasPrefix(head, "HTTP/1.1 101 ") {
		return nil
	}
	refused := &statusError{}
	_, _ = fmt.Sscanf(head, "HTTP/1.1 %d", &refused.status) // 0: not HTTP
	for line := range strings.SplitSeq(head, "\r\n") {
		name, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(name, "Retry-After") {
			seconds, _ := strconv.Atoi(strings.TrimSpace(value)) // 0: a date, which nobody sends
			refused.after = time.Duration(seconds) * time.Second
		}
	}
	return refused
}

func (s *socket) close() { s.conn.Close() }
