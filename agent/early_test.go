package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// early is an agent in a bubble, with a tunnel to an edge that echoes
// capabilities, and a service on port 7 whose connections it hands out.
type early struct {
	*edgeTunnel
	edge     *edge
	agent    *Agent
	accepted chan net.Conn
	stop     func() error
}

func startEarly(t *testing.T, profile Profile, caps string, change ...func(*Config, *edge)) *early {
	t.Helper()
	l, f := Listen(7, TCP)
	t.Cleanup(func() { l.Close() })
	x := &early{accepted: make(chan net.Conn, 100)}
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			x.accepted <- c
		}
	}()
	c := config(nil, f)
	c.Profile = profile
	// Before the agent is made; the edge is needed for changes only.
	e := newEdge(t)
	for _, f := range change {
		f(&c, e)
	}
	x.agent, x.edge = mustNew(t, c), e
	dial := e.inMemory()
	x.agent.dialer.tcp = func(ctx context.Context, _ time.Duration, _ string) (net.Conn, error) { return dial(ctx) }
	x.stop = start(t, x.agent)
	x.edgeTunnel = receive(t, e.tunnels)
	x.greetWith(caps, "900")
	return x
}

// open opens a stream and returns the service's connection.
func (x *early) open(number uint32, credit int) net.Conn {
	x.tb.Helper()
	x.openEarly(number, 7, credit)
	c := receive(x.tb, x.accepted)
	x.tb.Cleanup(func() { c.Close() })
	return c
}

// must writes to the service's connection, or reads what is wanted from it.
func write(tb testing.TB, c io.Writer, text string) {
	tb.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		tb.Errorf("service: %v", err)
	}
}

func read(tb testing.TB, c io.Reader, want string) {
	tb.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != want {
		tb.Errorf("service: read %q, %v, want %q", b[:n], err, want)
	}
}

func readEnd(tb testing.TB, c io.Reader, want error) {
	tb.Helper()
	if n, err := c.Read(make([]byte, 10)); n > 0 || !errors.Is(err, want) {
		tb.Errorf("service: read %d bytes, %v, want %v", n, err, want)
	}
}

func closeWrite(tb testing.TB, c net.Conn) {
	tb.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		tb.Error(err)
	}
}

// settled waits until the agent has n streams.
func (x *early) settled(n int) {
	x.tb.Helper()
	synctest.Wait()
	if got := x.agent.Status().Streams; got != n {
		x.tb.Fatalf("%d streams, want %d", got, n)
	}
}

// transfer is the transfer socket that the agent dials for a stream.
func (x *early) transfer(number uint32) *edgeTransfer {
	x.tb.Helper()
	s := receive(x.tb, x.edge.transfers)
	if id := s.request.URL.Query().Get("id"); id != idOf(number) || s.request.Header.Get("Authorization") != "Bearer s3cret" {
		x.tb.Fatalf("transfer socket for %s with %s", id, s.request.Header.Get("Authorization"))
	}
	return s
}

// Most streams begin and end on the control socket.
func TestEarlyNeedsNoTransferSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		first := x.open(1, 65536)
		x.send(1, "GET ", "/")
		second := x.open(2, 65536)
		x.send(2, "other")
		x.frame(wire.FrameFin, 2, "")
		read(t, second, "other")
		readEnd(t, second, io.EOF)
		read(t, first, "GET /")
		write(t, second, "answer 2")
		x.expect(2, "answer 2")
		closeWrite(t, second)
		x.expectFrame(wire.FrameFin, 2)
		x.settled(1)
		write(t, first, "answer 1")
		x.expect(1, "answer 1")
		first.Close() // its end; and the visitor has nothing more to say
		x.expectFrame(wire.FrameFin, 1)
		x.frame(wire.FrameFin, 1, "")
		x.settled(0)
		time.Sleep(time.Minute)
		if len(x.edge.transfers) != 0 || len(x.frames) != 0 || len(x.heard) != 0 {
			t.Error("something else was asked for, or sent")
		}
	})
}

// A stream that lasts gets a transfer socket, in both directions, and a parked one
// is used before another is dialled.
func TestEarlyMovesAndParks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		began := time.Now()
		c := x.open(1, 65536)
		x.send(1, "early ")
		s := x.transfer(1)
		if d := time.Since(began); d != 20*time.Millisecond {
			t.Errorf("dialled after %v", d)
		}
		x.expectFrame(wire.FrameMove, 1)
		s.send(t, "late") // overtakes move
		read(t, c, "early ")
		synctest.Wait()
		x.send(1, "middle ")
		x.frame(wire.FrameMove, 1, "")
		read(t, c, "middle late")
		write(t, c, "answer")
		s.expect(t, "answer")
		c.Close()
		s.expect(t, "")
		s.send(t, "")
		x.settled(0)
		// The next one takes it over.
		for number := uint32(2); number < 5; number++ {
			c = x.open(number, 65536)
			write(t, c, "early")
			x.expect(number, "early")
			_, text, err := s.ReadMessage(wire.MaxText)
			if want := `{"type":"attach","stream":` + string(rune('0'+number)) + `,"id":"` + idOf(number) + `"}`; err != nil || string(text) != want {
				t.Fatalf("on the parked socket: %q, %v, want %s", text, err, want)
			}
			write(t, c, " and more") // not yet on a transfer socket
			x.expect(number, " and more")
			s.WriteMessage(socket.Text, []byte(`{"type":"attached","stream":`+string(rune('0'+number))+`}`))
			x.expectFrame(wire.FrameMove, number)
			x.frame(wire.FrameMove, number, "")
			s.send(t, "to the service")
			read(t, c, "to the service")
			s.send(t, "") // this time the visitor ends first
			readEnd(t, c, io.EOF)
			c.Close()
			s.expect(t, "")
			x.settled(0)
		}
		if len(x.edge.transfers) != 0 {
			t.Error("another one was dialled")
		}
		began = time.Now()
		if code := goodbye(t, s); code != wire.CloseNormal || time.Since(began) != parkedTime {
			t.Errorf("parked: closed with %d after %v", code, time.Since(began))
		}
	})
}

// Without reuse a transfer socket is for one stream.
func TestEarlyWithoutReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early")
		for number := uint32(1); number < 4; number++ {
			c := x.open(number, 65536)
			s := x.transfer(number)
			x.expectFrame(wire.FrameMove, number)
			x.frame(wire.FrameMove, number, "")
			s.send(t, "")
			c.Close()
			s.expect(t, "")
			if code := goodbye(t, s); code != wire.CloseNormal {
				t.Errorf("closed with %d", code)
			}
			x.settled(0)
		}
	})
}

// No credit, or half of it spent in either direction, asks for a transfer socket
// at once.
func TestEarlyWantsWhenCreditIsSpent(t *testing.T) {
	for name, spend := range map[string]func(*testing.T, *early) net.Conn{
		"none": func(_ *testing.T, x *early) net.Conn { return x.open(1, 0) },
		"by the visitor": func(_ *testing.T, x *early) net.Conn {
			c := x.open(1, 1000)
			x.send(1, strings.Repeat("x", 500))
			return c
		},
		"by the service": func(t *testing.T, x *early) net.Conn {
			c := x.open(1, 1000)
			write(t, c, strings.Repeat("x", 500))
			x.expect(1, strings.Repeat("x", 500))
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse")
				began := time.Now()
				c := spend(t, x)
				x.transfer(1)
				if d := time.Since(began); d != 0 {
					t.Errorf("dialled after %v", d)
				}
				x.expectFrame(wire.FrameMove, 1)
				c.Close()
			})
		})
	}
}

// What the service sends beyond the credit waits for the transfer socket, and
// nothing is lost, in either direction.
func TestEarlyBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const total = 300_000
		bulk := strings.Repeat("0123456789", total/10)
		x := startEarly(t, ProfileFull, "early,reuse")
		c := x.open(1, 10_000)
		var wg sync.WaitGroup
		wg.Go(func() { write(t, c, bulk); closeWrite(t, c) })
		wg.Go(func() { read(t, c, bulk); readEnd(t, c, io.EOF) })
		s := x.transfer(1)
		var got strings.Builder
		moved := false
		for !moved {
			f := receive(t, x.frames)
			switch f.kind {
			case wire.FrameData:
				got.WriteString(f.payload)
			case wire.FrameMove:
				moved = true
			}
		}
		if got.Len() > 10_000 {
			t.Errorf("%d bytes of credit used", got.Len())
		}
		x.send(1, bulk[:4096])
		x.frame(wire.FrameMove, 1, "")
		wg.Go(func() {
			for rest := bulk[4096:]; rest != ""; {
				n := min(len(rest), 64<<10)
				s.send(t, rest[:n])
				rest = rest[n:]
			}
			s.send(t, "")
		})
		for {
			_, b, err := s.ReadMessage(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) == 0 {
				break
			}
			got.Write(b)
		}
		wg.Wait()
		if got.String() != bulk {
			t.Errorf("got %d bytes, not those that were sent", got.Len())
		}
		c.Close()
		x.settled(0)
	})
}

// A parked socket that is dead as it is used, and one that is never answered: the
// stream gets another, and loses nothing.
func TestEarlyParkedIsDead(t *testing.T) {
	for name, test := range map[string]struct {
		edge  func(t *testing.T, s *edgeTransfer)
		after time.Duration
	}{
		"closed by the edge as it is used": {func(_ *testing.T, s *edgeTransfer) { s.ReadMessage(wire.MaxText); s.Close() }, 0},
		"unknown to the edge":              {func(_ *testing.T, s *edgeTransfer) { s.ReadMessage(wire.MaxText); s.WriteClose(1000, "", time.Second) }, 0},
		"never answered":                   {func(_ *testing.T, s *edgeTransfer) { s.ReadMessage(wire.MaxText) }, attachTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse")
				parked := x.park(1)
				go test.edge(t, parked)
				c := x.open(2, 65536)
				began := time.Now()
				write(t, c, "early")
				x.expect(2, "early")
				s := x.transfer(2)
				if d := time.Since(began); d != 20*time.Millisecond+test.after {
					t.Errorf("dialled after %v", d)
				}
				x.expectFrame(wire.FrameMove, 2)
				x.frame(wire.FrameMove, 2, "")
				write(t, c, " and late")
				s.expect(t, " and late")
				c.Close()
				s.expect(t, "")
				s.send(t, "")
				x.settled(0)
			})
		})
	}
}

// park lets a stream end on a transfer socket that is parked then.
func (x *early) park(number uint32) *edgeTransfer {
	x.tb.Helper()
	c := x.open(number, 65536)
	s := x.transfer(number)
	x.expectFrame(wire.FrameMove, number)
	x.frame(wire.FrameMove, number, "")
	s.send(x.tb, "")
	c.Close()
	s.expect(x.tb, "")
	x.settled(0)
	return s
}

// Dials that fail are tried again, while the stream goes on with its credit.
func TestEarlyDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const failing = 8
		var asked []time.Time
		x := startEarly(t, ProfileFull, "early,reuse", func(_ *Config, e *edge) {
			e.transfer = func(w http.ResponseWriter, r *http.Request) bool {
				asked = append(asked, time.Now())
				return len(asked) <= failing && refuseWith(503, "", "Retry-After", "60")(w, r)
			}
		})
		c := x.open(1, 65536)
		for range failing {
			receive(t, x.edge.answered)
			write(t, c, "still there")
			x.expect(1, "still there")
			x.send(1, "and here")
			read(t, c, "and here")
		}
		s := x.transfer(1)
		pause := 100 * time.Millisecond
		for i, at := range asked[1:] {
			if d := at.Sub(asked[i]); d < pause || d > pause+pause/5 {
				t.Errorf("attempt %d after %v, want %v and a fifth at most", i+2, d, pause)
			}
			pause = min(2*pause, 5*time.Second)
		}
		x.expectFrame(wire.FrameMove, 1)
		write(t, c, "moved")
		s.expect(t, "moved")
	})
}

// A stream that ends while a dial is under way, or waited for, ends that too.
func TestEarlyDialInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse", func(_ *Config, e *edge) {
			e.transfer = func(_ http.ResponseWriter, r *http.Request) bool {
				<-r.Context().Done() // for as long as the agent waits
				return true
			}
		})
		c := x.open(1, 65536)
		time.Sleep(time.Second) // a dial is under way
		write(t, c, "bye")
		x.expect(1, "bye")
		c.Close()
		x.expectFrame(wire.FrameFin, 1)
		x.frame(wire.FrameFin, 1, "")
		receive(t, x.edge.answered) // it was given up
		x.settled(0)
		time.Sleep(time.Minute)
		if len(x.edge.answered) != 0 {
			t.Error("dialled once more")
		}
	})
}

// 404 says that the stream is over, and may overtake its last frames.
func TestEarlyUnknownStream(t *testing.T) {
	for name, ends := range map[string]bool{"ends": true, "does not end": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse", func(_ *Config, e *edge) {
					e.transfer = refuseWith(404, `{"error":"unknown_stream","message":"over"}`)
				})
				c := x.open(1, 65536)
				closeWrite(t, c)
				x.expectFrame(wire.FrameFin, 1)
				receive(t, x.edge.answered)
				if ends {
					time.Sleep(overTime - time.Millisecond)
					x.send(1, "the last frame")
					x.frame(wire.FrameFin, 1, "")
					read(t, c, "the last frame")
					readEnd(t, c, io.EOF)
				} else {
					began := time.Now()
					readEnd(t, c, ErrAborted)
					if d := time.Since(began); d != overTime {
						t.Errorf("aborted after %v", d)
					}
					x.expectFrame(wire.FrameReset, 1)
				}
				x.settled(0)
				if len(x.edge.answered) != 0 {
					t.Error("dialled again")
				}
			})
		})
	}
}

// Credit that is spent and no transfer socket: both sides are told after 10 s.
func TestEarlyStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse", func(_ *Config, e *edge) { e.transfer = refuseWith(503, "") })
		c := x.open(1, 100)
		began := time.Now()
		go c.Write(make([]byte, 1000))
		x.expect(1, string(make([]byte, 100)))
		x.expectFrame(wire.FrameReset, 1)
		if d := time.Since(began); d != 10*time.Second {
			t.Errorf("reset after %v", d)
		}
		readEnd(t, c, ErrAborted)
		x.settled(0)
	})
}

// The end of the control socket with a stream in each state (protocol §10.10).
func TestEarlyControlSocketEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		old := x.edgeTunnel
		parked := x.park(1)
		go func() {
			answerAttachOf(t, parked, 2)
		}()
		attached := x.open(2, 65536)
		x.expectFrame(wire.FrameMove, 2)
		half, moved, ended := x.open(3, 65536), x.open(4, 65536), x.open(5, 65536)
		sockets := make(map[string]*edgeTransfer)
		for range 3 {
			s := receive(t, x.edge.transfers)
			sockets[s.request.URL.Query().Get("id")] = s
			if f := receive(t, x.frames); f.kind != wire.FrameMove {
				t.Fatalf("got %+v", f)
			}
		}
		x.frame(wire.FrameMove, 4, "")
		x.frame(wire.FrameFin, 5, "")
		waiting := x.open(6, 65536)
		synctest.Wait()
		x.edge.transfer = refuseWith(503, "")
		old.Close()
		for name, c := range map[string]net.Conn{"attached": attached, "attached, dialled": half, "early": waiting} {
			if _, err := c.Read(make([]byte, 10)); !errors.Is(err, ErrAborted) {
				t.Errorf("%s: %v", name, err)
			}
		}
		readEnd(t, ended, io.EOF)
		// Those whose directions have moved, or ended, go on, and over the next tunnel.
		next := receive(t, x.edge.tunnels)
		next.greetWith("early,reuse", "900")
		for n, c := range map[uint32]net.Conn{4: moved, 5: ended} {
			s := sockets[idOf(n)]
			write(t, c, "still there")
			s.expect(t, "still there")
		}
		s := sockets[idOf(4)]
		s.send(t, "and back")
		read(t, moved, "and back")
		// Clean ends do not park them: the tunnel that they belong to is over.
		for n, c := range map[uint32]net.Conn{4: moved, 5: ended} {
			s := sockets[idOf(n)]
			if n == 4 {
				s.send(t, "")
			}
			c.Close()
			s.expect(t, "")
			if code := goodbye(t, s); code != wire.CloseNormal {
				t.Errorf("closed with %d", code)
			}
		}
		x.settled(0)
		if _, _, err := parked.ReadMessage(100); err == nil {
			t.Error("the transfer socket of an aborted stream is open")
		}
	})
}

// answerAttachOf answers an attach for a stream.
func answerAttachOf(t *testing.T, s *edgeTransfer, number uint32) {
	_, text, err := s.ReadMessage(wire.MaxText)
	if m, derr := wire.Decode(text); err != nil || derr != nil || *m.(*wire.Attach) != (wire.Attach{Stream: number, ID: idOf(number)}) {
		t.Errorf("edge: got %q, %v", text, err)
	}
	s.WriteMessage(socket.Text, wire.Encode(&wire.Attached{Stream: number}))
}

// What is parked goes with its tunnel, and with its secret.
func TestEarlyParkedGoWithTheirSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		s := x.park(1)
		x.greetWith("early,reuse", "900") // again, with the same secret
		c := x.open(2, 65536)
		answerAttachOf(t, s, 2)
		x.expectFrame(wire.FrameMove, 2)
		x.frame(wire.FrameMove, 2, "")
		s.send(t, "")
		c.Close()
		s.expect(t, "")
		x.settled(0)
		x.say(strings.Replace(readyText("early,reuse", "900"), "s3cret", "another", 1))
		if code := goodbye(t, s); code != wire.CloseNormal {
			t.Errorf("with another secret: %d", code)
		}
	})
}

func TestEarlyRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse", func(c *Config, _ *edge) {
			c.Forwards = append(c.Forwards, Forward{Port: 81, Dial: nowhere},
				Forward{Port: 82, Dial: func(ctx context.Context) (net.Conn, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}})
		})
		for _, test := range []struct {
			port int
			want string
			took time.Duration
		}{
			{81, "nobody is home", 0},
			{82, "no answer in time", targetTimeout}, // and no transfer socket in the meantime
			{83, "port 83 is not forwarded", 0},
		} {
			began := time.Now()
			x.openEarly(1, test.port, 65536)
			x.send(1, "request")
			x.frame(wire.FrameFin, 1, "")
			want := `{"type":"refused","stream":1,"reason":"` + test.want + `"}`
			if got := receive(t, x.heard); got != want || time.Since(began) != test.took {
				t.Errorf("got %s after %v, want %s", got, time.Since(began), want)
			}
			x.settled(0)
		}
		x.openEarly(2, 82, 65536)
		time.Sleep(time.Second)
		if len(x.frames) != 0 || len(x.edge.transfers) != 0 {
			t.Error("frames, or a transfer socket, of a stream that was refused, or may be")
		}
	})
}

// The capabilities that an edge may echo, whatever the agent has offered: a stream
// works with all.
func TestCapabilities(t *testing.T) {
	const (
		basic = iota
		early
		inline
	)
	offers := map[Profile]wire.Caps{
		ProfileFull:   wire.Redirect | wire.Early | wire.Reuse,
		ProfileBasic:  wire.Redirect,
		ProfileInline: wire.Redirect | wire.Early | wire.Inline,
	}
	for _, test := range []struct {
		echo string
		how  map[Profile]int
	}{
		{"", nil},
		{"redirect", nil},
		{"reuse", nil},
		{"inline", nil},
		{"reuse,inline", nil},
		{"something,else", nil},
		{"early", map[Profile]int{ProfileFull: early, ProfileInline: early}},
		{"early,reuse", map[Profile]int{ProfileFull: early, ProfileInline: early}},
		{"early,inline", map[Profile]int{ProfileFull: early, ProfileInline: inline}},
		{"redirect,early,reuse,inline,future", map[Profile]int{ProfileFull: early, ProfileInline: inline}},
	} {
		for profile, offered := range offers {
			t.Run(string(profile)+"/"+test.echo, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					x := startEarly(t, profile, test.echo)
					if h := x.hello; h.Caps != offered || (h.Early == 65536) != h.Caps.Has(wire.Early) || (h.EarlyTotal == 1<<20) != h.Caps.Has(wire.Early) {
						t.Errorf("hello %+v", h)
					}
					if test.how[profile] == basic {
						s := x.edge.open(x.edgeTunnel, "7")
						c := receive(t, x.accepted)
						defer c.Close()
						write(t, c, "hello")
						b := make([]byte, 5)
						if _, err := io.ReadFull(s, b); err != nil || string(b) != "hello" {
							t.Errorf("read %q, %v", b, err)
						}
						x.frame(wire.FrameData, 1, "what is this") // there are no frames
						if code := receive(t, x.bye); code != wire.CloseMalformed {
							t.Errorf("closed with %d after a frame", code)
						}
						return
					}
					c := x.open(1, 65536)
					write(t, c, "hello")
					x.expect(1, "hello")
					if test.how[profile] == early {
						x.transfer(1)
						x.expectFrame(wire.FrameMove, 1)
					} else {
						time.Sleep(time.Minute)
						if len(x.edge.transfers) != 0 {
							t.Error("a transfer socket with inline")
						}
					}
					c.Close()
				})
			})
		}
	}
}

// Inline, everything crosses the control socket, and credit comes back as it is
// read.
func TestInline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window, total = 10_000, 500_000
		bulk := strings.Repeat("0123456789", total/10)
		x := startEarly(t, ProfileInline, "early,inline")
		c := x.open(1, window)
		stalled := x.open(2, window) // its service reads nothing
		for left := window; left > 0; {
			n := min(left, 4096)
			x.send(2, strings.Repeat("x", n))
			left -= n
			synctest.Wait()
			for len(x.frames) > 0 { // it has a buffer
				left += wire.Credit([]byte((<-x.frames).payload))
			}
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer c.Close()
		wg.Go(func() { write(t, c, bulk); closeWrite(t, c) })
		wg.Go(func() { read(t, c, bulk); readEnd(t, c, io.EOF) })
		var got strings.Builder
		credit, rest, owed, ended := window, bulk, 0, false
		for {
			for rest != "" && credit > 0 {
				n := min(credit, len(rest), 4096)
				x.send(1, rest[:n])
				rest, credit = rest[n:], credit-n
				if rest == "" {
					x.frame(wire.FrameFin, 1, "")
				}
			}
			if ended && rest == "" {
				break
			}
			f := receive(t, x.frames)
			if f.stream != 1 {
				t.Fatalf("got %+v", f)
			}
			switch f.kind {
			case wire.FrameData:
				got.WriteString(f.payload)
				if owed += len(f.payload); owed > window {
					t.Fatal("more than the window")
				}
				if owed >= window/2 {
					x.frame(wire.FrameCredit, 1, string(wire.AppendCredit(nil, 1, owed)[wire.FrameHeader:]))
					owed = 0
				}
			case wire.FrameCredit:
				n := wire.Credit([]byte(f.payload))
				if credit += n; n < window/2 || credit > window {
					t.Fatalf("%d bytes of credit, %d in all", n, credit)
				}
			case wire.FrameFin:
				ended = true
			default:
				t.Fatalf("got %+v", f)
			}
		}
		wg.Wait()
		if got.String() != bulk {
			t.Errorf("got %d bytes, not those that were sent", got.Len())
		}
		c.Close()
		x.settled(1)
		for len(x.frames) > 0 {
			<-x.frames // credit that has crossed our end
		}
		x.send(2, "x") // beyond its window, as nothing more was read
		x.expectFrame(wire.FrameReset, 2)
		stalled.Close()
		x.settled(0)
		if len(x.edge.transfers) != 0 {
			t.Error("a transfer socket with inline")
		}
	})
}

// An edge that breaks the rules of a stream loses it; one that breaks those of the
// tunnel, or the former again and again, loses the tunnel.
func TestEarlyViolations(t *testing.T) {
	reset := map[string]func(*early){
		"more than the credit": func(x *early) { x.send(1, strings.Repeat("x", 1001)) },
		"data after the end":   func(x *early) { x.frame(wire.FrameFin, 1, ""); x.send(1, "x") },
		"two ends":             func(x *early) { x.frame(wire.FrameFin, 1, ""); x.frame(wire.FrameFin, 1, "") },
		"credit":               func(x *early) { x.frame(wire.FrameCredit, 1, "\x00\x00\x00\x01") },
		"another kind":         func(x *early) { x.frame(99, 1, "what is this") },
	}
	for name, breach := range reset {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse")
				c, other := x.open(1, 1000), x.open(2, 1000)
				breach(x)
				x.expectFrame(wire.FrameReset, 1)
				for err := error(nil); err == nil; {
					if _, err = c.Read(make([]byte, 2000)); err != nil && err != io.EOF && !errors.Is(err, ErrAborted) {
						t.Error(err)
					}
				}
				write(t, other, "unharmed")
				x.expect(2, "unharmed")
				x.send(1, "crossing") // ignored
				x.frame(wire.FrameReset, 1, "")
				x.settled(1)
			})
		})
	}
	ends := map[string]func(*early){
		"a frame that is none": func(x *early) { x.WriteMessage(socket.Binary, []byte("\x01\x00\x00")) },
		"a frame that is too long": func(x *early) {
			x.WriteMessage(socket.Binary, append([]byte("\x01\x00\x00\x00\x01"), make([]byte, 4097)...))
		},
		"a number in use": func(x *early) { x.openEarly(1, 7, 1000) },
		"too much credit": func(x *early) { x.openEarly(2, 7, 65537) },
		"again and again": func(x *early) {
			for n := uint32(10); n < 100; n++ {
				x.WriteMessage(socket.Text, wire.Encode(&wire.Open{Stream: n, ID: idOf(n), Port: 7}))
				x.WriteMessage(socket.Binary, append(wire.AppendFrameHeader(nil, wire.FrameData, n), 'x'))
			}
		},
	}
	for name, breach := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse")
				c := x.open(1, 1000)
				breach(x)
				if code := receive(t, x.bye); code != wire.CloseMalformed {
					t.Errorf("closed with %d", code)
				}
				readEnd(t, c, ErrAborted)
			})
		})
	}
	for name, early := range map[string]string{"no bounds": "", "more than was asked for": `"early":65537,`} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "")
				x.Close()
				next := receive(t, x.edge.tunnels)
				next.say(strings.Replace(readyText("early", "900"), `"early":65536,`, early, 1))
				if code := receive(t, next.bye); code != wire.CloseMalformed {
					t.Errorf("closed with %d", code)
				}
			})
		})
	}
}

// Capabilities and bounds stay what the first ready said.
func TestCapabilitiesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		x.greetWith("", "900")
		c := x.open(1, 65536)
		write(t, c, "early")
		x.expect(1, "early")
	})
}

// The agent leaves its control socket when nothing needs it any more: streams that
// are about to move are not cut.
func TestEarlyGrace(t *testing.T) {
	for name, test := range map[string]struct {
		grace time.Duration
		cut   bool
	}{"enough": {time.Minute, false}, "none": {-1, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := startEarly(t, ProfileFull, "early,reuse", func(c *Config, _ *edge) { c.Grace = test.grace })
				c := x.open(1, 65536)
				write(t, c, "early")
				x.expect(1, "early")
				var wg sync.WaitGroup
				wg.Go(func() { x.stop() })
				synctest.Wait()
				if test.cut {
					wg.Wait()
					readEnd(t, c, ErrAborted)
					return
				}
				x.openEarly(2, 7, 65536)
				if got := receive(t, x.heard); !strings.Contains(got, "the agent stops") {
					t.Errorf("a visitor who comes then: %s", got)
				}
				s := x.transfer(1)
				x.expectFrame(wire.FrameMove, 1)
				x.send(1, "last early")
				x.frame(wire.FrameMove, 1, "")
				if code := receive(t, x.bye); code != wire.CloseNormal {
					t.Errorf("goodbye with %d", code)
				}
				s.send(t, " and late")
				read(t, c, "last early and late")
				s.send(t, "")
				c.Close()
				s.expect(t, "")
				if code := goodbye(t, s); code != wire.CloseNormal {
					t.Errorf("closed with %d", code)
				}
				wg.Wait()
			})
		})
	}
}

// So it does when it moves to another tunnel.
func TestEarlyDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := startEarly(t, ProfileFull, "early,reuse")
		time.Sleep(held)
		var failing atomic.Bool
		failing.Store(true)
		x.edge.transfer = func(w http.ResponseWriter, r *http.Request) bool { return failing.Load() && refuseWith(503, "")(w, r) }
		c := x.open(1, 65536)
		x.say(`{"type":"drain","within_s":0}`)
		next := receive(t, x.edge.tunnels)
		next.greetWith("early,reuse", "900")
		time.Sleep(time.Second)
		select {
		case code := <-x.bye:
			t.Fatalf("left with %d while a stream needs the tunnel", code)
		default:
		}
		failing.Store(false)
		s := x.transfer(1)
		x.expectFrame(wire.FrameMove, 1)
		x.frame(wire.FrameMove, 1, "")
		if code := receive(t, x.bye); code != wire.CloseNormal {
			t.Errorf("left with %d", code)
		}
		write(t, c, "moved")
		s.expect(t, "moved")
		x.edgeTunnel = next
	})
}
