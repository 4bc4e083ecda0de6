//go:build !linux

package freeport

import "net"

// hold looks whether a port is free; 0: finds one that is.
func hold(port uint16) (got uint16, free func(), err error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: loopback.AsSlice(), Port: int(port)})
	if err != nil {
		return 0, nil, err
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port), func() {}, nil
}
