package conformance

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Opcodes of frames (RFC 6455 §5.2). opEnd stands for the end of the connection.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
	opEnd          = 255
)

// maxPayload bounds the payload of a frame that is read, in bytes: agents may send
// messages of any length (protocol 6.5), and the machine of the tool has memory.
const maxPayload = 16 << 20

// frame is a WebSocket frame as it is on the wire, right or wrong.
type frame struct {
	fin    bool
	rsv    byte // 0 to 7
	op     byte
	masked bool
	mask   [4]byte
	data   []byte // without the mask
}

// readFrame reads a frame, and takes any that can be told apart from the next.
func readFrame(br *bufio.Reader) (f frame, err error) {
	var head [14]byte
	if _, err := io.ReadFull(br, head[:2]); err != nil {
		return f, err
	}
	f = frame{fin: head[0]&0x80 != 0, rsv: head[0] >> 4 & 7, op: head[0] & 15, masked: head[1]&0x80 != 0}
	length := uint64(head[1] & 0x7f)
	switch length {
	case 126:
		_, err = io.ReadFull(br, head[2:4])
		length = uint64(binary.BigEndian.Uint16(head[2:]))
	case 127:
		_, err = io.ReadFull(br, head[2:10])
		length = binary.BigEndian.Uint64(head[2:])
	}
	if err == nil && length > maxPayload {
		err = fmt.Errorf("a frame of %d bytes", length)
	}
	if err == nil && f.masked {
		_, err = io.ReadFull(br, f.mask[:])
	}
	if err != nil {
		return f, unexpected(err)
	}
	f.data = make([]byte, length)
	if _, err := io.ReadFull(br, f.data); err != nil {
		return f, unexpected(err)
	}
	f.applyMask(f.data)
	return f, nil
}

// unexpected is err for the end of a connection in the middle of something.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// applyMask masks data in place, or takes the mask off (RFC 6455 §5.3).
func (f frame) applyMask(data []byte) {
	if !f.masked {
		return
	}
	for i := range data {
		data[i] ^= f.mask[i&3]
	}
}

// bytes is the frame as it travels, with the shortest form of the length.
func (f frame) bytes() []byte {
	first := f.rsv<<4 | f.op
	if f.fin {
		first |= 0x80
	}
	var mask byte
	if f.masked {
		mask = 0x80
	}
	b := []byte{first}
	switch n := len(f.data); {
	case n < 126:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(n))
	}
	if f.masked {
		b = append(b, f.mask[:]...)
	}
	head := len(b)
	b = append(b, f.data...)
	f.applyMask(b[head:])
	return b
}

// whole is an unmasked frame that is a whole message, as the edge sends them.
func whole(op byte, data []byte) frame { return frame{fin: true, op: op, data: data} }

// closing is the payload of a close frame.
func closing(code int, reason string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...)
}
