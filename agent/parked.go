package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// maxParked bounds the parked transfer sockets of a tunnel.
	maxParked = 8
	// parkedTime is how long one is kept. The edge closes it before that, unless it
	// has gone without a word.
	parkedTime = 30 * time.Second
)

// parking holds the parked transfer sockets of one tunnel: whole and idle, for
// the next stream that lasts (protocol §11). Its methods may be called
// concurrently.
type parking struct {
	wg *sync.WaitGroup // of the sockets' readers

	mu     sync.Mutex // guards what follows
	socks  []*parked  // the last one was parked last
	closed bool
}

// parked is a socket with a reader that sees its end, or what it was taken for.
type parked struct {
	sock  *socket.Socket
	reply chan reply // buffered: of one that was taken
	taken bool       // guarded by parking.mu
}

type reply struct {
	attached *wire.Attached
	err      error
}

var (
	errUnattached = errors.New("the edge has not attached the parked socket")
	errBroken     = errors.New("something else than attached has come")
)

// put parks a socket, or closes it when there is no room.
func (p *parking) put(sock *socket.Socket) {
	k := &parked{sock: sock, reply: make(chan reply, 1)}
	until := time.Now().Add(parkedTime)
	_, _ = sock.SetReadDeadline(until), sock.SetWriteDeadline(time.Time{}) // fails only on a closed socket
	p.mu.Lock()
	room := !p.closed && len(p.socks) < maxParked
	if room {
		p.socks = append(p.socks, k)
	}
	p.mu.Unlock()
	p.wg.Go(func() {
		if !room {
			leave(sock, wire.CloseNormal)
			return
		}
		p.watch(k)
	})
}

// leave closes a socket that carries nothing any more.
func leave(sock *socket.Socket, code int) {
	_ = sock.WriteClose(code, "", closeTime) // an edge that has gone needs no goodbye
	sock.Close()
}

// watch reads a parked socket, on which the edge says nothing before it is taken.
func (p *parking) watch(k *parked) {
	r := k.read()
	p.mu.Lock()
	taken := k.taken
	p.socks = slices.DeleteFunc(p.socks, func(o *parked) bool { return o == k })
	p.mu.Unlock()
	if taken {
		k.reply <- r
		return
	}
	leave(k.sock, farewell(r.err))
}

// read waits for what an edge may say on a parked socket (protocol §11.5).
func (k *parked) read() reply {
	for {
		op, text, err := k.sock.ReadMessage(wire.MaxFlat)
		if err != nil {
			return reply{err: err}
		}
		if op != socket.Text {
			return reply{err: errBroken}
		}
		m, err := wire.Decode(text)
		if errors.Is(err, wire.ErrUnknownMessage) {
			continue
		}
		if attached, ok := m.(*wire.Attached); ok {
			return reply{attached: attached}
		}
		return reply{err: errBroken}
	}
}

// farewell is the close code after err.
func farewell(err error) int {
	if err == nil || errors.Is(err, errBroken) {
		return wire.CloseMalformed // attached, to nobody who asked
	}
	return wire.CloseNormal
}

// take returns the socket that was parked last, nil if there is none.
func (p *parking) take() *parked {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.socks) - 1
	if last < 0 {
		return nil
	}
	k := p.socks[last]
	p.socks[last], p.socks = nil, p.socks[:last]
	k.taken = true
	return k
}

// attach gives k, which was taken, to a stream. Its socket is nobody's when that
// fails: it is closed.
func (k *parked) attach(ctx context.Context, o *wire.Open, limit time.Duration) (*socket.Socket, error) {
	until := time.Now().Add(limit)
	_, _ = k.sock.SetReadDeadline(until), k.sock.SetWriteDeadline(until) // fails only on a closed socket
	stop := context.AfterFunc(ctx, func() { k.sock.Close() })
	err := k.sock.WriteMessage(socket.Text, wire.Encode(&wire.Attach{Stream: o.Stream, ID: o.ID}))
	if err != nil {
		k.sock.Close() // and its reader ends
	}
	r := <-k.reply
	switch {
	case !stop():
		return nil, ctx.Err() // and it is closed, or about to be
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errUnattached, err)
	case r.err == nil && r.attached.Stream != o.Stream:
		r.err = errBroken
	}
	if r.err == nil {
		_, _ = k.sock.SetReadDeadline(time.Time{}), k.sock.SetWriteDeadline(time.Time{}) // as above
		return k.sock, nil
	}
	if errors.Is(r.err, errBroken) {
		leave(k.sock, wire.CloseMalformed)
	} else {
		k.sock.Close()
	}
	if errors.Is(r.err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("%w within %v", errUnattached, limit)
	}
	return nil, fmt.Errorf("%w: %w", errUnattached, r.err)
}

// drop closes what is parked: its secret is not the tunnel's any more.
func (p *parking) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.socks {
		_ = k.sock.SetReadDeadline(time.Unix(1, 0)) // its reader closes it
	}
	p.socks = nil
}

// close is drop for good: nothing is parked any more.
func (p *parking) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.drop()
}
