package stream

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
)

// A peer that reads none of our pings, because it is blocked elsewhere, is slow; one
// whose system acknowledges nothing is gone.
func TestKeepAliveAsksTCP(t *testing.T) {
	// Longer than a system delays acknowledgements, two times.
	const interval = 250 * time.Millisecond
	for _, transport := range []string{"tcp", "tls"} {
		for _, full := range []bool{false, true} {
			t.Run(transport+map[bool]string{false: "", true: ", window closed"}[full], func(t *testing.T) {
				t.Parallel()
				c, s := ends.Conns(t, transport)
				a, peer := sockettest.Pair(t, c, s)
				defer peer.Close()
				stream := New(a, Options{})
				defer stream.Abort()
				read := make(chan error, 1)
				go func() {
					_, err := stream.Read(make([]byte, 1))
					read <- err
				}()
				wait(t, "reader", stream.reading.Load)
				if full { // with more than the peer takes
					a.SetWriteDeadline(time.Now().Add(interval))
					for buf, err := make([]byte, 64<<10), error(nil); err == nil; {
						_, err = stream.Write(buf)
					}
				}
				calls := time.NewTicker(interval)
				defer calls.Stop()
				for range 8 {
					<-calls.C
					stream.KeepAlive()
					select {
					case err := <-read:
						t.Fatalf("a peer that is alive was given up: %v", err)
					default:
					}
				}
				if full {
					return // probes come too seldom by now
				}
				below := s
				if tls, ok := s.(interface{ NetConn() net.Conn }); ok {
					below = tls.NetConn()
				}
				ends.Deaf(t, below)
				for range 2 + missedPings {
					<-calls.C
					stream.KeepAlive()
				}
				select {
				case <-read:
				default:
					t.Error("a peer that is gone was not given up")
				}
			})
		}
	}
}

// A ping behind what the peer does not take would wait for it, and with it who keeps
// others alive.
func TestKeepAliveWaitsForNobody(t *testing.T) {
	c, s := ends.Conns(t, "tcp")
	a, peer := sockettest.Pair(t, c, s)
	defer peer.Close()
	stream := New(a, Options{})
	defer stream.Abort()
	for _, size := range []int{64 << 20, 1 << 10, 1} { // behind the socket, to the last byte
		var err error
		for err == nil {
			c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			_, err = c.Write(make([]byte, size))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	c.SetWriteDeadline(time.Time{})
	ends.Within(t, "KeepAlive", func() {
		for range 2 * missedPings {
			stream.KeepAlive()
		}
	})
	if stream.closed.Load() {
		t.Error("a peer that is slow was given up")
	}
}
