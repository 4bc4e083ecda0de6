//go:build linux

package load

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Held is visitors that stay without doing anything.
type Held struct{ fds []int }

// Hold connects visitors who have had one small answer each.
func Hold(t Target, visitors int) (h *Held, err error) {
	h = &Held{}
	failed := t.From.Do(func() { err = h.open(t, visitors, "/small", true) })
	if err = errors.Join(failed, err); err != nil {
		h.Close()
	}
	return h, err
}

// Stall connects visitors who ask for an endless file and read nothing of it.
func Stall(t Target, visitors int) (h *Held, err error) {
	h = &Held{}
	failed := t.From.Do(func() { err = h.open(t, visitors, "/bulk", false) })
	if err = errors.Join(failed, err); err != nil {
		h.Close()
	}
	return h, err
}

func (h *Held) open(t Target, visitors int, path string, read bool) error {
	asked := request("GET", path, t.Host, "")
	var buf [4096]byte
	for i := range visitors {
		fd, err := t.connectNow(i)
		if err != nil {
			return err
		}
		h.fds = append(h.fds, fd)
		if _, err := unix.Write(fd, asked); err != nil {
			return err
		}
		var a answer
		for whole := !read; !whole; {
			if n, err := ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, stuck); err != nil || n == 0 {
				return fmt.Errorf("visitor %d has no answer: %w", i, errors.Join(err, errors.New("time is up")))
			}
			n, err := unix.Read(fd, buf[:])
			if err != nil || n == 0 {
				return fmt.Errorf("visitor %d: %d bytes: %w", i, n, err)
			}
			if whole, err = a.take(buf[:n]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close lets the visitors leave.
func (h *Held) Close() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
	time.Sleep(100 * time.Millisecond) // what they leave behind is taken down
}
