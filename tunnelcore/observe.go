package tunnelcore

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Observer counts what hubs do. Its methods may be called concurrently, and do not
// block.
type Observer interface {
	// Accepted is told of each handshake for a control socket: `ok`, or the code of
	// its refusal.
	Accepted(result string)
	// Redirected is told when an agent is sent to another node.
	Redirected()
	// TookOver is told when a tunnel replaces a live one.
	TookOver()
	// Closed is told why a tunnel has ended: goodbye, lost, replaced, revoked,
	// operator, restart or protocol.
	Closed(reason string)
	// Opened is told of each stream that a visitor asked for: `ok`, or the code of
	// what the visitor was told, and how long it took.
	Opened(kind wire.Kind, result string, took time.Duration)
	// PeerStream is told of each attempt to open a stream through another node: `ok`,
	// `away` when that node does not answer, or the code with which it refused.
	PeerStream(result string)
	// Transferred is told the bytes of a stream that has ended: from the device, and
	// to it.
	Transferred(received, sent int64)
	// Limited is told each time that a device has met a limit: bandwidth (somebody had
	// to wait), requests or streams (somebody was refused).
	Limited(limit string)
}

// unobserved is the Observer of those who have none.
type unobserved struct{}

func (unobserved) Accepted(string)                         {}
func (unobserved) Redirected()                             {}
func (unobserved) TookOver()                               {}
func (unobserved) Closed(string)                           {}
func (unobserved) Opened(wire.Kind, string, time.Duration) {}
func (unobserved) PeerStream(string)                       {}
func (unobserved) Transferred(int64, int64)                {}
func (unobserved) Limited(string)                          {}

// traffic is bytes of streams that have ended.
type traffic struct{ received, sent atomic.Int64 }

// observeOpen tells of a stream that a visitor asked for.
func (h *Hub) observeOpen(device string, port uint16, began time.Time, err error) {
	h.observer.Opened(h.kindOf(device, port), resultOf(err), time.Since(began))
}

// kindOf is the kind of a device's port; tcp when it is not known.
func (h *Hub) kindOf(device string, port uint16) wire.Kind {
	h.mu.Lock()
	d := h.devices[device]
	h.mu.Unlock()
	if d != nil {
		if t, _ := d.live(); t != nil {
			if p, ok := t.port(port); ok {
				return p.Kind
			}
		}
	}
	if kind, ok := h.routes.kind(device, port); ok {
		return kind
	}
	return wire.TCP
}

// resultOf is `ok` or a code.
func resultOf(err error) string {
	var answer *answers.Error
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &answer):
		return string(answer.Code)
	}
	return string(answers.From(err).Code)
}

// observeClose tells why t has ended. code is that with which this side closed it,
// if it did.
func (t *tunnel) observeClose(code int, clean, ousted, replaced bool) {
	reason := "lost"
	switch {
	case replaced:
		reason = "replaced"
	case code == wire.CloseRevoked:
		reason = "revoked"
	case ousted:
		reason = "operator"
	case code == wire.CloseRestart:
		reason = "restart"
	case code != 0:
		reason = "protocol"
	case clean:
		reason = "goodbye"
	}
	t.hub.observer.Closed(reason)
}
