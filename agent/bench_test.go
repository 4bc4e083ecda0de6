package agent

import (
	"fmt"
	"net"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// What a short visit costs the agent: one request and its answer, all on the
// control socket, over real connections. The edge's part of it is some writes and
// reads of prepared frames.
func BenchmarkVisit(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the listener
		buf := make([]byte, 1024)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n, _ := c.Read(buf)
			c.Write(buf[:n])
			c.Close()
		}
	}()
	e := startEdge(b)
	e.transfer = refuseWith(503, "") // for those that a busy machine lets last
	start(b, mustNew(b, config(e, Forward{Port: 7, Target: l.Addr().String()})))
	tunnel := receive(b, e.tunnels)
	tunnel.greetWith("early,reuse", "900")
	b.ReportAllocs()
	var turn socket.Turn
	request := make([]byte, 200)
	number := uint32(0)
	for b.Loop() {
		number++
		open := fmt.Appendf(nil, `{"type":"open","stream":%d,"id":"%032x","port":7,"from":"203.0.113.9:51234","early":65536}`, number, number)
		err := tunnel.WriteMessages(&turn,
			socket.Message{Op: socket.Text, Head: open},
			socket.Message{Op: socket.Binary, Head: wire.AppendFrameHeader(nil, wire.FrameData, number), Body: request},
			socket.Message{Op: socket.Binary, Head: wire.AppendFrameHeader(nil, wire.FrameFin, number)})
		if err != nil {
			b.Fatal(err)
		}
		for f := receive(b, tunnel.frames); f.kind != wire.FrameFin; f = receive(b, tunnel.frames) {
			if f.kind != wire.FrameData || f.stream != number {
				b.Fatal(f)
			}
		}
	}
}
