package socket

import (
	"time"

	"golang.org/x/sys/unix"
)

// acknowledged reads linux/tcp.h's tcp_info. A window that is closed is asked for
// again and again, at most every two minutes: what counts between two of these
// probes is how many are unanswered. One may be, as the peer's system answers two a
// second.
func acknowledged(fd uintptr, d time.Duration) (answered, known bool) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false, false
	}
	return info.Unacked == 0 && info.Probes <= 1 || time.Duration(info.Last_ack_recv)*time.Millisecond < d, true
}

// unacknowledged asks for the bytes sent and not acknowledged, and those not sent.
func unacknowledged(fd uintptr) bool {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	return err == nil && n > 0
}
