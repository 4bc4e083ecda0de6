package socket

import (
	"syscall"
	"time"
)

// TCP options of linux/tcp.h that package syscall does not name everywhere.
const (
	tcpUserTimeout  = 18
	tcpNotsentLowat = 25
)

// tune sets what it can: MPTCP refuses some.
func tune(fd uintptr, unsent int, patience time.Duration) {
	_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotsentLowat, unsent)
	_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(patience.Milliseconds()))
}
