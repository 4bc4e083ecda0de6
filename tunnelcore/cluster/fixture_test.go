package cluster

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// until waits for something that happens by itself.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(ends.Patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: never", what)
		}
	}
}

// local is a node as its link sees it. What is nil answers ErrNotHere or nothing.
type local struct {
	dial     func(ctx context.Context, o Open) (*stream.Stream, error)
	probe    func(ctx context.Context, device, tunnel string) bool
	replaced func(h registry.Holder)
	info     func(device string) (any, bool)
	serve    func(ctx context.Context, c net.Conn, a Agent)
}

func (l *local) DialTunnel(ctx context.Context, o Open) (*stream.Stream, error) {
	if l.dial == nil {
		return nil, ErrNotHere
	}
	return l.dial(ctx, o)
}

func (l *local) Probe(ctx context.Context, device, tunnel string) bool {
	return l.probe != nil && l.probe(ctx, device, tunnel)
}

func (l *local) Replaced(h registry.Holder) {
	if l.replaced != nil {
		l.replaced(h)
	}
}

func (l *local) Info(device string) (any, bool) {
	if l.info == nil {
		return nil, false
	}
	return l.info(device)
}

func (l *local) ServeConn(ctx context.Context, c net.Conn, a Agent) {
	if l.serve == nil {
		c.Close()
		return
	}
	l.serve(ctx, c, a)
}

// edgeNode is a link with a listener of its own.
type edgeNode struct {
	*Link
	peer   Peer // as others see it
	server *http.Server
	log    *lines
	conn   atomic.Value // net.Conn: the one that was accepted last
}

// newNode starts a node with the secrets. It is closed, and waited for, when the test
// ends.
func newNode(t testing.TB, id string, l *local, secrets ...string) *edgeNode {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &edgeNode{log: new(lines)}
	n.peer = Peer{registry.NodeRef{ID: id, Epoch: id + "-1"}, listener.Addr().String()}
	logger := slog.New(slog.NewTextHandler(n.log, nil))
	n.Link = NewLink(Config{Node: n.peer.NodeRef, Local: l, Logger: func() *slog.Logger { return logger }})
	n.patience = patience{ends.Patience, ends.Patience, ends.Patience} // a machine may be slow, and no node away
	n.SetSecrets(secrets)
	mux := http.NewServeMux()
	mux.HandleFunc(Path, n.Serve)
	n.server = &http.Server{Handler: mux, ConnState: func(c net.Conn, s http.ConnState) {
		if s == http.StateNew {
			n.conn.Store(c)
		}
	}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		n.server.Serve(listener)
	}()
	t.Cleanup(func() {
		ends.Within(t, "Close of "+id, n.Close)
		n.server.Close()
		<-served
	})
	return n
}

// lines is what a node has logged.
type lines struct {
	mu   sync.Mutex
	text []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// two are nodes that share a secret; the second one serves.
func two(t testing.TB, l *local) (from, to *edgeNode) {
	t.Helper()
	return newNode(t, "a", new(local), "secret"), newNode(t, "b", l, "secret")
}

// pair is a stream as of a device, at the owner, and its other end, at the device.
func pair(t testing.TB, o stream.Options) (edge, device *stream.Stream) {
	t.Helper()
	c, s := sockets(t)
	edge, device = stream.New(s, o), stream.New(c, stream.Options{})
	t.Cleanup(func() {
		edge.Abort()
		device.Abort()
	})
	return edge, device
}

// sockets are two ends of a WebSocket over loopback.
func sockets(t testing.TB) (client, server *socket.Socket) {
	t.Helper()
	c, s := ends.Conns(t, "tcp")
	return sockettest.Pair(t, c, s)
}

// device serves each stream of the owner's with what it is made of: the other end.
func device(t testing.TB, serve func(*stream.Stream)) func(context.Context, Open) (*stream.Stream, error) {
	return func(context.Context, Open) (*stream.Stream, error) {
		edge, device := pair(t, stream.Options{})
		go serve(device)
		return edge, nil
	}
}

// echo sends back what comes, and ends when that does.
func echo(s *stream.Stream) {
	if _, err := io.Copy(s, s); err != nil {
		s.Abort()
		return
	}
	s.Close()
}
