package monitor

import (
	"os"
	"strconv"
	"strings"
)

// residentMemory is that of this process, in bytes (proc_pid_statm(5)).
func residentMemory() (uint64, bool) {
	text, err := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseUint(fields[1], 10, 50)
	return pages * uint64(os.Getpagesize()), err == nil
}
