//go:build !unix

package stream

import "net"

func newTCPSource(c *net.TCPConn, most int) source { return plainSource{c, most} }
