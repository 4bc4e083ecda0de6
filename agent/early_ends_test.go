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

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

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
