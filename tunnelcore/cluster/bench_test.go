package cluster

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// What a visitor of another node gets: through TCP, a relay, the link, a relay and the
// device's transfer socket, against the same way with plain TCP in the place of both
// sockets. Either way it is two relays and three loopback connections in one process.
func BenchmarkBulk(b *testing.B) {
	for _, kind := range []string{"plain tcp", "link"} {
		for _, up := range []bool{true, false} {
			b.Run(kind+map[bool]string{true: "/to the device", false: "/to the visitor"}[up], func(b *testing.B) {
				visitor, x := ends.Loopback(b)
				defer visitor.Close()
				var device net.Conn
				var relays sync.WaitGroup
				relay := func(a, b net.Conn) { relays.Go(func() { stream.Relay(context.Background(), a, b) }) }
				if kind == "link" {
					edge, far := pair(b, stream.Options{})
					device = far
					from, to := two(b, &local{dial: func(context.Context, Open) (*stream.Stream, error) { return edge, nil }})
					s, err := from.Dial(b.Context(), to.peer, open())
					if err != nil {
						b.Fatal(err)
					}
					relay(x, s)
				} else {
					y, z := ends.Loopback(b)
					v, w := ends.Loopback(b)
					device = w
					relay(x, y)
					relay(z, v)
				}
				from, to := net.Conn(visitor), device
				if !up {
					from, to = to, from
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{to}, make([]byte, 256<<10))
				}()
				buf := make([]byte, 64<<10)
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := from.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				from.(interface{ CloseWrite() error }).CloseWrite()
				<-done
				stream.Abort(device)
				stream.Abort(visitor)
				relays.Wait()
			})
		}
	}
}

// A stream to a device of another node on a socket from the pool, 1 KiB there and back,
// and its end; against a connection through a relay of plain TCP that connects for each,
// and against streams that need a handshake. The device's own socket is parked.
func BenchmarkEcho(b *testing.B) {
	hello := make([]byte, 1<<10)
	b.Run("pooled link", func(b *testing.B) { benchmarkEcho(b, hello, func(*edgeNode) {}) })
	b.Run("fresh link", func(b *testing.B) {
		benchmarkEcho(b, hello, func(n *edgeNode) { n.mu.Lock(); all := n.allLocked(); n.mu.Unlock(); n.end(all) })
	})
	b.Run("tcp relay", func(b *testing.B) {
		service := listen(b, func(c net.Conn) { io.Copy(c, c); c.Close() })
		owner := listen(b, func(c net.Conn) { relayTo(c, service) })
		b.ReportAllocs()
		for b.Loop() {
			c, err := net.Dial("tcp", owner)
			if err != nil {
				b.Fatal(err)
			}
			roundTrip(b, c, hello)
		}
	})
}

func benchmarkEcho(b *testing.B, hello []byte, between func(from *edgeNode)) {
	// A device whose transfer socket is parked, and used for one stream after the other.
	far, near := sockets(b)
	nearParked, farParked := make(chan *socket.Socket, 1), make(chan *socket.Socket, 1)
	nearParked <- near
	farParked <- far
	from, to := two(b, &local{dial: func(context.Context, Open) (*stream.Stream, error) {
		edge := stream.New(<-nearParked, stream.Options{Parked: func(s *socket.Socket) { nearParked <- s }})
		device := stream.New(<-farParked, stream.Options{Parked: func(s *socket.Socket) { farParked <- s }})
		go echo(device)
		return edge, nil
	}})
	b.ReportAllocs()
	for b.Loop() {
		s, err := from.Dial(b.Context(), to.peer, open())
		if err != nil {
			b.Fatal(err)
		}
		roundTrip(b, s, hello)
		between(from)
	}
}

func roundTrip(b *testing.B, c net.Conn, hello []byte) {
	if _, err := c.Write(hello); err != nil {
		b.Fatal(err)
	}
	got := make([]byte, len(hello)) // on the stack
	if _, err := io.ReadFull(c, got); err != nil {
		b.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if _, err := c.Read(got); err != io.EOF {
		b.Fatal(err)
	}
	c.Close()
}

// listen serves connections until the test ends.
func listen(b *testing.B, serve func(net.Conn)) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	b.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// relayTo joins c and a new connection, as the edge does for a service of its own.
func relayTo(c net.Conn, address string) {
	d, err := net.Dial("tcp", address)
	if err != nil {
		c.Close()
		return
	}
	stream.Relay(context.Background(), c, d)
}
