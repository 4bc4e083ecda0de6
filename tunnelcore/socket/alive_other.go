//go:build !linux

package socket

import "time"

func acknowledged(uintptr, time.Duration) (answered, known bool) { return false, false }

func unacknowledged(uintptr) bool { return false }
