package socket

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// pair returns the two ends of a socket whose handshake is over.
func pair(t testing.TB, transport string) (client, server *Socket) {
	t.Helper()
	c, s := ends.Conns(t, transport)
	return on(c, true), on(s, false)
}

// on makes a socket of a connection, without a handshake.
func on(c net.Conn, client bool) *Socket {
	return newSocket(c, newReader(c, SmallBuffer), client)
}

// bothWays runs body with each transport, and each end in both roles.
func bothWays(t *testing.T, body func(t *testing.T, a, b *Socket)) {
	for _, transport := range ends.Transports {
		t.Run(transport+"/client first", func(t *testing.T) {
			a, b := pair(t, transport)
			body(t, a, b)
		})
		t.Run(transport+"/server first", func(t *testing.T) {
			b, a := pair(t, transport)
			body(t, a, b)
		})
	}
}

// script is a net.Conn that gives in, a step at a time, and keeps what is
// written. With stutter a deadline passes before every step.
type script struct {
	net.Conn
	in      []byte
	step    int // bytes per read; 0: all
	stutter bool
	late    bool // the deadline before the next step has passed
	after   error

	mu  sync.Mutex
	out bytes.Buffer
}

func (c *script) Read(p []byte) (int, error) {
	if c.stutter && !c.late {
		c.late = true
		return 0, os.ErrDeadlineExceeded
	}
	c.late = false
	if len(c.in) == 0 {
		if c.after != nil {
			return 0, c.after
		}
		return 0, io.EOF
	}
	if c.step > 0 {
		p = p[:min(len(p), c.step)]
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *script) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *script) written() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.out.Bytes())
}

func (c *script) Close() error                     { return nil }
func (c *script) SetDeadline(time.Time) error      { return nil }
func (c *script) SetReadDeadline(time.Time) error  { return nil }
func (c *script) SetWriteDeadline(time.Time) error { return nil }

// settle waits for the reply that s may be sending.
func settle(s *Socket) {
	s.lock(urgent)
	defer s.unlock()
}
