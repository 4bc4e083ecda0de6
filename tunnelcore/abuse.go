package tunnelcore

import (
	"io"
	"net"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// What bounds the use of a device, so that one that is misused, or a visitor who
// misuses it, does not take what others need: Limits.RequestsPerDevice and
// Limits.BandwidthPerDevice. Both count at the node where visitors come in, and cost
// nothing where they are not set.

// The limits that Observer.Limited and the event `limited` tell of.
const (
	limitBandwidth = "bandwidth"
	limitRequests  = "requests"
	limitStreams   = "streams"
)

const (
	// limitedEvery is how often operators are told of the same device and limit, and
	// maxLimited how many of those are remembered.
	limitedEvery = time.Minute
	maxLimited   = 4096
	// usersSwept is how many devices there may be before those are forgotten that do
	// nothing.
	usersSwept = 1024
	// paceBurst is for how long a device that was quiet may go as fast as it can.
	paceBurst = time.Second
	// pacePiece is how long a piece takes at the bandwidth, so that visitors take
	// turns; minPiece and maxPiece bound its bytes.
	pacePiece = time.Second / 8
	minPiece  = 1 << 10
	maxPiece  = 64 << 10
)

// usage is how much each device is used through this node. The zero value is ready.
type usage struct {
	mu    sync.Mutex // guards what follows
	by    map[string]*user
	sweep int // size of by at which to look for those to be forgotten
	told  map[limitedKey]time.Time
}

type limitedKey struct{ device, limit string }

// user is a device that visitors use.
type user struct {
	requests bucket

	mu     sync.Mutex // guards what follows
	paced  int        // connections
	budget time.Time  // up to then its bandwidth is spent
}

// of returns the use of a device. hold keeps it until paced goes down again.
func (u *usage) of(device string, hold bool) *user {
	u.mu.Lock()
	defer u.mu.Unlock()
	one := u.by[device]
	if one == nil {
		if u.by == nil {
			u.by = make(map[string]*user)
		}
		if len(u.by) >= max(usersSwept, u.sweep) {
			for device, one := range u.by {
				if one.idle() {
					delete(u.by, device)
				}
			}
			u.sweep = 2 * len(u.by)
		}
		one = new(user)
		u.by[device] = one
	}
	if hold {
		one.mu.Lock()
		one.paced++
		one.mu.Unlock()
	}
	return one
}

// idle reports whether nothing would be forgotten with u.
func (u *user) idle() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.paced > 0 || time.Now().Before(u.budget) {
		return false
	}
	return u.requests.full()
}

// full reports whether b admits all of its burst.
func (b *bucket) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fillLocked()
	return b.tokens >= b.burst
}

// permit counts a request to a device, or a connection to one of its public ports. The
// error is too_many when there were more in the last second than there may be.
func (h *Hub) permit(device string) error {
	most := h.settings.Load().Limits.RequestsPerDevice
	if most <= 0 {
		return nil
	}
	u := h.usage.of(device, false)
	u.requests.set(float64(most), float64(most))
	if u.requests.take() {
		return nil
	}
	h.limited(device, limitRequests)
	return &answers.Error{Code: wire.TooMany, RetryAfter: time.Second, Message: "too many requests per second to this device"}
}

// limited tells operators that a device has met a limit.
func (h *Hub) limited(device, limit string) {
	h.observer.Limited(limit)
	if !h.usage.tell(limitedKey{device, limit}) {
		return
	}
	h.log().Warn("a device has met its limit", "device", device, "limit", limit)
	h.emit("limited", map[string]any{"device": device, "limit": limit})
}

// tell reports whether operators have not been told lately.
func (u *usage) tell(key limitedKey) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if at, ok := u.told[key]; ok && now.Sub(at) < limitedEvery {
		return false
	}
	if u.told == nil {
		u.told = make(map[limitedKey]time.Time)
	}
	if len(u.told) >= maxLimited {
		for key, at := range u.told {
			if now.Sub(at) >= limitedEvery {
				delete(u.told, key)
			}
		}
		if len(u.told) >= maxLimited {
			return false // counted all the same
		}
	}
	u.told[key] = now
	return true
}

// pace bounds the bandwidth of a stream to a device, if that has a bound. One that was
// opened without goes on without.
func (h *Hub) pace(device string, c *stream.Stream) net.Conn {
	if h.settings.Load().Limits.BandwidthPerDevice <= 0 {
		return c
	}
	p := &pacedStream{Stream: c, hub: h, device: device, user: h.usage.of(device, true), gone: make(chan struct{})}
	p.leave = sync.OnceFunc(func() {
		close(p.gone)
		p.user.mu.Lock()
		defer p.user.mu.Unlock()
		p.user.paced--
	})
	return p
}

// pacedStream is a stream that is as fast as its device may be, both directions
// together. Whoever is too fast waits after what has passed, until Close or Abort.
type pacedStream struct {
	*stream.Stream
	hub    *Hub
	device string
	user   *user
	gone   chan struct{}
	leave  func()
}

// piece is how many of n bytes may pass at once.
func (p *pacedStream) piece(n int) int {
	rate := p.hub.settings.Load().Limits.BandwidthPerDevice
	if rate <= 0 {
		return n
	}
	return min(n, max(minPiece, min(maxPiece, int(float64(rate)*pacePiece.Seconds()))))
}

// passed waits until it is the time of what comes after n bytes.
func (p *pacedStream) passed(n int) {
	rate := p.hub.settings.Load().Limits.BandwidthPerDevice
	if rate <= 0 || n <= 0 {
		return
	}
	takes := time.Duration(float64(n) / float64(rate) * float64(time.Second))
	now := time.Now()
	p.user.mu.Lock()
	if earliest := now.Add(-paceBurst); p.user.budget.Before(earliest) {
		p.user.budget = earliest
	}
	p.user.budget = p.user.budget.Add(takes)
	pause := p.user.budget.Sub(now)
	p.user.mu.Unlock()
	if pause <= 0 {
		return
	}
	p.hub.limited(p.device, limitBandwidth)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.gone:
	}
}

func (p *pacedStream) Read(b []byte) (int, error) {
	n, err := p.Stream.Read(b[:p.piece(len(b))])
	p.passed(n)
	return n, err
}

func (p *pacedStream) Write(b []byte) (n int, err error) {
	for first := true; first || n < len(b); first = false {
		k, err := p.Stream.Write(b[n : n+p.piece(len(b)-n)])
		n += k
		if err != nil {
			return n, err
		}
		p.passed(k)
	}
	return n, nil
}

// ReadFrom is Write again and again: that of the stream would pass by it.
func (p *pacedStream) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{p}, r)
}

// Close closes the stream; who waits goes on.
func (p *pacedStream) Close() error {
	p.leave()
	return p.Stream.Close()
}

// Abort aborts the stream; who waits goes on.
func (p *pacedStream) Abort() {
	p.leave()
	p.Stream.Abort()
}

// Interface guards
var (
	_ net.Conn      = (*pacedStream)(nil)
	_ io.ReaderFrom = (*pacedStream)(nil)
)
