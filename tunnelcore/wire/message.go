package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// Message is a text message of the control socket: one of the pointer types
// below. Which end sends it stands at each.
type Message interface{ messageType() string }

// Ready tells an agent that its tunnel is up, and what is in force. Edge to
// agent, first and again after a change (protocol §4.1).
type Ready struct {
	Tunnel     string `json:"tunnel"`
	Caps       string `json:"caps"` // as Caps.String
	Heartbeat  int    `json:"heartbeat_s"`
	Label      string `json:"label"`
	Hostname   string `json:"hostname"`
	Lease      int64  `json:"lease_s"`
	Streams    int    `json:"streams"`
	MessageMax int    `json:"message_max"`
	Early      int    `json:"early,omitempty"`
	EarlyTotal int    `json:"early_total,omitempty"`
	// Transfer is the absolute path and query of transfer sockets, on the host
	// and port of the control socket; the agent appends `&id=` and the id.
	Transfer string `json:"transfer"`
	// Secret is the Bearer credential of transfer sockets.
	Secret string `json:"secret"`
}

// PortInfo tells where a forwarded port is reached: by URL, by host:port, or,
// with neither, not from outside. Edge to agent (protocol §4.2).
type PortInfo struct {
	Port uint16 `json:"port"`
	Kind Kind   `json:"kind"`
	URL  string `json:"url,omitempty"`
	Addr string `json:"addr,omitempty"`
}

// Open asks for a stream to a port of the device. Edge to agent (protocol §6.1).
type Open struct {
	Stream uint32 `json:"stream"`
	ID     string `json:"id"`
	Port   uint16 `json:"port"`
	From   string `json:"from"` // the visitor's ip:port
	Early  int    `json:"early,omitempty"`
}

// Refused says that the local service did not answer. Agent to edge
// (protocol §6.4).
type Refused struct {
	Stream uint32 `json:"stream"`
	Reason string `json:"reason"`
}

// Drain asks the agent to move to another tunnel within that many seconds.
// Edge to agent (protocol §5.4).
type Drain struct {
	Within int `json:"within_s"`
}

func (*Ready) messageType() string    { return "ready" }
func (*PortInfo) messageType() string { return "port" }
func (*Open) messageType() string     { return "open" }
func (*Refused) messageType() string  { return "refused" }
func (*Drain) messageType() string    { return "drain" }

// ErrUnknownMessage is Decode's answer to a well-formed message of a type that
// this version does not know. The rule is to ignore it (protocol §4.4).
var ErrUnknownMessage = errors.New("wire: unknown message type")

// Encode writes m as one flat JSON object in ASCII, "type" first.
func Encode(m Message) []byte {
	body, err := json.Marshal(m)
	if err != nil {
		panic("wire: " + err.Error()) // our own types: strings and numbers
	}
	b := make([]byte, 0, len(body)+24)
	b = append(b, `{"type":"`...)
	b = append(b, m.messageType()...)
	b = append(b, `",`...)
	return appendASCII(b, body[1:])
}

// appendASCII appends JSON text, what is not ASCII as \u escapes (RFC 8259 §7).
func appendASCII(dst, src []byte) []byte {
	for len(src) > 0 {
		if src[0] < utf8.RuneSelf {
			dst, src = append(dst, src[0]), src[1:]
			continue
		}
		r, n := utf8.DecodeRune(src)
		src = src[n:]
		if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, r1, r2)
		} else {
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
	}
	return dst
}

// Decode reads a text message. Fields it does not know are ignored. The error
// is ErrUnknownMessage, or says what is malformed; a peer that sends malformed
// text breaks the protocol (close code 4100).
func Decode(text []byte) (Message, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("wire: text message longer than %d bytes", MaxText)
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	var m Message
	switch head.Type {
	case "ready":
		m = new(Ready)
	case "port":
		m = new(PortInfo)
	case "open":
		m = new(Open)
	case "refused":
		m = new(Refused)
	case "drain":
		m = new(Drain)
	case "":
		return nil, errors.New("wire: message without a type")
	default:
		return nil, ErrUnknownMessage
	}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("wire: %s: %w", head.Type, err)
	}
	return m, check(m)
}

// check refuses values that no rule allows, so that users of a decoded message
// need not.
func check(m Message) error {
	switch m := m.(type) {
	case *Ready:
		switch {
		case !ValidID(m.Tunnel):
			return errors.New("wire: ready: tunnel is not an id")
		case len(m.Transfer) == 0 || m.Transfer[0] != '/':
			return errors.New("wire: ready: transfer is not an absolute path")
		case m.Secret == "":
			return errors.New("wire: ready: no secret")
		case m.Heartbeat < MinHeartbeat || m.Heartbeat > MaxHeartbeat:
			return errors.New("wire: ready: heartbeat_s out of range")
		case m.Streams < 1:
			return errors.New("wire: ready: streams out of range")
		}
	case *PortInfo:
		if m.Port == 0 {
			return errors.New("wire: port: no port")
		}
	case *Open:
		switch {
		case !ValidID(m.ID):
			return errors.New("wire: open: id is not an id")
		case m.Port == 0:
			return errors.New("wire: open: no port")
		}
	case *Refused:
		if len(m.Reason) > MaxText {
			return errors.New("wire: refused: reason too long")
		}
	case *Drain:
		if m.Within < 0 {
			return errors.New("wire: drain: within_s is negative")
		}
	}
	return nil
}
