//go:build !race

package stream

import (
	"io"
	"testing"
)

// What flows costs no allocation: on the control socket, with credit given back,
// and on the transfer socket after it.
func TestMuxAllocations(t *testing.T) {
	for _, kind := range []string{"early", "inline", "moved"} {
		t.Run(kind, func(t *testing.T) {
			l := newLink(t, "tcp", MuxOptions{Inline: kind == "inline"}, false)
			edge, agent := l.pair(1 << 20)
			if kind == "moved" {
				l.attach(edge, agent)
			}
			request, answer, in := make([]byte, 500), make([]byte, 1500), make([]byte, 2000)
			exchange := func() {
				for _, step := range []struct {
					from, to *Stream
					p        []byte
				}{{edge, agent, request}, {agent, edge, answer}} {
					if _, err := step.from.Write(step.p); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(step.to, in[:len(step.p)]); err != nil {
						t.Fatal(err)
					}
				}
			}
			exchange()
			if n := testing.AllocsPerRun(200, exchange); n > 0 {
				t.Errorf("%v allocations for a request and its answer", n)
			}
		})
	}
}

// A stream that never leaves the control socket costs a handful.
func TestStreamAllocations(t *testing.T) {
	l := newLink(t, "tcp", MuxOptions{}, false)
	in, agents := make([]byte, 10), make(chan *Stream)
	var number uint32
	l.agent.text = func(m []byte) {
		c, err := l.agent.mux.Open(number, 1000, Options{Owner: &l.agent.owner, Wanted: func(*Stream) {}})
		if err != nil {
			t.Error(err)
		}
		agents <- c
	}
	n := testing.AllocsPerRun(200, func() {
		number++
		edge, err := l.edge.mux.Open(number, 1000, Options{Owner: &l.edge.owner, Open: []byte("open")})
		if err != nil {
			t.Fatal(err)
		}
		edge.Write(in)
		edge.CloseWrite()
		agent := <-agents
		if _, err := io.ReadFull(agent, in); err != nil {
			t.Fatal(err)
		}
		if _, err := agent.Read(in); err != io.EOF {
			t.Fatal(err)
		}
		agent.CloseWrite()
		if _, err := edge.Read(in); err != io.EOF {
			t.Fatal(err)
		}
		edge.Close()
		agent.Close()
	})
	t.Logf("%v allocations", n)
	if n > 8 {
		t.Errorf("%v allocations for both ends of a stream", n)
	}
}
