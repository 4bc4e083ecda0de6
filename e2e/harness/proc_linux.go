package harness

import "syscall"

// ownGroup lets a whole tree be killed by its group. Pdeathsig takes the child
// along when the test binary dies without running its cleanups.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
