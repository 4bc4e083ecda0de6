package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkVisitors asks for a page of 1 KiB on kept connections, of Caddy's
// reverse_proxy and, in the same process with the same service and the same
// visitors, of a device through a real agent. CPU is that of all of them: the
// difference is what the tunnel costs.
func BenchmarkVisitors(b *testing.B) {
	page := strings.Repeat("x", 1024)
	service := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: service}
	go server.Serve(l) // ends with Close
	defer server.Close()
	f := start(b, config{
		app:  "limits {\nstreams_per_address 1000\n}",
		site: fmt.Sprintf("iottunnel\nreverse_proxy %s {\ntransport http {\nkeepalive_idle_conns_per_host 256\n}\n}", l.Addr()),
	})
	d := f.connect("cam-1", service)
	for _, visitors := range []int{16, 64} {
		for name, host := range map[string]string{"alone": "localhost", "tunnel": d.up.Hostname} {
			b.Run(fmt.Sprintf("%s/%d", name, visitors), func(b *testing.B) {
				b.ReportAllocs()
				begun := cpuTime()
				var wg sync.WaitGroup
				for i := range visitors {
					n := b.N / visitors
					if i < b.N%visitors {
						n++
					}
					wg.Go(func() { keepVisiting(b, f.port, host, n) })
				}
				wg.Wait()
				b.ReportMetric(float64((cpuTime()-begun).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
			})
		}
	}
}

// keepVisiting sends n requests on one connection.
func keepVisiting(b *testing.B, port int, host string, n int) {
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		b.Error(err)
		return
	}
	defer c.Close()
	request := []byte("GET /page HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
	r := bufio.NewReader(c)
	for range n {
		c.Write(request)
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				b.Error(err)
				return
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := r.Discard(1024); err != nil {
			b.Error(err)
			return
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // never fails for RUSAGE_SELF
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
