//go:build !linux

package monitor

// residentMemory is not known here.
func residentMemory() (uint64, bool) { return 0, false }
