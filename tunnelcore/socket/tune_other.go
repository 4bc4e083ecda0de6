//go:build !linux

package socket

import "time"

// tune is for systems that lack the options, or name them otherwise.
func tune(uintptr, int, time.Duration) {}
