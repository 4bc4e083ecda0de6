//go:build unix && !linux

package main

import "syscall"

// attributes of a child: its own process group.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
