package agent

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// lot is a parking, and the edge that has the other ends of its sockets.
type lot struct {
	*parking
	tb   testing.TB
	edge *edge
	dial func(context.Context) (*socket.Socket, error)
}

func newLot(tb testing.TB) *lot {
	l := &lot{tb: tb, edge: newEdge(tb)}
	connect := l.edge.inMemory()
	l.dial = func(ctx context.Context) (*socket.Socket, error) {
		conn, err := connect(ctx)
		if err != nil {
			return nil, err
		}
		u := &url.URL{Scheme: "ws", Host: "edge", Path: wire.TransferPath}
		return upgrade(ctx, conn, u, "", socket.LargeBuffer)
	}
	wg := new(sync.WaitGroup)
	l.parking = &parking{wg: wg}
	tb.Cleanup(wg.Wait)
	tb.Cleanup(l.close)
	return l
}

// park parks a socket and returns the edge's end of it.
func (l *lot) park() *edgeTransfer {
	l.tb.Helper()
	s, err := l.dial(l.tb.Context())
	if err != nil {
		l.tb.Fatal(err)
	}
	l.put(s)
	return receive(l.tb, l.edge.transfers)
}

// goodbye is the code with which the agent closes a socket.
func goodbye(tb testing.TB, s *edgeTransfer) int {
	tb.Helper()
	_, text, err := s.ReadMessage(wire.MaxText)
	var closed *socket.CloseError
	if !errors.As(err, &closed) {
		tb.Fatalf("the agent said %q, %v instead of goodbye", text, err)
	}
	s.Close()
	return closed.Code
}

var testOpen = &wire.Open{Stream: 7, ID: testID, Port: 80}

const attachText = `{"type":"attach","stream":7,"id":"` + testID + `"}`

// answerAttach reads an attach and answers it.
func answerAttach(tb testing.TB, s *edgeTransfer, answer string) {
	_, text, err := s.ReadMessage(wire.MaxText)
	if err != nil || string(text) != attachText {
		tb.Errorf("edge: got %q, %v", text, err)
	}
	if err := s.WriteMessage(socket.Text, []byte(answer)); err != nil {
		tb.Errorf("edge: %v", err)
	}
}

func TestParkedIsAttached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		first, second := l.park(), l.park()
		time.Sleep(parkedTime - time.Second)
		go answerAttach(t, second, `{"type":"attached","stream":7}`) // the one parked last
		sock, err := l.take().attach(t.Context(), testOpen, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		// It is a transfer socket again, without a deadline; the other one waits.
		time.Sleep(999 * time.Millisecond)
		if l.number() != 1 {
			t.Errorf("%d are parked", l.number())
		}
		time.Sleep(time.Hour)
		go second.WriteMessage(socket.Binary, []byte("bytes"))
		if op, b, err := sock.ReadMessage(100); op != socket.Binary || string(b) != "bytes" {
			t.Errorf("read %q, %v", b, err)
		}
		if code := goodbye(t, first); code != wire.CloseNormal {
			t.Errorf("one that was parked for too long: %d", code)
		}
		synctest.Wait()
		if l.number() != 0 || l.take() != nil {
			t.Errorf("%d are parked", l.number())
		}
		sock.Close()
	})
}

func TestParkedTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		s, began := l.park(), time.Now()
		if code := goodbye(t, s); code != wire.CloseNormal || time.Since(began) != parkedTime {
			t.Errorf("closed with %d after %v", code, time.Since(began))
		}
	})
}

func TestParkedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		var all []*edgeTransfer
		for range maxParked {
			all = append(all, l.park())
		}
		if code := goodbye(t, l.park()); code != wire.CloseNormal {
			t.Errorf("one too many: %d", code)
		}
		if l.number() != maxParked {
			t.Errorf("%d are parked", l.number())
		}
		l.drop() // another secret
		for _, s := range all {
			if code := goodbye(t, s); code != wire.CloseNormal {
				t.Errorf("dropped with %d", code)
			}
		}
		again := l.park()
		if l.number() != 1 {
			t.Errorf("%d are parked after a drop", l.number())
		}
		l.close()
		if code := goodbye(t, again); code != wire.CloseNormal {
			t.Errorf("closed with %d", code)
		}
		if code := goodbye(t, l.park()); code != wire.CloseNormal {
			t.Errorf("parked after the end: %d", code)
		}
	})
}

// What an edge may do instead of attaching: the socket is closed, and the stream
// is told in time.
func TestParkedIsNotAttached(t *testing.T) {
	for name, test := range map[string]struct {
		edge   func(*edgeTransfer)
		before bool          // it is taken
		within time.Duration // exactly
		code   int           // of the agent's close frame, if any
	}{
		"silent":         {edge: func(s *edgeTransfer) { s.ReadMessage(wire.MaxText) }, within: time.Second},
		"another stream": {edge: func(s *edgeTransfer) { s.WriteMessage(socket.Text, []byte(`{"type":"attached","stream":8}`)) }, code: wire.CloseMalformed},
		"malformed":      {edge: func(s *edgeTransfer) { s.WriteMessage(socket.Text, []byte(`{"type":"attached"}`)) }, code: wire.CloseMalformed},
		"another type":   {edge: func(s *edgeTransfer) { s.WriteMessage(socket.Text, []byte(attachText)) }, code: wire.CloseMalformed},
		"binary":         {edge: func(s *edgeTransfer) { s.WriteMessage(socket.Binary, []byte("bytes")) }, code: wire.CloseMalformed},
		"unknown stream": {edge: func(s *edgeTransfer) { s.WriteClose(wire.CloseNormal, "", time.Second) }},
		"gone":           {edge: func(s *edgeTransfer) { s.Close() }},
		"gone before":    {edge: func(s *edgeTransfer) { s.Close() }, before: true},
		"speaks before":  {edge: func(s *edgeTransfer) { s.WriteMessage(socket.Binary, []byte("bytes")) }, before: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLot(t)
				s := l.park()
				defer s.Close()
				if test.before {
					test.edge(s)
					synctest.Wait()
					if k := l.take(); k != nil {
						t.Error("it is still parked")
					}
					return
				}
				k := l.take()
				var wg sync.WaitGroup
				wg.Go(func() { test.edge(s) })
				began := time.Now()
				_, err := k.attach(t.Context(), testOpen, time.Second)
				if !errors.Is(err, errUnattached) || time.Since(began) != test.within {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				wg.Wait()
				for err = nil; err == nil; _, _, err = s.ReadMessage(wire.MaxText) {
				}
				var closed *socket.CloseError
				if errors.As(err, &closed) && test.code != 0 && closed.Code != test.code {
					t.Errorf("closed with %d, want %d", closed.Code, test.code)
				}
			})
		})
	}
}

// Messages of a later version say nothing to this one.
func TestParkedIgnoresUnknownMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		s := l.park()
		s.WriteMessage(socket.Text, []byte(`{"type":"news"}`))
		synctest.Wait()
		if l.number() != 1 {
			t.Fatal("no longer parked")
		}
		go func() {
			s.WriteMessage(socket.Text, []byte(`{"type":"news"}`))
			answerAttach(t, s, `{"type":"attached","stream":7}`)
		}()
		sock, err := l.take().attach(t.Context(), testOpen, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		sock.Close()
	})
}

func TestParkedStopsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLot(t)
		s := l.park()
		go s.ReadMessage(wire.MaxText) // ends with the socket
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, err := l.take().attach(ctx, testOpen, time.Hour); err == nil || time.Since(began) != time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// A socket that is dropped, or whose time is over, as it is taken: whatever wins,
// it is either attached or closed.
func TestParkedRaces(t *testing.T) {
	for range 50 {
		l := newLot(t)
		s := l.park()
		go func() {
			if _, _, err := s.ReadMessage(wire.MaxText); err == nil {
				s.WriteMessage(socket.Text, []byte(`{"type":"attached","stream":7}`))
			}
		}()
		var wg sync.WaitGroup
		wg.Go(l.drop)
		wg.Go(l.close)
		wg.Go(func() {
			if k := l.take(); k != nil {
				if sock, err := k.attach(t.Context(), testOpen, patience); err == nil {
					sock.Close()
				}
			}
		})
		wg.Wait()
		s.Close()
	}
}

// number is how many there are.
func (p *parking) number() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.socks)
}
