package agent

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

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
