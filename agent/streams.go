package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stacks"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// streams are the visitors' connections of one Run, across all its tunnels.
type streams struct {
	agent *Agent
	ctx   context.Context // ends with the grace
	abort context.CancelFunc
	wg    sync.WaitGroup // of all goroutines here, streams that linger included

	mu      sync.Mutex // guards what follows
	count   int
	sockets map[*stream.Stream]*visit // nil of those that began on a transfer socket
	leaving bool                      // Run's context has ended
	over    bool                      // the grace
	refused map[uint16]*complaint
}

func newStreams(a *Agent) *streams {
	s := &streams{agent: a, sockets: make(map[*stream.Stream]*visit), refused: make(map[uint16]*complaint)}
	s.ctx, s.abort = context.WithCancel(context.Background())
	return s
}

// slack is what the edge may be ahead: to it a stream may be over a moment before
// it is here.
func slack(limit int) int { return 8 + limit/8 }

// open serves an `open` of t in a goroutine, or refuses it. The error says how the
// edge broke the protocol.
func (s *streams) open(t *tunnel, o *wire.Open) error {
	f, ok := s.agent.forward(o.Port)
	if !ok {
		t.refuse(o, fmt.Sprintf("port %d is not forwarded", o.Port))
		return nil
	}
	limit := s.agent.cfg.Streams
	s.mu.Lock()
	leaving, room := s.leaving, s.count < limit+slack(limit)
	room = room && !leaving
	if room {
		s.count++
	}
	s.mu.Unlock()
	switch {
	case leaving:
		t.refuse(o, "the agent stops")
		return nil
	case !room:
		t.refuse(o, "busy: "+strconv.Itoa(limit)+" streams are open")
		return nil
	}
	done := func() {
		s.mu.Lock()
		s.count--
		s.mu.Unlock()
	}
	if t.mux != nil {
		return s.begin(t, o, f, done)
	}
	s.wg.Go(func() {
		stacks.Grow8K()
		s.serve(t, o, f, done)
	})
	return nil
}

// debug logs what happens to the stream of o.
func (s *streams) debug(o *wire.Open, message string, args ...any) {
	if log := s.agent.log; log.Enabled(s.ctx, slog.LevelDebug) {
		log.Debug(message, append([]any{"port", o.Port, "stream", o.Stream, "visitor", o.From}, args...)...)
	}
}

// serve joins a visitor and the target of f, and calls done when that is over.
func (s *streams) serve(t *tunnel, o *wire.Open, f Forward, done func()) {
	from := visitor(o.From)
	local, remote, err := s.dial(t, o, f, from)
	var refused *RefusedError
	switch {
	case err == nil:
	case errors.As(err, &refused) && refused.Status == statusNotFound:
		// The visitor has left, or has waited too long.
		s.debug(o, "no transfer socket", "error", err)
		done()
		return
	default:
		t.refuse(o, reason(err))
		s.complain(o.Port, err)
		done()
		return
	}
	a := stream.New(remote, stream.Options{
		MessageMax: wire.BulkMessage,
		Remote:     net.TCPAddrFromAddrPort(from),
		Owner:      &s.wg,
		Closed:     s.forget,
	})
	s.remember(a, nil)
	s.relay(o, a, local, done)
}

// relay joins a and local, in a goroutine of its own: the caller's stack has grown
// as it dialled, and would stay so for as long as the stream lives.
func (s *streams) relay(o *wire.Open, a *stream.Stream, local net.Conn, done func()) {
	s.wg.Go(func() {
		stacks.Grow4K()
		defer done()
		up, down, err := stream.Relay(s.ctx, a, local)
		s.debug(o, "stream over", "from_visitor", up, "to_visitor", down, "error", err)
	})
}

// dial connects to the target and, at the same time, to the edge. The request for
// the transfer socket is sent once the target has answered, so that nobody gets a
// stream that leads nowhere.
func (s *streams) dial(t *tunnel, o *wire.Open, f Forward, from netip.AddrPort) (net.Conn, *socket.Socket, error) {
	ctx, cancel := context.WithTimeoutCause(s.ctx, transferTimeout, fmt.Errorf("no answer within %v", transferTimeout))
	defer cancel()
	var conn net.Conn
	var connErr error
	var wg sync.WaitGroup
	wg.Go(func() { conn, connErr = s.agent.dialer.connect(ctx, t.route, 0, nil) })
	local, err := s.agent.dialTarget(ctx, f, from)
	if err != nil {
		cancel()
	}
	wg.Wait()
	switch {
	case err != nil:
		if conn != nil {
			conn.Close()
		}
		return nil, nil, &targetError{f, err}
	case connErr != nil:
		local.Close()
		return nil, nil, &transferError{connErr}
	}
	u, secret, err := t.transfer(o.ID)
	if err == nil {
		var sock *socket.Socket
		if sock, err = upgrade(ctx, conn, u, secret, socket.StreamBuffer); err == nil {
			return local, sock, nil
		}
	} else {
		conn.Close()
	}
	local.Close()
	return nil, nil, &transferError{err}
}

// targetError and transferError tell which side of a stream is missing.
type targetError struct {
	forward Forward
	err     error
}

func (e *targetError) Error() string {
	if e.forward.Target == "" {
		return "service: " + e.err.Error()
	}
	return "service at " + e.forward.Target + ": " + e.err.Error()
}
func (e *targetError) Unwrap() error { return e.err }

type transferError struct{ err error }

func (e *transferError) Error() string { return "transfer socket: " + e.err.Error() }
func (e *transferError) Unwrap() error { return e.err }

// reason is err in a few words, without the addresses of the device's network.
func reason(err error) string {
	var target *targetError
	var dns *net.DNSError
	var errno syscall.Errno
	var timeout interface{ Timeout() bool }
	text := err.Error()
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		text = "no answer in time"
	case errors.As(err, &dns):
		text = "name not found"
	case errors.As(err, &errno):
		text = errno.Error()
	case errors.As(err, &target):
		text = target.err.Error()
	}
	return text
}

// complaint keeps a log readable that visitors can write to.
type complaint struct {
	last   time.Time
	silent int
}

// complainEvery is the least time between two lines about one port.
const complainEvery = 10 * time.Second

func (s *streams) complain(port uint16, err error) {
	s.mu.Lock()
	c := s.refused[port]
	if c == nil {
		c = new(complaint)
		s.refused[port] = c
	}
	now := time.Now()
	if !c.last.IsZero() && now.Sub(c.last) < complainEvery {
		c.silent++
		s.mu.Unlock()
		return
	}
	silent := c.silent
	*c = complaint{last: now}
	s.mu.Unlock()
	s.agent.log.LogAttrs(s.ctx, slog.LevelWarn, "visitor refused",
		slog.Int("port", int(port)), slog.Any("error", err), slog.Int("more_before", silent))
}

func (s *streams) remember(a *stream.Stream, v *visit) {
	s.mu.Lock()
	s.sockets[a] = v
	over := s.over
	s.mu.Unlock()
	if over {
		a.Abort()
	}
}

func (s *streams) forget(a *stream.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sockets, a)
}

// leave refuses new streams from now on.
func (s *streams) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
}

// shutdown lets streams go on until a time, aborts what is left and waits for it.
// No open may come any more.
func (s *streams) shutdown(until time.Time) {
	limit := time.AfterFunc(time.Until(until), s.cut)
	defer limit.Stop()
	s.wg.Wait()
	s.abort()
}

// cut aborts all streams.
func (s *streams) cut() {
	s.mu.Lock()
	s.over = true
	left := make([]*stream.Stream, 0, len(s.sockets))
	for a := range s.sockets {
		left = append(left, a)
	}
	s.mu.Unlock()
	s.abort()
	for _, a := range left {
		a.Abort() // also those that linger
	}
}

// number is how many streams there are.
func (s *streams) number() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}
