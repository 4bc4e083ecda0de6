//go:build !race

package socket

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// memory is a connection to itself that is not TCP. TLS allocates on its own.
type memory struct {
	net.Conn
	bytes.Buffer
}

func (m *memory) Read(p []byte) (int, error)       { return m.Buffer.Read(p) }
func (m *memory) Write(p []byte) (int, error)      { return m.Buffer.Write(p) }
func (m *memory) SetWriteDeadline(time.Time) error { return nil }

// Messages cost no allocation, whichever end sends them, and however.
func TestNoAllocations(t *testing.T) {
	for _, transport := range []string{"tcp", "memory"} {
		for _, size := range []int{1, 100, 4 << 10, 64 << 10} {
			var client, server *Socket
			if transport == "tcp" {
				client, server = pair(t, transport)
			} else {
				m := &memory{}
				client, server = on(m, true), on(m, false)
			}
			for name, way := range map[string][2]*Socket{"client to server": {client, server}, "server to client": {server, client}} {
				from, to := way[0], way[1]
				from.SetWriteTimeout(ends.Patience)
				buf, in := make([]byte, Headroom+size), make([]byte, 64<<10)
				read := func() {
					op, err := to.Next()
					if op != Binary || err != nil {
						t.Fatal(op, err)
					}
					for err == nil {
						_, err = to.Read(in)
					}
					if err != io.EOF {
						t.Fatal(err)
					}
				}
				for how, write := range map[string]func() error{
					"WriteMessage": func() error { return from.WriteMessage(Binary, buf[Headroom:]) },
					"WriteInPlace": func() error { return from.WriteInPlace(Binary, buf) },
					"WritePieces":  func() error { return from.WritePieces(Binary, buf, 64<<10) },
				} {
					n := testing.AllocsPerRun(100, func() {
						if err := write(); err != nil {
							t.Fatal(err)
						}
						read()
					})
					if n != 0 {
						t.Errorf("%s, %s, %s of %d bytes: %v allocations", transport, name, how, size, n)
					}
				}
			}
		}
	}
}

// Pings and pongs neither, but for the goroutine of a pong.
func TestPingAllocations(t *testing.T) {
	client, server := pair(t, "tcp")
	go io.Copy(io.Discard, client.conn.(*net.TCPConn))
	n := testing.AllocsPerRun(100, func() {
		if _, err := server.Ping(); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
