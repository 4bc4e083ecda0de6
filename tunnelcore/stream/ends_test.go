package stream

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
)

// pair returns the two ends of a stream. What they leave behind is waited for.
func pair(t testing.TB, transport string, opts Options) (client, server *Stream) {
	t.Helper()
	c, s := ends.Conns(t, transport)
	a, b := sockettest.Pair(t, c, s)
	owner := new(sync.WaitGroup)
	opts.Owner = owner
	client, server = New(a, opts), New(b, opts)
	t.Cleanup(func() {
		client.Abort()
		server.Abort()
		owner.Wait()
	})
	return client, server
}

// bothWays runs body with each transport, and each end in both roles.
func bothWays(t *testing.T, body func(t *testing.T, a, b *Stream)) {
	for _, transport := range ends.Transports {
		t.Run(transport+"/client first", func(t *testing.T) {
			a, b := pair(t, transport, Options{})
			body(t, a, b)
		})
		t.Run(transport+"/server first", func(t *testing.T) {
			b, a := pair(t, transport, Options{})
			body(t, a, b)
		})
	}
}

// result is what was read from a connection until it failed; io.EOF is nil.
type result struct {
	data string
	err  error
}

func readAll(c net.Conn) result {
	b, err := io.ReadAll(c)
	return result{string(b), err}
}

// reading reads c to its end in the background.
func reading(c net.Conn) <-chan result {
	done := make(chan result, 1)
	go func() { done <- readAll(c) }()
	return done
}
