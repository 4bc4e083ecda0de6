package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// watchEvery is how often a peer is asked for a sign of life that streams go through,
	// or that has given none; hailTime is how long it may take for one, and hailMost how
	// often in a row it may fail to: so that streams end within 2 s of its last word.
	watchEvery = 400 * time.Millisecond
	hailTime   = 750 * time.Millisecond
	hailMost   = 2
	// stallTime is by how much a question may be late before it is this node, rather
	// than the peer, that has had no time for it.
	stallTime = 250 * time.Millisecond
	// doubtTime is for how long a peer is watched that was late; silentMost, for how long
	// one counts as silent that nobody forgets.
	doubtTime  = 5 * time.Second
	silentMost = time.Minute
)

// nobody is a device that nodes ask each other about for a sign of life: there is none
// of that name.
const nobody = "-"

// SilentError is ErrAway of a peer that says nothing at all: it is held up, or its host
// or the way to it is gone. Unlike that of a peer that has ended, its agents learn of it
// late.
type SilentError struct {
	Since time.Time // when it was first asked in vain
}

func (e *SilentError) Error() string {
	return fmt.Sprintf("%v: it has said nothing for %v", ErrAway, time.Since(e.Since).Round(time.Millisecond))
}

func (e *SilentError) Unwrap() error { return ErrAway }

// late says whether err is that nothing came in time.
func late(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.Is(err, errLate) || errors.As(err, &timeout) && timeout.Timeout()
}

// silent returns a *SilentError of a peer that has given no sign of life when it was
// last asked, else nil.
func (l *Link) silent(p Peer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if of := l.pools[p.NodeRef]; of != nil && !of.silent.IsZero() {
		return &SilentError{of.silent}
	}
	return nil
}

// attend has a peer watched that a stream goes through, or that has just been asked in
// vain: then it is in doubt. A single answer that is late, of a busy node, proves nothing.
func (l *Link) attend(p Peer, doubt bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	of := l.poolLocked(p.NodeRef)
	if doubt {
		of.doubted = time.Now()
	}
	of.forgotten = false
	if of.watched {
		return
	}
	of.watched = true
	of.users++
	l.wg.Go(func() { l.watch(p, of) })
}

// watch asks a peer for signs of life until there is no need to. When it gives none all
// streams to it end: those who wait for their bytes learn what has happened.
func (l *Link) watch(p Peer, of *pool) {
	var c *conn
	defer func() {
		if c != nil {
			c.close()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		of.users--
		l.dropLocked(p.NodeRef, of)
	}()
	next := time.NewTimer(watchEvery)
	defer next.Stop()
	missed, first := 0, time.Time{}
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-next.C:
		}
		if !l.watching(of) {
			return
		}
		began := time.Now()
		var err error
		c, err = l.hail(p, c)
		switch took := time.Since(began); {
		case l.ctx.Err() != nil:
			return
		case !late(err):
			missed = 0
			l.heard(p, of)
			next.Reset(watchEvery)
			continue
		case took > l.patience.hail+stallTime: // this node knows nothing
			missed = 0
		default:
			if missed == 0 {
				first = began
			}
			missed++
		}
		if missed < hailMost {
			next.Reset(0)
			continue
		}
		l.deadSilent(p, of, first)
		next.Reset(watchEvery)
	}
}

// watching says whether a peer has to be watched on: it is silent or in doubt, or has
// streams of ours.
func (l *Link) watching(of *pool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !of.forgotten {
		if !of.silent.IsZero() && time.Since(of.silent) < silentMost || time.Since(of.doubted) < doubtTime {
			return true
		}
		for c := range of.conns {
			if c.stream != nil && !c.inbound {
				return true
			}
		}
	}
	of.watched, of.silent = false, time.Time{}
	return false
}

// hail asks p for a sign of life, on c if there is such a socket, and returns the one to
// use the next time; late says of the error that it gave none. Any other is one, too: of
// its host, at least, and that the sockets of its streams tell themselves.
func (l *Link) hail(p Peer, c *conn) (*conn, error) {
	ctx, cancel := context.WithTimeout(l.ctx, l.patience.hail)
	defer cancel()
	by, _ := ctx.Deadline()
	if c != nil && (!c.sock.Quiet() || !l.shares(c.secret)) {
		c.close()
		c = nil
	}
	if c == nil {
		var err error
		if c, err = l.connectTo(ctx, p, by); err != nil {
			return nil, err
		}
	}
	if _, err := c.ask(ctx, &request{Kind: kindInfo, Device: nobody}, false, by); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// heard says that p has given a sign of life.
func (l *Link) heard(p Peer, of *pool) {
	l.mu.Lock()
	since := of.silent
	of.silent = time.Time{}
	l.mu.Unlock()
	if !since.IsZero() {
		l.log().Info("a node answers again", "node", p.ID, "silent_for", time.Since(since))
	}
}

// deadSilent ends all streams to p, which has said nothing since.
func (l *Link) deadSilent(p Peer, of *pool, since time.Time) {
	var ours []*conn
	l.mu.Lock()
	if of.silent.IsZero() {
		of.silent = since
	}
	for c := range of.conns {
		if c.stream != nil && !c.inbound {
			ours = append(ours, c)
		}
	}
	l.mu.Unlock()
	if len(ours) > 0 {
		l.log().Warn("a node says nothing: streams through it end", "node", p.ID, "address", p.Internal, "streams", len(ours))
		l.end(ours)
	}
}
