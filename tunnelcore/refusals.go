package tunnelcore

import (
	"net/http"
	"net/netip"
	"slices"
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
	// Times are when agents were sent away lately, the last one last: RefusalTimes at
	// most.
	Times []time.Time
}

// RefusalTimes bounds Refusal.Times.
const RefusalTimes = 16

// refusalLog is the last refusal of each device. The zero value is ready.
type refusalLog struct {
	mu sync.Mutex // guards by
	by map[string]Refusal
}

// note remembers the refusal of a handshake for a control socket. One without ports is
// no device's: `iottunnel-agent check` sends it to see whether WebSockets come through.
func (l *refusalLog) note(r *http.Request, from netip.Addr, answer *answers.Error) {
	query := r.URL.Query()
	device := query.Get("device")
	if r.URL.Path != wire.ControlPath || names.CheckDevice(device) != nil || !query.Has("ports") {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = make(map[string]Refusal)
	}
	last, known := l.by[device]
	if !known && len(l.by) >= maxRefusals {
		for other := range l.by {
			delete(l.by, other)
			break
		}
	}
	now := time.Now()
	// Copied: who was told of the last one may still read it.
	times := append(slices.Clone(last.Times[max(0, len(last.Times)-RefusalTimes+1):]), now)
	l.by[device] = Refusal{Code: answer.Code, Message: answer.Message, Remote: from, At: now, Times: times}
}

// LastRefusal is how an agent that claimed to be device was last sent away by this
// node.
func (h *Hub) LastRefusal(device string) (Refusal, bool) {
	h.lastRefusals.mu.Lock()
	defer h.lastRefusals.mu.Unlock()
	r, ok := h.lastRefusals.by[device]
	return r, ok
}
