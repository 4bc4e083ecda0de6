package cluster

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

const (
	// maxIdle bounds the sockets that are parked for the next stream to one peer.
	maxIdle = 64
	// idleTime is how long one is parked, within tendTime, and idlePatience how long the
	// other end keeps it: so that it is mostly the one that would use it that ends it.
	idleTime     = 25 * time.Second
	idlePatience = 35 * time.Second
	// maxDialing bounds the handshakes with one peer that are under way at once, and
	// placeTime the wait for one to end.
	maxDialing = 32
	placeTime  = time.Second
	// tendTime is how often the link looks after its sockets. One that something was
	// sent on, and nothing acknowledged for unheardMost times in a row, is dead: after
	// 10 to 15 s. TCP_USER_TIMEOUT would also end those whose reader is slow.
	tendTime    = 5 * time.Second
	unheardMost = 3
	// keepAliveEvery is after how many tendTimes streams on which nothing moves are
	// pinged.
	keepAliveEvery = 3
)

// errBusy: as many handshakes as may be are under way.
var errBusy = errors.New("cluster: too many handshakes with the peer are under way")

// pool is what a link has to do with one start of a node. It is there while there is
// something.
type pool struct {
	conns   map[*conn]struct{} // in both directions
	idle    []*conn            // those of ours that wait, the last one parked last
	dialing chan struct{}      // one element per handshake under way
	users   int                // of dialing, and who watches

	watched   bool      // watch is running
	silent    time.Time // since when the peer gives no sign of life; zero: it does
	doubted   time.Time // when an answer of it was last late
	forgotten bool      // it is dead
}

// poolLocked returns that of n, made if need be. It wants mu.
func (l *Link) poolLocked(n registry.NodeRef) *pool {
	p := l.pools[n]
	if p == nil {
		p = &pool{conns: make(map[*conn]struct{}), dialing: make(chan struct{}, maxDialing)}
		l.pools[n] = p
	}
	return p
}

// dropLocked forgets n if there is nothing any more. It wants mu.
func (l *Link) dropLocked(n registry.NodeRef, p *pool) {
	if len(p.conns) == 0 && p.users == 0 {
		delete(l.pools, n)
	}
}

// add counts a socket until remove; false when the link is closed.
func (l *Link) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.poolLocked(c.node).conns[c] = struct{}{}
	l.wg.Add(1)
	if !l.tended {
		l.tended = true
		l.wg.Go(l.tend)
	}
	return true
}

// remove undoes add, and may be called again.
func (l *Link) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pools[c.node]
	if p == nil {
		return
	}
	if _, ok := p.conns[c]; !ok {
		return
	}
	delete(p.conns, c)
	l.dropLocked(c.node, p)
	l.wg.Done()
}

// park keeps a socket of ours for the next request, or closes it.
func (l *Link) park(c *conn) {
	l.mu.Lock()
	p := l.pools[c.node]
	kept := p != nil && !c.over && !l.closed && len(p.idle) < maxIdle
	if kept {
		c.since = time.Now()
		p.idle = append(p.idle, c)
	}
	l.mu.Unlock()
	if !kept {
		c.close()
	}
}

// parked takes a socket to n out of the pool, the one that was used last; nil when
// there is none that looks alive.
func (l *Link) parked(n registry.NodeRef) *conn {
	for {
		l.mu.Lock()
		p := l.pools[n]
		if p == nil || len(p.idle) == 0 {
			l.mu.Unlock()
			return nil
		}
		last := len(p.idle) - 1
		c := p.idle[last]
		p.idle[last], p.idle = nil, p.idle[:last]
		l.mu.Unlock()
		if c.sock.Quiet() && l.shares(c.secret) {
			return c
		}
		c.close()
	}
}

// dropParked closes the sockets to n that are parked.
func (l *Link) dropParked(n registry.NodeRef) {
	l.mu.Lock()
	var all []*conn
	if p := l.pools[n]; p != nil {
		all, p.idle = p.idle, nil
	}
	l.mu.Unlock()
	for _, c := range all {
		c.close()
	}
}

// place waits for a handshake with n to be allowed, for placeTime at most; done gives
// it back.
func (l *Link) place(ctx context.Context, n registry.NodeRef) (done func(), err error) {
	l.mu.Lock()
	p := l.poolLocked(n)
	p.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		p.users--
		l.dropLocked(n, p)
	}
	late := time.NewTimer(l.patience.place)
	defer late.Stop()
	select {
	case p.dialing <- struct{}{}:
		return func() { <-p.dialing; leave() }, nil
	case <-late.C:
		leave()
		return nil, errBusy
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// end closes sockets, whoever uses them.
func (l *Link) end(all []*conn) {
	l.mu.Lock()
	waiting := l.banLocked(all)
	l.mu.Unlock()
	l.endBanned(all, waiting)
}

// banLocked has sockets carry no further stream. It returns those of them that were
// parked, which are the caller's now. It wants mu.
func (l *Link) banLocked(all []*conn) (parked []*conn) {
	for _, c := range all {
		c.over = true
		if p := l.pools[c.node]; p != nil {
			if i := slices.Index(p.idle, c); i >= 0 {
				p.idle = slices.Delete(p.idle, i, i+1)
				parked = append(parked, c)
			}
		}
	}
	return parked
}

// endBanned ends sockets that are banned, and what they carry.
func (l *Link) endBanned(all, parked []*conn) {
	for _, c := range parked {
		c.close()
	}
	for _, c := range all {
		l.mu.Lock()
		s := c.stream
		l.mu.Unlock()
		if s != nil {
			s.AbortFor(lost(net.ErrClosed))
		}
		c.raw.Close() // also when that stream has ended meanwhile; who has c lets go of it
	}
}

// allLocked returns all sockets. It wants mu.
func (l *Link) allLocked() (all []*conn) {
	for _, p := range l.pools {
		for c := range p.conns {
			all = append(all, c)
		}
	}
	return all
}

// tend looks after the sockets until the link is closed.
func (l *Link) tend() {
	ticks := time.NewTicker(l.tendEvery)
	defer ticks.Stop()
	for n := 1; ; n++ {
		select {
		case <-l.ctx.Done():
			return
		case <-ticks.C:
		}
		l.dropOutdated()
		l.lookAfter(n%keepAliveEvery == 0)
	}
}

// dropOutdated closes the sockets that were parked for long enough.
func (l *Link) dropOutdated() {
	l.mu.Lock()
	var old []*conn
	for _, p := range l.pools {
		p.idle = slices.DeleteFunc(p.idle, func(c *conn) bool {
			if time.Since(c.since) < idleTime {
				return false
			}
			old = append(old, c)
			return true
		})
	}
	l.mu.Unlock()
	for _, c := range old {
		c.close()
	}
}

// lookAfter ends the sockets whose peer's system acknowledges nothing any more, and
// pings streams that say nothing if keep is set.
func (l *Link) lookAfter(keep bool) {
	type used struct {
		c *conn
		s *stream.Stream
	}
	var all []used
	l.mu.Lock()
	for _, p := range l.pools {
		for c := range p.conns {
			if c.sock != nil {
				all = append(all, used{c, c.stream})
			}
		}
	}
	l.mu.Unlock()
	for _, u := range all {
		if answered, known := u.c.sock.Acknowledged(l.tendEvery); known && !answered {
			u.c.unheard++
		} else {
			u.c.unheard = 0
		}
		switch {
		case u.c.unheard >= unheardMost:
			l.end([]*conn{u.c})
		case keep && u.s != nil && u.c.pinging.CompareAndSwap(false, true):
			// Each by itself, and not twice: a write to a full buffer waits.
			l.wg.Go(func() {
				defer u.c.pinging.Store(false)
				u.s.KeepAlive()
			})
		}
	}
}
