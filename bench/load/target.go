//go:build linux

// Package load is the visitors of a benchmark and the service that they visit.
// Both do as little as they can for a byte or a request, because they take their
// time from the same CPUs as what is measured: one thread with epoll and raw
// sockets, sendfile to send, MSG_TRUNC to throw away what comes.
package load

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/iottunnel/iottunnel/bench/link"
)

// Target is where visitors go, and from where.
type Target struct {
	Addr string     // IP:port
	Host string     // for the header Host
	From *link.Host // nil: this machine
}

// sources is how many loopback addresses visitors come from, 127.0.1.1 on: a
// server that counts by address sees a crowd, and ports do not run out.
const sources = 64

// connect begins to connect from the calling thread's network: EINPROGRESS is no
// error. n chooses the source among several.
func (t Target) connect(n int) (fd int, err error) {
	addr, err := netip.ParseAddrPort(t.Addr)
	if err != nil {
		return -1, err
	}
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	fail := func(err error) (int, error) {
		unix.Close(fd)
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // without it only slower
	if addr.Addr().IsLoopback() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fail(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(1 + n%sources)}}); err != nil {
			return fail(fmt.Errorf("bind: %w", err))
		}
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())})
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fail(fmt.Errorf("connect: %w", err))
	}
	return fd, nil
}

// connected says how a connect ended.
func connected(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// Dial connects in the ordinary way.
func (t Target) Dial() (c net.Conn, err error) {
	failed := t.From.Do(func() { c, err = net.DialTimeout("tcp", t.Addr, 10*time.Second) })
	return c, errors.Join(failed, err)
}

// Window is when a load is measured: Length, after Warm, in which caches fill and
// TCP finds its window. Probe is called at both ends of it; nil: it is not.
type Window struct {
	Warm, Length time.Duration
	Probe        func() CPU
}

// CPU is the time that the two sides of a way have spent.
type CPU struct{ Edge, Device time.Duration }

// Sub is the time since other.
func (c CPU) Sub(other CPU) CPU { return CPU{c.Edge - other.Edge, c.Device - other.Device} }

// span follows a window through a load.
type span struct {
	w        Window
	begin    time.Time // not before
	from, to time.Time // as measured; zero: not yet
	first    CPU
	spent    CPU
}

func (w Window) start() *span { return &span{w: w, begin: time.Now().Add(w.Warm)} }

// at says whether the window is open at now, which never runs backwards. It is open
// for Length from when it was found open: a load that was held up before that is
// not shortened.
func (s *span) at(now time.Time) (open bool) {
	switch {
	case s.from.IsZero():
		if !now.Before(s.begin) {
			s.from, s.first = now, s.probe()
		}
		return false
	case s.to.IsZero() && now.Sub(s.from) >= s.w.Length:
		s.to, s.spent = now, s.probe().Sub(s.first)
	}
	return s.to.IsZero()
}

func (s *span) over() bool { return !s.to.IsZero() }

func (s *span) probe() CPU {
	if s.w.Probe == nil {
		return CPU{}
	}
	return s.w.Probe()
}

func (s *span) took() time.Duration { return s.to.Sub(s.from) }

func request(method, path, host, more string) []byte {
	return []byte(method + " " + path + " HTTP/1.1\r\nHost: " + host + "\r\n" + more + "\r\n")
}
