//go:build linux

package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CPU is the CPU time that processes have used so far, in steps of 10 ms: Linux
// counts 100 ticks a second on every platform of Go's (proc(5)).
func CPU(pids []int) (total time.Duration) {
	for _, pid := range pids {
		fields := stat(pid)
		if len(fields) < 13 {
			continue // it has ended: what it used is not known
		}
		for _, field := range fields[11:13] { // utime, stime
			ticks, err := strconv.Atoi(field)
			if err == nil {
				total += time.Duration(ticks) * 10 * time.Millisecond
			}
		}
	}
	return total
}

// stat is /proc/PID/stat from its third field on: the second, in parentheses, may
// hold spaces.
func stat(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// Tree is a process with all that descend from it.
func Tree(pid int) []int {
	tree := []int{pid}
	paths, _ := filepath.Glob("/proc/[0-9]*") // its pattern is well formed
	for i := 0; i < len(tree); i++ {
		for _, path := range paths {
			child, err := strconv.Atoi(filepath.Base(path))
			if err != nil {
				continue
			}
			if fields := stat(child); len(fields) > 1 && fields[1] == strconv.Itoa(tree[i]) {
				tree = append(tree, child)
			}
		}
	}
	return tree
}

// Memory is the anonymous memory of processes, in bytes: heap, stacks and the
// like, and no page of a file.
func Memory(pids []int) (bytes int64, err error) { return status(pids, "RssAnon:") }

// Resident is all memory of processes that is in RAM, in bytes.
func Resident(pids []int) (bytes int64, err error) { return status(pids, "VmRSS:") }

func status(pids []int, name string) (bytes int64, err error) {
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(text), name)
		kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		n, err := strconv.ParseInt(kib, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("no %s of process %d: %w", name, pid, err)
		}
		bytes += n << 10
	}
	return bytes, nil
}
