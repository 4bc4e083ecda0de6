package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// forgetful is a connection through a NAT that forgets it after a silence: what is sent
// then is lost, both ways.
type forgetful struct {
	net.Conn
	after time.Duration

	mu   sync.Mutex
	last time.Time
}

// touch reports whether the connection is still known.
func (c *forgetful) touch() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.last) > c.after {
		return false
	}
	c.last = time.Now()
	return true
}

func (c *forgetful) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || c.touch() {
			return n, err
		}
	}
}

func (c *forgetful) Write(p []byte) (int, error) {
	if !c.touch() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// night is how long the tests below run, in their own time.
const night = 8 * time.Hour

// overnight runs an agent that finds its heartbeat, on a network that forgets
// connections after a silence, at an edge that gives no more than most. It returns the
// last heartbeat, and how many tunnels there were.
func overnight(t *testing.T, forgets, most time.Duration) (last Status) {
	c := config(nil, echo(t))
	c.Heartbeat = AutoHeartbeat
	a := mustNew(t, c)
	e := memoryEdge(t, a)
	dial := a.dialer.tcp
	a.dialer.tcp = func(ctx context.Context, keepAlive time.Duration, addr string) (net.Conn, error) {
		conn, err := dial(ctx, keepAlive, addr)
		if err != nil {
			return nil, err
		}
		return &forgetful{Conn: conn, after: forgets, last: time.Now()}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { // the edge
		for {
			select {
			case tunnel := <-e.tunnels:
				heartbeat := min(time.Duration(tunnel.hello.Heartbeat)*time.Second, most)
				tunnel.greet(strconv.Itoa(int(heartbeat / time.Second)))
				wg.Go(func() {
					for {
						select {
						case <-tunnel.bye:
							return
						case <-ctx.Done():
							return
						case <-time.After(heartbeat):
							tunnel.PingSoon()
						}
					}
				})
			case <-ctx.Done():
				return
			}
		}
	})
	stop := start(t, a)
	time.Sleep(night)
	synctest.Wait()
	last = a.Status()
	stop()
	cancel()
	wg.Wait()
	return last
}

func TestHeartbeatGrows(t *testing.T) {
	for _, test := range []struct {
		name          string
		forgets, most time.Duration
		least, last   time.Duration // of the heartbeat in the end
		tunnels       int           // at most
	}{
		{"a network that forgets nothing", 24 * time.Hour, time.Hour, 15 * time.Minute, 15 * time.Minute, 8},
		{"a NAT that forgets after 5 min", 5 * time.Minute, time.Hour, 4 * time.Minute, 5 * time.Minute, 10},
		{"one that forgets after a minute", time.Minute, time.Hour, 45 * time.Second, time.Minute, 7},
		{"an edge that gives no more than 2 min", 24 * time.Hour, 2 * time.Minute, 2 * time.Minute, 2 * time.Minute, 5},
		{"one that forgets at once", 15 * time.Second, time.Hour, 10 * time.Second, 15 * time.Second, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := overnight(t, test.forgets, test.most)
				if s.State != Connected || s.Heartbeat < test.least || s.Heartbeat > test.last || s.Tunnels > test.tunnels {
					t.Errorf("%+v", s)
				}
				t.Logf("heartbeat %v after %d tunnels; %d bytes in the night", s.Heartbeat, s.Tunnels, s.Traffic.Received+s.Traffic.Sent)
			})
		})
	}
}

// A network that is away is no proof against the heartbeat.
func TestOutageIsNoProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := new(rhythm)
		r.began(firstHeartbeat, firstHeartbeat)
		if !r.survived(firstHeartbeat, proof) || r.ask() != 2*firstHeartbeat {
			t.Errorf("asks for %v", r.ask())
		}
		r.began(50*time.Second, 50*time.Second)
		r.ended(errSilent, 50*time.Second, 55*time.Second)
		r.failed() // the next attempt
		r.began(50*time.Second, 50*time.Second)
		if r.ask() != 50*time.Second || r.bad != 0 {
			t.Errorf("asks for %v, %v was too long", r.ask(), r.bad)
		}
		r.ended(&ClosedError{Code: 1001}, 50*time.Second, 55*time.Second) // nor is what the edge says
		r.ended(io.EOF, 50*time.Second, time.Second)                      // nor an end that no silence was before
		r.began(50*time.Second, 50*time.Second)
		if r.bad != 0 {
			t.Errorf("%v was too long", r.bad)
		}
		r.ended(errors.New("reset"), 50*time.Second, 55*time.Second)
		if r.ask() != 37*time.Second {
			t.Errorf("asks for %v right after a loss in silence", r.ask())
		}
		r.began(37*time.Second, 37*time.Second)
		if r.bad != 50*time.Second || r.ask() != 37*time.Second {
			t.Errorf("asks for %v, %v was too long", r.ask(), r.bad)
		}
		time.Sleep(badTime + time.Second) // networks change
		if r.ask() != 50*time.Second {
			t.Errorf("asks for %v a day later", r.ask())
		}
	})
}

func TestMeter(t *testing.T) {
	m := new(meter)
	for hour := range 30 {
		m.received.Add(int64(1 + hour))
		m.sent.Add(10)
		m.roll()
	}
	m.sent.Add(1)
	// Of 30 hours, the last 23 and what has begun.
	if want := (Traffic{Received: 30 * 31 / 2, Sent: 301, DayReceived: 30*31/2 - 7*8/2, DaySent: 231}); m.read() != want {
		t.Errorf("%+v, want %+v", m.read(), want)
	}
}
