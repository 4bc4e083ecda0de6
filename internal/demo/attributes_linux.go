package main

import "syscall"

// attributes of a child: its own process group, and an end with this program's,
// even when that is killed outright.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
