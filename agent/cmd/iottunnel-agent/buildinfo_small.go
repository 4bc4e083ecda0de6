//go:build mips || mipsle

package main

import "time"

// buildInfo reads nothing for routers with little flash: that would take 16 KB, and
// scripts/dist has the linker say both.
func buildInfo() (version string, committed time.Time) { return "", time.Time{} }
