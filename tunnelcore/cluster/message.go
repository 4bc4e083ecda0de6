package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Bounds of the texts of a link, in bytes, the MAC included. An answer with info is
// the one that may be longer.
const (
	maxText = 4 << 10
	maxInfo = 64 << 10 // of JSON
)

// challenge is the first text of a link socket, from the end that serves it.
type challenge struct {
	Nonce  string   `json:"nonce"`
	Proofs []string `json:"proofs"` // that it has a secret, one for each; in hex
}

// kind is what a request asks for, or an answer says.
type kind string

// The kinds of a request.
const (
	kindOpen     kind = "open"     // a stream to a port of a device; a stream follows `accepted`
	kindAgent    kind = "agent"    // an agent's connection; a stream follows `accepted`
	kindProbe    kind = "probe"    // whether a tunnel is alive
	kindReplaced kind = "replaced" // a tunnel has replaced one of the peer's
	kindInfo     kind = "info"     // what the peer knows of a device
)

// The kinds of an answer.
const (
	kindAccepted kind = "accepted" // to open and agent; to replaced, that it was heard
	kindRefused  kind = "refused"
	kindAlive    kind = "alive" // to probe
	kindSilent   kind = "silent"
	kindKnown    kind = "known"   // to info
	kindWaiting  kind = "waiting" // no answer yet: it takes its time
)

// request is what one node asks of another. Which fields it has its kind says.
type request struct {
	Kind       kind           `json:"kind"`
	Device     string         `json:"device,omitempty"`
	Tunnel     string         `json:"tunnel,omitempty"`
	Port       uint16         `json:"port,omitempty"`
	From       netip.AddrPort `json:"from,omitzero"`
	Generation int64          `json:"generation,omitempty"`
	Remote     netip.Addr     `json:"remote,omitzero"`
	TLS        bool           `json:"tls,omitempty"`
}

// check says what is missing in q, or too much.
func (q request) check() error {
	allowed := request{Kind: q.Kind}
	switch q.Kind {
	case kindOpen:
		allowed.Device, allowed.Tunnel, allowed.Port, allowed.From = q.Device, q.Tunnel, q.Port, q.From
		if q.Port == 0 {
			return errors.New("open without a port")
		}
	case kindAgent:
		allowed.Remote, allowed.TLS = q.Remote, q.TLS
	case kindProbe:
		allowed.Device, allowed.Tunnel = q.Device, q.Tunnel
	case kindReplaced:
		allowed.Device, allowed.Tunnel, allowed.Generation = q.Device, q.Tunnel, q.Generation
	case kindInfo:
		allowed.Device = q.Device
	default:
		return errors.New("a request of an unknown kind")
	}
	switch {
	case q != allowed:
		return fmt.Errorf("%s with a field that it has not", q.Kind)
	case q.Kind != kindAgent && !validName(q.Device):
		return fmt.Errorf("%s without a device", q.Kind)
	case q.Kind != kindAgent && q.Kind != kindInfo && !validName(q.Tunnel):
		return fmt.Errorf("%s without a tunnel", q.Kind)
	}
	return nil
}

// answer is what the other node says.
type answer struct {
	Kind kind `json:"kind"`

	// Of refused: the answer that the visitor gets, or not_here.
	Code         wire.Code `json:"code,omitempty"`
	Message      string    `json:"message,omitempty"`
	RetryAfterMS int64     `json:"retry_after_ms,omitempty"`
	LastSeenMS   int64     `json:"last_seen_ms,omitempty"` // since 1970

	// Of known.
	Info json.RawMessage `json:"info,omitempty"`
}

func (a *answer) check() error {
	allowed := answer{Kind: a.Kind}
	switch a.Kind {
	case kindAccepted, kindAlive, kindSilent, kindWaiting:
	case kindRefused:
		allowed.Code, allowed.Message, allowed.RetryAfterMS, allowed.LastSeenMS = a.Code, a.Message, a.RetryAfterMS, a.LastSeenMS
		if a.Code == "" || a.RetryAfterMS < 0 || a.LastSeenMS < 0 || a.RetryAfterMS > maxRetry.Milliseconds() {
			return errors.New("refused without a code, or with a time out of range")
		}
	case kindKnown:
		allowed.Info = a.Info
		if len(a.Info) == 0 || len(a.Info) > maxInfo {
			return fmt.Errorf("known without info, or with more than %d bytes", maxInfo)
		}
	default:
		return errors.New("an answer of an unknown kind")
	}
	if a.Code != allowed.Code || a.Message != allowed.Message || a.RetryAfterMS != allowed.RetryAfterMS ||
		a.LastSeenMS != allowed.LastSeenMS || len(a.Info) != len(allowed.Info) {
		return fmt.Errorf("%s with a field that it has not", a.Kind)
	}
	return nil
}

// maxRetry bounds the time that a peer may tell a visitor to wait.
const maxRetry = time.Hour

// refusal is what a peer is told of err.
func refusal(err error) *answer {
	if errors.Is(err, ErrNotHere) {
		return &answer{Kind: kindRefused, Code: wire.NotHere}
	}
	e := answers.From(err)
	a := &answer{
		Kind: kindRefused, Code: e.Code, Message: cutText(e.Message, answers.MessageMax),
		RetryAfterMS: min(max(0, e.RetryAfter), maxRetry).Milliseconds(),
	}
	if !e.LastSeen.IsZero() {
		a.LastSeenMS = max(0, e.LastSeen.UnixMilli())
	}
	return a
}

// err is the refusal as the error that it was: ErrNotHere or an *answers.Error.
func (a *answer) err() error {
	if a.Code == wire.NotHere {
		return ErrNotHere
	}
	e := &answers.Error{Code: knownCode(a.Code), Message: a.Message, RetryAfter: time.Duration(a.RetryAfterMS) * time.Millisecond}
	if a.LastSeenMS > 0 {
		e.LastSeen = time.UnixMilli(a.LastSeenMS)
	}
	return e
}

// knownCode is code, or unavailable for one that this version does not know.
func knownCode(code wire.Code) wire.Code {
	if answers.Status(code) == answers.Status("") {
		return wire.Unavailable
	}
	return code
}

// cutText is s in UTF-8, of at most most bytes.
func cutText(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "")
}

// encode returns the JSON of a message of ours.
func encode(m any) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("cluster: encode: %w", err)
	}
	return b, nil
}

func decodeChallenge(b []byte) (c challenge, err error) {
	if err := decode(b, &c); err != nil {
		return challenge{}, err
	}
	switch {
	case !wire.ValidID(c.Nonce):
		return challenge{}, errors.New("cluster: challenge: not 32 lower-case hex digits")
	case len(c.Proofs) == 0 || len(c.Proofs) > maxSecrets:
		return challenge{}, fmt.Errorf("cluster: challenge: not 1 to %d proofs", maxSecrets)
	}
	return c, nil
}

func decodeRequest(b []byte) (q request, err error) {
	if err := decode(b, &q); err != nil {
		return request{}, err
	}
	if err := q.check(); err != nil {
		return request{}, fmt.Errorf("cluster: %w", err)
	}
	return q, nil
}

func decodeAnswer(b []byte) (*answer, error) {
	a := new(answer)
	if err := decode(b, a); err != nil {
		return nil, err
	}
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return a, nil
}

// errForm: a message that says things twice, in another order, or more than there is.
var errForm = errors.New("cluster: a message that is not as encoded here")

// decode reads what encode has written, and nothing else: what would be encoded
// otherwise is refused, so that no two readers can take a message for two things.
func decode(b []byte, into any) error {
	if err := json.Unmarshal(b, into); err != nil {
		return errForm // json's error may quote the message
	}
	if again, err := json.Marshal(into); err != nil || !bytes.Equal(again, b) {
		return errForm
	}
	return nil
}
