//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd || illumos

package registry

import (
	"os"
	"syscall"
)

// unlock gives up the lock of a file that bbolt has mapped and let go of. Closing
// it would not do, since the mapping holds on to it.
func unlock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
