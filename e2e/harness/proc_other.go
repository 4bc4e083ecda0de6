//go:build unix && !linux

package harness

import "syscall"

// ownGroup lets a whole tree be killed by its group.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
