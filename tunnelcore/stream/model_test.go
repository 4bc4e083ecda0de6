package stream

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// Two ends do random things: writes of any size, stalls, deadlines, ends, closes
// and aborts. Whatever happens, what one end reads is a prefix of what the other
// wrote, and all of it when it reads an end.
func TestModel(t *testing.T) {
	rounds := 25
	if testing.Short() {
		rounds = 10
	}
	for seed := range rounds {
		for _, shape := range []string{"pipe", "tcp", "tls", "chain"} {
			t.Run(fmt.Sprint(shape, "/", seed), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(seed), 7))
				var a, b net.Conn
				done := func() {}
				if shape == "chain" {
					a, b, done = chain(t, "tcp")
				} else {
					a, b = pair(t, shape, Options{MessageMax: 1 + rng.IntN(5000)})
				}
				m := &model{t: t}
				ends.Within(t, "model", func() {
					var wg sync.WaitGroup
					m.end(&wg, a, b, 0, rng.Uint64())
					m.end(&wg, b, a, 1, rng.Uint64())
					wg.Wait()
					Abort(a)
					Abort(b)
					done()
				})
				m.check()
			})
		}
	}
}

type model struct {
	t    *testing.T
	calm bool // both ends say their end, and wait for the other's
	// By end: what it wrote (at least, and at most: a write that failed may have
	// sent a part), whether it said its end after all of it, or tried, and what the
	// other read and how that went.
	sure, maybe, read [2]int64
	ended             [2]bool
	readErr           [2]error
	told              [2]bool        // its write took the system's one report of a reset
	ending            [2]atomic.Bool // as of relay
}

// at is the byte that an end sends at a place: wrong order or loss is seen.
func at(end int, place int64) byte { return byte(place*31>>3 + place + int64(end)*101) }

// stall waits for up to so many microseconds.
func stall(rng *rand.Rand, most int) { time.Sleep(time.Duration(rng.IntN(most)) * time.Microsecond) }

func (m *model) end(wg *sync.WaitGroup, c, other net.Conn, end int, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	actions, last := rng.IntN(40), rng.IntN(6)
	if m.calm {
		last = 0
	}
	reads := rand.New(rand.NewPCG(seed, 2))
	readDone := make(chan struct{})
	wg.Go(func() { // reads what the other end wrote
		defer close(readDone)
		from := 1 - end
		buf := make([]byte, 64+reads.IntN(8000)) // less takes a busy machine too long
		for {
			if reads.IntN(8) == 0 {
				c.SetReadDeadline(time.Now().Add(time.Duration(reads.IntN(300)) * time.Microsecond))
			}
			n, err := c.Read(buf[:1+reads.IntN(len(buf))])
			for i := range n {
				if want := at(from, m.read[from]); buf[i] != want {
					m.t.Errorf("end %d: byte %d is %d, want %d", end, m.read[from], buf[i], want)
					return
				}
				m.read[from]++
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.SetReadDeadline(time.Time{})
				continue
			}
			if err == io.EOF && wasReset(c) && !m.ending[end].Load() {
				err = syscall.ECONNRESET // our write was told
			}
			if err != nil {
				m.readErr[from] = err
				return
			}
			if reads.IntN(20) == 0 {
				stall(reads, 300)
			}
		}
	})
	wg.Go(func() {
		for range actions {
			if rng.IntN(6) == 0 {
				stall(rng, 300)
				continue
			}
			p := make([]byte, 1+rng.IntN(1<<rng.IntN(17)))
			for i := range p {
				p[i] = at(end, m.sure[end]+int64(i))
			}
			m.maybe[end] = m.sure[end] + int64(len(p))
			if _, err := c.Write(p); err != nil {
				_, m.told[end] = c.(*net.TCPConn)
				Abort(c)
				return
			}
			m.sure[end] += int64(len(p))
		}
		switch last {
		case 0, 1, 2: // an end, then wait for the other's
			m.ending[end].Store(true)
			m.ended[end] = true // even where CloseWrite fails: what breaks then may have passed it on
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
			<-readDone
			c.Close()
		case 3: // like a server that has said all
			m.ending[end].Store(true)
			m.ended[end] = true // Close says it
			c.Close()
		case 4:
			Abort(c)
		case 5: // an abort that meets whatever is under way
			stall(rng, 2000)
			Abort(c)
		}
	})
}

func (m *model) check() {
	for from := range 2 {
		if m.read[from] > m.maybe[from] {
			m.t.Errorf("end %d wrote %d bytes, %d were read", from, m.maybe[from], m.read[from])
		}
		if m.readErr[from] == io.EOF && !m.told[1-from] && (!m.ended[from] || m.read[from] != m.sure[from]) {
			m.t.Errorf("an end was read after %d bytes; end %d wrote %d and ended: %v", m.read[from], from, m.sure[from], m.ended[from])
		}
	}
}
