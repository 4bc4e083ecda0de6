package agent

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Listen returns a listener for visitors of a port, and the Forward that leads
// them there: nothing is opened on the device.
//
//	l, forward := agent.Listen(80, agent.HTTP)
//	go http.Serve(l, handler)
//	a, err := agent.New(agent.Config{Forwards: []agent.Forward{forward}, …})
//
// Its connections are in memory, with deadlines; RemoteAddr is the visitor's
// address. Besides the methods of net.Conn they have CloseWrite() error and
// Abort(). A visitor who is not accepted within 10 s is refused. Closing the
// listener refuses all further ones, and leaves accepted connections alone.
func Listen(port uint16, kind Kind) (net.Listener, Forward) {
	if kind == "" {
		kind = Kind(wire.DefaultKind(port))
	}
	l := &listener{
		addr:   listenAddr(fmt.Sprintf("%d/%s", port, kind)),
		conns:  make(chan net.Conn),
		closed: make(chan struct{}),
	}
	return l, Forward{Port: port, Kind: kind, Dial: l.dial}
}

// listenAddr is a port of a device, as PORT/KIND.
type listenAddr string

func (listenAddr) Network() string  { return "iottunnel" }
func (a listenAddr) String() string { return string(a) }

type listener struct {
	addr   listenAddr
	conns  chan net.Conn // unbuffered: who is in it is accepted
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed: // wins over a visitor
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// dial is the Forward's.
func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := newPipe(l.addr, net.TCPAddrFromAddrPort(Visitor(ctx)))
	select {
	case l.conns <- ours:
		return theirs, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
