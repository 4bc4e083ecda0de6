package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// What a stream puts on the wire: pieces are messages, an end is an empty one.
func TestStreamMessages(t *testing.T) {
	c, s := ends.Conns(t, "pipe")
	a, peer := sockettest.Pair(t, c, s)
	stream := New(a, Options{MessageMax: 4})
	defer stream.Abort()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if n, err := stream.Write([]byte("123456789")); n != 9 || err != nil {
			t.Error(n, err)
		}
		if n, err := stream.Write(nil); n != 0 || err != nil { // no message: it would be an end
			t.Error(n, err)
		}
		if n, err := stream.ReadFrom(strings.NewReader("abcdef")); n != 6 || err != nil {
			t.Error(n, err)
		}
		if err := errors.Join(stream.CloseWrite(), stream.CloseWrite()); err != nil {
			t.Error(err)
		}
		if _, err := stream.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after the end: %v", err)
		}
	}()
	for _, want := range []string{"1234", "5678", "9", "abcd", "ef", ""} {
		if op, m, err := peer.ReadMessage(100); op != socket.Binary || string(m) != want || err != nil {
			t.Errorf("op %d, %q, %v; want %q", op, m, err, want)
		}
	}
	<-done
	if received, sent := stream.Transferred(); received != 0 || sent != 15 {
		t.Errorf("received %d, sent %d", received, sent)
	}
}

func TestHalfClose(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Stream) {
		ends.Within(t, "half close", func() {
			var wg sync.WaitGroup
			wg.Go(func() {
				io.WriteString(a, "request")
				if err := a.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			if got := readAll(b); got != (result{"request", nil}) {
				t.Errorf("%+v", got)
			}
			wg.Wait()
			wg.Go(func() {
				io.WriteString(b, "answer")
				b.Close()
			})
			if got := readAll(a); got != (result{"answer", nil}) {
				t.Errorf("%+v", got)
			}
			if n, err := a.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d, %v", n, err)
			}
			a.Close()
			wg.Wait()
			a.opts.Owner.Wait() // both let go long before lingerTime
		})
	})
}

// An abort is never mistaken for an end, whatever was sent before.
func TestAbort(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Stream) {
		ends.Within(t, "abort", func() {
			got := reading(a)
			io.WriteString(b, "not all")
			b.Abort()
			if r := <-got; !errors.Is(r.err, ErrAborted) || !strings.HasPrefix("not all", r.data) {
				t.Errorf("%+v", r)
			}
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, ErrAborted) {
				t.Errorf("read on: %v", err)
			}
			for { // until the system notices
				if _, err := a.Write(make([]byte, 1<<10)); err != nil {
					break
				}
			}
		})
	})
	bothWays(t, func(t *testing.T, a, b *Stream) { // after its own end
		ends.Within(t, "abort", func() {
			got := reading(a)
			if err := b.CloseWrite(); err != nil {
				t.Error(err)
			}
			if r := <-got; r != (result{}) {
				t.Errorf("%+v", r)
			}
			await := make(chan error, 1)
			go func() { await <- a.awaitClose() }()
			b.Abort()
			if err := <-await; !errors.Is(err, ErrAborted) {
				t.Errorf("awaitClose: %v", err)
			}
		})
	})
}

// writeWaits reports whether the one goroutine in a Stream's Write waits for its
// connection; one that has only had no time yet does not.
func writeWaits() bool {
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		state, calls, _ := strings.Cut(stack, "\n")
		if strings.Contains(calls, "(*Stream).Write(") {
			return strings.Contains(state, "[IO wait") || strings.Contains(state, "[select") // a pipe's
		}
	}
	return false
}

// Calls under way return when the stream is closed or aborted here, and say so.
func TestCallsUnderWay(t *testing.T) {
	for name, end := range map[string]func(*Stream){"Close": func(s *Stream) { s.Close() }, "Abort": (*Stream).Abort} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, a, b *Stream) {
				var wg sync.WaitGroup
				var written atomic.Int64
				wg.Go(func() {
					if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) || errors.Is(err, ErrAborted) {
						t.Errorf("read: %v", err)
					}
				})
				wg.Go(func() {
					for {
						if _, err := a.Write(make([]byte, 64<<10)); err != nil {
							if !errors.Is(err, net.ErrClosed) || errors.Is(err, ErrAborted) {
								t.Errorf("write: %v", err)
							}
							return
						}
						written.Add(1)
					}
				})
				for last := int64(-1); last != written.Load() || !writeWaits(); { // until it blocks
					last = written.Load()
					time.Sleep(20 * time.Millisecond)
				}
				ends.Within(t, name, func() { end(a); wg.Wait() })
				// The peer must not take what came for the whole.
				ends.Within(t, "the peer", func() {
					if r := readAll(b); !errors.Is(r.err, ErrAborted) {
						t.Errorf("the peer read %d bytes and then %v", len(r.data), r.err)
					}
				})
				if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
					t.Errorf("write after: %v", err)
				}
				if err := a.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
					t.Errorf("deadline after: %v", err)
				}
			})
		})
	}
}

// Calls on a closed stream do not wait for it to stop lingering.
func TestCallsWhileLingering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed atomic.Int32
		a, b := pair(t, "pipe", Options{Closed: func(*Stream) { closed.Add(1) }})
		a.Close()
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatal(n, err)
		}
		synctest.Wait() // a waits for b's end
		start := time.Now()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
		if err := a.CloseWrite(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("close write: %v", err)
		}
		if err := errors.Join(a.Close(), a.Close()); err != nil {
			t.Errorf("close: %v", err)
		}
		a.KeepAlive()
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
		if closed.Load() != 0 {
			t.Error("Closed was called while it lingers")
		}
		a.opts.Owner.Wait()
		if took := time.Since(start); took != lingerTime || closed.Load() != 1 {
			t.Errorf("lingered for %v, Closed called %d times", took, closed.Load())
		}
		if _, err := b.Write([]byte("x")); err == nil {
			_, err = b.Write([]byte("x"))
			if err == nil {
				t.Error("the peer writes to nobody")
			}
		}
	})
}

// Nothing that was sent before Close is lost, though the peer reads it later.
func TestCloseKeepsWhatWasSent(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Stream) {
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		ends.Within(t, "close", func() {
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := a.Write(sent); err != nil {
					t.Error(err)
				}
				a.Close()
			})
			got := readAll(b)
			b.Close()
			if got.err != nil || got.data != string(sent) {
				t.Errorf("%d bytes, %v", len(got.data), got.err)
			}
			wg.Wait()
			a.opts.Owner.Wait()
		})
	})
}

// Close with data of the peer unread, or coming, is an abort to it, as of TCP.
func TestCloseWithDataUnread(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Stream) {
		ends.Within(t, "close", func() {
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					if _, err := b.Write(make([]byte, 1<<10)); err != nil {
						if !errors.Is(err, ErrAborted) {
							t.Errorf("write: %v", err)
						}
						return
					}
				}
			})
			if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
				t.Error(err)
			}
			a.Close()
			wg.Wait()
			a.opts.Owner.Wait()
		})
	})
}

// Abort cuts a lingering close short.
func TestAbortWhileLingering(t *testing.T) {
	var closed atomic.Int32
	a, b := pair(t, "tcp", Options{Closed: func(*Stream) { closed.Add(1) }})
	a.Close()
	if got := readAll(b); got != (result{}) {
		t.Errorf("%+v", got)
	}
	ends.Within(t, "abort", func() {
		a.Abort()
		a.Abort()
		a.opts.Owner.Wait()
	})
	if closed.Load() != 1 {
		t.Errorf("Closed called %d times", closed.Load())
	}
}

// Everything that can be called, at once.
func TestEndingRaces(t *testing.T) {
	for i := range 60 {
		a, b := pair(t, ends.Transports[i%len(ends.Transports)], Options{})
		var wg sync.WaitGroup
		for _, s := range []*Stream{a, b} {
			for _, f := range []func(){
				func() { s.Close() }, func() { s.Close() }, func() { s.CloseWrite() },
				func() { s.Read(make([]byte, 10)) }, func() { s.Write(make([]byte, 1000)) },
				func() { s.SetDeadline(time.Now().Add(time.Hour)) }, func() { s.SetDeadline(time.Time{}) },
				s.KeepAlive, func() { s.Transferred() },
			} {
				wg.Go(f)
			}
			if i%2 == 0 {
				wg.Go(s.Abort)
			}
		}
		ends.Within(t, "everything", func() {
			wg.Wait()
			a.opts.Owner.Wait()
		})
	}
}

// Reads resume after a deadline and lose nothing; a write that meets one breaks
// the stream.
func TestDeadlines(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Stream) {
		want := strings.Repeat("0123456789", 10000)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 0; i < len(want); i += 1000 {
				io.WriteString(b, want[i:i+1000])
			}
			b.CloseWrite()
		})
		ends.Within(t, "reads", func() {
			var got []byte
			buf := make([]byte, 777)
			for n := 0; ; n++ {
				a.SetReadDeadline(time.Now().Add(time.Duration(n%3) * 50 * time.Microsecond))
				n, err := a.Read(buf)
				got = append(got, buf[:n]...)
				if err == io.EOF {
					break
				}
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%v", err)
					break
				}
			}
			if string(got) != want {
				t.Errorf("%d bytes, not those that were sent", len(got))
			}
			wg.Wait()
		})
		got := reading(b)
		a.SetWriteDeadline(time.Now().Add(-time.Second))
		if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
		a.Close()
		ends.Within(t, "the peer", func() {
			if r := <-got; !errors.Is(r.err, ErrAborted) {
				t.Errorf("the peer read %+v", r)
			}
		})
	})
}

// A peer that breaks the protocol is told, and nothing is read after it.
func TestMalformed(t *testing.T) {
	for name, send := range map[string]func(*socket.Socket) error{
		"text": func(p *socket.Socket) error {
			return errors.Join(p.WriteMessage(socket.Text, []byte("{}")), p.WriteMessage(socket.Binary, []byte("more")))
		},
		"data after the end": func(p *socket.Socket) error {
			return errors.Join(p.WriteMessage(socket.Binary, nil), p.WriteMessage(socket.Binary, []byte("more")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := ends.Conns(t, "tcp")
			a, peer := sockettest.Pair(t, c, s)
			stream := New(a, Options{})
			defer stream.Abort()
			defer peer.Close()
			if err := send(peer); err != nil {
				t.Fatal(err)
			}
			ends.Within(t, "read", func() {
				r := readAll(stream)
				if r.err == nil {
					r.err = stream.awaitClose()
				}
				if r.data != "" || !errors.Is(r.err, ErrAborted) {
					t.Errorf("%+v", r)
				}
				if n, err := stream.Read(make([]byte, 10)); n != 0 || !errors.Is(err, ErrAborted) {
					t.Errorf("read on: %d, %v", n, err)
				}
				var end *socket.CloseError
				if _, err := peer.Next(); !errors.As(err, &end) || end.Code != wire.CloseMalformed {
					t.Errorf("the peer was told %v", err)
				}
			})
		})
	}
}

// Of a technician's connection texts are no part, whole or in pieces of any size.
func TestSkipTexts(t *testing.T) {
	c, s := ends.Conns(t, "tcp")
	a, peer := sockettest.Pair(t, c, s)
	stream := New(a, Options{SkipTexts: true})
	defer stream.Abort()
	defer peer.Close()
	for _, m := range []struct {
		op   socket.Opcode
		text string
	}{
		{socket.Text, `{"type":"later"}`}, {socket.Binary, "hel"}, {socket.Text, ""}, {socket.Text, strings.Repeat("x", 60000)}, {socket.Binary, "lo"},
		{socket.Text, "behind the last byte"}, {socket.Binary, ""},
	} {
		if err := peer.WriteMessage(m.op, []byte(m.text)); err != nil {
			t.Fatal(err)
		}
	}
	ends.Within(t, "read", func() {
		if r := readAll(stream); r.data != "hello" || r.err != nil {
			t.Errorf("%+v", r)
		}
	})
}

// The peer may close as soon as it has our end, before our call returns: that is
// no abort.
func TestCloseRightAfterTheEnd(t *testing.T) {
	c, s := ends.Conns(t, "pipe")
	slow := &late{Conn: c}
	a, peer := sockettest.Pair(t, slow, s)
	stream := New(a, Options{})
	defer stream.Abort()
	ends.Within(t, "ends", func() {
		var wg sync.WaitGroup
		wg.Go(func() { peer.WriteMessage(socket.Binary, nil) })
		if got := readAll(stream); got != (result{}) {
			t.Errorf("%+v", got)
		}
		wg.Wait()
		await := make(chan error, 1)
		go func() { await <- stream.awaitClose() }()
		ended := make(chan error, 1)
		hold := make(chan struct{})
		slow.hold.Store(&hold)
		go func() { ended <- stream.CloseWrite() }()
		if _, m, err := peer.ReadMessage(10); len(m) != 0 || err != nil {
			t.Errorf("%q, %v", m, err)
		}
		peer.Close()
		if err := <-await; err != nil {
			t.Errorf("awaitClose: %v", err)
		}
		close(hold)
		if err := <-ended; err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
	})
}

// A peer that closes once both directions have ended gets its close frame, also if
// the stream is closed here while that is written.
func TestCloseDuringTheAnswer(t *testing.T) {
	c, s := ends.Conns(t, "pipe")
	told := &telling{Conn: c, writes: make(chan struct{}, 10)}
	a, peer := sockettest.Pair(t, told, s)
	owner := new(sync.WaitGroup)
	defer owner.Wait()
	stream := New(a, Options{Owner: owner})
	defer stream.Abort()
	ends.Within(t, "ends", func() {
		var wg sync.WaitGroup
		wg.Go(func() { peer.WriteMessage(socket.Binary, nil) })
		if got := readAll(stream); got != (result{}) {
			t.Errorf("%+v", got)
		}
		wg.Go(func() { stream.CloseWrite() })
		if _, m, err := peer.ReadMessage(10); len(m) != 0 || err != nil {
			t.Errorf("%q, %v", m, err)
		}
		wg.Wait()
		for len(told.writes) > 0 {
			<-told.writes
		}
		wg.Go(func() { stream.awaitClose() })
		wg.Go(func() { peer.WriteClose(wire.CloseNormal, "", time.Second) })
		<-told.writes // of the answer, which waits for the peer to read
		stream.Close()
		_, _, err := peer.ReadMessage(10)
		var closed *socket.CloseError
		if !errors.As(err, &closed) || closed.Code != wire.CloseNormal {
			t.Errorf("the peer got %v, want a close frame", err)
		}
		peer.Close()
		wg.Wait()
	})
}

// telling is a connection that tells of each write that begins.
type telling struct {
	net.Conn
	writes chan struct{}
}

func (c *telling) Write(p []byte) (int, error) {
	c.writes <- struct{}{}
	return c.Conn.Write(p)
}

// late is a connection of which one write returns late.
type late struct {
	net.Conn
	hold atomic.Pointer[chan struct{}]
}

func (l *late) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	if hold := l.hold.Swap(nil); hold != nil {
		<-*hold
	}
	return n, err
}

// A read deadline that is over does not make awaitClose spin, nor an abort.
func TestAwaitCloseIgnoresDeadlines(t *testing.T) {
	a, b := pair(t, "tcp", Options{})
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := readAll(a); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	a.SetReadDeadline(time.Unix(1, 0))
	await := make(chan error, 1)
	go func() { await <- a.awaitClose() }()
	select {
	case err := <-await:
		t.Fatalf("%v", err)
	case <-time.After(50 * time.Millisecond):
	}
	ends.Within(t, "close", func() {
		a.Close()
		if err := <-await; err != nil {
			t.Error(err)
		}
	})
}

// KeepAlive pings when nothing moved, and gives up a peer that does not answer for
// long although its answer would be read, where TCP does not say more.
func TestKeepAlive(t *testing.T) {
	c, s := ends.Conns(t, "tcp")
	a, peer := sockettest.Pair(t, struct{ net.Conn }{c}, s)
	stream := New(a, Options{})
	defer stream.Abort()
	defer peer.Close()
	io.WriteString(stream, "x")
	stream.KeepAlive() // something has moved
	if _, _, err := peer.ReadMessage(10); err != nil {
		t.Fatal(err)
	}
	heard := peer.Heard()
	// Nobody reads: pings are sent, and nobody expects an answer.
	for range 2 * missedPings {
		stream.KeepAlive()
	}
	read := make(chan error, 1)
	go func() {
		_, err := stream.Read(make([]byte, 1))
		read <- err
	}()
	wait(t, "reader", stream.reading.Load)
	// While the peer answers, the stream lives.
	answering := make(chan struct{})
	go func() { peer.Next(); close(answering) }()
	wait(t, "ping", func() bool { return peer.Heard() != heard })
	for range 3 * missedPings {
		before := a.Heard()
		stream.KeepAlive()
		wait(t, "pong", func() bool { return a.Heard() != before })
	}
	// It falls silent.
	peer.SetReadDeadline(time.Unix(1, 0))
	<-answering
	// One that is only slow gets its time.
	for range 10 * missedPings {
		stream.KeepAlive()
	}
	select {
	case err := <-read:
		t.Fatal(err)
	default:
	}
	ends.Within(t, "abort", func() {
		for {
			select {
			case err := <-read:
				if err == nil {
					t.Error("read without an error")
				}
				return
			default:
				stream.keep.since = time.Now().Add(-silentTime)
				stream.KeepAlive() // pongs that were on their way count, too
				runtime.Gosched()
			}
		}
	})
}

// wait waits for ok, which it asks again and again.
func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ends.Within(t, what, func() {
		for !ok() {
			runtime.Gosched()
		}
	})
}

func TestAddrs(t *testing.T) {
	a, _ := pair(t, "tcp", Options{})
	visitor := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}
	named := New(a.s, Options{Remote: visitor})
	if a.RemoteAddr().String() == a.LocalAddr().String() || named.RemoteAddr() != visitor {
		t.Errorf("%v %v %v", a.LocalAddr(), a.RemoteAddr(), named.RemoteAddr())
	}
}
