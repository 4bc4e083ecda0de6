//go:build linux

package load

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// Bulk is a load of visitors that each move one endless file.
type Bulk struct {
	Streams int
	Up      bool // from the visitors to the service
}

// Moved is what came of Bulk.
type Moved struct {
	Bytes int64 // in the window; on the way up: what the visitors' sockets took
	Took  time.Duration
	CPU   CPU // spent in the window
}

// PerSecond is in MiB.
func (m Moved) PerSecond() float64 { return float64(m.Bytes) / (1 << 20) / m.Took.Seconds() }

const endless = 1 << 40

// chunk is what is moved with one system call at most.
const chunk = 1 << 20

// Run moves bytes for the length of the window, and leaves in the midst of it.
func (b Bulk) Run(t Target, w Window) (m Moved, err error) {
	failed := t.From.Do(func() { m, err = b.run(t, w) })
	return m, errors.Join(failed, err)
}

func (b Bulk) run(t Target, w Window) (m Moved, err error) {
	p, err := newPoll()
	if err != nil {
		return m, err
	}
	defer p.close()
	method, path, more, events := "GET", "/bulk", "", uint32(unix.EPOLLIN)
	if b.Up {
		method, path, more, events = "POST", "/sink", fmt.Sprintf("Content-Length: %d\r\n", int64(endless)), unix.EPOLLOUT
	}
	move := newMover(b.Up)
	defer move.close()
	for i := range b.Streams {
		fd, err := t.connectNow(i)
		if err != nil {
			return m, err
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, request(method, path, t.Host, more)); err != nil {
			return m, err
		}
		if err := p.add(fd, fd, events); err != nil {
			return m, err
		}
	}
	span := w.start()
	for !span.over() {
		ready, err := p.wait(stuck)
		if err != nil {
			return m, err
		}
		if len(ready) == 0 {
			return m, fmt.Errorf("no byte moved for %v", stuck)
		}
		open := span.at(time.Now())
		for _, fd := range ready {
			n, err := move.some(fd)
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				return m, err
			}
			if open {
				m.Bytes += int64(n)
			}
		}
	}
	m.Took, m.CPU = span.took(), span.spent
	return m, nil
}

// connectNow waits for the connection.
func (t Target) connectNow(n int) (fd int, err error) {
	if fd, err = t.connect(n); err != nil {
		return -1, err
	}
	events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if _, err = ppoll(events, stuck); err == nil {
		err = connected(fd)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func ppoll(events []unix.PollFd, longest time.Duration) (n int, err error) {
	for {
		n, err = unix.Poll(events, int(longest.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// mover sends a file, or throws away what comes: neither copies a byte.
type mover struct {
	file    int // -1: receives
	offsets map[int]int64
	begun   map[int]bool
	buf     []byte
}

func newMover(up bool) *mover {
	m := &mover{file: -1, offsets: make(map[int]int64), begun: make(map[int]bool), buf: make([]byte, chunk)}
	if up {
		m.file = bulkFile()
	}
	return m
}

// bulkFile is a file in memory with a chunk of random bytes. Without memory for it
// there is no benchmark.
func bulkFile() int {
	fd, err := unix.MemfdCreate("bulk", unix.MFD_CLOEXEC)
	if err != nil {
		panic(err)
	}
	random := rand.NewChaCha8([32]byte{})
	content := make([]byte, chunk)
	_, _ = random.Read(content) // it never fails
	if n, err := unix.Write(fd, content); err != nil || n < len(content) {
		panic(fmt.Sprintf("bulk file: %d bytes, %v", n, err))
	}
	return fd
}

func (m *mover) some(fd int) (n int, err error) {
	if m.file >= 0 {
		return sendChunk(fd, m.file, m.offsets)
	}
	if m.begun[fd] {
		n, err = discard(fd, m.buf)
	} else if n, err = unix.Read(fd, m.buf[:4096]); n > 0 {
		m.begun[fd] = true
		if !bytes.HasPrefix(m.buf[:n], []byte("HTTP/1.1 200")) {
			return n, fmt.Errorf("answer: %.200q", m.buf[:n])
		}
	}
	if n == 0 && err == nil {
		err = errors.New("the stream ended")
	}
	return max(n, 0), err
}

// sendChunk sends from where the socket's last one ended.
func sendChunk(fd, file int, offsets map[int]int64) (int, error) {
	offset := offsets[fd]
	n, err := unix.Sendfile(fd, file, &offset, chunk-int(offset))
	if n > 0 {
		offsets[fd] = offset % chunk
	}
	return max(n, 0), err
}

// discard throws away what the socket holds, up to the size of buf, which nothing
// is written to.
func discard(fd int, buf []byte) (int, error) {
	n, _, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
	return n, err
}

func (m *mover) close() {
	if m.file >= 0 {
		unix.Close(m.file)
	}
}
