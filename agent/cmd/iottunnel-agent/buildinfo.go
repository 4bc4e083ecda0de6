//go:build !mips && !mipsle

package main

import (
	"runtime/debug"
	"time"
)

// buildInfo is what Go's compiler notes: the module's version, and when it was
// committed.
func buildInfo() (version string, committed time.Time) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", committed
	}
	for _, s := range info.Settings {
		if t, err := time.Parse(time.RFC3339, s.Value); err == nil && s.Key == "vcs.time" {
			committed = t
		}
	}
	return info.Main.Version, committed
}
