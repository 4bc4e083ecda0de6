package stream

import (
	"net"
	"sync"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// bufferSize is the payload that one read of a relay may bring: the largest
// message in the default negotiation.
const bufferSize = 64 << 10

// buffers are shared by all relays; each has headroom for a frame's header.
var buffers = sync.Pool{New: func() any { b := make([]byte, socket.Headroom+bufferSize); return &b }}

func getBuffer() *[]byte  { return buffers.Get().(*[]byte) }
func putBuffer(b *[]byte) { buffers.Put(b) }

// source is what a relay reads from. Where it can it waits without a buffer, as
// most connections wait most of the time.
type source interface {
	// read returns n bytes, behind headroom, in a buffer that is the caller's to
	// put back when n > 0. Errors are as of net.Conn's Read.
	read() (buf *[]byte, n int, err error)
}

// newSource reads from c at most most bytes at a time.
func newSource(c net.Conn, most int) source {
	switch c := c.(type) {
	case *Stream:
		return streamSource{c, most}
	case *net.TCPConn:
		return newTCPSource(c, most)
	}
	return plainSource{c, most}
}

type plainSource struct {
	c    net.Conn
	most int
}

func (s plainSource) read() (*[]byte, int, error) {
	buf := getBuffer()
	n, err := s.c.Read((*buf)[socket.Headroom : socket.Headroom+s.most])
	if n == 0 {
		putBuffer(buf)
		return nil, 0, err
	}
	return buf, n, err
}

type streamSource struct {
	c    *Stream
	most int
}

func (s streamSource) read() (*[]byte, int, error) {
	if err := s.c.wait(); err != nil {
		return nil, 0, err
	}
	return plainSource{s.c, s.most}.read()
}
