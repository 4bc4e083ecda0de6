package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// A holding is a process that can be held up, as by SIGSTOP: what is sent to it waits.
type holding struct {
	mu sync.Mutex    // guards on
	on chan struct{} // closed when it goes on; nil: it runs
}

func (h *holding) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on = make(chan struct{})
}

func (h *holding) cont() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.on)
	h.on = nil
}

func (h *holding) wait() {
	h.mu.Lock()
	on := h.on
	h.mu.Unlock()
	if on != nil {
		<-on
	}
}

// heldConn is the end of such a process.
type heldConn struct {
	net.Conn
	by *holding
}

func (c *heldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.by.wait()
	return n, err
}

// watched are two nodes, of which the second can be held up, and how its devices are
// reached: each stream is served by serve.
func watched(t *testing.T, serve func(*stream.Stream)) (a, b *edgeNode, h *holding, end func()) {
	p, h := new(pipes), new(holding)
	owner, endOwner := p.node("b", &local{dial: func(context.Context, Open) (*stream.Stream, error) {
		edge, device := piped(t, p)
		go serve(device)
		return edge, nil
	}})
	node, endNode := p.node("a", new(local))
	node.connect = func(ctx context.Context, _, address string) (net.Conn, error) {
		c, s := net.Pipe()
		select {
		case p.at(address) <- &heldConn{s, h}:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return node, owner, h, func() {
		endNode()
		endOwner()
	}
}

// Streams through a peer that is held up end within two seconds, and visitors are turned
// away at once then; when it goes on they are served again.
func TestSilentPeerIsFoundOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, h, end := watched(t, echo)
		defer end()
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + 123*time.Millisecond) // one that is idle is left alone
		if _, err := io.WriteString(s, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		h.stop()
		began := time.Now()
		_, err = s.Read(make([]byte, 1))
		if took := time.Since(began); took > 2*time.Second || took < hailTime {
			t.Errorf("the stream ends after %v", took)
		}
		if !errors.Is(err, stream.ErrLost) || answers.From(err).Code != wire.DeviceOffline {
			t.Errorf("the stream ends with %v", err)
		}
		s.Close()
		began = time.Now()
		_, err = a.Dial(t.Context(), b.peer, open())
		var silent *SilentError
		if !errors.As(err, &silent) || !errors.Is(err, ErrAway) || time.Since(began) != 0 || time.Since(silent.Since) > 2*time.Second {
			t.Errorf("a newcomer gets %v after %v", err, time.Since(began))
		}
		time.Sleep(10 * time.Second)
		h.cont()
		time.Sleep(watchEvery + hailTime)
		s, err = a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatalf("when it goes on: %v", err)
		}
		if got := exchange(t, s, "hello"); got != "hello" {
			t.Errorf("%q", got)
		}
		s.Close()
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := a.Stats(); s.Out != 0 {
			t.Errorf("nobody needs it: %+v", s)
		}
	})
}

// A peer that is held up for a moment loses no stream.
func TestShortSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, h, end := watched(t, echo)
		defer end()
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			h.stop()
			time.Sleep(time.Second)
			h.cont()
			time.Sleep(time.Second)
		}
		if got := exchange(t, s, "hello"); got != "hello" {
			t.Errorf("%q", got)
		}
	})
}

// The first visitors of a peer that is held up wait for a second each, those after it was
// found out do not, and a peer that is dead is tried anew when somebody asks again.
func TestSilentPeerTurnsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, h, end := watched(t, echo)
		defer end()
		h.stop()
		try := func(want time.Duration) {
			t.Helper()
			began := time.Now()
			_, err := a.Dial(t.Context(), b.peer, open())
			if took := time.Since(began); !errors.As(err, new(*SilentError)) || took != want {
				t.Errorf("%v after %v, want %v", err, took, want)
			}
		}
		try(answerTime)
		try(answerTime) // one late answer proves nothing
		time.Sleep(hailMost * hailTime)
		try(0)
		time.Sleep(5 * time.Second)
		try(0)
		a.Forget(b.peer.NodeRef)
		synctest.Wait()
		try(answerTime)
		time.Sleep(silentMost + 2*hailTime) // nobody says that it is dead
		synctest.Wait()
		try(answerTime)
		h.cont()
	})
}

// A node that has had no time itself for the answer blames no peer.
func TestStalledSelfBlamesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, end := watched(t, echo)
		defer end()
		connect := a.connect
		var tried atomic.Int64
		a.connect = func(ctx context.Context, network, address string) (net.Conn, error) {
			if n := tried.Add(1); 1 < n && n <= 10 { // but for the first one
				time.Sleep(hailTime + 2*stallTime)
				return nil, os.ErrDeadlineExceeded
			}
			return connect(ctx, network, address)
		}
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := tried.Load(); n <= 10 {
			t.Errorf("it was asked %d times", n)
		}
		if got := exchange(t, s, "hello"); got != "hello" {
			t.Errorf("%q", got)
		}
	})
}
