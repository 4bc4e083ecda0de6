package stream

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// What a visitor gets through TCP, a relay, a stream, a relay and TCP, against
// the same way with plain TCP in the stream's place: both have two relays and
// three loopback connections, in one process, and differ in frames alone.
func BenchmarkRelay(b *testing.B) {
	for _, middle := range []string{"plain tcp", "stream on tcp", "stream on tls", "plain tls"} {
		for _, up := range []bool{true, false} {
			name := map[bool]string{true: "visitor to service", false: "service to visitor"}[up]
			b.Run(fmt.Sprint(middle, "/", name), func(b *testing.B) {
				visitor, x := ends.Loopback(b)
				service, y := ends.Loopback(b)
				var c, s net.Conn
				switch middle {
				case "plain tcp", "plain tls":
					c, s = ends.Conns(b, middle[len("plain "):])
				default:
					c, s = pair(b, middle[len("stream on "):], Options{})
				}
				first, second := relayBetween(context.Background(), x, s), relayBetween(context.Background(), c, y)
				from, to := visitor, service
				if !up {
					from, to = service, visitor
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{to}, make([]byte, 256<<10))
					to.Close()
				})
				buf := make([]byte, 64<<10)
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := from.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				from.CloseWrite()
				wg.Wait()
				from.Close()
				<-first
				<-second
			})
		}
	}
}

// The price of a stream that does nothing but begin and end.
func BenchmarkStreamEnd(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		a, c := pair(b, "tcp", Options{})
		go a.Close()
		if _, err := io.Copy(io.Discard, c); err != nil {
			b.Fatal(err)
		}
		c.Close()
		a.opts.Owner.Wait()
	}
}

// What a relay holds on the heap while nothing moves: the streams and their
// sockets are made before the count.
func BenchmarkIdleRelay(b *testing.B) {
	const n = 100
	var before, after runtime.MemStats
	for b.Loop() {
		var inner [][2]net.Conn
		var outer []net.Conn
		for range n {
			visitor, x := ends.Loopback(b)
			peer, y := pair(b, "tcp", Options{})
			inner, outer = append(inner, [2]net.Conn{x, y}), append(outer, visitor, peer)
		}
		for range 3 { // what the pools hold is not the relays'
			runtime.GC()
		}
		runtime.ReadMemStats(&before)
		var done []<-chan outcome
		for i := range inner {
			done = append(done, relayBetween(context.Background(), inner[i][0], inner[i][1]))
		}
		buf := make([]byte, 20<<10) // each has moved something
		for _, c := range outer {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		for _, c := range outer {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&after)
		for i, c := range outer {
			c.Close()
			if i%2 == 1 {
				<-done[i/2]
			}
		}
	}
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/n, "B/relay")
	b.ReportMetric(float64(int64(after.StackInuse)-int64(before.StackInuse))/n, "B-stack/relay")
}
