package ends

import (
	"net"
	"syscall"
	"testing"
)

// Deaf makes the system drop whatever comes for c, a *net.TCPConn, unacknowledged: as if
// its host had vanished.
func Deaf(t testing.TB, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 what replaces it is another dependency
	drop := []syscall.SockFilter{*syscall.LsfStmt(syscall.BPF_RET|syscall.BPF_K, 0)}
	//lint:ignore SA1019 as above
	if e := raw.Control(func(fd uintptr) { err = syscall.AttachLsf(int(fd), drop) }); e != nil {
		err = e
	}
	if err != nil {
		t.Fatal(err)
	}
}
