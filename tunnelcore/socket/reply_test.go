package socket

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

// heldConn brings bytes to read, and has the first write wait until it is let go on or
// the connection is closed.
type heldConn struct {
	net.Conn // of which nothing else is used
	in       bytes.Buffer
	goOn     chan struct{}
	closed   chan struct{}
	once     sync.Once

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func (c *heldConn) Read(p []byte) (int, error) { return c.in.Read(p) }

func (c *heldConn) Write(p []byte) (int, error) {
	select {
	case <-c.goOn:
	case <-c.closed:
		return 0, net.ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *heldConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// What the reader owes the peer that broke RFC 6455 goes out before the connection
// ends, also behind a pong that is under way.
func TestCloseFrameBeforeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		defer client.Close()
		c := &heldConn{Conn: server, goOn: make(chan struct{}), closed: make(chan struct{})}
		defer server.Close()
		c.in.WriteString("\x89\x81\x00\x00\x00\x00?" + "\x83\x80\x00\x00\x00\x00") // a ping, and opcode 3
		s := New(c, SmallBuffer)
		var broken *FrameError
		if _, err := s.Next(); !errors.As(err, &broken) {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- s.Close() }()
		synctest.Wait() // the pong is under way, and Close waits
		close(c.goOn)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if out := c.out.Bytes(); !bytes.HasPrefix(out, []byte("\x8a\x01?\x88")) || !bytes.Contains(out, []byte{0x03, 0xea}) {
			t.Errorf("the peer got %q, want a pong and a close frame with 1002", out)
		}
	})
}
