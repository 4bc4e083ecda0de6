package cluster

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// pipes are nodes that reach each other through memory, for tests about time.
type pipes struct {
	mu    sync.Mutex
	nodes map[string]chan net.Conn // what each accepts, by its address
}

// listen has what is dialled at an address sent to conns.
func (p *pipes) listen(address string, conns chan net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes == nil {
		p.nodes = make(map[string]chan net.Conn)
	}
	p.nodes[address] = conns
}

// at is where connections to an address go.
func (p *pipes) at(address string) chan<- net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nodes[address]
}

// Accept, Close and Addr make a listener of one node's connections.
type pipeListener struct {
	conns chan net.Conn
	over  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.over); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// stoppable is a connection whose other end can stop: then nothing goes either way.
type stoppable struct {
	net.Conn
	stopped chan struct{}
}

func (c *stoppable) Write(p []byte) (int, error) {
	select {
	case <-c.stopped:
		return len(p), nil // the system takes it
	default:
		return c.Conn.Write(p)
	}
}

// node starts a node in the bubble of a test; end is to be called at its end.
func (p *pipes) node(id string, l *local) (n *edgeNode, end func()) {
	n = &edgeNode{log: new(lines), peer: Peer{registry.NodeRef{ID: id, Epoch: "1"}, id}}
	n.Link = NewLink(Config{Node: n.peer.NodeRef, Local: l})
	n.SetSecrets([]string{"secret"})
	conns := make(chan net.Conn)
	p.listen(id, conns)
	n.connect = func(ctx context.Context, _, address string) (net.Conn, error) {
		c, s := net.Pipe()
		select {
		case p.at(address) <- s:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc(Path, n.Serve)
	n.server = &http.Server{Handler: mux}
	go n.server.Serve(&pipeListener{conns, make(chan struct{})})
	return n, func() {
		n.Close()
		n.server.Close()
	}
}

// piped is pair in memory: a stream of a device, and its other end.
func piped(t *testing.T, p *pipes) (edge, device *stream.Stream) {
	t.Helper()
	conns := make(chan *stream.Stream, 1)
	owner, endOwner := p.node("owner", &local{serve: func(_ context.Context, c net.Conn, _ Agent) {
		conns <- c.(*stream.Stream)
	}})
	agent, endAgent := p.node("agent", new(local))
	t.Cleanup(endAgent)
	t.Cleanup(endOwner)
	c, err := agent.Pass(t.Context(), owner.peer, Agent{})
	if err != nil {
		t.Fatal(err)
	}
	return <-conns, c.(*stream.Stream)
}

// A peer that says nothing is away after a second, and one that accepts later has sent
// nothing to the device.
func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		a, end := p.node("a", new(local))
		defer end()
		for what, accepts := range map[string]bool{"does not accept": false, "does not answer": true} {
			conns := make(chan net.Conn)
			p.listen(what, conns)
			if accepts {
				go func() {
					for c := range conns {
						go io.Copy(io.Discard, c)
					}
				}()
			}
			peer := Peer{registry.NodeRef{ID: what, Epoch: "1"}, what}
			began := time.Now()
			_, err := a.Dial(t.Context(), peer, open())
			if took := time.Since(began); !errors.Is(err, ErrAway) || took != answerTime {
				t.Errorf("%s: %v after %v", what, err, took)
			}
			if e := answers.From(err); e.Code != wire.Unavailable {
				t.Errorf("%s: the visitor gets %v", what, e.Code)
			}
			a.Forget(peer.NodeRef)
			synctest.Wait()
			if s := a.Stats(); s.Out != 0 {
				t.Errorf("%s: %+v", what, s)
			}
			defer close(conns)
		}
	})
}

// A device that takes its time makes no peer away: it says that it is at it.
func TestSlowDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		edge, device := piped(t, &p)
		b, endB := p.node("b", &local{
			dial: func(context.Context, Open) (*stream.Stream, error) {
				time.Sleep(20 * time.Second)
				return edge, nil
			},
			probe: func(context.Context, string, string) bool { time.Sleep(8 * time.Second); return true },
		})
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		if alive, err := a.Probe(t.Context(), b.peer, "d", "t"); !alive || err != nil {
			t.Errorf("%v, %v", alive, err)
		}
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		go echo(device)
		if got := exchange(t, s, "hello"); got != "hello" {
			t.Errorf("%q", got)
		}
		synctest.Wait()
		if s := a.Stats(); s.Out != 1 || s.Idle != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Who does not wait any longer has his device's dialling given up.
func TestVisitorLeavesWhileDialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		gave := make(chan time.Time, 1)
		b, endB := p.node("b", &local{dial: func(ctx context.Context, _ Open) (*stream.Stream, error) {
			<-ctx.Done()
			gave <- time.Now()
			return nil, ctx.Err()
		}})
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		_, err := a.Dial(ctx, b.peer, open())
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrAway) || took != 3*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		if late := (<-gave).Sub(began) - 3*time.Second; late > 2*waitingEvery {
			t.Errorf("the device was dialled for %v more", late)
		}
		synctest.Wait()
		if a, b := a.Stats(), b.Stats(); a.Out != 0 || b.In != 0 {
			t.Errorf("%+v, %+v", a, b)
		}
	})
}

// Neither side waits for ever for a device: the node that has it gives up.
func TestDiallingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		b, endB := p.node("b", &local{dial: func(ctx context.Context, _ Open) (*stream.Stream, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		began := time.Now()
		_, err := a.Dial(t.Context(), b.peer, open())
		if took := time.Since(began); answers.From(err).Code != wire.DeviceTimeout || took != serveTime {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// An owner that accepts after a second finds nobody: its stream to the device is
// aborted, and not a byte has gone there.
func TestLateAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		edge, device := piped(t, &p)
		stop := make(chan struct{})
		b, endB := p.node("b", &local{dial: func(context.Context, Open) (*stream.Stream, error) {
			close(stop)
			time.Sleep(2 * time.Second)
			return edge, nil
		}})
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		a.connect = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, s := net.Pipe()
			p.at(address) <- &stoppable{s, stop}
			return c, nil
		}
		if _, err := a.Dial(t.Context(), b.peer, open()); !errors.Is(err, ErrAway) {
			t.Errorf("%v", err)
		}
		if n, err := device.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("the device got %d bytes, %v", n, err)
		}
	})
}

// Sockets are parked for less than half a minute, and ended by whoever may use them.
func TestIdleSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		b, endB := p.node("b", new(local))
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		use := func() {
			t.Helper()
			if _, err := a.Info(t.Context(), b.peer, "d"); !errors.Is(err, ErrNotHere) {
				t.Fatal(err)
			}
		}
		for range 10 { // used again and again
			use()
			time.Sleep(20 * time.Second)
		}
		if s := a.Stats(); s.Out != 1 || s.Idle != 1 {
			t.Fatalf("%+v", s)
		}
		use()
		time.Sleep(30*time.Second + 1)
		synctest.Wait()
		if a, b := a.Stats(), b.Stats(); a.Out != 0 || b.In != 0 {
			t.Errorf("after 30 s: %+v, %+v", a, b)
		}
		// A peer that keeps its own is closed by the other end.
		use()
		a.mu.Lock()
		for _, p := range a.pools {
			for _, c := range p.idle {
				c.since = time.Now().Add(time.Hour)
			}
		}
		a.mu.Unlock()
		time.Sleep(idlePatience + 1)
		synctest.Wait()
		if s := b.Stats(); s.In != 0 {
			t.Errorf("after %v: %+v", idlePatience, s)
		}
		use() // the dead one costs nothing
		if s := a.Stats(); s.Out != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Sockets from the pool that are dead without saying so are found out, all with the
// first one, and a fresh one is used.
func TestStaleSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		b, endB := p.node("b", &local{probe: func(context.Context, string, string) bool {
			time.Sleep(time.Millisecond) // so that several are asked at once
			return true
		}})
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		stop, dialled := make(chan struct{}), 0
		a.connect = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, s := net.Pipe()
			p.at(address) <- s
			select {
			case <-stop:
				dialled++
				return c, nil
			default:
				return &stoppable{c, stop}, nil
			}
		}
		for range 10 {
			go a.Probe(t.Context(), b.peer, "d", "t")
		}
		time.Sleep(time.Second)
		if s := a.Stats(); s.Idle != 10 {
			t.Fatalf("%+v", s)
		}
		close(stop)
		began := time.Now()
		if alive, err := a.Probe(t.Context(), b.peer, "d", "t"); !alive || err != nil {
			t.Errorf("%v, %v", alive, err)
		}
		if took := time.Since(began); took > staleTime+10*time.Millisecond || dialled != 1 {
			t.Errorf("after %v and %d handshakes", took, dialled)
		}
		if s := a.Stats(); s.Out != 1 || s.Idle != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Streams on which nothing moves live on, and are pinged; they end when the pings stay
// unanswered.
func TestIdleStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		edge, device := piped(t, &p)
		b, endB := p.node("b", &local{dial: func(context.Context, Open) (*stream.Stream, error) { return edge, nil }})
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		stop := make(chan struct{})
		a.connect = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, s := net.Pipe()
			p.at(address) <- &stoppable{s, stop}
			return &stoppable{c, stop}, nil
		}
		s, err := a.Dial(t.Context(), b.peer, open())
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() {
			b := make([]byte, 1)
			if _, err := s.Read(b); err != nil {
				t.Error(err)
			}
			_, err := s.Read(b)
			read <- err
		}()
		time.Sleep(5 * time.Minute)
		io.WriteString(device, "x")
		time.Sleep(5 * time.Minute)
		close(stop)
		if err := <-read; err == nil {
			t.Error("read on")
		}
		s.Close()
	})
}

// Nobody holds a place for long who does not prove himself, and nobody is held up by
// those who try.
func TestSlowLoris(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pipes
		b, endB := p.node("b", new(local))
		defer endB()
		a, endA := p.node("a", new(local))
		defer endA()
		request := func() net.Conn {
			c, s := net.Pipe()
			p.at("b") <- s
			go io.Copy(io.Discard, c)
			g := greeting{from: registry.NodeRef{ID: "loris", Epoch: "1"}, to: b.peer.NodeRef, nonce: wire.NewID()}
			io.WriteString(c, strings.ReplaceAll("GET "+Path+"?"+g.query()+` HTTP/1.1
Host: b
Connection: Upgrade
Upgrade: websocket
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
Sec-WebSocket-Protocol: `+subprotocol+"\n\n", "\n", "\r\n"))
			return c
		}
		for range 3 * maxUnproved {
			defer request().Close()
		}
		synctest.Wait()
		if s := b.Stats(); s.In > maxUnproved {
			t.Errorf("%+v", s)
		}
		began := time.Now()
		if _, err := a.Info(t.Context(), b.peer, "d"); !errors.Is(err, ErrNotHere) || time.Since(began) > 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		time.Sleep(proveTime + 1)
		synctest.Wait()
		if s := b.Stats(); s.In != 1 {
			t.Errorf("after %v: %+v", proveTime, s)
		}
	})
}
