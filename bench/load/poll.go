//go:build linux

package load

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// poll is an epoll instance whose sockets are known by numbers.
type poll struct {
	fd     int
	events [256]unix.EpollEvent
	ready  []int
}

func newPoll() (*poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &poll{fd: fd}, err
}

// addEdge watches both directions of a socket for changes.
func (p *poll) addEdge(fd, number int) error {
	return p.add(fd, number, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET)
}

func (p *poll) add(fd, number int, events uint32) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(number)})
}

func (p *poll) remove(fd int) error { return unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil) }

// wait returns the numbers of sockets with news, valid until the next call; none
// when there was none for so long.
func (p *poll) wait(longest time.Duration) ([]int, error) {
	for {
		n, err := unix.EpollWait(p.fd, p.events[:], int(longest.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		p.ready = p.ready[:0]
		for i := range max(n, 0) {
			p.ready = append(p.ready, int(p.events[i].Fd))
		}
		return p.ready, err
	}
}

func (p *poll) close() { unix.Close(p.fd) }
