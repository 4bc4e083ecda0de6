package stream

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
)

// toldGame is a stream at the edge, of which the peer reads what the test lets it.
type toldGame struct {
	t    *testing.T
	peer net.Conn
	sock *socket.Socket
	mux  *Mux
	c    *Stream
	seen []string // the calls of Closed and Told
}

const (
	toldOpen  = "\x81\x04open"
	toldReset = "\x82\x05\x03\x00\x00\x00\x07"
	toldFin   = "\x82\x05\x02\x00\x00\x00\x07"
)

func newToldGame(t *testing.T) *toldGame {
	near, far := net.Pipe()
	_, sock := sockettest.Pair(t, far, near)
	g := &toldGame{t: t, peer: far, sock: sock}
	g.mux = NewMux(sock, MuxOptions{})
	c, err := g.mux.Open(7, 100, Options{
		Open:   []byte("open"),
		Closed: func(*Stream) { g.seen = append(g.seen, "closed") },
		Told:   func() { g.seen = append(g.seen, "told") },
	})
	if err != nil {
		t.Fatal(err)
	}
	g.c = c
	return g
}

// read has the peer read text, and nothing more.
func (g *toldGame) read(text string) {
	g.t.Helper()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(g.peer, got); err != nil || string(got) != text {
		g.t.Fatalf("the peer reads %q, %v, want %q", got, err, text)
	}
	synctest.Wait()
}

// over says which calls there were by now.
func (g *toldGame) over(when string, told bool) {
	g.t.Helper()
	synctest.Wait()
	want := []string{"closed"}
	if told {
		want = append(want, "told")
	}
	if len(g.seen) != len(want) || g.seen[len(want)-1] != want[len(want)-1] {
		g.t.Errorf("%s: %q, want %q", when, g.seen, want)
	}
}

// A stream counts for the peer until its reset has been sent, or cannot be.
func TestTold(t *testing.T) {
	opened := func(g *toldGame) { time.Sleep(2 * openTime); g.read(toldOpen) }
	for name, play := range map[string]func(*toldGame){
		"reset": func(g *toldGame) {
			opened(g)
			g.c.Abort()
			g.over("the peer has read nothing", false)
			g.read(toldReset[:3])
			g.over("the peer has read a half", false)
			g.read(toldReset[3:])
			g.over("the peer has read the reset", true)
		},
		"reset behind a frame": func(g *toldGame) {
			time.Sleep(2 * openTime) // which is on its way
			g.c.Abort()
			g.over("the peer has read nothing", false)
			g.read(toldOpen)
			g.over("the peer has read the frame", false)
			g.read(toldReset)
			g.over("the peer has read the reset", true)
		},
		"failed before it was closed": func(g *toldGame) {
			opened(g)
			g.c.Fail(errors.New("too late"))
			g.read(toldReset)
			g.c.Close()
			g.over("closed", true)
		},
		"nothing was sent": func(g *toldGame) {
			g.c.Abort()
			g.over("aborted", true)
		},
		"the peer has reset it": func(g *toldGame) {
			opened(g)
			g.mux.Receive([]byte(toldReset[2:]))
			g.c.Abort()
			g.over("aborted", true)
		},
		"a clean end": func(g *toldGame) {
			opened(g)
			go g.c.CloseWrite()
			g.read(toldFin)
			g.mux.Receive([]byte(toldFin[2:]))
			g.c.Close()
			g.over("closed", true)
		},
		"the control socket ends": func(g *toldGame) {
			opened(g)
			g.c.Abort()
			g.over("the peer has read nothing", false)
			g.sock.Close()
			g.over("the socket is closed", true)
		},
		"the control socket ends under a frame": func(g *toldGame) {
			time.Sleep(2 * openTime)
			g.c.Abort()
			g.over("the peer has read nothing", false)
			g.mux.End(io.EOF)
			g.over("the socket's reader has ended", false)
			g.sock.Close()
			g.over("the socket is closed", true)
		},
		"the control socket ends, with the reset in the queue": func(g *toldGame) {
			opened(g)
			other, err := g.mux.Open(8, 100, Options{Open: []byte("open")})
			if err != nil {
				g.t.Fatal(err)
			}
			time.Sleep(2 * openTime)
			g.read(toldOpen)
			other.Abort() // its reset is on its way, and what follows waits for that
			synctest.Wait()
			g.c.Abort()
			g.over("the peer has read nothing", false)
			g.mux.End(io.EOF)
			g.over("the socket's reader has ended", true)
		},
		"the control socket has ended": func(g *toldGame) {
			opened(g)
			g.mux.End(io.EOF)
			g.c.Abort()
			g.over("aborted", true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newToldGame(t)
				play(g)
				g.sock.Close()
				g.mux.End(io.EOF)
				g.peer.Close()
			})
		})
	}
}
