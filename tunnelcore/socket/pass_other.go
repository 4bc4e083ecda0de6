//go:build !linux

package socket

import "syscall"

const canPass = false

// Waiting is 0: nothing is passed here.
func Waiting(uintptr) int { return 0 }

func sendMore(uintptr, []byte) (int, error) { return 0, syscall.ENOSYS }
