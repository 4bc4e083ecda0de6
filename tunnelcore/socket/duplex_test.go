package socket

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// A peer that reads nothing must not keep the reader from what it sent.
func TestReaderNeverWaitsToReply(t *testing.T) {
	for _, transport := range ends.Transports {
		t.Run(transport, func(t *testing.T) {
			c, conn := ends.Conns(t, transport)
			s := on(conn, false)
			if transport != "pipe" { // a pipe takes nothing anyway
				fill(t, s)
			}
			go func() {
				for range 100 {
					c.Write(masked(0x89, "are you there?"))
				}
				c.Write(masked(0x82, "data"))
			}()
			ends.Within(t, "ReadMessage", func() {
				if _, b, err := s.ReadMessage(10); string(b) != "data" || err != nil {
					t.Errorf("%q, %v", b, err)
				}
			})
			// A close frame is echoed in time or not at all.
			go c.Write(masked(0x88, "\x03\xe8"))
			ends.Within(t, "Next", func() {
				var end *CloseError
				if _, err := s.Next(); !errors.As(err, &end) || end.Code != 1000 {
					t.Errorf("%v", err)
				}
			})
			ends.Within(t, "Close", func() { s.Close() })
		})
	}
}

// fill writes frames until the peer's and our system's buffers are full, and
// leaves the socket fit to write. It looks behind the socket, whose own writes
// cannot be interrupted and go on.
func fill(t *testing.T, s *Socket) {
	t.Helper()
	conn := s.conn
	if n, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = n.NetConn()
	}
	conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	_, err := conn.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("fill: %v", err)
	}
	conn.SetWriteDeadline(time.Time{})
}

// Pings that come while a write is under way cost one pong, the last.
func TestPingFlood(t *testing.T) {
	client, conn := ends.Conns(t, "pipe")
	s := on(conn, false)
	ends.Within(t, "flood", func() {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if err := s.WriteMessage(Binary, []byte("one write")); err != nil {
				t.Error(err)
			}
		})
		head := make([]byte, 2)
		if _, err := io.ReadFull(client, head); err != nil { // the write is under way
			t.Error(err)
		}
		wg.Go(func() {
			for i := range 1000 {
				client.Write(masked(0x89, fmt.Sprint("ping ", i)))
			}
			client.Write(masked(0x81, "end of pings"))
		})
		if _, b, err := s.ReadMessage(100); string(b) != "end of pings" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		rest := make([]byte, len("one write")+2+len("ping 999"))
		if _, err := io.ReadFull(client, rest); err != nil || string(rest) != "one write\x8a\x08ping 999" {
			t.Errorf("%q, %v", rest, err)
		}
	})
	// Nothing else is due.
	go s.WriteMessage(Text, nil)
	next := make([]byte, 2)
	if _, err := io.ReadFull(client, next); err != nil || !bytes.Equal(next, []byte{0x81, 0}) {
		t.Errorf("% x, %v", next, err)
	}
}

// A ping and a close frame that come while a write is under way are answered
// after it, in that order.
func TestRepliesFollowAWrite(t *testing.T) {
	client, conn := ends.Conns(t, "pipe")
	s := on(conn, false)
	ends.Within(t, "replies", func() {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { s.WriteMessage(Binary, []byte("one write")) })
		head := make([]byte, 2)
		if _, err := io.ReadFull(client, head); err != nil {
			t.Error(err)
		}
		wg.Go(func() { client.Write(cat(masked(0x89, "p"), masked(0x88, "\x0f\xa1bye"))) })
		var end *CloseError
		if _, err := s.Next(); !errors.As(err, &end) || *end != (CloseError{4001, "bye"}) {
			t.Errorf("%v", err)
		}
		rest := make([]byte, len("one write")+3+4)
		if _, err := io.ReadFull(client, rest); err != nil || string(rest) != "one write\x8a\x01p\x88\x02\x0f\xa1" {
			t.Errorf("%q, %v", rest, err)
		}
	})
}

// Ping does not wait behind a write.
func TestPingWhileWriting(t *testing.T) {
	client, conn := ends.Conns(t, "pipe")
	s := on(conn, false)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.WriteMessage(Binary, []byte("x")) })
	if _, err := io.ReadFull(client, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	if sent, err := s.Ping(); sent || err != nil {
		t.Errorf("%v, %v", sent, err)
	}
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	wg.Go(func() {
		if sent, err := s.Ping(); !sent || err != nil {
			t.Errorf("%v, %v", sent, err)
		}
	})
	ping := make([]byte, 2)
	if _, err := io.ReadFull(client, ping); err != nil || !bytes.Equal(ping, []byte{0x89, 0}) {
		t.Errorf("% x, %v", ping, err)
	}
}

// WriteClose waits its time and no longer, however many writes stand before it.
func TestWriteCloseIsBounded(t *testing.T) {
	client, conn := ends.Conns(t, "pipe")
	s := on(conn, false)
	s.SetWriteTimeout(time.Hour)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { s.WriteMessage(Binary, []byte("stuck")) })
	}
	waitUntilWriting(s)
	ends.Within(t, "WriteClose", func() {
		// The peer takes one write, and would leave the next to its own timeout.
		time.AfterFunc(50*time.Millisecond, func() { io.ReadFull(client, make([]byte, 2+len("stuck"))) })
		if err := s.WriteClose(1001, "", 200*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		wg.Wait()
	})
}

// The earlier of write deadline and write timeout counts, whichever is set last.
func TestWriteDeadlines(t *testing.T) {
	for _, c := range []struct {
		name                   string
		timeout, before, while time.Duration // 0: not set; while: a second after the write began
		want                   time.Duration
	}{
		{"timeout", time.Minute, 0, 0, time.Minute},
		{"deadline before", time.Minute, 10 * time.Second, 0, 10 * time.Second},
		{"late deadline before", time.Minute, time.Hour, 0, time.Minute},
		{"deadline while", time.Minute, 0, 10 * time.Second, 10 * time.Second},
		{"late deadline while", time.Minute, 0, time.Hour, time.Minute},
		{"no timeout", 0, 10 * time.Second, 0, 10 * time.Second},
		{"no timeout, while", 0, time.Hour, 10 * time.Second, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, conn := net.Pipe()
				s := on(conn, true)
				s.SetWriteTimeout(c.timeout)
				start := time.Now()
				if c.before > 0 {
					s.SetWriteDeadline(start.Add(c.before))
				}
				if c.while > 0 {
					time.AfterFunc(time.Second, func() { s.SetWriteDeadline(start.Add(c.while)) })
				}
				err := s.WriteMessage(Binary, []byte("x"))
				if took := time.Since(start); took != c.want || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("after %v: %v; want %v", took, err, c.want)
				}
				if again := s.WriteMessage(Binary, nil); again != err {
					t.Errorf("write on: %v", again)
				}
			})
		})
	}
}

// A peer that is slow is not stuck: the write timeout is for one that takes
// nothing.
func TestWriteTimeoutRenewed(t *testing.T) {
	const timeout = 300 * time.Millisecond
	c, conn := ends.Conns(t, "tcp")
	conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
	c.(*net.TCPConn).SetReadBuffer(64 << 10)
	for _, inPlace := range []bool{false, true} {
		s := on(conn, false)
		s.SetWriteTimeout(timeout)
		payload := make([]byte, 4<<20)
		for i := range payload {
			payload[i] = byte(i * i >> 7)
		}
		want := sha256.Sum256(payload)
		var wg sync.WaitGroup
		start := time.Now()
		wg.Go(func() {
			var err error
			if inPlace {
				err = s.WriteInPlace(Binary, append(make([]byte, Headroom), payload...))
			} else {
				err = s.WriteMessage(Binary, payload)
			}
			if err != nil {
				t.Errorf("after %v: %v", time.Since(start), err)
				s.Close()
			}
		})
		// A read every so often, until twice the timeout has passed.
		sum, total := sha256.New(), 0
		r := on(c, true)
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64<<10)
		tick := time.NewTicker(timeout / 4)
		defer tick.Stop()
		for {
			if time.Since(start) < 2*timeout {
				<-tick.C // the subject is time, and the kernel's has no fake
			}
			n, err := r.Read(buf)
			sum.Write(buf[:n])
			total += n
			if err != nil {
				break
			}
		}
		wg.Wait()
		if [32]byte(sum.Sum(nil)) != want {
			t.Errorf("in place %v: %d bytes arrived, not those that were sent", inPlace, total)
		}
	}
}

// A connection other than TCP gets frames in pieces, each with its own timeout.
func TestWriteTimeoutPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := net.Pipe()
		s := on(conn, false)
		s.SetWriteTimeout(time.Minute)
		done := make(chan error, 1)
		go func() { done <- s.WriteMessage(Binary, make([]byte, 4*pieceSize)) }()
		r := on(c, true)
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < 4*pieceSize; {
			n, err := io.ReadFull(onlyRead{r}, make([]byte, pieceSize))
			if got += n; err != nil {
				t.Fatal(err)
			}
			time.Sleep(40 * time.Second) // the bubble's
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

type onlyRead struct{ s *Socket }

func (r onlyRead) Read(p []byte) (int, error) { return r.s.Read(p) }

// Close ends what is under way, and does not wait for the peer.
func TestCloseUnblocks(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Socket) {
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := a.Next(); err == nil {
				t.Error("read without error")
			}
		})
		for range 3 {
			wg.Go(func() {
				for {
					if err := a.WriteMessage(Binary, make([]byte, 1<<20)); err != nil {
						return
					}
				}
			})
		}
		waitUntilWriting(a)
		ends.Within(t, "Close", func() { a.Close(); wg.Wait() })
		if err := a.WriteMessage(Binary, nil); err == nil {
			t.Error("write after Close: no error")
		}
		if sent, err := a.Ping(); err == nil {
			t.Errorf("ping after Close: %v, no error", sent)
		}
	})
}

func waitUntilWriting(s *Socket) {
	for s.turns.tryTake() {
		s.unlock()
		time.Sleep(time.Millisecond)
	}
}

// When a TLS peer is stuck, the connection ends without TLS' goodbye, which would
// wait for it.
func TestCloseOfStuckTLS(t *testing.T) {
	c, conn := net.Pipe()
	peer := tls.Client(c, ends.ClientTLS())
	s := on(tls.Server(conn, ends.ServerTLS()), false)
	defer c.Close()
	shaken := make(chan error, 1)
	go func() {
		err := peer.Handshake()
		if err == nil {
			_, err = peer.Read(make([]byte, 1)) // session tickets come before it
		}
		shaken <- err
	}()
	if err := s.WriteMessage(Binary, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	ends.Within(t, "Close", func() { s.Close() })
	if took := time.Since(start); took > 3*time.Second { // the goodbye would take 5
		t.Errorf("took %v", took)
	}
}

// A peer that goes without a close frame is told from one that says goodbye.
func TestEnds(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Socket) {
		go b.Close()
		ends.Within(t, "Next", func() {
			var end *CloseError
			if _, err := a.Next(); !errors.As(err, &end) || end.Code != CloseAbnormal {
				t.Errorf("%v", err)
			}
		})
	})
	bothWays(t, func(t *testing.T, a, b *Socket) {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			if err := b.WriteClose(4001, "replaced", ends.Patience); err != nil {
				t.Error(err)
			}
			var end *CloseError
			if _, err := b.Next(); !errors.As(err, &end) || *end != (CloseError{4001, ""}) {
				t.Errorf("echo: %v", err)
			}
			b.Close()
		})
		ends.Within(t, "Next", func() {
			var end *CloseError
			if _, err := a.Next(); !errors.As(err, &end) || *end != (CloseError{4001, "replaced"}) {
				t.Errorf("%v", err)
			}
		})
	})
	bothWays(t, func(t *testing.T, a, b *Socket) { // both at once
		var wg sync.WaitGroup
		for _, s := range []*Socket{a, b} {
			wg.Go(func() {
				var end *CloseError
				if _, err := s.Next(); !errors.As(err, &end) || end.Code != 1000 && end.Code != 1001 {
					t.Errorf("%v", err)
				}
			})
		}
		wg.Go(func() { a.WriteClose(1000, "", ends.Patience) })
		wg.Go(func() { b.WriteClose(1001, "", ends.Patience) })
		ends.Within(t, "both closes", wg.Wait)
	})
}

// Everything at once: messages of all sizes both ways, several writers, pings
// from both sides, deadlines that interrupt the readers, a close at the end.
func TestDuplex(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Socket) {
		const writers, each = 3, 60
		var wg, stopping sync.WaitGroup
		defer stopping.Wait()
		over := make(chan struct{})
		defer close(over)
		end := func(s *Socket, seed uint64) {
			var sending, pinging sync.WaitGroup
			for w := range writers {
				sending.Go(func() {
					rng := rand.New(rand.NewPCG(seed, uint64(w)))
					for i := range each {
						size := 8 + rng.IntN(1<<rng.IntN(18))
						buf := make([]byte, Headroom+size)
						body := buf[Headroom:]
						binary.BigEndian.PutUint32(body, uint32(w))
						binary.BigEndian.PutUint32(body[4:], uint32(i))
						for j := 8; j < size; j++ {
							body[j] = byte(w*31 + i*7 + j)
						}
						var err error
						if rng.IntN(2) == 0 {
							err = s.WriteMessage(Binary, body)
						} else {
							err = s.WriteInPlace(Binary, buf)
						}
						if err != nil {
							t.Errorf("writer %d, message %d: %v", w, i, err)
							return
						}
					}
				})
			}
			quit := make(chan struct{})
			pinging.Go(func() {
				for {
					select {
					case <-quit:
						return
					default:
						if _, err := s.Ping(); err != nil {
							t.Errorf("ping: %v", err)
							return
						}
						time.Sleep(100 * time.Microsecond)
					}
				}
			})
			wg.Go(func() {
				sending.Wait()
				close(quit)
				pinging.Wait()
				if err := s.WriteMessage(Text, []byte("all")); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				var next [writers]uint32
				for n := 0; ; n++ {
					if n%5 == 0 {
						s.SetReadDeadline(time.Now().Add(time.Duration(n%7) * 100 * time.Microsecond))
					}
					op, b, err := s.ReadMessage(1 << 20)
					if errors.Is(err, os.ErrDeadlineExceeded) {
						s.SetReadDeadline(time.Time{})
						continue
					}
					if err != nil {
						t.Errorf("read: %v", err)
						return
					}
					if op == Text {
						break
					}
					w, i := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
					if i != next[w] {
						t.Errorf("writer %d: message %d, want %d", w, i, next[w])
						return
					}
					next[w]++
					for j := 8; j < len(b); j++ {
						if b[j] != byte(int(w)*31+int(i)*7+j) {
							t.Errorf("writer %d, message %d: byte %d of %d is wrong", w, i, j, len(b))
							return
						}
					}
				}
				if next != [writers]uint32{each, each, each} {
					t.Errorf("got %v", next)
				}
				stop := drained(s)
				stopping.Go(func() { <-over; stop() })
			})
		}
		end(a, 1)
		end(b, 2)
		ends.Within(t, "duplex", wg.Wait)
	})
}

// drained reads and drops what comes until s is closed: a peer that stops reading
// may leave a pong, and the write that it follows, standing. stop closes s.
func drained(s *Socket) (stop func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := s.Next(); err != nil {
				return
			}
		}
	})
	return func() { s.Close(); wg.Wait() }
}

// Two ends that both write more than fits, and both ping, before they read.
func TestBothWriteFirst(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Socket) {
		var wg, stopping sync.WaitGroup
		defer stopping.Wait()
		over := make(chan struct{})
		defer close(over)
		for _, s := range []*Socket{a, b} {
			wg.Go(func() {
				for range 4 {
					s.Ping()
					if err := s.WriteMessage(Binary, make([]byte, 1<<20)); err != nil {
						t.Error(err)
						return
					}
				}
			})
			wg.Go(func() {
				for range 4 {
					if _, _, err := s.ReadMessage(1 << 20); err != nil {
						t.Error(err)
						return
					}
				}
				stop := drained(s)
				stopping.Go(func() { <-over; stop() })
			})
		}
		ends.Within(t, "both", wg.Wait)
	})
}

// The round trip is that of the ping which the pong answers: the first of those
// without an answer. A pong nobody asked for measures nothing.
func TestRTT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, conn := net.Pipe()
		s := on(conn, false)
		go io.Copy(io.Discard, c)
		go s.Next()
		for _, step := range []struct {
			pings int
			want  time.Duration
		}{{0, 0}, {1, time.Second}, {0, time.Second}, {3, 3 * time.Second}, {1, time.Second}} {
			for range step.pings {
				if sent, err := s.Ping(); !sent || err != nil {
					t.Fatal(sent, err)
				}
				time.Sleep(time.Second) // the bubble's
			}
			if _, err := c.Write(masked(0x8a, "")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := s.RTT(); got != step.want {
				t.Errorf("%d pings: %v, want %v", step.pings, got, step.want)
			}
		}
		s.Close()
		c.Close()
	})
}

// Heard grows with whatever comes in.
func TestHeard(t *testing.T) {
	conn := &script{in: cat(masked(0x8a, ""), masked(0x02, "x"), masked(0x80, ""))}
	s := on(conn, false)
	before := s.Heard()
	if _, err := s.Next(); err != nil {
		t.Fatal(err)
	}
	if s.Heard() == before {
		t.Error("did not grow")
	}
}
