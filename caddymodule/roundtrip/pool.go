// Package roundtrip sends HTTP/1.1 requests to devices, over connections that
// somebody else makes, in the goroutine of the caller.
//
// net/http's Transport has two goroutines per connection, and wakes both for each
// request. Here the caller writes the request and reads the answer itself; only a
// body that is not small has a goroutine, because a device may answer before it
// has all of it.
package roundtrip

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

// Limits of a pool.
const (
	// watchAfter is how long a connection is idle before somebody waits for it to
	// end. One that is used again sooner is spared the waiting.
	watchAfter = 10 * time.Millisecond
	// DefaultIdle is how long a connection waits for the next request: less than
	// the minute after which small HTTP servers close theirs.
	DefaultIdle = 30 * time.Second
)

// Pool keeps connections to the services of one device, by port, for the next
// request. It is safe for concurrent use.
type Pool struct {
	// Max bounds the connections that are kept.
	Max int

	idleTime time.Duration // DefaultIdle, but in tests

	mu     sync.Mutex // guards what follows
	closed bool
	count  int
	idle   map[uint16][]*conn // by port; those used last are last
	timer  *time.Timer        // runs sweep; nil until there is something to sweep
	next   time.Time          // when it will; zero: it will not

	watchers sync.WaitGroup
}

// NewPool returns a pool that keeps at most limit connections.
func NewPool(limit int) *Pool {
	return &Pool{Max: limit, idleTime: DefaultIdle, idle: make(map[uint16][]*conn)}
}

// take returns an idle connection to port, or nil. It is one that has said
// nothing since its last answer, as far as can be told without asking.
func (p *Pool) take(port uint16) *conn {
	for {
		p.mu.Lock()
		list := p.idle[port]
		if len(list) == 0 {
			p.mu.Unlock()
			return nil
		}
		c := list[len(list)-1]
		list[len(list)-1] = nil
		p.idle[port] = list[:len(list)-1]
		p.count--
		p.mu.Unlock()
		if c.still() {
			return c
		}
		c.abort()
	}
}

// still ends the wait for c, which has been taken out of its pool, and reports
// whether it was in vain.
func (c *conn) still() bool {
	if c.watched != nil {
		c.setUntil(time.Unix(1, 0))
		<-c.watched
		c.watched = nil
		return !c.stale
	}
	under := c.Conn
	if t, ok := under.(interface{ NetConn() net.Conn }); ok {
		under = t.NetConn()
	}
	q, ok := under.(interface{ Quiet() bool })
	if !ok || !q.Quiet() {
		return !ok
	}
	// What TLS, the device's or the agent's, has read ahead only a read tells.
	c.setUntil(time.Unix(1, 0))
	return errors.Is(c.waitForByte(), os.ErrDeadlineExceeded)
}

// put keeps c for the next request, or closes it. Bytes that came after its last
// answer belong to nobody: they must not become the next one.
func (p *Pool) put(c *conn) {
	if len(c.buffered()) > 0 {
		c.dropBuffer()
		c.abort()
		return
	}
	c.dropBuffer()
	c.since = time.Now()
	p.mu.Lock()
	if p.closed || p.count >= p.Max {
		p.mu.Unlock()
		c.Close()
		return
	}
	p.count++
	p.idle[c.port] = append(p.idle[c.port], c)
	p.sweepAtLocked(c.since, c.since.Add(watchAfter))
	p.mu.Unlock()
}

// sweepAtLocked has sweep run at a time, if it does not sooner. It wants mu.
func (p *Pool) sweepAtLocked(now, at time.Time) {
	if !p.next.IsZero() && !at.Before(p.next) {
		return
	}
	p.next = at
	if p.timer == nil {
		p.timer = time.AfterFunc(at.Sub(now), p.sweep)
		return
	}
	p.timer.Reset(at.Sub(now))
}

// sweep closes what has been idle for too long, and has what is idle at all
// waited for.
func (p *Pool) sweep() {
	now := time.Now()
	var old []*conn
	p.mu.Lock()
	p.next = time.Time{}
	if p.closed {
		p.mu.Unlock()
		return
	}
	for port, list := range p.idle {
		fresh := 0 // in front of it: too old
		for fresh < len(list) && now.Sub(list[fresh].since) >= p.idleTime {
			fresh++
		}
		old = append(old, list[:fresh]...)
		list = slices.Delete(list, 0, fresh)
		p.idle[port] = list
		if len(list) == 0 {
			delete(p.idle, port)
			continue
		}
		p.sweepAtLocked(now, list[0].since.Add(p.idleTime))
		for _, c := range slices.Backward(list) {
			if c.watched != nil {
				break // and so are those before it
			}
			if due := c.since.Add(watchAfter); now.Before(due) {
				p.sweepAtLocked(now, due)
			} else {
				p.watchLocked(c)
			}
		}
	}
	p.count -= len(old)
	p.mu.Unlock()
	for _, c := range old {
		c.Close()
	}
}

// watchLocked waits, in a goroutine that ends when c is taken or closed, for an
// idle connection to end or to say something that nobody has asked for. It wants
// mu.
func (p *Pool) watchLocked(c *conn) {
	c.setUntil(time.Time{})
	watched := make(chan struct{})
	c.watched = watched
	p.watchers.Go(func() {
		err := c.waitForByte()
		stale := !errors.Is(err, os.ErrDeadlineExceeded)
		c.stale = stale
		close(watched)
		if !stale || !p.remove(c) {
			return // it was taken, and is somebody else's
		}
		if err == io.EOF {
			c.Close()
		} else {
			c.abort()
		}
	})
}

// waitForByte returns nil when a byte has come, which is lost.
func (c *conn) waitForByte() error {
	for range 100 {
		if n, err := c.Conn.Read(c.one[:]); n > 0 {
			return nil
		} else if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// remove takes c out, if it is there.
func (p *Pool) remove(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.idle[c.port], c)
	if i < 0 {
		return false
	}
	p.idle[c.port] = slices.Delete(p.idle[c.port], i, i+1)
	p.count--
	return true
}

// CloseIdle closes the connections that wait for a next request.
func (p *Pool) CloseIdle() {
	p.mu.Lock()
	all := p.idle
	p.idle = make(map[uint16][]*conn)
	p.count = 0
	p.mu.Unlock()
	for _, list := range all {
		for _, c := range list {
			c.Close()
		}
	}
}

// Close closes them too, and keeps none any more: what is in use is closed after
// its answer. It returns when nobody waits for one of them.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	p.CloseIdle()
	p.watchers.Wait()
}

// Dialer makes connections for one request.
type Dialer interface {
	Dial(ctx context.Context) (net.Conn, error)
	// Again reports whether a request may be sent on another new connection after
	// one that failed with err before anything was answered. Of body nothing has
	// been read yet if it could not be sent again.
	Again(r *http.Request, body bool, err error) bool
}
