//go:build linux

package load

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Serve is the service that visitors visit, on an address IP:port, whose port may
// be 0. It prints the address it listens on and serves until the process ends:
//
//	GET /small   1 KiB
//	GET /tiny    an answer of less than 600 bytes, with headers that proxies add
//	GET /bulk    bytes without end
//	POST /sink   takes bytes without end
func Serve(addr string) error {
	listener, at, err := listen(addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, at)
	return serve(listener)
}

// serve is Serve on a socket that listens.
func serve(listener int) (err error) {
	s := &service{listener: listener, file: bulkFile(), partial: make(map[int][]byte)}
	if s.poll, err = newPoll(); err != nil {
		return err
	}
	if err := s.poll.add(listener, listener, unix.EPOLLIN); err != nil {
		return err
	}
	for {
		ready, err := s.poll.wait(stuck)
		if err != nil {
			return err
		}
		for _, fd := range ready {
			if fd == listener {
				s.accept()
			} else {
				s.read(fd)
			}
		}
	}
}

// listen returns a socket and the address it listens on.
func listen(addr string) (fd int, at netip.AddrPort, err error) {
	at, err = netip.ParseAddrPort(addr)
	if err != nil {
		return -1, at, err
	}
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, at, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		return -1, at, fmt.Errorf("bind %s: %w", addr, err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return -1, at, err
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return -1, at, err
	}
	return fd, netip.AddrPortFrom(at.Addr(), uint16(local.(*unix.SockaddrInet4).Port)), nil
}

// service answers small requests on one thread; each endless one gets its own.
type service struct {
	listener int
	file     int
	poll     *poll
	partial  map[int][]byte // requests of which more is to come
	buf      [16 << 10]byte
}

func (s *service) accept() {
	for {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return // none waits, or the one that did has left
		}
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // without it only slower
		if s.poll.add(fd, fd, unix.EPOLLIN) != nil {
			unix.Close(fd)
		}
	}
}

func (s *service) read(fd int) {
	before := copy(s.buf[:], s.partial[fd])
	n, err := unix.Read(fd, s.buf[before:])
	if errors.Is(err, unix.EAGAIN) {
		return
	}
	if err != nil || n == 0 {
		s.close(fd)
		return
	}
	got := s.buf[:before+n]
	if !bytes.Contains(got, []byte("\r\n\r\n")) {
		if len(got) == len(s.buf) {
			s.close(fd)
			return
		}
		s.partial[fd] = append([]byte(nil), got...)
		return
	}
	if before > 0 {
		delete(s.partial, fd)
	}
	s.answer(fd, got)
}

func (s *service) answer(fd int, asked []byte) {
	switch {
	case bytes.HasPrefix(asked, []byte("GET /small ")):
		s.write(fd, small)
	case bytes.HasPrefix(asked, []byte("GET /tiny ")):
		s.write(fd, tiny)
	case bytes.HasPrefix(asked, []byte("GET /bulk ")):
		s.hand(fd, s.pour)
	case bytes.HasPrefix(asked, []byte("POST /sink ")):
		s.hand(fd, sink)
	default:
		s.write(fd, []byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
	}
}

var small, tiny = whole(1 << 10), whole(200)

func whole(size int) []byte {
	return append(head(int64(size)), bytes.Repeat([]byte("x"), size)...)
}

func head(size int64) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", size)
}

// write sends an answer, which fits into the buffer of a socket that is idle.
func (s *service) write(fd int, answer []byte) {
	if n, err := unix.Write(fd, answer); err != nil || n < len(answer) {
		s.close(fd)
	}
}

func (s *service) close(fd int) {
	delete(s.partial, fd)
	unix.Close(fd)
}

// hand lets f have the connection, on a thread of its own, until f returns.
func (s *service) hand(fd int, f func(fd int) error) {
	if s.poll.remove(fd) != nil || unix.SetNonblock(fd, false) != nil {
		s.close(fd)
		return
	}
	go func() { // ends with the connection
		defer unix.Close(fd)
		_ = f(fd) // how the visitor left is none of its business
	}()
}

func (s *service) pour(fd int) error {
	if _, err := unix.Write(fd, head(endless)); err != nil {
		return err
	}
	offsets := make(map[int]int64)
	for {
		if _, err := sendChunk(fd, s.file, offsets); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sink(fd int) error {
	buf := make([]byte, chunk)
	for {
		n, err := discard(fd, buf)
		if n <= 0 && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
