package harness

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// ServeTCP starts a TCP service on a device for the length of the test, and
// returns its address. serve is called for each connection, which is closed after.
func ServeTCP(tb testing.TB, serve func(c *net.TCPConn)) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = make(map[net.Conn]bool) // guarded by mu
	)
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed below
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				serve(c.(*net.TCPConn))
				c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			})
		}
	})
	tb.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// Echo sends back what comes, until the peer ends.
func Echo(c *net.TCPConn) { io.Copy(c, c) }

// AnswerAfterEnd reads until the peer has ended its direction, and only then
// sends all of it back: what a tunnel without half-close breaks.
func AnswerAfterEnd(c *net.TCPConn) {
	all, err := io.ReadAll(c)
	if err != nil {
		return
	}
	c.Write(all)
	c.CloseWrite()
}

var ports struct {
	mu   sync.Mutex
	next int
}

// FreePort finds n free neighbouring TCP ports on loopback that stay free while
// nobody listens on them: they lie below the range that the kernel gives to
// outgoing connections, so a server may be stopped and started again on them. No
// port is handed out twice.
func FreePort(tb testing.TB, n int) int {
	tb.Helper()
	port, err := freePort(n)
	if err != nil {
		tb.Fatal(err)
	}
	return port
}

func freePort(n int) (int, error) {
	const first = 12000
	last := ephemeralFirst()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.next == 0 {
		ports.next = first + os.Getpid()*37%(last-first) // other test runs start elsewhere
	}
	var err error
	for range last - first {
		if ports.next+n > last {
			ports.next = first
		}
		start := ports.next
		ports.next += n
		if err = allFree(start, n); err == nil {
			return start, nil
		}
	}
	return 0, err
}

func allFree(first, n int) error {
	for port := first; port < first+n; port++ {
		// Wildcard, without SO_REUSEPORT: refuses what anyone holds on any address.
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		l.Close()
	}
	return nil
}

func ephemeralFirst() int {
	const usual = 32768
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	if f := strings.Fields(string(text)); len(f) == 2 {
		if n, err := strconv.Atoi(f[0]); err == nil && n > 15000 {
			return n
		}
	}
	return usual
}

// quiet swallows what servers say of clients that break off: cases do that.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// Listening says whether somebody listens at a port of 127.0.0.1, without a
// connection that a service could count.
func Listening(port string) error {
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		return nil // another system: nobody knows
	}
	const listen = "0A" // the state, behind local and remote address
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[3] == listen && (f[1] == fmt.Sprintf("0100007F:%04X", n) || f[1] == fmt.Sprintf("00000000:%04X", n)) {
			return nil
		}
	}
	return errors.New("nobody listens")
}
