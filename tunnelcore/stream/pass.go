package stream

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// passesOut reports whether passFrom can send what a TCP connection has.
func (c *Stream) passesOut() bool {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.outDirect && c.s.PassesOut()
}

// passFrom sends n bytes that src has (socket.Waiting), without a buffer. It is for
// one who has seen passesOut.
func (c *Stream) passFrom(src *net.TCPConn, n int) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	if err := c.writableLocked(); err != nil {
		return 0, err
	}
	n, err := c.s.PassFrom(src, n, c.opts.MessageMax)
	c.sent.Add(int64(n))
	if err != nil {
		return n, c.writeFailed(err)
	}
	return n, nil
}

// passTo moves what the peer sends to dst, without a buffer, if it is much and can
// be moved so. After an error that is not of reading, the reader finds out what is
// wrong with the peer, if it is.
func (c *Stream) passTo(dst *net.TCPConn) (n int, passed bool, err error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if c.closed.Load() {
		return 0, true, net.ErrClosed
	}
	if err := c.payloadLocked(); err != nil || !c.inDirect {
		return 0, err != nil, err
	}
	n, passed, err = c.s.PassTo(dst, bufferSize, bulkSize)
	c.received.Add(int64(n))
	switch {
	case err == nil, n > 0 && errors.Is(err, os.ErrDeadlineExceeded):
		return n, passed, nil
	case c.closed.Load():
		return n, true, net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, true, err
	}
	return n, true, fmt.Errorf("pass on: %w", err)
}
