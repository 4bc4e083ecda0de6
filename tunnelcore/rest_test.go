package tunnelcore

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// dripping writes a byte at a time, with something between two of them.
type dripping struct {
	net.Conn
	between func() // nil: all at once
}

func (d *dripping) Write(p []byte) (n int, err error) {
	for d.between != nil && n < len(p) && err == nil {
		_, err = d.Conn.Write(p[n : n+1])
		d.between()
		n++
	}
	if d.between == nil {
		return d.Conn.Write(p)
	}
	return n, err
}

// Wherever in a message the reader is made to begin anew, nothing is lost.
func TestRestLosesNothing(t *testing.T) {
	e := startEdge(t, nil)
	h := offering("cam-17", wire.Early)
	u, err := url.Parse(e.server.URL + wire.ControlPath + "?" + h.Query())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	d := &dripping{Conn: conn}
	s, err := socket.Dial(context.Background(), d, u, http.Header{"Authorization": {"Bearer token-of-cam-17"}}, wire.Subprotocol, socket.LargeBuffer)
	if err != nil {
		t.Fatal(err)
	}
	a := &fakeAgent{e: e, sock: s}
	t.Cleanup(func() { s.Close(); a.owner.Wait() })
	a.ready = a.receive().(*wire.Ready)
	for range h.Ports {
		a.receive()
	}
	v, o := a.begin("question")
	tunnel := e.tunnel("cam-17")
	count := 0
	d.between = func() {
		if count++; count%3 > 0 { // else it may be told again before it has begun
			eventually(t, "the reader has begun anew", func() bool {
				tunnel.mu.Lock()
				defer tunnel.mu.Unlock()
				return !tunnel.roused
			})
		}
		tunnel.mu.Lock()
		tunnel.rested = false
		tunnel.mu.Unlock()
		tunnel.rest()
	}
	a.say(frame{wire.FrameData, o.Stream, "an answer"}, &wire.Refused{Stream: 99, Reason: "never asked"}, frame{wire.FrameData, o.Stream, ", and more"})
	reads(t, v, "an answer, and more")
	if count < 60 {
		t.Errorf("%d times between two bytes", count)
	}
	// Who is told to close is not told to rest.
	tunnel.close(wire.CloseRestart, "test")
	tunnel.rest()
	d.between = nil
	if c := a.closed(); c.Code != wire.CloseRestart {
		t.Errorf("closed with %v", c)
	}
}

func TestCrowdSettles(t *testing.T) {
	begin := time.Now()
	var c crowd
	var settled []int
	second := 0
	pass := func(seconds int, tunnels func(i int) int) {
		for i := range seconds {
			second++
			if c.settles(tunnels(i), begin.Add(time.Duration(second)*time.Second)) {
				settled = append(settled, second)
			}
		}
	}
	still := func(n int) func(int) int { return func(i int) int { return n + i%7 } }
	want := func(at ...int) {
		t.Helper()
		if len(settled) != len(at) || len(at) > 0 && settled[0] != at[0] {
			t.Errorf("settled at %v, want %v", settled, at)
		}
		settled = nil
	}
	pass(200, still(500)) // no crowd
	want()
	pass(20, func(i int) int { return 500 * (i + 1) })
	pass(200, still(10000))
	want(220 + 30)
	pass(300, func(i int) int { return 10000 + 8*i }) // as many as those a quarter of which is needed
	want()
	pass(10, still(100)) // all are lost, and come again
	pass(10, func(i int) int { return 1200 * (i + 1) })
	pass(200, still(12000))
	want(740 + 30)
}
