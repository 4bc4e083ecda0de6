package stream

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// On a link of 64 kbit/s that is full of early data, a heartbeat waits for what
// the kernel holds and for one write, not for the data of all streams; and these
// take turns.
func TestHeartbeatOnCloggedLink(t *testing.T) {
	const (
		rate    = 64_000 / 8 // bytes per second
		streams = 32
		each    = 16 << 10
		total   = streams * each * time.Second / rate // what the data takes: a minute
		worst   = (unsent + 3*4200) * time.Second / rate
	)
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		client, server := newSlow(near, rate), newSlow(far, rate)
		l := linkOn(t, client, server, "pipe", MuxOptions{}, false)
		start := time.Now()
		var sending, reading sync.WaitGroup
		var first, last [streams]time.Duration
		for i := range streams {
			edge, n := l.open(each)
			sending.Go(func() {
				if _, err := edge.Write(make([]byte, each)); err != nil {
					t.Error(err)
				}
			})
			reading.Go(func() {
				agent := <-l.agent.waiting(l.agent.opened, n)
				io.ReadFull(agent, make([]byte, 1))
				first[i] = time.Since(start)
				if _, err := io.ReadFull(agent, make([]byte, each-1)); err != nil {
					t.Error(err)
				}
				last[i] = time.Since(start)
			})
		}
		sent := make(chan struct{})
		go func() { sending.Wait(); close(sent) }()
		pings := 0
		for over := false; !over; pings++ {
			asked, heard := time.Now(), l.edge.sock.Heard()
			l.edge.sock.PingSoon()
			for l.edge.sock.Heard() == heard {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(asked); took > worst {
				t.Errorf("ping %d: an answer after %v, at most %v is right", pings, took, worst)
			}
			select {
			case <-sent:
				over = true
			case <-time.After(5 * time.Second):
			}
		}
		reading.Wait()
		if took := time.Since(start); took < total || pings < 5 {
			t.Errorf("%d pings in %v: the link was not clogged", pings, took)
		}
		// Nobody ends before everybody has begun, but who came when there was room.
		slices.Sort(last[:])
		if begun, over := slices.Max(first[:]), last[1]; begun > over {
			t.Errorf("a stream ended after %v, another began after %v", over, begun)
		}
		l.close()
		client.Close()
		server.Close()
	})
}

// unsent is what a slow link holds, as a kernel does with TCP_NOTSENT_LOWAT.
const unsent = 16 << 10

// slow is a connection that carries so many bytes per second one way.
type slow struct {
	net.Conn
	queue chan []byte
	over  chan struct{}
	once  sync.Once
	wg    sync.WaitGroup
}

const slowPiece = 512

func newSlow(c net.Conn, rate int) *slow {
	s := &slow{Conn: c, queue: make(chan []byte, unsent/slowPiece), over: make(chan struct{})}
	s.wg.Go(func() {
		for {
			select {
			case p := <-s.queue:
				time.Sleep(time.Duration(len(p)) * time.Second / time.Duration(rate))
				if _, err := c.Write(p); err != nil {
					return
				}
			case <-s.over:
				return
			}
		}
	})
	return s
}

func (s *slow) Write(p []byte) (n int, err error) {
	for n < len(p) {
		piece := append([]byte(nil), p[n:min(len(p), n+slowPiece)]...)
		select {
		case s.queue <- piece:
			n += len(piece)
		case <-s.over:
			return n, net.ErrClosed
		}
	}
	return n, nil
}

func (s *slow) Close() error {
	err := s.Conn.Close()
	s.once.Do(func() { close(s.over) })
	s.wg.Wait()
	return err
}
