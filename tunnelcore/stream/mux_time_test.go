package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// timed runs body with a link in a bubble of its own.
func timed(t *testing.T, o MuxOptions, body func(t *testing.T, l *link)) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(t, "pipe", o, false)
		body(t, l)
		l.close() // before the bubble ends
	})
}

// `open` waits a moment for the first bytes, and no longer.
func TestOpenLate(t *testing.T) {
	timed(t, MuxOptions{}, func(t *testing.T, l *link) {
		_, n := l.open(100)
		start := time.Now()
		l.accept(n)
		if took := time.Since(start); took != openTime {
			t.Errorf("after %v", took)
		}
		edge, n := l.open(100)
		start = time.Now()
		if err := edge.CloseWrite(); err != nil {
			t.Error(err)
		}
		if got := readAll(l.accept(n)); got != (result{}) || time.Since(start) != 0 {
			t.Errorf("%+v after %v", got, time.Since(start))
		}
		edge, n = l.open(100)
		edge.Close()
		if got := readAll(l.accept(n)); got != (result{}) || time.Since(start) != 0 {
			t.Errorf("%+v after %v", got, time.Since(start))
		}
		edge, n = l.open(100) // nothing of it was ever told
		edge.Abort()
		time.Sleep(time.Second)
		if len(l.agent.waiting(l.agent.opened, n)) > 0 || l.edge.mux.Has(n) {
			t.Error("the agent heard of a stream that was aborted before")
		}
	})
}

// A transfer socket is wanted at once without credit, with half of it spent, or
// when the stream has lasted; and never by one that is over.
func TestWanted(t *testing.T) {
	const rtt = 50 * time.Millisecond
	timed(t, MuxOptions{RTT: func() time.Duration { return rtt }}, func(t *testing.T, l *link) {
		wanted := func(n uint32) time.Duration {
			start := time.Now()
			<-l.agent.waiting(l.agent.wanted, n)
			return time.Since(start)
		}
		_, n := l.open(0)
		l.accept(n)
		if after := wanted(n); after != 0 {
			t.Errorf("without credit: %v", after)
		}
		_, n = l.open(100)
		l.accept(n)
		if after := wanted(n); after != 2*rtt {
			t.Errorf("lasting: %v", after)
		}
		edge, n := l.open(100)
		edge.Write(make([]byte, 50))
		if after := wanted(n); after != 0 {
			t.Errorf("half of its credit spent by the edge: %v", after)
		}
		_, n = l.open(100)
		agent := l.accept(n)
		agent.Write(make([]byte, 50))
		if after := wanted(n); after != 0 {
			t.Errorf("half of its credit spent by the agent: %v", after)
		}
		edge, n = l.open(100)
		agent = l.accept(n)
		edge.Write(make([]byte, 49))
		agent.Write(make([]byte, 49))
		edge.CloseWrite()
		agent.CloseWrite()
		<-agent.Unwanted()
		time.Sleep(time.Second)
		if len(l.agent.waiting(l.agent.wanted, n)) > 0 {
			t.Error("wanted by a stream that is over")
		}
	})
	timed(t, MuxOptions{RTT: func() time.Duration { return time.Millisecond }}, func(t *testing.T, l *link) {
		_, n := l.open(100)
		l.accept(n)
		start := time.Now()
		<-l.agent.waiting(l.agent.wanted, n)
		if after := time.Since(start); after != wantTime {
			t.Errorf("lasting, near: %v", after)
		}
	})
}

// Spent credit waits for a transfer socket, and not for ever; with inline it does.
func TestStarved(t *testing.T) {
	timed(t, MuxOptions{}, func(t *testing.T, l *link) {
		edge, agent := l.pair(10)
		start := time.Now()
		n, err := edge.Write(make([]byte, 11))
		if n != 10 || !errors.Is(err, ErrAborted) || time.Since(start) != starveTime {
			t.Errorf("%d, %v after %v", n, err, time.Since(start))
		}
		edge.Close()
		if got := readAll(agent); len(got.data) != 10 || !errors.Is(got.err, ErrAborted) {
			t.Errorf("%+v", got)
		}
		edge, agent = l.pair(10) // it comes just in time
		done := make(chan error, 1)
		go func() { _, err := edge.Write(make([]byte, 11)); done <- err }()
		time.Sleep(starveTime - time.Nanosecond)
		l.attach(edge, agent)
		if _, err := io.ReadFull(agent, make([]byte, 11)); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	timed(t, MuxOptions{Inline: true}, func(t *testing.T, l *link) {
		edge, agent := l.pair(10)
		done := make(chan error, 1)
		go func() { _, err := edge.Write(make([]byte, 30)); done <- err }()
		time.Sleep(time.Hour)
		if _, err := io.ReadFull(agent, make([]byte, 30)); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Deadlines hold for what waits for the control socket, too.
func TestEarlyDeadlines(t *testing.T) {
	timed(t, MuxOptions{}, func(t *testing.T, l *link) {
		edge, agent := l.pair(10)
		start := time.Now()
		edge.SetReadDeadline(start.Add(time.Hour))
		edge.SetReadDeadline(start.Add(time.Second))
		if _, err := edge.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		edge.SetReadDeadline(time.Now().Add(time.Second)) // and goes on
		go func() {
			time.Sleep(time.Millisecond)
			agent.Write([]byte("x"))
		}()
		if n, err := edge.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		edge.SetReadDeadline(time.Time{})
		start = time.Now()
		agent.SetWriteDeadline(start.Add(time.Second))
		if _, err := agent.Write(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		agent.Close() // a write that meets a deadline breaks the stream
		if got := readAll(edge); !errors.Is(got.err, ErrAborted) {
			t.Errorf("%+v", got)
		}
	})
	// Waiting for one's turn on the control socket.
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		a, b := sockettest.Pair(t, client, server)
		m := NewMux(b, MuxOptions{})
		go b.WriteMessage(socket.Binary, []byte("stuck"))
		synctest.Wait()
		c, _ := m.Open(1, 100, Options{})
		start := time.Now()
		c.SetWriteDeadline(start.Add(time.Second))
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c, _ = m.Open(2, 100, Options{})
		time.AfterFunc(time.Second, c.Abort)
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) || time.Since(start) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c, _ = m.Open(3, 100, Options{Open: []byte("open")})
		time.AfterFunc(time.Second, func() { m.End(io.EOF) })
		if _, err := c.Write([]byte("x")); !errors.Is(err, ErrUnsent) || !errors.Is(err, ErrLost) {
			t.Errorf("%v", err)
		}
		a.Close()
		b.Close()
	})
}

// A control socket that is busy: what has to be said of a stream is said when its
// turn comes, whatever deadlines do meanwhile.
func TestBusyControlSocket(t *testing.T) {
	busy := func(l *link) (free func()) {
		held := make(chan struct{})
		l.hold.Store(&held)
		go l.edge.sock.WriteMessage(socket.Binary, wire.AppendFrameHeader(nil, 99, 99)) // of no stream
		synctest.Wait()
		return func() { close(held) }
	}
	held := func(body func(t *testing.T, l *link)) {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			slow := &late{Conn: server}
			l := linkOn(t, client, slow, "pipe", MuxOptions{}, false)
			l.hold = &slow.hold
			body(t, l)
			l.close()
		})
	}
	held(func(t *testing.T, l *link) { // Close while `move` waits
		edge, agent := l.pair(100)
		free := busy(l)
		a, e := l.transfer()
		attached := make(chan error, 1)
		go func() { attached <- edge.Attach(e) }()
		synctest.Wait()
		start := time.Now()
		edge.Close()
		synctest.Wait()
		free()
		if err := errors.Join(<-attached, agent.Attach(a)); err != nil {
			t.Error(err)
		}
		if got := readAll(agent); got != (result{}) {
			t.Errorf("%+v", got)
		}
		agent.Close()
		agent.opts.Owner.Wait()
		edge.opts.Owner.Wait()
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
	})
	held(func(t *testing.T, l *link) { // a deadline while `open` waits
		free := busy(l)
		edge, n := l.open(100)
		time.Sleep(2 * openTime)
		edge.SetDeadline(time.Now())
		synctest.Wait()
		edge.SetDeadline(time.Time{})
		free()
		l.accept(n)
	})
	held(func(t *testing.T, l *link) { // the end of the tunnel while `move` waits
		l.edge.moved = make(chan int, 1)
		edge, agent := l.pair(100)
		synctest.Wait() // `open` is out
		free := busy(l)
		a, e := l.transfer()
		attached := make(chan error, 1)
		go func() { attached <- edge.Attach(e) }()
		synctest.Wait()
		if err := agent.Attach(a); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// A close frame would go ahead of it.
		if len(l.edge.moved) > 0 {
			t.Error("moved, while the peer does not know it yet")
		}
		free()
		if err := <-attached; err != nil {
			t.Error(err)
		}
		<-l.edge.moved
		l.edge.sock.WriteClose(wire.CloseReplaced, "", time.Second)
		<-l.agent.over
		go func() { io.WriteString(edge, "x"); edge.Close() }()
		if got := readAll(agent); got != (result{data: "x"}) {
			t.Errorf("%+v", got)
		}
		agent.Close()
	})
	held(func(t *testing.T, l *link) { // an abort while `open` waits
		free := busy(l)
		edge, n := l.open(100)
		time.Sleep(2 * openTime)
		edge.Abort()
		free()
		if got := readAll(l.accept(n)); !errors.Is(got.err, ErrAborted) {
			t.Errorf("%+v", got)
		}
	})
}

// A closed stream waits for the peer's end, and not for ever.
func TestEarlyLinger(t *testing.T) {
	for _, attached := range []bool{false, true} {
		timed(t, MuxOptions{}, func(t *testing.T, l *link) {
			edge, agent := l.pair(100)
			if attached {
				l.attach(edge, agent)
			}
			start := time.Now()
			edge.Close()
			if got := readAll(agent); got != (result{}) {
				t.Errorf("%+v", got)
			}
			if err := agent.awaitClose(); !errors.Is(err, ErrAborted) || time.Since(start) != lingerTime {
				t.Errorf("%v after %v", err, time.Since(start))
			}
		})
	}
}

// Fail is what callers get, exactly; Refused the same, without a reset.
func TestFail(t *testing.T) {
	why := errors.New("the service did not answer")
	for _, refused := range []bool{false, true} {
		timed(t, MuxOptions{}, func(t *testing.T, l *link) {
			edge, agent := l.pair(100)
			read, written := make(chan error, 1), make(chan error, 1)
			agent.Write([]byte("dropped"))
			io.ReadFull(edge, make([]byte, 7))
			go func() { _, err := edge.Read(make([]byte, 1)); read <- err }()
			go func() { _, err := edge.Write(make([]byte, 101)); written <- err }()
			synctest.Wait()
			if refused {
				edge.Refused(why)
			} else {
				edge.Fail(why)
			}
			edge.Fail(io.EOF) // it has failed already
			if err := <-read; err != why {
				t.Errorf("read: %v", err)
			}
			if err := <-written; err != why {
				t.Errorf("write: %v", err)
			}
			if _, err := edge.Read(make([]byte, 1)); err != why {
				t.Errorf("later: %v", err)
			}
			synctest.Wait()
			if l.agent.mux.Has(1) != refused || l.edge.mux.Has(1) {
				t.Errorf("refused %v: known to the agent %v, to the edge %v", refused, l.agent.mux.Has(1), l.edge.mux.Has(1))
			}
			edge.Close()
			if _, err := edge.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed: %v", err)
			}
		})
	}
	timed(t, MuxOptions{}, func(t *testing.T, l *link) { // with a transfer socket
		edge, agent := l.pair(100)
		l.attach(edge, agent)
		edge.Refused(why) // says nothing new
		go io.WriteString(agent, "x")
		if _, err := io.ReadFull(edge, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		read := make(chan error, 1)
		go func() { _, err := edge.Read(make([]byte, 1)); read <- err }()
		synctest.Wait()
		edge.Fail(why)
		if err := <-read; err != why {
			t.Errorf("read: %v", err)
		}
		if got := readAll(agent); !errors.Is(got.err, ErrAborted) {
			t.Errorf("%+v", got)
		}
	})
}

// Who breaks the rules of a stream loses it; who does it again and again, the
// tunnel.
func TestBreaches(t *testing.T) {
	frame := func(k wire.FrameKind, n uint32, payload string) []byte {
		return append(wire.AppendFrameHeader(nil, k, n), payload...)
	}
	for name, c := range map[string]struct {
		frames [][]byte
		inline bool
		read   string
		fine   bool
	}{
		"more than credit":      {[][]byte{frame(wire.FrameData, 1, "12345678901")}, false, "", false},
		"more than is left":     {[][]byte{frame(wire.FrameData, 1, "1234567890"), frame(wire.FrameData, 1, "1")}, false, "1234567890", false},
		"data after fin":        {[][]byte{frame(wire.FrameFin, 1, ""), frame(wire.FrameData, 1, "1")}, false, "", false},
		"fin after fin":         {[][]byte{frame(wire.FrameFin, 1, ""), frame(wire.FrameFin, 1, "")}, false, "", false},
		"move after fin":        {[][]byte{frame(wire.FrameFin, 1, ""), frame(wire.FrameMove, 1, "")}, false, "", false},
		"data after move":       {[][]byte{frame(wire.FrameMove, 1, ""), frame(wire.FrameData, 1, "1")}, false, "", false},
		"move with inline":      {[][]byte{frame(wire.FrameMove, 1, "")}, true, "", false},
		"credit without inline": {[][]byte{frame(wire.FrameCredit, 1, "\x00\x00\x00\x01")}, false, "", false},
		"too much credit":       {[][]byte{frame(wire.FrameCredit, 1, "\x00\x00\x00\x01")}, true, "", false},
		"an unknown kind":       {[][]byte{frame(99, 1, "hello")}, false, "", false},
		"other streams":         {[][]byte{frame(wire.FrameData, 2, "1"), frame(99, 2, "")}, false, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			timed(t, MuxOptions{Inline: c.inline}, func(t *testing.T, l *link) {
				edge, agent := l.pair(10)
				for _, f := range c.frames {
					if err := l.edge.mux.Receive(f); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				if breached := l.edge.mux.opts.Breached.Load() == 1; breached == c.fine || l.edge.mux.Has(1) != c.fine {
					t.Errorf("breached %v", breached)
				}
				if c.fine {
					return
				}
				if got := readAll(edge); got.data != c.read || !errors.Is(got.err, ErrAborted) {
					t.Errorf("%+v", got)
				}
				if got := readAll(agent); !errors.Is(got.err, ErrAborted) {
					t.Errorf("the peer read %+v", got)
				}
			})
		})
	}
	timed(t, MuxOptions{}, func(t *testing.T, l *link) {
		var err error
		n := 0
		for ; err == nil && n < 1000; n++ {
			_, number := l.open(10)
			err = l.edge.mux.Receive(frame(99, number, ""))
		}
		if !errors.Is(err, ErrProtocol) || n != maxBreaches+1 {
			t.Errorf("%v after %d streams", err, n)
		}
		for _, malformed := range [][]byte{nil, {1}, frame(wire.FrameData, 0, "x"), frame(wire.FrameFin, 1, "x"), frame(wire.FrameCredit, 1, "x")} {
			if err := l.edge.mux.Receive(malformed); !errors.Is(err, ErrProtocol) {
				t.Errorf("% x: %v", malformed, err)
			}
		}
	})
}
