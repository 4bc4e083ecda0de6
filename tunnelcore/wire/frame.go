package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// FrameKind is the first byte of a binary message on the control socket: what it
// does to the stream that the next four name (protocol §9.2).
type FrameKind byte

// The kinds of a frame. A receiver resets the stream of one that it does not know.
const (
	FrameData   FrameKind = 1 // a piece of the byte stream, which costs as much credit
	FrameFin    FrameKind = 2 // the direction has ended
	FrameReset  FrameKind = 3 // the stream is aborted, in both directions
	FrameMove   FrameKind = 4 // the direction goes on on the transfer socket
	FrameCredit FrameKind = 5 // so many bytes more may come: 4 bytes, big-endian (inline)
)

// A frame is a whole binary message: kind(1) stream(4, big-endian), then at most
// MaxFrame bytes of payload. The edge sends none that is longer than `message_max`,
// its header included (protocol §9.1).
const (
	FrameHeader = 5
	MaxFrame    = 4096
)

// AppendFrameHeader appends the header of a frame to dst. The payload follows.
func AppendFrameHeader(dst []byte, k FrameKind, stream uint32) []byte {
	return binary.BigEndian.AppendUint32(append(dst, byte(k)), stream)
}

// AppendCredit appends a frame of n bytes of credit, 1 to MaxMessage.
func AppendCredit(dst []byte, stream uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(AppendFrameHeader(dst, FrameCredit, stream), uint32(n))
}

// Credit is what the payload of a FrameCredit from ParseFrame grants, in bytes.
func Credit(payload []byte) int { return int(binary.BigEndian.Uint32(payload)) }

// ParseFrame takes a binary message of a control socket apart. payload aliases b.
// A kind that it does not know is no error. The error says what is malformed: the
// peer breaks the protocol (close code 4100).
func ParseFrame(b []byte) (k FrameKind, stream uint32, payload []byte, err error) {
	switch {
	case len(b) < FrameHeader:
		return 0, 0, nil, errors.New("wire: frame shorter than its header")
	case len(b) > FrameHeader+MaxFrame:
		return 0, 0, nil, fmt.Errorf("wire: frame with more than %d bytes of payload", MaxFrame)
	}
	k, stream, payload = FrameKind(b[0]), binary.BigEndian.Uint32(b[1:]), b[FrameHeader:]
	if stream == 0 {
		return 0, 0, nil, errors.New("wire: frame of stream 0")
	}
	switch k {
	case FrameData:
		if len(payload) == 0 { // an end is said with fin
			err = errors.New("wire: data frame without data")
		}
	case FrameFin, FrameReset, FrameMove:
		if len(payload) > 0 {
			err = fmt.Errorf("wire: frame of kind %d with a payload", k)
		}
	case FrameCredit:
		if len(payload) != 4 || Credit(payload) < 1 || Credit(payload) > MaxMessage {
			err = fmt.Errorf("wire: credit frame without a number from 1 to %d", MaxMessage)
		}
	}
	if err != nil {
		return 0, 0, nil, err
	}
	return k, stream, payload, nil
}
