package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Message is a text message of a control socket, or of a parked transfer socket:
// one of the pointer types below. Which end sends it stands at each.
type Message interface {
	messageType() string
	// field is where the value of this name belongs; nil: nowhere.
	field(name string) any
}

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
	Stream uint32 `json:"stream"` // counts up from 1
	ID     string `json:"id"`
	Port   uint16 `json:"port"`
	From   string `json:"from"` // the visitor's ip:port
	Early  int    `json:"early,omitempty"`
}

// Refused says that the local service did not answer. Agent to edge
// (protocol §6.4).
type Refused struct {
	Stream uint32 `json:"stream"`
	Reason string `json:"reason"` // for people; at most MaxReason bytes
}

// Drain asks the agent to move to another tunnel within that many seconds.
// Edge to agent (protocol §5.4).
type Drain struct {
	Within int `json:"within_s"`
}

// Attach gives a parked transfer socket to a stream. Agent to edge, on that
// socket (protocol §11.2).
type Attach struct {
	Stream uint32 `json:"stream"`
	ID     string `json:"id"` // of the stream's Open
}

// Attached says that the stream has the socket. Edge to agent, on that socket
// (protocol §11.3).
type Attached struct {
	Stream uint32 `json:"stream"`
}

func (*Ready) messageType() string    { return "ready" }
func (*PortInfo) messageType() string { return "port" }
func (*Open) messageType() string     { return "open" }
func (*Refused) messageType() string  { return "refused" }
func (*Drain) messageType() string    { return "drain" }
func (*Attach) messageType() string   { return "attach" }
func (*Attached) messageType() string { return "attached" }

func (m *Ready) field(name string) any {
	switch name {
	case "tunnel":
		return &m.Tunnel
	case "caps":
		return &m.Caps
	case "heartbeat_s":
		return &m.Heartbeat
	case "label":
		return &m.Label
	case "hostname":
		return &m.Hostname
	case "lease_s":
		return &m.Lease
	case "streams":
		return &m.Streams
	case "message_max":
		return &m.MessageMax
	case "early":
		return &m.Early
	case "early_total":
		return &m.EarlyTotal
	case "transfer":
		return &m.Transfer
	case "secret":
		return &m.Secret
	}
	return nil
}

func (m *PortInfo) field(name string) any {
	switch name {
	case "port":
		return &m.Port
	case "kind":
		return (*string)(&m.Kind)
	case "url":
		return &m.URL
	case "addr":
		return &m.Addr
	}
	return nil
}

func (m *Open) field(name string) any {
	switch name {
	case "stream":
		return &m.Stream
	case "id":
		return &m.ID
	case "port":
		return &m.Port
	case "from":
		return &m.From
	case "early":
		return &m.Early
	}
	return nil
}

func (m *Refused) field(name string) any {
	switch name {
	case "stream":
		return &m.Stream
	case "reason":
		return &m.Reason
	}
	return nil
}

func (m *Drain) field(name string) any {
	if name == "within_s" {
		return &m.Within
	}
	return nil
}

func (m *Attach) field(name string) any {
	switch name {
	case "stream":
		return &m.Stream
	case "id":
		return &m.ID
	}
	return nil
}

func (m *Attached) field(name string) any {
	if name == "stream" {
		return &m.Stream
	}
	return nil
}

// ErrUnknownMessage is Decode's answer to a well-formed message of a type that
// this version does not know. The rule is to ignore it (protocol §4.4).
var ErrUnknownMessage = errors.New("wire: unknown message type")

// Encode writes m as one flat JSON object in ASCII, "type" first.
//
// What goes from edge to agent, other than Ready, takes at most MaxFlat bytes:
// a From above MaxFrom is left out, and so are an Addr and, should that not
// suffice, a URL that no DNS name of 253 characters needs. What an agent must
// refuse in From, Addr and URL (spaces, what is not ASCII) is left out as well.
// The reason of Refused is cut to MaxReason bytes.
func Encode(m Message) []byte {
	switch v := m.(type) {
	case *Open:
		if !visible(v.From, MaxFrom) { // such as netip's "invalid AddrPort"
			short := *v
			short.From = ""
			m = &short
		}
	case *Refused:
		short := *v
		short.Reason = cut(v.Reason, MaxReason)
		m = &short
	case *PortInfo:
		short := *v
		if !visible(short.Addr, MaxFlat) {
			short.Addr = ""
		}
		if !visible(short.URL, MaxFlat) {
			short.URL = ""
		}
		b := encode(&short)
		if len(b) > MaxFlat && short.Addr != "" {
			short.Addr = ""
			b = encode(&short)
		}
		if len(b) > MaxFlat {
			short.URL = ""
			b = encode(&short)
		}
		return b
	}
	return encode(m)
}

func encode(m Message) []byte {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // a URL keeps its &
	if err := enc.Encode(m); err != nil {
		panic("wire: " + err.Error()) // our own types: strings and numbers
	}
	b := make([]byte, 0, body.Len()+24)
	b = append(b, `{"type":"`...)
	b = append(b, m.messageType()...)
	b = append(b, `",`...)
	return appendASCII(b, bytes.TrimSuffix(body.Bytes()[1:], []byte("\n")))
}

// cut shortens s to at most n bytes, at the end of a character.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
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

// Decode reads a text message. Fields it does not know are ignored, a reason
// that is too long is cut. The error is ErrUnknownMessage, or says what is
// malformed; a peer that sends malformed text breaks the protocol (close code
// 4100).
func Decode(text []byte) (Message, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("wire: text message longer than %d bytes", MaxText)
	}
	var kind string
	err := members(text, func(name, value string) error {
		if name != "type" {
			return nil
		}
		if err := assign(&kind, value); err != nil {
			return fmt.Errorf("type %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	var m Message
	switch kind {
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
	case "attach":
		m = new(Attach)
	case "attached":
		m = new(Attached)
	case "":
		return nil, errors.New("wire: message without a type")
	default:
		return nil, ErrUnknownMessage
	}
	err = members(text, func(name, value string) error {
		if err := assign(m.field(name), value); err != nil {
			return fmt.Errorf("%s %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("wire: %s: %w", kind, err)
	}
	if reason := check(m, len(text)); reason != "" {
		return nil, fmt.Errorf("wire: %s: %s", kind, reason)
	}
	if r, ok := m.(*Refused); ok {
		r.Reason = cut(r.Reason, MaxReason)
	}
	return m, nil
}

// check says which value of m no rule allows, so that users of a decoded message
// need not look: above all, what an agent puts into a request or on a terminal
// holds no space, line end or other control character. Empty when all is well.
func check(m Message, size int) string {
	switch m := m.(type) {
	case *Ready:
		return checkReady(m)
	case *PortInfo:
		switch {
		case size > MaxFlat:
			return fmt.Sprintf("longer than %d bytes", MaxFlat)
		case m.Port == 0:
			return "no port"
		case m.Kind == "" || !visible(string(m.Kind), maxKind):
			return "kind is not a word"
		case !visible(m.URL, MaxFlat):
			return "url is not plain ASCII"
		case !visible(m.Addr, MaxFlat):
			return "addr is not plain ASCII"
		}
	case *Open:
		switch {
		case size > MaxFlat:
			return fmt.Sprintf("longer than %d bytes", MaxFlat)
		case m.Stream == 0:
			return "no stream"
		case !ValidID(m.ID):
			return "id is not 32 lower-case hex digits"
		case m.Port == 0:
			return "no port"
		case !visible(m.From, MaxFrom):
			return fmt.Sprintf("from is not plain ASCII of at most %d characters", MaxFrom)
		case m.Early < 0 || m.Early > MaxMessage:
			return "early is out of range"
		}
	case *Refused:
		if m.Stream == 0 {
			return "no stream"
		}
	case *Attach:
		switch {
		case m.Stream == 0:
			return "no stream"
		case !ValidID(m.ID):
			return "id is not 32 lower-case hex digits"
		}
	case *Attached:
		switch {
		case size > MaxFlat:
			return fmt.Sprintf("longer than %d bytes", MaxFlat)
		case m.Stream == 0:
			return "no stream"
		}
	case *Drain:
		switch {
		case size > MaxFlat:
			return fmt.Sprintf("longer than %d bytes", MaxFlat)
		case m.Within < 0 || m.Within > MaxDrain:
			return "within_s is out of range"
		}
	}
	return ""
}

func checkReady(m *Ready) string {
	switch {
	case !ValidID(m.Tunnel):
		return "tunnel is not 32 lower-case hex digits"
	case !visible(m.Caps, maxCaps):
		return "caps is not a list of names"
	case m.Heartbeat < MinHeartbeat || m.Heartbeat > MaxHeartbeat:
		return "heartbeat_s is out of range"
	case !visible(m.Label, 63) || !visible(m.Hostname, 253): // RFC 1035 §2.3.4
		return "label or hostname is not a DNS name"
	case m.Lease < 0:
		return "lease_s is out of range"
	case m.Streams < 1 || m.Streams > MaxStreams:
		return "streams is out of range"
	case m.MessageMax < MinMessage || m.MessageMax > MaxMessage:
		return "message_max is out of range"
	case m.Early < 0 || m.Early > MaxMessage || m.EarlyTotal < 0 || m.EarlyTotal > MaxEarlyTotal:
		return "early or early_total is out of range"
	// `//host/…` would be resolved against the URL as another host (RFC 3986 §4.2).
	case !visible(m.Transfer, MaxTransfer) || !strings.HasPrefix(m.Transfer, "/") || strings.HasPrefix(m.Transfer, "//"):
		return "transfer is not an absolute path"
	case !strings.Contains(m.Transfer, "?") || strings.Contains(m.Transfer, "#"):
		return "transfer does not end in a query"
	case m.Secret == "" || !visible(m.Secret, MaxSecret):
		return fmt.Sprintf("secret is not plain ASCII of 1 to %d characters", MaxSecret)
	}
	return ""
}

// Bounds of names that this version may not know.
const (
	maxKind = 16
	maxCaps = 128
)

// visible reports whether s is at most most characters of ASCII, none of them a
// space or a control character.
func visible(s string, most int) bool {
	if len(s) > most {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
