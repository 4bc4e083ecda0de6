package registry

import (
	"sync/atomic"
	"time"
)

// A clock counts the milliseconds that leases run by. It starts as Unix time, but
// then counts what has passed and never goes back: when somebody sets the
// machine's clock, leases neither end early nor last longer.
//
// Over a restart it goes on from where it was saved, plus what the wall clock
// says has passed since, which is nothing if that went backwards. A wall clock
// that was set forward meanwhile cannot be told from a long stop.
type clock struct {
	now   func() time.Time
	start time.Time // now() when the clock began
	base  int64     // what the clock showed then

	last   atomic.Int64 // the highest reading that something was decided by
	offset atomic.Int64 // wall clock minus this clock
}

// saved is a reading of the clock and of the wall clock at the same moment, in
// milliseconds; zero when there is none.
type saved struct{ clock, wall int64 }

func newClock(now func() time.Time, s saved) *clock {
	c := &clock{now: now, start: now()}
	wall := c.start.UnixMilli()
	c.base = wall
	if s != (saved{}) {
		c.base = s.clock + max(0, wall-s.wall)
	}
	c.last.Store(c.base)
	c.offset.Store(wall - c.base)
	return c
}

// read returns the present moment.
func (c *clock) read() int64 {
	return max(c.last.Load(), c.base+c.now().Sub(c.start).Milliseconds())
}

// decide returns the present moment, and keeps later readings from being before it.
func (c *clock) decide() int64 {
	t := c.read()
	for {
		last := c.last.Load()
		if t <= last {
			return last
		}
		if c.last.CompareAndSwap(last, t) {
			return t
		}
	}
}

// save returns what newClock needs to go on after a restart.
func (c *clock) save() saved { return saved{clock: c.read(), wall: c.now().UnixMilli()} }

// time returns a moment of the clock as people's time.
func (c *clock) time(t int64) time.Time { return time.UnixMilli(t + c.offset.Load()) }

// stepped says whether somebody has set the wall clock, by more than a second,
// and follows it in what time returns.
func (c *clock) stepped() bool {
	offset := c.now().UnixMilli() - c.read()
	if d := offset - c.offset.Load(); -1000 <= d && d <= 1000 {
		return false // drift: not worth that the end of a lease wavers in lists
	}
	c.offset.Store(offset)
	return true
}

// millis returns d in milliseconds, rounded up.
func millis(d time.Duration) int64 {
	ms := int64(d / time.Millisecond)
	if d%time.Millisecond > 0 {
		ms++
	}
	return ms
}
