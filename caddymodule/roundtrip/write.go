package roundtrip

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

// write is a head on its way. A connection that takes none is looked at now and
// then: a deadline per request would cost more than the timer, which is stopped
// before it rings, and a write that meets one breaks the connection.
type write struct {
	timer *time.Timer // runs conn.lookAtWrite; nil before the first write

	mu      sync.Mutex      // guards what follows
	ctx     context.Context // of the write under way; nil: none is
	until   time.Time       // zero: it has no bound
	expired bool
}

// errNotTaken is the error of a write that has taken longer than its timeout.
var errNotTaken = fmt.Errorf("the request was not taken: %w", os.ErrDeadlineExceeded)

// writeHead writes all of out. It ends, within patience, when ctx does, and after the
// timeout, if there is one, with errNotTaken: then c is aborted.
func (c *conn) writeHead(ctx context.Context, out []byte, timeout time.Duration) error {
	w := &c.write
	w.mu.Lock()
	w.ctx, w.until = ctx, time.Time{}
	first := patience
	if timeout > 0 {
		w.until = time.Now().Add(timeout)
		first = min(first, timeout)
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(first, c.lookAtWrite)
	} else {
		w.timer.Reset(first)
	}
	w.mu.Unlock()
	_, err := c.Write(out)
	w.timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ctx = nil
	if w.expired {
		return errNotTaken
	}
	return err
}

// lookAtWrite aborts a write that should end, or looks again later. When writeHead
// has returned, it does nothing.
func (c *conn) lookAtWrite() {
	w := &c.write
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ctx == nil:
	case w.ctx.Err() != nil:
		c.abort()
	case !w.until.IsZero() && !time.Now().Before(w.until):
		w.expired = true
		c.abort()
	case w.until.IsZero():
		w.timer.Reset(patience)
	default:
		w.timer.Reset(min(patience, time.Until(w.until)))
	}
}
