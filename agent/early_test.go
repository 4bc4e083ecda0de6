package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
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
