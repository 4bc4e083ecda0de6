package roundtrip

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkRoundTrip asks the same device with net/http's Transport and with a
// Pool: 1 KiB, on kept connections. Both give requests to the same number of
// goroutines, and neither dials while it is measured.
func BenchmarkRoundTrip(b *testing.B) {
	answer := []byte("HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/html\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with l
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its visitor
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) == 2 {
						c.Write(answer)
					}
				}
			}()
		}
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
	transport := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 256, DisableCompression: true, ResponseHeaderTimeout: testWait,
	}
	defer transport.CloseIdleConnections()
	pool := NewPool(256)
	defer pool.Close()
	for _, how := range []struct {
		name string
		send func(*http.Request) (*http.Response, error)
	}{
		{"net/http", transport.RoundTrip},
		{"pool", func(r *http.Request) (*http.Response, error) {
			return pool.RoundTrip(r, Call{Dialer: dialFunc(dial), Timeout: testWait})
		}},
	} {
		b.Run(how.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				r, err := http.NewRequestWithContext(ctx, "GET", "http://cam.example/small", nil)
				if err != nil {
					b.Error(err)
					return
				}
				r.Header = http.Header{"Accept": {"*/*"}, "User-Agent": {"bench"}, "X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"cam.example"}, "Via": {"1.1 Caddy"}}
				p := make([]byte, 32<<10)
				for pb.Next() {
					res, err := how.send(r)
					if err != nil {
						b.Error(err)
						return
					}
					for err == nil {
						_, err = res.Body.Read(p)
					}
					if res.Body.Close(); err != io.EOF {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

type dialFunc func(context.Context) (net.Conn, error)

func (f dialFunc) Dial(ctx context.Context) (net.Conn, error) { return f(ctx) }

func (f dialFunc) Again(*http.Request, bool, error) bool { return false }
