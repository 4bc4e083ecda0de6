package stream

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// The price of a visitor with one small request: a stream is opened, 300 bytes go
// and 1000 come, both directions end. "plain tcp" is a connection for each
// visitor on loopback, without any tunnel: two round trips of system calls more
// than a stream has, and no frames.
func BenchmarkVisitor(b *testing.B) {
	for _, at := range []int{1, 64} {
		b.Run(fmt.Sprintf("early/%d at once", at), func(b *testing.B) {
			l := newLink(b, "tcp", MuxOptions{}, false)
			const credit = 16 << 10
			l.agent.text = func(m []byte) {
				c, err := l.agent.mux.Open(binary.BigEndian.Uint32(m), credit, Options{Owner: &l.agent.owner, Wanted: func(*Stream) {}})
				if err != nil {
					b.Error(err)
					return
				}
				go answer(c)
			}
			var number atomic.Uint32
			visitors(b, at, func() (net.Conn, error) {
				n := number.Add(1)
				return l.edge.mux.Open(n, credit, Options{Owner: &l.edge.owner, Open: binary.BigEndian.AppendUint32(nil, n)})
			})
		})
		b.Run(fmt.Sprintf("plain tcp/%d at once", at), func(b *testing.B) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					c, err := listener.Accept()
					if err != nil {
						return
					}
					go answer(c)
				}
			}()
			visitors(b, at, func() (net.Conn, error) { return net.Dial("tcp", listener.Addr().String()) })
		})
	}
}

var requestOf, answerOf = make([]byte, 300), make([]byte, 1000)

// answer is the service.
func answer(c net.Conn) {
	buf := make([]byte, len(requestOf))
	if _, err := io.ReadFull(c, buf); err == nil {
		c.Write(answerOf)
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
	io.Copy(io.Discard, struct{ io.Reader }{c})
	c.Close()
}

// visitors are so many at once, each of which comes again and again.
func visitors(b *testing.B, at int, dial func() (net.Conn, error)) {
	b.ReportAllocs()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	for range at {
		wg.Go(func() {
			buf := make([]byte, 4<<10)
			for left.Add(-1) >= 0 {
				c, err := dial()
				if err != nil {
					b.Error(err)
					return
				}
				c.Write(requestOf)
				c.(interface{ CloseWrite() error }).CloseWrite()
				n, err := 0, error(nil)
				for err == nil {
					var k int
					k, err = c.Read(buf)
					n += k
				}
				if err != io.EOF || n != len(answerOf) {
					b.Errorf("%d bytes, %v", n, err)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
}
