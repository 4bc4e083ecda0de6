package tunnelcore

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

const (
	// orphanTime is how long streams outlive their tunnel, for the next tunnel of
	// the same instance to adopt them (protocol §6.7).
	orphanTime = time.Minute
	// reconnectTime is how long after an unclean end a device is expected back:
	// agents come back within their largest backoff, 30 s by default.
	reconnectTime = 30 * time.Second
	// slotTime is how long a visitor waits for a stream to end when the device
	// has no room for another.
	slotTime = 10 * time.Second
	// maxWaiting bounds the visitors who wait for one device to come back.
	maxWaiting = 256
	// maxFormer bounds the instances that are remembered of a device.
	maxFormer = 4
)

// device is what the hub knows of a device that has a tunnel, or had one a moment
// ago.
type device struct {
	id       string
	observer Observer
	ended    traffic // of streams

	mu      sync.Mutex // guards what follows
	tunnel  *tunnel    // the live one; nil when there is none
	session *session
	changed chan struct{} // closed when tunnel becomes another one; nil: nobody waits
	gone    time.Time     // when the last tunnel ended
	unclean bool          // it ended without a goodbye
	waiting int           // visitors who wait for it
	former  []string      // instances that others have replaced, the last one last
	cloned  time.Time     // when operators were last told that it is there twice

	arrives bucket      // of tunnels
	returns bucket      // of instances in former that came back
	keeping atomic.Bool // keepAlive is under way
}

// session is one instance of a device's agent: what its streams share, over
// reconnects.
type session struct {
	instance string
	slots    slots                       // as many as streams may be open at once
	streams  map[*stream.Stream]struct{} // nil while there was none
	ended    bool                        // no stream may be added
}

// take makes t the tunnel of d, unless d has a newer one. It returns the tunnel
// that t replaces, and the streams to abort: those of another instance. Visitors
// who wait are not woken yet.
func (d *device) take(t *tunnel, streams int) (old *tunnel, drop []*stream.Stream, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tunnel != nil && d.tunnel.holder.Generation > t.holder.Generation {
		return nil, nil, false
	}
	old, d.tunnel = d.tunnel, t
	if d.session == nil || d.session.ended || d.session.instance != t.hello.Instance {
		drop = d.session.end()
		if d.session != nil && d.session.instance != t.hello.Instance {
			d.former = append(d.former, d.session.instance)
			d.former = d.former[max(0, len(d.former)-maxFormer):]
		}
		d.session = &session{instance: t.hello.Instance}
	}
	d.session.slots.resize(streams)
	return old, drop, true
}

// wasHere reports whether that instance had d, and another one has replaced it.
func (d *device) wasHere(instance string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.former, instance)
}

// resize changes how many streams d may have at once, if t is its tunnel.
func (d *device) resize(t *tunnel, streams int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tunnel == t {
		d.session.slots.resize(streams)
	}
}

// leave says that t has ended. It does nothing, and says false, if t has been
// replaced.
func (d *device) leave(t *tunnel, unclean bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tunnel != t {
		return false
	}
	d.tunnel, d.gone, d.unclean = nil, time.Now(), unclean
	return true
}

// wake makes those who wait look again.
func (d *device) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// live is the tunnel of d, and its session; nil when it has none.
func (d *device) live() (*tunnel, *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tunnel, d.session
}

// expected says whether a visitor should wait for d to come back, for how long
// at most, and what tells of a change.
func (d *device) expected() (changed <-chan struct{}, left time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tunnel == nil && d.unclean && d.waiting < maxWaiting {
		left = reconnectTime - time.Since(d.gone)
		if d.changed == nil {
			d.changed = make(chan struct{})
		}
	}
	return d.changed, left
}

// await waits until d has a tunnel, for at most wait, if it is expected back.
func (d *device) await(ctx context.Context, wait time.Duration) bool {
	d.count(1)
	defer d.count(-1)
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		t, _ := d.live()
		if t != nil {
			return true
		}
		changed, left := d.expected()
		if left <= 0 {
			return false
		}
		select {
		case <-changed:
		case <-timeout.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (d *device) count(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting += n
}

// add counts a stream; false when its session has ended meanwhile.
func (d *device) add(s *session, c *stream.Stream) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.ended {
		return false
	}
	if s.streams == nil {
		s.streams = make(map[*stream.Stream]struct{})
	}
	s.streams[c] = struct{}{}
	return true
}

// remove forgets a stream that is closed.
func (d *device) remove(s *session, c *stream.Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := s.streams[c]; ok {
		received, sent := c.Transferred()
		d.ended.received.Add(received)
		d.ended.sent.Add(sent)
		d.observer.Transferred(received, sent)
	}
	delete(s.streams, c)
}

// transferred is the bytes from and to d while this node has known it, streams that
// live included.
func (d *device) transferred() (received, sent int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	received, sent = d.ended.received.Load(), d.ended.sent.Load()
	for _, c := range d.session.all() {
		r, s := c.Transferred()
		received, sent = received+r, sent+s
	}
	return received, sent
}

func (d *device) streaming() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session != nil && len(d.session.streams) > 0
}

// dropStreams aborts every stream of d, and those that are being opened.
func (d *device) dropStreams() {
	d.mu.Lock()
	all := d.session.end()
	d.mu.Unlock()
	abortAll(all)
}

func abortAll(all []*stream.Stream) {
	for _, c := range all {
		c.Abort()
	}
}

// end lets no further stream in, and returns those there are. It wants the
// device's mu.
func (s *session) end() []*stream.Stream {
	if s == nil {
		return nil
	}
	s.ended = true
	return s.all()
}

// all wants the device's mu.
func (s *session) all() []*stream.Stream {
	if s == nil {
		return nil
	}
	all := make([]*stream.Stream, 0, len(s.streams))
	for c := range s.streams {
		all = append(all, c)
	}
	return all
}

// keepAlive pings the streams of d on which nothing moved since the last call.
func (d *device) keepAlive() {
	d.mu.Lock()
	all := d.session.all()
	d.mu.Unlock()
	for _, c := range all {
		c.KeepAlive()
	}
}

// since is when the last tunnel of d ended; now, while it has one.
func (d *device) since() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tunnel != nil {
		return time.Now()
	}
	return d.gone
}

// forgettable says whether d, which has no tunnel, can be forgotten; it aborts
// streams that no tunnel has adopted in time.
func (d *device) forgettable(now time.Time) bool {
	d.mu.Lock()
	old := d.tunnel == nil && now.Sub(d.gone) > orphanTime
	waiting := d.waiting
	var orphans []*stream.Stream
	if old {
		orphans = d.session.all()
	}
	d.mu.Unlock()
	abortAll(orphans)
	return old && waiting == 0 && len(orphans) == 0
}
