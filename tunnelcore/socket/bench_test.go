package socket

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
)

func BenchmarkApplyMask(b *testing.B) {
	for _, size := range []int{7, 125, 1400, 16 << 10, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			buf, mask := make([]byte, size), [4]byte{1, 2, 3, 4}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				mask = applyMask(buf, mask)
			}
		})
	}
}

// One end writes frames, the other takes what comes without looking: the cost
// of writing alone. "plain" is the same bytes without frames.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{100, 4 << 10, 64 << 10} {
		for _, c := range []struct {
			name   string
			client bool
			write  func(s *Socket, buf []byte) error
		}{
			{"plain", false, func(s *Socket, buf []byte) error { _, err := s.conn.Write(buf[Headroom:]); return err }},
			{"in place, server", false, func(s *Socket, buf []byte) error { return s.WriteInPlace(Binary, buf) }},
			{"in place, client", true, func(s *Socket, buf []byte) error { return s.WriteInPlace(Binary, buf) }},
			{"message, server", false, func(s *Socket, buf []byte) error { return s.WriteMessage(Binary, buf[Headroom:]) }},
			{"message, client", true, func(s *Socket, buf []byte) error { return s.WriteMessage(Binary, buf[Headroom:]) }},
		} {
			b.Run(fmt.Sprint(c.name, "/", size), func(b *testing.B) {
				near, far := ends.Conns(b, "tcp")
				s := on(near, c.client)
				s.SetWriteTimeout(ends.Patience)
				done := make(chan struct{})
				go func() {
					defer close(done)
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{far}, make([]byte, 256<<10))
				}()
				buf := make([]byte, Headroom+size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if err := c.write(s, buf); err != nil {
						b.Fatal(err)
					}
				}
				near.Close()
				<-done
			})
		}
	}
}

// Frames from memory: the cost of reading alone.
func BenchmarkRead(b *testing.B) {
	for _, size := range []int{100, 4 << 10, 64 << 10} {
		for _, client := range []bool{true, false} {
			b.Run(fmt.Sprintf("client %v/%d", client, size), func(b *testing.B) {
				frame := masked(0x82, string(make([]byte, size)))
				if client {
					frame = plain(0x82, string(make([]byte, size)))
				}
				again := &repeat{frame: frame}
				s := newSocket(nil, bufio.NewReaderSize(again, LargeBuffer), client)
				buf := make([]byte, 64<<10)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					_, err := s.Next()
					for err == nil {
						_, err = s.Read(buf)
					}
					if err != io.EOF {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

type repeat struct {
	frame []byte
	at    int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.frame[r.at:])
	r.at = (r.at + n) % len(r.frame)
	return n, nil
}

// What a socket that waits holds on the heap, its reader's included, the
// connection's not: net.Pipe's ends are made before the count.
func BenchmarkIdleSocket(b *testing.B) {
	for _, pinged := range []bool{false, true} {
		b.Run(fmt.Sprintf("pinged %v", pinged), func(b *testing.B) {
			const n = 2000
			var before, after runtime.MemStats
			for b.Loop() {
				ends := make([][2]net.Conn, n)
				for i := range ends {
					ends[i][0], ends[i][1] = net.Pipe()
				}
				sockets := make([]*Socket, n)
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range sockets {
					sockets[i] = on(ends[i][1], false)
				}
				if pinged {
					for i, s := range sockets {
						go ends[i][0].Write(cat(masked(0x89, "12345678"), masked(0x82, "")))
						go io.ReadFull(ends[i][0], make([]byte, 10))
						if _, err := s.Next(); err != nil {
							b.Fatal(err)
						}
						settle(s)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(sockets)
				for i := range ends {
					ends[i][0].Close()
				}
			}
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/n, "B/socket")
		})
	}
}
