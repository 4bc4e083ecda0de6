package socket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// Text goes before data, and else who came first goes first.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := ends.Conns(t, "pipe")
		s := on(conn, false)
		var wg sync.WaitGroup
		write := func(op Opcode, text string) {
			wg.Go(func() {
				if err := s.WriteMessages(new(Turn), Message{Op: op, Body: []byte(text)}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // it waits for its turn
		}
		write(Binary, "first")
		write(Binary, "second")
		write(Text, "urgent")
		write(Binary, "third")
		write(Text, "also urgent")
		s.PingSoon()
		s.PingSoon() // one is enough
		var got []string
		r := on(client, true)
		for range 5 {
			_, m, err := r.ReadMessage(100)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(m))
		}
		wg.Wait()
		if want := "[first urgent also urgent second third]"; fmt.Sprint(got) != want {
			t.Errorf("%v, want %v", got, want)
		}
		s.Close()
		r.Close()
	})
}

// A ping follows the write under way, before all that waits.
func TestPingSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := ends.Conns(t, "pipe")
		s := on(conn, false)
		var wg sync.WaitGroup
		for _, m := range []string{"one", "two"} {
			wg.Go(func() { s.WriteMessage(Text, []byte(m)) })
			synctest.Wait()
		}
		s.PingSoon()
		want := "\x81\x03one\x89\x00\x81\x03two"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(client, got); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
		wg.Wait()
		if s.pingAt.Load() == 0 {
			t.Error("nobody waits for the pong")
		}
		go s.PingSoon() // nothing is under way
		if _, err := io.ReadFull(client, got[:2]); err != nil || string(got[:2]) != "\x89\x00" {
			t.Errorf("%q, %v", got[:2], err)
		}
		synctest.Wait()
		s.Close()
	})
}

// Several messages leave with one write, masked each by itself.
func TestWriteMessages(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Socket) {
		for _, size := range []int{0, 1, 125, 126, 4101, 70000} {
			body := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
			want := []Message{
				{Op: Text, Head: []byte("open")}, {Op: Binary, Head: []byte("head"), Body: body}, {Op: Binary, Body: body},
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := a.WriteMessages(new(Turn), want...); err != nil {
					t.Error(err)
				}
			})
			for _, w := range want {
				op, m, err := b.ReadMessage(1 << 20)
				if op != w.Op || string(m) != string(w.Head)+string(w.Body) || err != nil {
					t.Errorf("%d, %d bytes, %v", op, len(m), err)
				}
			}
			wg.Wait()
		}
	})
	script := &script{}
	s := on(script, false)
	if err := s.WriteMessages(new(Turn), Message{Op: Text, Head: []byte("a")}, Message{Op: Binary, Head: []byte("b"), Body: []byte("c")}); err != nil {
		t.Fatal(err)
	}
	if got := string(script.written()); got != "\x81\x01a\x82\x02bc" {
		t.Errorf("%q", got)
	}
}

// What comes while a write is under way leaves with one write after it, up to a
// bound; who does not let others write ends that.
func TestWritesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := ends.Conns(t, "pipe")
		sizes := &sized{Conn: conn}
		s := on(sizes, false)
		var wg sync.WaitGroup
		start := func(write func() error) {
			wg.Go(func() {
				if err := write(); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		message := func(n int) func() error {
			return func() error { return s.WriteMessages(new(Turn), Message{Op: Binary, Body: make([]byte, n)}) }
		}
		start(message(1))
		start(message(100))
		start(message(100))
		start(func() error { return s.WriteMessage(Binary, make([]byte, 10)) })
		for range 5 {
			start(message(4000))
		}
		start(func() error { // goes first
			return s.WriteMessages(new(Turn), Message{Op: Text, Body: make([]byte, 20)}, Message{Op: Binary, Body: make([]byte, 30)})
		})
		r := on(client, true)
		for range 11 {
			if _, _, err := r.ReadMessage(10000); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		want := []int{3, 22 + 32 + 102 + 102, 12, 3 * 4004, 2 * 4004}
		if !slices.Equal(sizes.all, want) {
			t.Errorf("writes of %v bytes, want %v", sizes.all, want)
		}
		s.Close()
	})
}

type sized struct {
	net.Conn
	all []int
}

func (c *sized) Write(p []byte) (int, error) {
	c.all = append(c.all, len(p))
	return c.Conn.Write(p)
}

// A TLS record is no longer than the peer wants it.
func TestSetWriteMost(t *testing.T) {
	client, conn := ends.Conns(t, "pipe")
	sizes := &sized{Conn: conn}
	s := on(sizes, false)
	s.SetWriteMost(512)
	go s.WriteMessage(Binary, make([]byte, 1300))
	if _, m, err := on(client, true).ReadMessage(1300); len(m) != 1300 || err != nil {
		t.Fatal(len(m), err)
	}
	settle(s)
	if want := []int{512, 512, 280}; !slices.Equal(sizes.all, want) {
		t.Errorf("writes of %v bytes, want %v", sizes.all, want)
	}
}

// Who gives up sends nothing, and leaves the socket to the others.
func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := ends.Conns(t, "pipe")
		s := on(conn, false)
		go s.WriteMessage(Binary, []byte("under way"))
		synctest.Wait()
		var turn Turn
		write := func() <-chan error {
			done := make(chan error, 1)
			go func() { done <- s.WriteMessages(&turn, Message{Op: Binary, Body: []byte("given up")}) }()
			synctest.Wait()
			return done
		}
		waiting := write()
		s.GiveUp(&turn)
		if err := <-waiting; !errors.Is(err, ErrGaveUp) {
			t.Errorf("%v", err)
		}
		if err := <-write(); !errors.Is(err, ErrGaveUp) {
			t.Errorf("later: %v", err)
		}
		turn.Renew()
		renewed := write()
		r := on(client, true)
		for _, want := range []string{"under way", "given up"} {
			if _, m, err := r.ReadMessage(100); string(m) != want || err != nil {
				t.Errorf("%q, %v; want %q", m, err, want)
			}
		}
		if err := <-renewed; err != nil {
			t.Error(err)
		}
		s.GiveUp(&turn)
		go r.ReadMessage(100)
		if err := s.WriteMessages(&turn, Message{Op: Binary}); err != nil {
			t.Errorf("it had not to wait: %v", err)
		}
		s.Close()
		r.Close()
	})
}

// Many writers, of whom some give up: what was sent arrives, each one's in order,
// and nothing of what was given up.
func TestTurnsRace(t *testing.T) {
	a, b := pair(t, "tcp")
	const writers, each = 8, 300
	var wg sync.WaitGroup
	var sent atomic.Int64
	for w := range writers {
		var turn Turn
		over := make(chan struct{})
		wg.Go(func() {
			defer close(over)
			for i := range each {
				op := []Opcode{Text, Binary}[w%2]
				err := a.WriteMessages(&turn, Message{Op: op, Head: []byte{byte(w)}, Body: []byte{byte(i >> 8), byte(i)}})
				switch {
				case err == nil:
					sent.Add(1)
				case !errors.Is(err, ErrGaveUp):
					t.Error(err)
				}
				turn.Renew()
			}
		})
		if w%3 == 0 {
			wg.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
						a.GiveUp(&turn)
						runtime.Gosched() // with one processor, writers would wait for the scheduler's patience each time
					}
				}
			})
		}
	}
	done := make(chan struct{})
	var got int64
	go func() {
		defer close(done)
		var last [writers]int
		for {
			op, m, err := b.ReadMessage(100)
			if err != nil || len(m) == 0 {
				return
			}
			w, i := int(m[0]), int(m[1])<<8|int(m[2])
			if op != []Opcode{Text, Binary}[w%2] || i < last[w] {
				t.Errorf("writer %d: %d after %d", w, i, last[w])
			}
			last[w] = i
			got++
		}
	}()
	ends.Within(t, "turns", func() {
		wg.Wait()
		if err := a.WriteMessage(Binary, nil); err != nil {
			t.Error(err)
		}
		<-done
	})
	if got != sent.Load() {
		t.Errorf("%d sent, %d arrived", sent.Load(), got)
	}
}

// Peek leaves the message to Next and ReadMessage, whatever it meets on its way,
// deadlines too.
func TestPeek(t *testing.T) {
	in := cat(masked(0x89, "ping"), masked(0x81, "text"), masked(0x02, "frag"), masked(0x80, "ment"), masked(0x82, ""))
	for step := range 12 {
		s := on(&script{in: in, step: step, stutter: true}, false)
		patiently := func(read func() error) {
			err := read()
			for errors.Is(err, os.ErrDeadlineExceeded) {
				err = read()
			}
			if err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
		}
		peek := func(want Opcode) {
			patiently(func() error {
				op, err := s.Peek()
				if err == nil && op != want {
					t.Fatalf("step %d: %d, want %d", step, op, want)
				}
				return err
			})
		}
		read := func(want string) {
			patiently(func() error {
				_, b, err := s.ReadMessage(100)
				if err == nil && string(b) != want {
					t.Fatalf("step %d: %q, want %q", step, b, want)
				}
				return err
			})
		}
		peek(Text)
		peek(Text)
		read("text")
		peek(Binary)
		if op, err := s.Next(); op != Binary || err != nil {
			t.Fatal(op, err)
		}
		peek(Binary) // the next one: what is left of this is skipped
		read("")
		settle(s)
	}
}

// Append reads into the caller's memory, and goes on after deadlines.
func TestAppend(t *testing.T) {
	in := cat(masked(0x02, "frag"), masked(0x80, "ment"), masked(0x82, "too long"))
	for step := range 12 {
		s := on(&script{in: in, step: step, stutter: true}, false)
		next := func() {
			_, err := s.Next()
			for errors.Is(err, os.ErrDeadlineExceeded) {
				_, err = s.Next()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		next()
		buf := make([]byte, 0, 8)
		b, err := s.Append(buf, 8)
		for errors.Is(err, os.ErrDeadlineExceeded) {
			b, err = s.Append(b, 8)
		}
		if string(b) != "fragment" || err != nil || &b[0] != &buf[:1][0] {
			t.Errorf("step %d: %q, %v", step, b, err)
		}
		next()
		if _, err := s.Append(buf, 7); !errors.Is(err, ErrTooBig) {
			t.Errorf("step %d: %v", step, err)
		}
	}
}
