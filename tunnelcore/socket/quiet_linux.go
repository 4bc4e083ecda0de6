package socket

import "golang.org/x/sys/unix"

// nothingToRead asks the system: a byte, an end and an error are something.
func nothingToRead(fd uintptr) bool {
	var b [1]byte
	for {
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return err == unix.EAGAIN
		}
	}
}
