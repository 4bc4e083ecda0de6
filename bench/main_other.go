//go:build !linux

// Command bench measures what the tunnel costs. It needs Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: the benchmark needs Linux: it reads costs from /proc, and its visitors use epoll")
	os.Exit(1)
}
