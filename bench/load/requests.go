//go:build linux

package load

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Requests is a load of visitors that each send one request after the other.
type Requests struct {
	Visitors int
	Path     string
	Fresh    bool // a connection per request
	Each     int  // requests of a visitor; 0: as many as the window holds
}

// Answers is what came of Requests.
type Answers struct {
	Count    int // in the window
	Took     time.Duration
	CPU      CPU             // spent in the window
	Waits    []time.Duration // until the whole answer, sorted; from the connect on where it is fresh
	Earliest []time.Duration // until the first byte, in the order in which they came; only with Each, and instead of the rest
}

// PerSecond is the rate of answers.
func (a Answers) PerSecond() float64 { return float64(a.Count) / a.Took.Seconds() }

// Quantile is the wait that a share q of the answers did not exceed.
func (a Answers) Quantile(q float64) time.Duration {
	if len(a.Waits) == 0 {
		return 0
	}
	return a.Waits[min(int(q*float64(len(a.Waits))), len(a.Waits)-1)]
}

// stuck is how long nothing may happen before a load fails.
const stuck = 20 * time.Second

// Run visits for the length of the window; with Each there is no window, and it
// ends when all have their answers.
func (r Requests) Run(t Target, w Window) (a Answers, err error) {
	failed := t.From.Do(func() { a, err = r.run(t, w) })
	return a, errors.Join(failed, err)
}

func (r Requests) run(t Target, w Window) (a Answers, err error) {
	c := crowd{Requests: r, target: t, request: request("GET", r.Path, t.Host, "")}
	if c.poll, err = newPoll(); err != nil {
		return Answers{}, err
	}
	defer c.close()
	c.span = w.start()
	if err := c.visit(); err != nil {
		return Answers{}, err
	}
	a = c.answers
	a.Took, a.CPU = c.span.took(), c.span.spent
	if a.Count == 0 && r.Each == 0 {
		return a, fmt.Errorf("no answer within %v", w.Length)
	}
	slices.Sort(a.Waits)
	return a, nil
}

// crowd is the visitors at work, on one thread.
type crowd struct {
	Requests
	target   Target
	request  []byte
	poll     *poll
	span     *span
	visitors []*visitor
	waiting  int // visitors without their answer
	made     int // connections so far
	answers  Answers
	buf      [64 << 10]byte
}

type visitor struct {
	fd     int // -1: none
	up     bool
	begin  time.Time
	first  bool // a byte has come
	asked  int
	answer answer
}

func (c *crowd) visit() error {
	for i := range c.Visitors {
		v := &visitor{fd: -1}
		c.visitors = append(c.visitors, v)
		if err := c.ask(v, i); err != nil {
			return err
		}
	}
	for c.waiting > 0 {
		ready, err := c.poll.wait(stuck)
		if err != nil {
			return err
		}
		if len(ready) == 0 {
			return fmt.Errorf("no answer for %v to %d of %d visitors", stuck, c.waiting, c.Visitors)
		}
		for _, i := range ready {
			if err := c.ready(c.visitors[i], i); err != nil {
				return err
			}
		}
	}
	return nil
}

// ask begins a visitor's next request.
func (c *crowd) ask(v *visitor, i int) (err error) {
	c.waiting++
	v.begin, v.first = time.Now(), false
	v.asked++
	v.answer.reset()
	if v.fd >= 0 {
		return c.send(v)
	}
	c.made++
	if v.fd, err = c.target.connect(c.made); err != nil {
		return err
	}
	v.up = false
	return c.poll.addEdge(v.fd, i)
}

// send sends a request, which always fits into the buffer of an idle socket.
func (c *crowd) send(v *visitor) error {
	if n, err := unix.Write(v.fd, c.request); err != nil || n < len(c.request) {
		return fmt.Errorf("sent %d bytes of a request: %w", n, err)
	}
	return nil
}

// ready goes on with a visitor whose socket has news. Sockets are polled for
// edges: all that there is has to be read.
func (c *crowd) ready(v *visitor, i int) error {
	if v.fd < 0 {
		return nil
	}
	if !v.up {
		if err := connected(v.fd); err != nil {
			return err
		}
		v.up = true
		return c.send(v)
	}
	for {
		n, err := unix.Read(v.fd, c.buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return fmt.Errorf("answer: %w", err)
		case n == 0:
			return fmt.Errorf("the connection ended before the answer did, after %v and %d requests", time.Since(v.begin), v.asked-1)
		}
		now := time.Now()
		if !v.first {
			v.first = true
			if c.Each > 0 {
				c.answers.Earliest = append(c.answers.Earliest, now.Sub(v.begin))
			}
		}
		whole, err := v.answer.take(c.buf[:n])
		if err != nil {
			return err
		}
		if whole {
			return c.answered(v, i, now)
		}
		if n < len(c.buf) {
			return nil
		}
	}
}

func (c *crowd) answered(v *visitor, i int, now time.Time) error {
	c.waiting--
	if c.Each == 0 {
		c.counted(v.begin, now)
	}
	if c.Fresh {
		unix.Close(v.fd)
		v.fd = -1
	}
	if c.span.over() || v.asked == c.Each {
		return nil
	}
	return c.ask(v, i)
}

// counted counts an answer. One that comes after the window does not count for the
// rate, but its wait does if the request is of the window: who waits longest is
// not left out.
func (c *crowd) counted(begin, now time.Time) {
	if c.span.at(now) {
		c.answers.Count++
	}
	if !c.span.from.IsZero() && !begin.Before(c.span.from) {
		c.answers.Waits = append(c.answers.Waits, now.Sub(begin))
	}
}

func (c *crowd) close() {
	for _, v := range c.visitors {
		if v.fd >= 0 {
			unix.Close(v.fd)
		}
	}
	c.poll.close()
}
