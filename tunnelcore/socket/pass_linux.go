package socket

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// canPass says that net.TCPConn.ReadFrom splices: a pipe takes the pages of one
// connection and gives them to the other.
const canPass = true

// Waiting is how many bytes have come on a TCP connection and were not read; 0 too
// where the system does not tell.
func Waiting(fd uintptr) int {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// sendMore sends what more follows behind: it leaves together with that.
func sendMore(fd uintptr, p []byte) (n int, err error) {
	for {
		n, err = syscall.SendmsgN(int(fd), p, nil, nil, unix.MSG_MORE|unix.MSG_NOSIGNAL)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
