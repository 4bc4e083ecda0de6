package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// relayed is a relay under test: what visitor and service do at the outer ends
// of a and b.
type relayed struct {
	visitor, service net.Conn
	done             <-chan outcome
}

type outcome struct {
	ab, ba int64
	err    error
}

func relayBetween(ctx context.Context, a, b net.Conn) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		ab, ba, err := Relay(ctx, a, b)
		done <- outcome{ab, ba, err}
	}()
	return done
}

// kinds are what a relay joins: a TCP connection or a stream, at either end.
var kinds = []string{"tcp", "stream on tcp", "agent's stream on tcp", "stream on tls", "stream on pipe"}

// endsOf are the ends of what a relay joins: the far one, and that of the relay.
func endsOf(t testing.TB, kind string) (outer, inner net.Conn) {
	t.Helper()
	if kind == "tcp" {
		return ends.Conns(t, "tcp")
	}
	if kind == "agent's stream on tcp" {
		a, b := pair(t, "tcp", Options{})
		return b, a
	}
	a, b := pair(t, strings.TrimPrefix(kind, "stream on "), Options{})
	return a, b
}

func eachRelay(t *testing.T, body func(t *testing.T, r relayed)) {
	for _, ka := range kinds {
		for _, kb := range kinds {
			t.Run(ka+" to "+kb, func(t *testing.T) {
				visitor, a := endsOf(t, ka)
				service, b := endsOf(t, kb)
				body(t, relayed{visitor, service, relayBetween(t.Context(), a, b)})
			})
		}
	}
}

func closeWriteOf(t testing.TB, c net.Conn) {
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
}

// Each direction ends on its own, and the other goes on.
func TestRelayHalfClose(t *testing.T) {
	eachRelay(t, func(t *testing.T, r relayed) {
		request := bytes.Repeat([]byte("request "), 20000)
		answer := bytes.Repeat([]byte("answer! "), 30000)
		ends.Within(t, "relay", func() {
			var wg sync.WaitGroup
			wg.Go(func() {
				r.visitor.Write(request)
				closeWriteOf(t, r.visitor)
			})
			if got := readAll(r.service); got.err != nil || got.data != string(request) {
				t.Errorf("the service read %d bytes, %v", len(got.data), got.err)
			}
			wg.Wait()
			wg.Go(func() {
				r.service.Write(answer)
				r.service.Close()
			})
			if got := readAll(r.visitor); got.err != nil || got.data != string(answer) {
				t.Errorf("the visitor read %d bytes, %v", len(got.data), got.err)
			}
			r.visitor.Close()
			if got := <-r.done; got != (outcome{int64(len(request)), int64(len(answer)), nil}) {
				t.Errorf("%+v", got)
			}
			wg.Wait()
		})
	})
}

// Bulk that both directions move at once, of which much is passed on by the system,
// arrives as it was sent, whatever the pace of who reads, and with its end.
func TestRelayBulk(t *testing.T) {
	const size = 6 << 20
	for _, kind := range []string{"stream on tcp", "agent's stream on tcp"} {
		t.Run(kind, func(t *testing.T) {
			visitor, a := endsOf(t, "tcp")
			service, b := endsOf(t, kind)
			done := relayBetween(t.Context(), a, b)
			ends.Within(t, "bulk", func() {
				var wg sync.WaitGroup
				send := func(c net.Conn, seed byte) {
					random := rand.NewChaCha8([32]byte{seed})
					b := make([]byte, size)
					random.Read(b)
					for len(b) > 0 {
						n := min(len(b), 1+rand.IntN(700<<10))
						if _, err := c.Write(b[:n]); err != nil {
							t.Error(err)
						}
						b = b[n:]
					}
					closeWriteOf(t, c)
				}
				receive := func(c net.Conn, seed byte) {
					want := make([]byte, size)
					rand.NewChaCha8([32]byte{seed}).Read(want)
					var got []byte
					for {
						b := make([]byte, 1+rand.IntN(300<<10))
						n, err := c.Read(b)
						got = append(got, b[:n]...)
						if err == io.EOF {
							break
						} else if err != nil {
							t.Error(err)
							break
						}
						if rand.IntN(10) == 0 {
							runtime.Gosched()
						}
					}
					if !bytes.Equal(got, want) {
						t.Errorf("%d bytes of %d came, or others", len(got), size)
					}
				}
				wg.Go(func() { send(visitor, 1) })
				wg.Go(func() { send(service, 2) })
				wg.Go(func() { receive(service, 1) })
				wg.Go(func() { receive(visitor, 2) })
				wg.Wait()
				visitor.Close()
				service.Close()
				if got := <-done; got != (outcome{size, size, nil}) {
					t.Errorf("%+v", got)
				}
			})
			if n := bulkUsed.Load(); n != 0 {
				t.Errorf("%d large buffers are not back", n)
			}
		})
	}
}

// A reader that has stopped makes the relay wait, not fail; an abort ends that too.
func TestRelayBulkAbort(t *testing.T) {
	for _, kind := range []string{"stream on tcp", "agent's stream on tcp"} {
		for _, upwards := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", kind, upwards), func(t *testing.T) {
				visitor, a := endsOf(t, "tcp")
				service, b := endsOf(t, kind)
				from, to := visitor, service
				if !upwards {
					from, to = service, visitor
				}
				done := relayBetween(t.Context(), a, b)
				ends.Within(t, "abort", func() {
					wrote := make(chan error, 1)
					go func() {
						for {
							if _, err := from.Write(make([]byte, 1<<20)); err != nil {
								wrote <- err
								return
							}
						}
					}()
					if _, err := io.ReadFull(to, make([]byte, 3<<20)); err != nil {
						t.Error(err)
					}
					Abort(to)
					if got := <-done; got.err == nil {
						t.Errorf("%+v", got)
					}
					<-wrote
				})
				if n := bulkUsed.Load(); n != 0 {
					t.Errorf("%d large buffers are not back", n)
				}
			})
		}
	}
}

// An abort at one end is an abort at the other, whoever it is, also when it has
// said its end before.
func TestRelayAbort(t *testing.T) {
	for _, after := range []string{"data", "its own end", "the other's end"} {
		for _, by := range []string{"visitor", "service"} {
			t.Run(after+"/"+by, func(t *testing.T) {
				eachRelay(t, func(t *testing.T, r relayed) {
					aborter, other := r.visitor, r.service
					if by == "service" {
						aborter, other = other, aborter
					}
					if _, isStream := aborter.(*Stream); after == "its own end" && !isStream {
						return // TCP says nothing between an end and the next write
					}
					ends.Within(t, "abort", func() {
						io.WriteString(aborter, "x")
						if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
							t.Error(err)
						}
						switch after {
						case "its own end":
							closeWriteOf(t, aborter)
							if _, err := other.Read(make([]byte, 1)); err != io.EOF {
								t.Error(err)
							}
						case "the other's end":
							closeWriteOf(t, other)
							if _, err := aborter.Read(make([]byte, 1)); err != io.EOF {
								t.Error(err)
							}
						}
						Abort(aborter)
						if got := <-r.done; got.err == nil {
							t.Errorf("relay: %+v", got)
						}
						if after != "its own end" {
							if got := readAll(other); got.err == nil {
								t.Errorf("the other read an end: %+v", got)
							}
						}
						for { // until the system notices
							if _, err := other.Write([]byte("x")); err != nil {
								break
							}
						}
					})
				})
			})
		}
	}
}

func TestRelayContext(t *testing.T) {
	reason := errors.New("revoked")
	for _, ka := range kinds {
		for _, kb := range kinds {
			t.Run(ka+" to "+kb, func(t *testing.T) {
				visitor, a := endsOf(t, ka)
				service, b := endsOf(t, kb)
				ctx, cancel := context.WithCancelCause(t.Context())
				done := relayBetween(ctx, a, b)
				ends.Within(t, "relay", func() {
					io.WriteString(visitor, "x")
					io.ReadFull(service, make([]byte, 1))
					cancel(reason)
					if got := <-done; got != (outcome{1, 0, reason}) {
						t.Errorf("%+v", got)
					}
					for _, c := range []net.Conn{visitor, service} {
						if got := readAll(c); got.err == nil {
							t.Errorf("read an end: %+v", got)
						}
					}
				})
			})
		}
	}
	t.Run("ended before", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(reason)
		_, a := endsOf(t, "tcp")
		_, b := endsOf(t, "stream on tcp")
		ends.Within(t, "relay", func() {
			if got := <-relayBetween(ctx, a, b); got.err != reason {
				t.Errorf("%+v", got)
			}
		})
	})
}

// A direction that says nothing for HalfIdle after the other has ended is over;
// one that says something goes on.
func TestRelayHalfIdle(t *testing.T) {
	for _, streams := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			visitor, a := net.Conn(nil), net.Conn(nil)
			if streams {
				visitor, a = pair(t, "pipe", Options{})
			} else {
				visitor, a = halfPipes()
			}
			service, b := pair(t, "pipe", Options{})
			done := relayBetween(t.Context(), a, b)
			time.Sleep(3 * HalfIdle) // both directions open: silence is fine
			closeWriteOf(t, visitor)
			if got := readAll(service); got != (result{}) {
				t.Fatalf("%+v", got)
			}
			for range 5 { // slow is not silent
				time.Sleep(HalfIdle - time.Second)
				if _, err := io.WriteString(service, "x"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(visitor, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			if got := <-done; got != (outcome{0, 5, ErrHalfIdle}) || time.Since(start) != HalfIdle {
				t.Errorf("after %v: %+v", time.Since(start), got)
			}
			if got := readAll(visitor); streams && !errors.Is(got.err, ErrAborted) {
				t.Errorf("the visitor read an end: %+v", got)
			}
			visitor.Close()
			service.Close()
		})
	}
}

// halfPipes are pipes with half-close.
func halfPipes() (a, b net.Conn) {
	ar, bw := net.Pipe()
	br, aw := net.Pipe()
	return &halfPipe{ar, aw}, &halfPipe{br, bw}
}

type halfPipe struct {
	net.Conn // read from
	w        net.Conn
}

func (p *halfPipe) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *halfPipe) CloseWrite() error           { return p.w.Close() }
func (p *halfPipe) Close() error                { return errors.Join(p.Conn.Close(), p.w.Close()) }

// A read deadline that a handshake left does not end the relay.
func TestRelayClearsDeadlines(t *testing.T) {
	visitor, a := endsOf(t, "tcp")
	service, b := endsOf(t, "stream on tcp")
	a.SetDeadline(time.Unix(1, 0))
	b.SetReadDeadline(time.Unix(1, 0))
	done := relayBetween(t.Context(), a, b)
	ends.Within(t, "relay", func() {
		io.WriteString(visitor, "x")
		visitor.Close()
		if got := readAll(service); got != (result{"x", nil}) {
			t.Errorf("%+v", got)
		}
		service.Close()
		if got := <-done; got.err != nil {
			t.Errorf("%+v", got)
		}
	})
}

// A connection that was given up by its system is no half-idle one.
func TestRelayTimedOut(t *testing.T) {
	visitor, a := endsOf(t, "stream on tcp")
	_, b := endsOf(t, "tcp")
	lost := &lostConn{Conn: b, lost: make(chan struct{})}
	done := relayBetween(t.Context(), a, lost)
	ends.Within(t, "relay", func() {
		closeWriteOf(t, visitor)
		<-lost.lost
		if got := <-done; !errors.Is(got.err, syscall.ETIMEDOUT) {
			t.Errorf("%+v", got)
		}
	})
}

// lostConn is a connection that times out (TCP keep-alive) once it was ended.
type lostConn struct {
	net.Conn
	lost chan struct{}
}

func (c *lostConn) Read([]byte) (int, error) {
	<-c.lost
	return 0, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ETIMEDOUT}
}

func (c *lostConn) SetReadDeadline(d time.Time) error {
	if !d.IsZero() {
		close(c.lost)
	}
	return nil
}

func (c *lostConn) SetDeadline(time.Time) error { return nil }
func (c *lostConn) CloseWrite() error           { return nil }

// A TLS visitor sees an abort as one: TLS' goodbye would be an end.
func TestRelayAbortsTLS(t *testing.T) {
	visitor, a := ends.Conns(t, "tls")
	service, b := endsOf(t, "stream on tcp")
	done := relayBetween(t.Context(), a, b)
	ends.Within(t, "relay", func() {
		io.WriteString(service, "x")
		if _, err := io.ReadFull(visitor, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		service.(*Stream).Abort()
		if got := <-done; !errors.Is(got.err, ErrAborted) {
			t.Errorf("%+v", got)
		}
		if _, err := visitor.(*tls.Conn).Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the visitor read an end: %v", err)
		}
	})
}

// A pipe has no half-close: it stays open until both directions have ended.
func TestRelayPipe(t *testing.T) {
	visitor, a := endsOf(t, "stream on tcp")
	service, b := net.Pipe()
	done := relayBetween(t.Context(), a, b)
	ends.Within(t, "relay", func() {
		go func() {
			io.WriteString(visitor, "request")
			closeWriteOf(t, visitor)
		}()
		if _, err := io.ReadFull(service, make([]byte, 7)); err != nil {
			t.Error(err)
		}
		io.WriteString(service, "answer")
		service.Close()
		if got := readAll(visitor); got != (result{"answer", nil}) {
			t.Errorf("%+v", got)
		}
		if got := <-done; got != (outcome{7, 6, nil}) {
			t.Errorf("%+v", got)
		}
	})
}

// chain is the way of a visitor to a service: TCP, relay, stream, relay, TCP.
func chain(t testing.TB, transport string) (visitor, service net.Conn, done func()) {
	visitor, a := ends.Loopback(t)
	service, d := ends.Loopback(t)
	b, c := pair(t, transport, Options{})
	t.Cleanup(func() { visitor.Close(); service.Close() })
	first, second := relayBetween(context.Background(), a, b), relayBetween(context.Background(), c, d)
	return visitor, service, func() { <-first; <-second }
}

// A service that does not read before its answer is read, a visitor that sends
// more than all buffers hold, and pings: nobody waits for ever.
func TestEchoDoesNotDeadlock(t *testing.T) {
	visitor, service, done := chain(t, "tls")
	const size = 12 << 20
	ends.Within(t, "echo", func() {
		var wg sync.WaitGroup
		wg.Go(func() { // slow at first: everything fills
			time.Sleep(200 * time.Millisecond)
			buf := make([]byte, 32<<10)
			for {
				n, err := service.Read(buf)
				if err != nil {
					break
				}
				if _, err := service.Write(buf[:n]); err != nil {
					t.Error(err)
					break
				}
			}
			service.Close()
		})
		sent, got := sha256.New(), sha256.New()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, 2))
			buf := make([]byte, 64<<10)
			for range size / len(buf) {
				buf[rng.IntN(len(buf))] = byte(rng.Uint32())
				sent.Write(buf)
				if _, err := visitor.Write(buf); err != nil {
					t.Error(err)
					return
				}
			}
			closeWriteOf(t, visitor)
		})
		time.Sleep(400 * time.Millisecond) // and the visitor reads later still
		n, err := io.Copy(got, visitor)
		visitor.Close()
		wg.Wait()
		if n != size || err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
			t.Errorf("%d bytes, %v", n, err)
		}
		done()
	})
}

func TestManyStreams(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 200 {
		visitor, service, done := chain(t, ends.Transports[i%2])
		wg.Go(func() {
			data := bytes.Repeat([]byte{byte(i)}, 1000+i*100)
			var both sync.WaitGroup
			both.Go(func() {
				got := readAll(service)
				if got.err != nil || got.data != string(data) {
					t.Errorf("stream %d: the service read %d bytes, %v", i, len(got.data), got.err)
				}
				io.WriteString(service, got.data)
				service.Close()
			})
			visitor.Write(data)
			closeWriteOf(t, visitor)
			if got := readAll(visitor); got.err != nil || got.data != string(data) {
				t.Errorf("stream %d: the visitor read %d bytes, %v", i, len(got.data), got.err)
			}
			visitor.Close()
			both.Wait()
			done()
		})
	}
	ends.Within(t, "200 streams", wg.Wait)
}
