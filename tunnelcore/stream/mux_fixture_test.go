package stream

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
)

// link is an edge and an agent with a control socket between them. Its `open` is
// number(4) credit(4), as what it says is not this package's business.
type link struct {
	t           testing.TB
	transport   string
	reuse       bool
	edge, agent *muxEnd
	next        uint32
	hold        *atomic.Pointer[chan struct{}] // of the edge's connection; see late
}

// muxEnd is one of the two.
type muxEnd struct {
	link  *link
	sock  *socket.Socket
	mux   *Mux
	owner sync.WaitGroup
	over  chan struct{} // closed when the reader has ended
	err   error         // why; valid then

	mu     sync.Mutex
	opened map[uint32]chan *Stream // the agent's
	wanted map[uint32]chan *Stream
	parked chan *socket.Socket
	moved  chan int // buffered; nil: nobody counts
	text   func([]byte)
}

// newLink makes one, which ends with the test.
func newLink(t testing.TB, transport string, o MuxOptions, reuse bool) *link {
	client, server := ends.Conns(t, transport)
	return linkOn(t, client, server, transport, o, reuse)
}

func linkOn(t testing.TB, client, server net.Conn, transport string, o MuxOptions, reuse bool) *link {
	a, b := sockettest.Pair(t, client, server)
	l := &link{t: t, transport: transport, reuse: reuse}
	l.agent, l.edge = l.end(a, o), l.end(b, o)
	l.agent.text = func(m []byte) {
		n := binary.BigEndian.Uint32(m)
		c, err := l.agent.mux.Open(n, int(binary.BigEndian.Uint32(m[4:])), l.agent.options(n))
		if err != nil {
			if !errors.Is(err, ErrEnded) { // which the reader may see last
				t.Errorf("open: %v", err)
			}
			return
		}
		l.agent.waiting(l.agent.opened, n) <- c
	}
	for _, e := range []*muxEnd{l.agent, l.edge} {
		go e.serve()
	}
	t.Cleanup(l.close)
	return l
}

func (l *link) end(s *socket.Socket, o MuxOptions) *muxEnd {
	e := &muxEnd{
		link: l, sock: s, over: make(chan struct{}),
		opened: make(map[uint32]chan *Stream), wanted: make(map[uint32]chan *Stream),
		parked: make(chan *socket.Socket, 1000),
	}
	o.Owner = &e.owner
	e.mux = NewMux(s, o)
	return e
}

func (l *link) close() {
	for _, e := range []*muxEnd{l.agent, l.edge} {
		e.sock.Close()
		<-e.over
		e.owner.Wait()
		for len(e.parked) > 0 {
			(<-e.parked).Close()
		}
	}
}

func (e *muxEnd) options(n uint32) Options {
	o := Options{Owner: &e.owner}
	if e.moved != nil {
		o.Moved = func(kept int) { e.moved <- kept }
	}
	if e.link.reuse {
		o.Parked = func(s *socket.Socket) { e.parked <- s }
	}
	if e == e.link.agent {
		o.Wanted = func(c *Stream) { e.waiting(e.wanted, n) <- c }
	}
	return o
}

// waiting is the channel of a stream in m.
func (e *muxEnd) waiting(m map[uint32]chan *Stream, n uint32) chan *Stream {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m[n] == nil {
		m[n] = make(chan *Stream, 1)
	}
	return m[n]
}

// serve reads the control socket.
func (e *muxEnd) serve() {
	defer close(e.over)
	err := e.read()
	for err == nil {
		err = e.read()
	}
	e.err = err
	e.sock.Close()
	e.mux.End(err)
}

func (e *muxEnd) read() error {
	op, err := e.sock.Next()
	switch {
	case err != nil:
		return err
	case op == socket.Binary:
		return e.mux.ReadFrame()
	}
	m, err := e.sock.Append(nil, 100)
	if err == nil && e.text != nil {
		e.text(m)
	}
	return err
}

// open makes a stream at the edge, of that credit.
func (l *link) open(credit int) (edge *Stream, number uint32) {
	l.next++
	o := l.edge.options(l.next)
	o.Open = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, l.next), uint32(credit))
	c, err := l.edge.mux.Open(l.next, credit, o)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(c.Abort)
	return c, l.next
}

// accept waits for it at the agent.
func (l *link) accept(number uint32) *Stream {
	select {
	case c := <-l.agent.waiting(l.agent.opened, number):
		l.t.Cleanup(c.Abort)
		return c
	case <-l.agent.over:
		l.t.Fatalf("no stream %d: %v", number, l.agent.err)
		return nil
	}
}

func (l *link) pair(credit int) (edge, agent *Stream) {
	edge, n := l.open(credit)
	return edge, l.accept(n)
}

// transfer makes a transfer socket.
func (l *link) transfer() (agent, edge *socket.Socket) {
	client, server := ends.Conns(l.t, l.transport)
	return sockettest.Pair(l.t, client, server)
}

// attach gives both ends a transfer socket.
func (l *link) attach(edge, agent *Stream) {
	a, e := l.transfer()
	if err := errors.Join(edge.Attach(e), agent.Attach(a)); err != nil {
		l.t.Error(err)
	}
}
