package registry

import (
	"context"
	"sync"
)

// A Hint says that something has changed, for those who keep what they have read.
// Hints may come late, twice, or not at all; what is true is in the registry.
//
// The zero Hint says that others were missed: anything may have changed.
type Hint struct {
	// Device and Label are set when a device came, left, moved to another tunnel or
	// got that label or lost it.
	Device, Label string
	// Ports says that public ports were leased or given back.
	Ports bool
}

// hintQueue is how many hints may wait for one subscriber: the devices that come
// and go on a busy cluster while it looks one up.
const hintQueue = 256

// Hinter tells what changes.
type Hinter interface {
	// Hints returns the hints from now on, until ctx ends or the registry is closed;
	// then the channel is closed. Who reads too slowly misses some and is told so by
	// a zero Hint; nobody waits for it. Each call is a subscription of its own.
	Hints(ctx context.Context) <-chan Hint
}

// Hints hands hints on to subscribers. The zero value has none. It is safe for
// concurrent use.
type Hints struct {
	mu     sync.Mutex // guards what follows, and sending on channels of subs
	subs   map[chan Hint]func() bool
	closed bool
}

// Subscribe is Hinter.Hints.
func (h *Hints) Subscribe(ctx context.Context) <-chan Hint {
	c := make(chan Hint, hintQueue)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(c)
		return c
	}
	if h.subs == nil {
		h.subs = map[chan Hint]func() bool{}
	}
	h.subs[c] = context.AfterFunc(ctx, func() { h.end(c) })
	return c
}

// end ends a subscription, unless Close has.
func (h *Hints) end(c chan Hint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, there := h.subs[c]; there {
		delete(h.subs, c)
		close(c)
	}
}

// Send tells all subscribers. It waits for none of them.
func (h *Hints) Send(hint Hint) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.subs {
		select {
		case c <- hint:
			continue
		default:
		}
		// All that waits is worth no more than this. Nobody else sends meanwhile.
		for len(c) > 0 {
			select {
			case <-c:
			default:
			}
		}
		c <- Hint{}
	}
}

// Close ends all subscriptions, and those to come.
func (h *Hints) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for c, stop := range h.subs {
		stop()
		close(c)
	}
	h.subs = nil
}
