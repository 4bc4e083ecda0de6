// Package sockettest makes WebSockets with both ends in one test.
package sockettest

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
)

// Pair makes the handshake on the two ends of a connection.
func Pair(t testing.TB, client, server net.Conn) (a, b *socket.Socket) {
	t.Helper()
	const protocol = "test"
	accepted := make(chan error, 1)
	go func() {
		r, err := http.ReadRequest(bufio.NewReader(server))
		if err == nil {
			b, err = accept.Upgrade(hijacker{conn: server}, r, protocol, socket.LargeBuffer, nil)
		}
		accepted <- err
	}()
	a, err := socket.Dial(context.Background(), client, &url.URL{Scheme: "ws", Host: "edge.test"}, nil, protocol, socket.LargeBuffer)
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// hijacker is the ResponseWriter of a request that was read from conn.
type hijacker struct {
	http.ResponseWriter // never called
	conn                net.Conn
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}
