package conformance

import (
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// memNet is TCP in memory, whose waits are those of a synctest bubble.
type memNet struct {
	mu        sync.Mutex // guards what follows
	listeners map[string]*memListener
	port      int
}

func newMemNet() *memNet { return &memNet{listeners: make(map[string]*memListener), port: 40000} }

func (n *memNet) listen(_, address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	host = strings.Replace(host, "localhost", "127.0.0.1", 1)
	if port == "0" {
		n.port++
		port = strconv.Itoa(n.port)
	}
	l := &memListener{net: n, addr: memAddr(net.JoinHostPort(host, port)), queue: make(chan net.Conn, 64), done: make(chan struct{})}
	n.listeners[string(l.addr)] = l
	return l, nil
}

func (n *memNet) dial(address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	address = net.JoinHostPort(strings.Replace(host, "localhost", "127.0.0.1", 1), port)
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	up, down := newHalf(), newHalf()
	select {
	case l.queue <- &memConn{in: up, out: down, addr: l.addr}:
		return &memConn{in: down, out: up, addr: l.addr}, nil
	case <-l.done:
		return nil, syscall.ECONNREFUSED
	}
}

type memAddr string

func (memAddr) Network() string  { return "tcp" }
func (a memAddr) String() string { return string(a) }

type memListener struct {
	net   *memNet
	addr  memAddr
	queue chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		delete(l.net.listeners, string(l.addr))
		for {
			select {
			case c := <-l.queue:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *memListener) Addr() net.Addr { return l.addr }

// half is one direction of a connection.
type half struct {
	mu   sync.Mutex // guards what follows
	cond sync.Cond
	b    []byte
	// How it goes on: the writer has ended, either has reset, the reader has closed.
	ended, reset, shut bool
	readBy, writeBy    time.Time
}

func newHalf() *half {
	h := new(half)
	h.cond.L = &h.mu
	return h
}

// room is what a direction holds, as the kernel would.
const room = 8 << 10

func (h *half) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	h.cond.Broadcast()
}

func past(t time.Time) bool { return !t.IsZero() && !t.After(time.Now()) }

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.shut:
			return 0, net.ErrClosed
		case h.reset:
			return 0, syscall.ECONNRESET
		case len(h.b) > 0 || len(p) == 0:
			n := copy(p, h.b)
			h.b = h.b[n:]
			h.cond.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		case past(h.readBy):
			return 0, os.ErrDeadlineExceeded
		}
		h.cond.Wait()
	}
}

func (h *half) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		switch {
		case h.ended:
			return n, net.ErrClosed
		case h.reset, h.shut:
			return n, syscall.EPIPE
		case past(h.writeBy):
			return n, os.ErrDeadlineExceeded
		case len(h.b) < room:
			m := min(len(p), room-len(h.b))
			h.b = append(h.b, p[:m]...)
			n, p = n+m, p[m:]
			h.cond.Broadcast()
			continue
		}
		h.cond.Wait()
	}
	return n, nil
}

// memConn is one end.
type memConn struct {
	in, out *half
	addr    memAddr
	cut     atomic.Bool // Close is a reset
}

func (c *memConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *memConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *memConn) CloseWrite() error           { c.out.set(func() { c.out.ended = true }); return nil }
func (c *memConn) SetLinger(sec int) error     { c.cut.Store(sec == 0); return nil }

func (c *memConn) Close() error {
	if c.cut.Load() {
		c.out.set(func() { c.out.reset = !c.out.shut })
	}
	c.out.set(func() { c.out.ended = true })
	c.in.set(func() { c.in.shut = true })
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return c.addr }
func (c *memConn) RemoteAddr() net.Addr { return c.addr }

func (c *memConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // neither fails
	return c.SetWriteDeadline(t)
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.in.set(func() { c.in.readBy = t })
	wake(t, c.in)
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.out.set(func() { c.out.writeBy = t })
	wake(t, c.out)
	return nil
}

func wake(t time.Time, h *half) {
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), h.cond.Broadcast)
	}
}

var _ net.Conn = (*memConn)(nil)
