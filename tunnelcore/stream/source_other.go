//go:build !unix

package stream

import "net"

func newTCPSource(c *net.TCPConn, _ *Stream, most int) source { return plainSource{c, most} }
