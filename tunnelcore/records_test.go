package tunnelcore

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// recorded is a connection that is not TCP, as TLS is not, and remembers the
// longest write.
type recorded struct {
	net.Conn
	longest *atomic.Int64
}

func (c recorded) Write(p []byte) (int, error) {
	c.longest.Store(max(c.longest.Load(), int64(len(p)))) // one writer at a time
	return c.Conn.Write(p)
}

type recordedListener struct {
	net.Listener
	longest *atomic.Int64
}

func (l recordedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return recorded{c, l.longest}, nil
}

// An agent with buffers of message_max gets no TLS record longer than that on its
// control socket.
func TestControlRecordsFitTheAgent(t *testing.T) {
	e := startEdge(t, nil)
	var longest atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.hub.ServeAgent(w, r, Arrival{From: netip.MustParseAddrPort(r.RemoteAddr).Addr()})
	}))
	server.Listener = recordedListener{server.Listener, &longest}
	server.Start()
	e.server.Close()
	e.server = server
	h := hello("cam-17")
	h.MessageMax = wire.MinMessage
	a := e.connect(h)
	e.hub.mu.Lock()
	tunnel := e.hub.tunnels[a.ready.Tunnel]
	e.hub.mu.Unlock()
	// As long as early frames of many streams at once.
	if err := tunnel.sock.WriteMessage(socket.Binary, make([]byte, 3*wire.MinMessage)); err != nil {
		t.Fatal(err)
	}
	if n := longest.Load(); n > wire.MinMessage {
		t.Errorf("a write of %d bytes, want at most %d", n, wire.MinMessage)
	}
}
