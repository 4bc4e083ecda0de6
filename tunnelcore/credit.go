package tunnelcore

import (
	"context"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// leastCredit is what a stream gets of early bytes, or nothing.
const leastCredit = 4 << 10

// capsFor are the capabilities in force with an agent that offers some. Those
// that lean on early count only with it, and who has everything inline reuses
// nothing (protocol §3.5).
func capsFor(offered, served wire.Caps) wire.Caps {
	caps := offered & served & (wire.Early | wire.Reuse | wire.Inline)
	switch {
	case !caps.Has(wire.Early):
		return 0
	case caps.Has(wire.Inline):
		caps &^= wire.Reuse
	}
	return caps
}

// credit is what the streams of one tunnel may send early, in bytes of each
// direction (protocol §10.1). Its methods may be called concurrently.
type credit struct {
	each, total int // bounds: of a stream, of all

	mu    sync.Mutex // guards what follows
	left  int
	freed chan struct{} // closed when some was given back; nil: nobody waits
}

// creditFor is that of a tunnel whose agent asks for bounds of its own.
func creditFor(hello wire.Hello, l Limits) credit {
	// Half of what may be held for a device, as credit is for both directions.
	total := within(hello.EarlyTotal, min(max(l.BufferPerDevice/2, 1), wire.MaxEarlyTotal))
	return credit{each: min(within(hello.Early, wire.DefaultEarly), total), total: total, left: total}
}

// take reserves credit for a stream: all that one may have while there is plenty,
// then a quarter of what is left, so that a burst finds some. 0: it is spent.
func (c *credit) take() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeLocked()
}

// takeLocked wants mu.
func (c *credit) takeLocked() int {
	least := min(c.each, leastCredit)
	if c.left < least {
		return 0
	}
	n := min(c.each, max(c.left/4, least))
	c.left -= n
	return n
}

// wait is take for a stream that cannot do without: it waits for others to end,
// as for a slot. The error is an *answers.Error.
func (c *credit) wait(ctx context.Context, over <-chan struct{}) (int, error) {
	timeout := time.NewTimer(slotTime)
	defer timeout.Stop()
	for {
		c.mu.Lock()
		n := c.takeLocked()
		if n == 0 && c.freed == nil {
			c.freed = make(chan struct{})
		}
		freed := c.freed
		c.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		select {
		case <-freed:
		case <-over:
			return 0, noTunnel("the device's connection broke")
		case <-timeout.C:
			return 0, busy()
		case <-ctx.Done():
			return 0, answers.From(ctx.Err())
		}
	}
}

func (c *credit) giveBack(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left += n
	if c.freed != nil && n > 0 {
		close(c.freed)
		c.freed = nil
	}
}
