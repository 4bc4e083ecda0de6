package tunnelcore

import (
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
	// slotTime is how long a visitor waits for a stream to end when the device
	// has no room for another.
	slotTime = 10 * time.Second
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
	gone    time.Time // when the last tunnel ended
	unclean bool      // it ended without a goodbye
	former  []string  // instances that others have replaced, the last one last
	cloned  time.Time // when operators were last told that it is there twice

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
// that t replaces, and the streams to abort: those of another instance.
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
			d.replacedLocked(d.session.instance)
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

// live is the tunnel of d, and its session; nil when it has none.
func (d *device) live() (*tunnel, *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tunnel, d.session
}

// expected is how much longer d is expected back; zero or less: not at all. One that
// has a tunnel is, which leaves this node when that stops.
func (d *device) expected() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.tunnel != nil:
		return reconnectTime
	case d.unclean:
		return reconnectTime - time.Since(d.gone)
	}
	return 0
}

// replaced notes that another instance of d has taken the place of this one, wherever
// that was.
func (d *device) replaced(instance string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.replacedLocked(instance)
}

// replacedLocked wants mu.
func (d *device) replacedLocked(instance string) {
	if slices.Contains(d.former, instance) {
		return
	}
	d.former = append(d.former, instance)
	d.former = d.former[max(0, len(d.former)-maxFormer):]
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

// dropStreamsOf is dropStreams while d has that instance.
func (d *device) dropStreamsOf(instance string) {
	d.mu.Lock()
	var all []*stream.Stream
	if d.session != nil && d.session.instance == instance {
		all = d.session.end()
	}
	d.mu.Unlock()
	abortAll(all)
}

// abortAll ends streams that the edge does not let go on: who uses them learns that it
// was not the device's service.
func abortAll(all []*stream.Stream) {
	for _, c := range all {
		c.AbortFor(lost())
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
	var orphans []*stream.Stream
	if old {
		orphans = d.session.all()
	}
	d.mu.Unlock()
	abortAll(orphans)
	return old && len(orphans) == 0
}
