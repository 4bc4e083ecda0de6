package freeport

import (
	"fmt"
	"syscall"
)

// hold binds a socket that never listens to a port; 0: any. With SO_REUSEADDR others that
// have it too may bind the same port by its number, and listen.
func hold(port uint16) (got uint16, free func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, nil, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			syscall.Close(fd)
		}
	}()
	// A port that somebody listens on is to be no part of a row: that asks without it.
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(port), Addr: loopback.As4()}); err != nil {
		return 0, nil, fmt.Errorf("bind port %d: %w", port, err)
	}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, nil, fmt.Errorf("share port %d: %w", port, err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, nil, fmt.Errorf("bound port: %w", err)
	}
	return uint16(at.(*syscall.SockaddrInet4).Port), func() { syscall.Close(fd) }, nil
}
