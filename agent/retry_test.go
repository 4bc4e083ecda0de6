package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// attempts runs an agent in a bubble for a while, against an edge that answers as
// told, and returns the pauses between its attempts.
func attempts(t *testing.T, c Config, during time.Duration, answer func(n int, e *edge) func(http.ResponseWriter, *http.Request) bool) (pauses []time.Duration) {
	t.Helper()
	c.Servers, c.Device, c.Token, c.Forwards = []string{"ws://127.0.0.1"}, "cam-17", "t0ken", []Forward{{Port: 80, Dial: nowhere}}
	a := mustNew(t, c)
	e := memoryEdge(t, a)
	var mu sync.Mutex
	var last time.Time
	n := 0
	e.answer = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		now := time.Now()
		if !last.IsZero() {
			pauses = append(pauses, now.Sub(last))
		}
		last = now
		n++
		f := answer(n, e)
		mu.Unlock()
		return f(w, r)
	}
	stop := start(t, a)
	time.Sleep(during)
	stop()
	mu.Lock()
	defer mu.Unlock()
	return pauses
}

func TestRetryAfterAnswers(t *testing.T) {
	for _, test := range []struct {
		answer   func(http.ResponseWriter, *http.Request) bool
		min, max time.Duration
	}{
		{refuseWith(401, `{"error":"unauthorized"}`), 5 * time.Minute, 15 * time.Minute},
		{refuseWith(403, `{"error":"forbidden"}`), 5 * time.Minute, 15 * time.Minute},
		{refuseWith(401, "", "Retry-After", "1"), 5 * time.Minute, 15 * time.Minute},
		{refuseWith(409, `{"error":"device_connected"}`), 0, 30 * time.Second},
		{refuseWith(400, `{"error":"bad_request"}`), 0, 30 * time.Second},
		{refuseWith(503, `{"error":"unavailable"}`), 0, 30 * time.Second},
		{refuseWith(503, "", "Retry-After", "60"), time.Minute, 72 * time.Second},
		{refuseWith(503, "", "Retry-After", "2"), 2 * time.Second, 2400 * time.Millisecond},
		{refuseWith(503, "", "Retry-After", "0"), 0, 30 * time.Second},
		{refuseWith(409, "", "Retry-After", "3600"), 0, 30 * time.Second},
		{refuseWith(429, "", "Retry-After", "120"), 2 * time.Minute, 144 * time.Second},
		{refuseWith(503, "", "Retry-After", "86400"), 10 * time.Minute, 12 * time.Minute},
		{refuseWith(503, "", "Retry-After", "Wed, 21 Oct 2065 07:28:00 GMT"), 0, 30 * time.Second},
		{refuseWith(503, "", "Retry-After", "-5"), 0, 30 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			pauses := attempts(t, Config{}, 40*test.max, func(int, *edge) func(http.ResponseWriter, *http.Request) bool { return test.answer })
			if len(pauses) < 20 {
				t.Fatalf("only %d attempts", len(pauses))
			}
			var most time.Duration
			for _, p := range pauses {
				if p < test.min || p > test.max {
					t.Fatalf("pause of %v, want %v to %v", p, test.min, test.max)
				}
				most = max(most, p)
			}
			if most < test.min+(test.max-test.min)/2 {
				t.Errorf("%d pauses, none above %v: they do not spread", len(pauses), most)
			}
		})
	}
}

// upFor lets the agent in and closes the tunnel after a while; code 0: without a
// close frame.
func upFor(e *edge, d time.Duration, code int) func(http.ResponseWriter, *http.Request) bool {
	return func(http.ResponseWriter, *http.Request) bool {
		go func() {
			tunnel := <-e.tunnels
			tunnel.greet("900")
			select {
			case <-time.After(d):
			case <-tunnel.bye: // the test is over
			}
			if code != 0 {
				tunnel.WriteClose(code, "", time.Second)
			}
			tunnel.Close()
		}()
		return false
	}
}

func TestRetryAfterTunnels(t *testing.T) {
	const up = time.Minute
	for _, test := range []struct {
		code     int
		min, max time.Duration
	}{
		{0, 0, firstRetry},
		{wire.CloseNormal, 0, firstRetry},
		{wire.CloseGoingAway, 0, firstRetry},
		{wire.CloseRestart, 0, firstRetry},
		{wire.CloseReplaced, 5 * time.Minute, 15 * time.Minute},
		{wire.CloseRevoked, 5 * time.Minute, 15 * time.Minute},
		{4099, 5 * time.Minute, 15 * time.Minute},
		{wire.CloseMalformed, 0, 30 * time.Second},
		{wire.CloseOverloaded, 0, 30 * time.Second},
		{wire.CloseExpired, 0, 30 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			pauses := attempts(t, Config{}, 20*(up+test.max), func(_ int, e *edge) func(http.ResponseWriter, *http.Request) bool {
				return upFor(e, up, test.code)
			})
			if len(pauses) < 10 {
				t.Fatalf("code %d: only %d attempts", test.code, len(pauses))
			}
			for _, p := range pauses {
				if p -= up; p < test.min || p > test.max {
					t.Fatalf("code %d: pause of %v, want %v to %v", test.code, p, test.min, test.max)
				}
			}
		})
	}
}

func TestBackoffGrowsAndIsCapped(t *testing.T) {
	b := backoff{max: 30 * time.Second}
	for i, bound := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second,
		8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
		var most time.Duration
		for range 1000 {
			b.failures = i
			p := b.next()
			if p < 0 || p >= bound {
				t.Fatalf("pause %d is %v, want less than %v", i, p, bound)
			}
			most = max(most, p)
		}
		if most < bound/2 {
			t.Errorf("pause %d: none of 1000 above %v", i, most)
		}
	}
	b.failures = 1 << 30
	if p := b.next(); p < 0 || p > 30*time.Second {
		t.Errorf("after very long: %v", p)
	}
}

// A tunnel that does not hold starts nothing over.
func TestBackoffAfterShortTunnels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plan
		p.backoff.max = 30 * time.Second
		p.servers = []*server{{}}
		lost := errors.New("lost")
		for range 10 {
			p.afterTunnel(lost, held-1)
			p.wait()
		}
		if p.backoff.failures != 10 {
			t.Errorf("%d failures counted", p.backoff.failures)
		}
		p.afterTunnel(lost, held)
		if pause := p.wait(); pause > firstRetry {
			t.Errorf("after a tunnel that held: %v", pause)
		}
	})
}

// A server that is dead keeps nobody from one that has said when to come.
func TestBackoffWaitsForNoDeadServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p plan
		p.backoff.max = 30 * time.Second
		dead, busy := new(server), new(server)
		p.servers = []*server{dead, busy}
		p.afterAttempt(busy, &RefusedError{Status: statusUnavailable, retryAfter: 3 * time.Second})
		told := busy.notBefore
		for range 20 {
			p.afterAttempt(dead, errors.New("connection refused"))
			time.Sleep(p.wait())
			if late := time.Since(told); late > 0 {
				t.Fatalf("asked %v late", late)
			}
			if time.Now().Equal(told) {
				break
			}
		}
		if due := p.due(); len(due) != 2 {
			t.Errorf("%d servers are asked then, want both", len(due))
		}
	})
}

// Of two edges that a crowd comes to, each keeps places for half of it.
func TestCrowdAsksOneServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil, Forward{Port: 80, Dial: nowhere})
		c.Servers = []string{"ws://127.0.0.1:1", "ws://127.0.0.1:2"}
		a := mustNew(t, c)
		e := newEdge(t)
		var answer func(http.ResponseWriter, *http.Request) bool
		e.answer = func(w http.ResponseWriter, r *http.Request) bool { return answer(w, r) }
		to := e.inMemory()
		var asked []string // of one round
		a.dialer.tcp = func(ctx context.Context, _ time.Duration, addr string) (net.Conn, error) {
			asked = append(asked, addr)
			return to(ctx)
		}
		for _, round := range []struct {
			name   string
			answer func(http.ResponseWriter, *http.Request) bool
			asked  int
			pause  time.Duration // at least; 0: none
			most   time.Duration
		}{
			{"a crowd", refuseWith(429, "", "Retry-After", "20"), 1, 20 * time.Second, 21 * time.Second},
			{"a crowd again: perhaps there only", refuseWith(429, "", "Retry-After", "10"), 2, 10 * time.Second, 11 * time.Second},
			{"a crowd later", refuseWith(429, "", "Retry-After", "30"), 1, 30 * time.Second, 31 * time.Second},
			{"a node that is full", refuseWith(503, "", "Retry-After", "30"), 2, 30 * time.Second, 36 * time.Second},
			{"a long queue", refuseWith(429, "", "Retry-After", "31"), 2, 31 * time.Second, 37200 * time.Millisecond},
			{"no time", refuseWith(429, ""), 2, 0, 0},
		} {
			for _, s := range a.plan.servers {
				time.Sleep(time.Until(s.notBefore))
			}
			answer, asked = round.answer, nil
			if _, err := a.round(t.Context()); err == nil || len(asked) != round.asked {
				t.Errorf("%s: asked %v, %v", round.name, asked, err)
			}
			if wait := a.plan.wait(); round.pause != 0 && (wait < round.pause || wait > round.most) {
				t.Errorf("%s: a pause of %v", round.name, wait)
			}
		}
	})
}

// Who has one round asks all: a crowd at one server is not waited for.
func TestCrowdOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil, Forward{Port: 80, Dial: nowhere})
		c.Servers, c.Once = []string{"ws://127.0.0.1:1", "ws://127.0.0.1:2"}, true
		a := mustNew(t, c)
		e := newEdge(t)
		e.answer = refuseWith(429, "", "Retry-After", "20")
		to, asked := e.inMemory(), 0
		a.dialer.tcp = func(ctx context.Context, _ time.Duration, _ string) (net.Conn, error) {
			asked++
			return to(ctx)
		}
		if _, err := a.round(t.Context()); err == nil || asked != 2 {
			t.Errorf("asked %d, %v", asked, err)
		}
	})
}

func TestNextServerWhenOneRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil, Forward{Port: 80, Dial: nowhere})
		c.Servers = []string{"ws://127.0.0.1:1", "ws://127.0.0.1:2", "ws://127.0.0.1:3"}
		a := mustNew(t, c)
		good, bad := newEdge(t), newEdge(t)
		bad.answer = refuseWith(401, "")
		toGood, toBad := good.inMemory(), bad.inMemory()
		var mu sync.Mutex
		asked := make(map[string]int)
		a.dialer.tcp = func(ctx context.Context, _ time.Duration, addr string) (net.Conn, error) {
			mu.Lock()
			asked[addr]++
			mu.Unlock()
			switch addr {
			case "127.0.0.1:1":
				return nil, errors.New("no route")
			case "127.0.0.1:2":
				return toBad(ctx)
			}
			return toGood(ctx)
		}
		start(t, a)
		for range 9 {
			tunnel := <-good.tunnels
			tunnel.greet("25")
			time.Sleep(held)
			tunnel.Close()
		}
		mu.Lock()
		defer mu.Unlock()
		// Nine tunnels in less than five minutes: who refused is not asked again.
		if asked["127.0.0.1:2"] > 1 || asked["127.0.0.1:3"] < 9 {
			t.Errorf("asked %v", asked)
		}
	})
}

func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, config(nil, Forward{Port: 80, Dial: nowhere}))
		e := memoryEdge(t, a)
		start(t, a)
		tunnel := <-e.tunnels
		tunnel.greet("25")
		const silence = 2*25*time.Second + 10*time.Second
		// Pings keep it, however rare.
		for range 10 {
			time.Sleep(silence - time.Second)
			tunnel.Ping()
		}
		last := time.Now()
		if code := <-tunnel.bye; code != 0 || time.Since(last) != silence {
			t.Errorf("ended with %d after %v", code, time.Since(last))
		}
		next := <-e.tunnels
		if pause := time.Since(last) - silence; pause > firstRetry {
			t.Errorf("came back after %v", pause)
		}
		// What is in force may change.
		next.greet("100")
		time.Sleep(200 * time.Second)
		next.Ping()
		select {
		case <-next.bye:
			t.Error("given up before two heartbeats of 100 s")
		default:
		}
	})
}

func TestNoReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, config(nil, Forward{Port: 80, Dial: nowhere}))
		e := memoryEdge(t, a)
		start(t, a)
		tunnel, began := <-e.tunnels, time.Now()
		tunnel.Ping()
		<-tunnel.bye
		if d := time.Since(began); d != readyTimeout {
			t.Errorf("given up after %v", d)
		}
		synctest.Wait()
		if err := a.Status().Err; err == nil || err.Error() != "127.0.0.1: ready: no ready came in time" {
			t.Errorf("status: %v", err)
		}
	})
}

func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, config(nil, Forward{Port: 80, Dial: nowhere}))
		l, f := Listen(80, HTTP)
		a.dialer.tcp = func(ctx context.Context, _ time.Duration, _ string) (net.Conn, error) { return f.Dial(ctx) }
		downs := make(chan error, 100)
		a.cfg.OnDown = func(err error, _ time.Duration) { downs <- err }
		start(t, a)
		c, err := l.Accept() // and not a word
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := <-downs; err.Error() != "127.0.0.1: handshake: no answer within 20s" || time.Since(began) != handshakeTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		c.Close()
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const within = time.Minute
		c := config(nil, echo(t))
		var downs int
		c.OnDown = func(error, time.Duration) { downs++ }
		ups := make(chan Up, 10)
		c.OnUp = func(u Up) { ups <- u }
		a := mustNew(t, c)
		e := memoryEdge(t, a)
		// The first attempt to move fails: the old tunnel stays in use.
		var asked atomic.Int32
		e.answer = func(w http.ResponseWriter, r *http.Request) bool {
			return asked.Add(1) == 2 && refuseWith(503, "", "Retry-After", "10")(w, r)
		}
		stop := start(t, a)
		old := <-e.tunnels
		old.greet("900")
		<-ups
		s := e.open(old, "7")
		old.say(`{"type":"drain","within_s":60}`)
		old.say(`{"type":"drain","within_s":60}`)
		began := time.Now()
		next := <-e.tunnels
		if d := time.Since(began); d > within+firstRetry+defaultMaxBackoff {
			t.Errorf("moved after %v", d)
		}
		if next.hello.Instance != old.hello.Instance {
			t.Error("another instance")
		}
		select {
		case code := <-old.bye:
			t.Errorf("the old tunnel is closed with %d before the new one is up", code)
		default:
		}
		next.greet("900")
		if code := <-old.bye; code != wire.CloseNormal {
			t.Errorf("the old tunnel is closed with %d", code)
		}
		<-ups
		s.Write([]byte("still there"))
		b := make([]byte, 11)
		if _, err := s.Read(b); err != nil || string(b) != "still there" {
			t.Errorf("stream of the old tunnel: %q, %v", b, err)
		}
		s.Close()
		if st := a.Status(); st.State != Connected || st.Tunnels != 2 {
			t.Errorf("status %+v", st)
		}
		stop()
		if downs != 0 {
			t.Errorf("told %d times of a tunnel that is down", downs)
		}
	})
}

// Visitors whom the edge has sent before it knew of the new tunnel are served.
func TestVisitorsOfTheTunnelThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, config(nil, echo(t)))
		e := memoryEdge(t, a)
		stop := start(t, a)
		old := <-e.tunnels
		old.greet("900")
		old.say(`{"type":"drain","within_s":0}`)
		next := <-e.tunnels
		next.greet("900")
		time.Sleep(leaveTime / 2)
		select {
		case code := <-old.bye:
			t.Fatalf("the old tunnel is closed with %d before the edge can know", code)
		default:
		}
		s := e.open(old, "7")
		if code := <-old.bye; code != wire.CloseNormal {
			t.Errorf("the old tunnel is closed with %d", code)
		}
		s.Write([]byte("served"))
		b := make([]byte, 6)
		if _, err := s.Read(b); err != nil || string(b) != "served" {
			t.Errorf("%q, %v", b, err)
		}
		s.Close()
		stop()
	})
}

// While the agent moves, the end of the old tunnel asks for no pause.
func TestDrainedTunnelIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := mustNew(t, config(nil, Forward{Port: 80, Dial: nowhere}))
		e := memoryEdge(t, a)
		start(t, a)
		old := <-e.tunnels
		old.greet("900")
		old.say(`{"type":"drain","within_s":0}`)
		next := <-e.tunnels
		old.WriteClose(wire.CloseReplaced, "", time.Second)
		<-old.bye
		next.greet("900")
		time.Sleep(time.Hour / 2)
		next.Ping()
		if len(e.tunnels) != 0 || len(next.bye) != 0 {
			t.Error("the new tunnel did not stay")
		}
	})
}

// An edge that wants each new tunnel to be left at once is not asked for the next
// one at once.
func TestDrainOfShortTunnelsBacksOff(t *testing.T) {
	const during, most = 10 * time.Minute, 100
	drain := func(n int, e *edge) func(http.ResponseWriter, *http.Request) bool {
		return func(http.ResponseWriter, *http.Request) bool {
			go func() {
				tunnel := <-e.tunnels
				tunnel.greet("900")
				if n < most { // else time would never pass
					tunnel.WriteMessage(socket.Text, []byte(`{"type":"drain","within_s":0}`)) // it may have been left
				}
			}()
			return false
		}
	}
	synctest.Test(t, func(t *testing.T) {
		pauses := attempts(t, Config{}, during, drain)
		if len(pauses) < 20 || len(pauses) >= most-1 {
			t.Fatalf("%d tunnels in %v", len(pauses), during)
		}
		if first := pauses[0]; first > firstRetry {
			t.Errorf("the first move after %v", first)
		}
	})
}

// A tunnel that has held is left within the time that the edge gives, however many
// have failed before it.
func TestDrainOfLongTunnelsDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const within = time.Second
		a := mustNew(t, config(nil, Forward{Port: 80, Dial: nowhere}))
		a.plan.backoff.failures = 20
		e := memoryEdge(t, a)
		start(t, a)
		for range 20 {
			tunnel := <-e.tunnels
			tunnel.greet("900")
			time.Sleep(held)
			tunnel.say(`{"type":"drain","within_s":1}`)
			began := time.Now()
			next := <-e.tunnels
			if d := time.Since(began); d > within {
				t.Fatalf("moved after %v", d)
			}
			e.tunnels <- next
		}
	})
}
