package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// soon makes a link look after its sockets more often than it does.
func soon(n *edgeNode) { n.tendEvery = 250 * time.Millisecond }

// A peer whose host has vanished is found out by what it does not acknowledge, data or
// ping; one whose visitor reads nothing is not.
func TestVanishedPeer(t *testing.T) {
	for _, c := range []struct {
		name            string
		vanishes, sends bool
	}{{"data", true, true}, {"nothing sent", true, false}, {"slow visitor", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ours := make(chan net.Conn, 1)
			edge, device := pair(t, stream.Options{})
			a, b := two(t, &local{dial: func(context.Context, Open) (*stream.Stream, error) { return edge, nil }})
			soon(a)
			soon(b)
			connect := a.connect
			a.connect = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := connect(ctx, network, address)
				select {
				case ours <- conn:
				default: // a sign of life is asked for on another one
				}
				return conn, err
			}
			s, err := a.Dial(t.Context(), b.peer, open())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Abort()
			if c.vanishes {
				ends.Deaf(t, <-ours)
				ends.Deaf(t, b.conn.Load().(net.Conn))
			}
			wrote := make(chan error, 1)
			if c.sends {
				go func() { // more than anybody takes
					_, err := device.Write(make([]byte, 16<<20))
					wrote <- err
				}()
			}
			if c.vanishes {
				began := time.Now()
				defer func() {
					if took := time.Since(began); took > 2*(unheardMost+keepAliveEvery+2)*a.tendEvery {
						t.Errorf("it took %v", took)
					}
				}()
				ends.Within(t, "device", func() {
					if _, err := io.Copy(io.Discard, device); !errors.Is(err, stream.ErrAborted) {
						t.Errorf("%v", err)
					}
				})
				until(t, "b has let go", func() bool { return b.Stats().In == 0 })
				return
			}
			// Long enough for one that is taken for dead.
			ticks := time.NewTicker(a.tendEvery)
			defer ticks.Stop()
			for range 2 * unheardMost * keepAliveEvery {
				<-ticks.C
			}
			if n, err := io.ReadFull(s, make([]byte, 16<<20)); err != nil {
				t.Errorf("after %d bytes: %v", n, err)
			}
			if err := <-wrote; err != nil {
				t.Error(err)
			}
		})
	}
}
