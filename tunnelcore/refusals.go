package tunnelcore

import (
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// maxRefusals bounds the devices whose last refusal is remembered. Strangers can
// fill it; then some make room.
const maxRefusals = 8192

// Refusal is how an agent that claimed to be a device was last sent away by this
// node. Whether it was that device is not known.
type Refusal struct {
	Code    wire.Code
	Message string // as the agent was told
	Remote  netip.Addr
	At      time.Time
}

// refusalLog is the last refusal of each device. The zero value is ready.
type refusalLog struct {
	mu sync.Mutex // guards by
	by map[string]Refusal
}

// note remembers the refusal of a handshake for a control socket.
func (l *refusalLog) note(r *http.Request, from netip.Addr, answer *answers.Error) {
	device := r.URL.Query().Get("device")
	if r.URL.Path != wire.ControlPath || names.CheckDevice(device) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = make(map[string]Refusal)
	}
	if _, known := l.by[device]; !known && len(l.by) >= maxRefusals {
		for other := range l.by {
			delete(l.by, other)
			break
		}
	}
	l.by[device] = Refusal{Code: answer.Code, Message: answer.Message, Remote: from, At: time.Now()}
}

// LastRefusal is how an agent that claimed to be device was last sent away by this
// node.
func (h *Hub) LastRefusal(device string) (Refusal, bool) {
	h.lastRefusals.mu.Lock()
	defer h.lastRefusals.mu.Unlock()
	r, ok := h.lastRefusals.by[device]
	return r, ok
}
