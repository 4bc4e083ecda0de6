package stream

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// Many streams at once do random things on one control socket, get transfer
// sockets at random moments, new or parked ones, or never, and the control socket
// may end at any time. Whatever happens, what one end reads is a prefix of what
// the other wrote, and all of it when it reads an end; and when nobody aborts,
// and no socket ends, everything arrives.
func TestMuxModel(t *testing.T) {
	rounds := 9
	if testing.Short() {
		rounds = 3
	}
	for seed := range rounds {
		for _, transport := range ends.Transports {
			for _, kind := range []string{"early", "reuse", "inline"} {
				t.Run(fmt.Sprint(transport, "/", kind, "/", seed), func(t *testing.T) {
					rng := rand.New(rand.NewPCG(uint64(seed), 11))
					g := &game{
						link:  newLink(t, transport, MuxOptions{Inline: kind == "inline"}, kind == "reuse"),
						calm:  seed%3 == 0,
						kills: seed%3 == 1,
					}
					ends.Within(t, "model", func() { g.play(rng) })
				})
			}
		}
	}
}

// game is one run of the model.
type game struct {
	link  *link
	calm  bool // nobody aborts, and nothing breaks
	kills bool // the control socket ends

	mu   sync.Mutex
	ends map[*socket.Socket]*socket.Socket // the edge's of each transfer socket, by the agent's
}

func (g *game) play(rng *rand.Rand) {
	l := g.link
	g.ends = make(map[*socket.Socket]*socket.Socket)
	var wg sync.WaitGroup
	for range 1 + rng.IntN(12) {
		credits := []int{0, 1, 50, 1000, 5000, 64 << 10}
		if l.agent.mux.opts.Inline {
			credits = credits[3:] // each window costs a round trip
		}
		credit := credits[rng.IntN(len(credits))]
		seed := rng.Uint64()
		edge, n := l.openOr(credit)
		if edge == nil {
			break
		}
		wg.Go(func() { g.stream(edge, n, rand.New(rand.NewPCG(seed, 3))) })
		if rng.IntN(3) == 0 {
			stall(rng, 500)
		}
	}
	if g.kills {
		stall(rng, 5000)
		[]*muxEnd{l.edge, l.agent}[rng.IntN(2)].sock.Close()
	}
	wg.Wait()
	for a, b := range g.ends { // what is parked, or was never used
		a.Close()
		b.Close()
	}
}

// openOr is open, or nil when the control socket has ended.
func (l *link) openOr(credit int) (*Stream, uint32) {
	select {
	case <-l.edge.over:
		return nil, 0
	default:
	}
	defer func() { _ = recover() }() // t.Fatal is not for here; see open
	return l.open(credit)
}

// stream plays one stream.
func (g *game) stream(edge *Stream, n uint32, rng *rand.Rand) {
	l, t := g.link, g.link.t
	var agent *Stream
	opened := l.agent.waiting(l.agent.opened, n)
	var all sync.WaitGroup
	m := &model{t: t.(*testing.T)}
	seeds := [2]uint64{rng.Uint64(), rng.Uint64()}
	attaches, early, eager := rng.IntN(4) > 0, time.Duration(rng.IntN(3000))*time.Microsecond, rng.IntN(3) == 0
	delays := [2]time.Duration{time.Duration(rng.IntN(800)) * time.Microsecond, time.Duration(rng.IntN(800)) * time.Microsecond}
	g.end(m, &all, edge, 0, seeds[0])
	select {
	case agent = <-opened:
	case <-l.agent.over:
	case <-edge.Unwanted(): // aborted before `open` was sent, or all is over already
		select {
		case agent = <-opened:
		case <-l.agent.over:
		case <-time.After(20 * time.Millisecond):
		}
	}
	if agent == nil {
		edge.Abort()
		all.Wait()
		return
	}
	g.end(m, &all, agent, 1, seeds[1])
	if !l.agent.mux.opts.Inline {
		all.Go(func() {
			moment := time.After(early)
			if !eager {
				moment = nil
			}
			select {
			case <-moment:
			case <-l.agent.waiting(l.agent.wanted, n):
				if !attaches && !g.calm {
					return // starves, if it must
				}
			case <-agent.Unwanted():
				return
			}
			g.attach(edge, agent, delays)
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	if !attaches && !g.calm {
		select {
		case <-done:
		case <-time.After(50 * time.Millisecond):
		}
		edge.Abort()
		agent.Abort()
	}
	<-done
	edge.Abort()
	agent.Abort()
	m.check()
	if g.calm {
		for from := range 2 {
			if m.readErr[from] != io.EOF || m.read[from] != m.sure[from] {
				t.Errorf("stream %d: of %d bytes of end %d %d were read, then %v", n, m.sure[from], from, m.read[from], m.readErr[from])
			}
		}
	}
}

// end is model's, but calm if it has to be.
func (g *game) end(m *model, wg *sync.WaitGroup, c net.Conn, end int, seed uint64) {
	m.calm = g.calm
	m.end(wg, c, nil, end, seed)
}

// attach gives the stream a socket, a parked one if there is one, to both ends in
// their own time.
func (g *game) attach(edge, agent *Stream, delays [2]time.Duration) {
	a, e := g.socket()
	var wg sync.WaitGroup
	for i, end := range []struct {
		c *Stream
		s *socket.Socket
	}{{edge, e}, {agent, a}} {
		wg.Go(func() {
			<-time.After(delays[i])
			_ = end.c.Attach(end.s) // the stream may be over
		})
	}
	wg.Wait()
}

// socket is a pair of ends of a transfer socket. A parked one is used when both
// ends have parked it.
func (g *game) socket() (agent, edge *socket.Socket) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.link
	for len(l.edge.parked) > 0 && len(l.agent.parked) > 0 {
		a := <-l.agent.parked
		e, ok := g.ends[a]
		if !ok {
			a.Close()
			continue
		}
		for range len(l.edge.parked) {
			s := <-l.edge.parked
			if s == e {
				return a, e
			}
			l.edge.parked <- s
		}
		l.agent.parked <- a
		break
	}
	agent, edge = l.transfer()
	g.ends[agent] = edge
	return agent, edge
}
