package socket

import (
	"errors"
	"sync"
	"sync/atomic"
)

// ErrGaveUp is a write that was given up before its turn came: nothing of it was
// sent, and the socket is as it was.
var ErrGaveUp = errors.New("socket: write given up before its turn")

// Turn is a writer's place in the queue of a socket, for one write at a time. The
// zero value is ready. It lets others end the wait: GiveUp.
type Turn struct {
	quit  atomic.Bool // see GiveUp
	ready chan struct{}

	// Guarded by turns.mu while it waits; what ready brings is its owner's.
	in         *queue    // where it waits
	all        []Message // what it would write, and somebody else may; nil: nobody else
	gone       bool      // it was taken out by GiveUp
	sent       bool      // somebody has written all
	err        error     // how that went
	prev, next *Turn
}

// Renew lets the writes that follow wait again, after GiveUp.
func (t *Turn) Renew() { t.quit.Store(false) }

// class says which writes go first.
type class int

const (
	urgent  class = iota // text, and what keeps the socket alive
	regular              // data
	classes
)

// classOf is that of a message.
func classOf(op Opcode) class {
	if op == Text {
		return urgent
	}
	return regular
}

// turns says who may write: one at a time, the urgent ones first, in the order in
// which they came. As long as nobody waits it costs what a mutex does.
type turns struct {
	state atomic.Uint32 // free, held or waited

	mu     sync.Mutex // guards the queues
	queues [classes]queue
}

const (
	free   = 0
	held   = 1 // and nobody waits
	waited = 2 // held, and somebody may wait
)

// queue is a list of those who wait, the first one first.
type queue struct{ first, last *Turn }

// tryTake takes the turn if it is free.
func (q *turns) tryTake() bool { return q.state.CompareAndSwap(free, held) }

// take waits for the turn, or until somebody else has written all: then sent is
// true, and the error that of the write. Else it is ErrGaveUp.
func (q *turns) take(c class, t *Turn, all []Message) (sent bool, err error) {
	if q.tryTake() {
		return false, nil
	}
	q.mu.Lock()
	for !q.state.CompareAndSwap(held, waited) && q.state.Load() != waited {
		if q.tryTake() { // it was given back meanwhile
			q.mu.Unlock()
			return false, nil
		}
	}
	if t.quit.Load() {
		q.mu.Unlock()
		return false, ErrGaveUp
	}
	if t.ready == nil {
		t.ready = make(chan struct{}, 1)
	}
	t.gone, t.sent, t.err = false, false, nil
	t.all = append(t.all[:0], all...)
	q.queues[c].push(t)
	q.mu.Unlock()
	<-t.ready
	clear(t.all)
	if t.gone {
		return false, ErrGaveUp
	}
	return t.sent, t.err
}

// join takes who is next out of the queue, for its messages to be written
// together with others: nil when nobody waits who lets others write.
func (q *turns) join() *Turn {
	if q.state.Load() != waited {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.queues {
		if t := q.queues[c].first; t != nil {
			if len(t.all) == 0 {
				return nil
			}
			q.queues[c].remove(t)
			return t
		}
	}
	return nil
}

// joined tells one that was taken out by join how its write went.
func (t *Turn) joined(err error) {
	t.sent, t.err = true, err
	t.ready <- struct{}{}
}

// pass gives the turn to who is next.
func (q *turns) pass() {
	if q.state.CompareAndSwap(held, free) {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.queues {
		if t := q.queues[c].first; t != nil {
			q.queues[c].remove(t)
			t.ready <- struct{}{}
			return // still waited: the next pass finds out
		}
	}
	q.state.Store(free)
}

// giveUp ends the wait of t, and of those of its writes that follow.
func (q *turns) giveUp(t *Turn) {
	t.quit.Store(true)
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.in != nil {
		t.in.remove(t)
		t.gone = true
		t.ready <- struct{}{}
	}
}

func (l *queue) push(t *Turn) {
	t.in, t.prev, t.next = l, l.last, nil
	if l.last == nil {
		l.first = t
	} else {
		l.last.next = t
	}
	l.last = t
}

func (l *queue) remove(t *Turn) {
	if t.prev == nil {
		l.first = t.next
	} else {
		t.prev.next = t.next
	}
	if t.next == nil {
		l.last = t.prev
	} else {
		t.next.prev = t.prev
	}
	t.in, t.prev, t.next = nil, nil, nil
}

// lock waits for the turn to write.
func (s *Socket) lock(c class) {
	if s.turns.tryTake() {
		return
	}
	var t Turn                      // no pool: its channel belongs to the bubble of a test about time
	_, _ = s.turns.take(c, &t, nil) // nobody gives it up
}

// GiveUp makes writes that wait with t return ErrGaveUp, now and later, until t
// is renewed. A write that has begun goes on.
func (s *Socket) GiveUp(t *Turn) { s.turns.giveUp(t) }
