package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// subprotocol is the value of Sec-WebSocket-Protocol.
const subprotocol = "iottunnel.link.v1"

const (
	// answerTime is how long a peer may say nothing to a request, connecting included.
	answerTime = time.Second
	// staleTime is after how much of that a socket from the pool must have arrived.
	staleTime = 400 * time.Millisecond
	// waitTime bounds the wait for a peer that says that it is at it; peers give up
	// sooner (see serveTime).
	waitTime = 90 * time.Second
)

// call sends a request to p, on a socket from the pool if one is alive, and returns
// the answer, and the socket, which is the caller's. Errors are ErrNotHere, ErrAway,
// *SilentError among them, and that of ctx.
func (l *Link) call(ctx context.Context, p Peer, q *request) (*conn, *answer, error) {
	if err := q.check(); err != nil {
		return nil, nil, fmt.Errorf("cluster: %w", err)
	}
	if err := l.silent(p); err != nil {
		return nil, nil, err
	}
	began := time.Now()
	if c := l.parked(p.NodeRef); c != nil {
		a, err := c.ask(ctx, q, true, time.Now().Add(l.patience.answer))
		if err == nil {
			return c, a, nil
		}
		c.close()
		if !errors.Is(err, errStale) {
			return nil, nil, l.away(ctx, p, began, err)
		}
		l.dropParked(p.NodeRef) // those that were used longer ago are hardly better
	}
	c, by, err := l.reach(ctx, p)
	if err != nil {
		return nil, nil, l.away(ctx, p, began, err)
	}
	a, err := c.ask(ctx, q, false, by)
	if err != nil {
		c.close()
		return nil, nil, l.away(ctx, p, began, err)
	}
	return c, a, nil
}

// away turns what went wrong with a request that began then into what the caller can
// decide on. What it was stays text: a time-out on the way to a peer is none of the device's.
func (l *Link) away(ctx context.Context, p Peer, began time.Time, err error) error {
	var refused *socket.StatusError
	var ended *socket.CloseError
	unproved := errors.Is(err, errUnproved)
	if errors.As(err, &refused) {
		if refused.Status == http.StatusMisdirectedRequest {
			return ErrNotHere
		}
		unproved = refused.Status == http.StatusUnauthorized
	}
	if errors.As(err, &ended) && ended.Code == closeUnproved {
		unproved = true
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if unproved {
		l.refuse("peer and this node have no secret in common", p.ID, p.Internal, err)
	}
	if late(err) {
		l.attend(p, true)
		return &SilentError{began}
	}
	return fmt.Errorf("%w: %v", ErrAway, err)
}

var errNoSecret = errors.New("cluster: no secret is set")

// reach opens a link socket, up to where the peer has proved itself, and says until
// when it may answer to a first request.
func (l *Link) reach(ctx context.Context, p Peer) (*conn, time.Time, error) {
	if len(l.inForce()) == 0 {
		return nil, time.Time{}, errNoSecret
	}
	done, err := l.place(ctx, p.NodeRef)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer done()
	by := time.Now().Add(l.patience.answer) // so many at once are not the peer's fault
	ctx, cancel := context.WithDeadline(ctx, by)
	defer cancel()
	c, err := l.connectTo(ctx, p, by)
	return c, by, err
}

// connectTo is reach for who has a place, or needs none. ctx ends by then.
func (l *Link) connectTo(ctx context.Context, p Peer, by time.Time) (*conn, error) {
	secrets := l.inForce()
	if len(secrets) == 0 {
		return nil, errNoSecret
	}
	raw, err := l.connect(ctx, "tcp", p.Internal)
	if err != nil {
		return nil, err
	}
	c := &conn{link: l, node: p.NodeRef, raw: raw}
	if !l.add(c) {
		raw.Close()
		return nil, net.ErrClosed
	}
	if err := c.greet(ctx, raw, p, secrets, by); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// greet makes the handshake on raw.
func (c *conn) greet(ctx context.Context, raw net.Conn, p Peer, secrets []string, by time.Time) error {
	g := greeting{from: c.link.config.Node, to: p.NodeRef, nonce: wire.NewID()}
	u := &url.URL{Scheme: "http", Host: p.Internal, Path: Path, RawQuery: g.query()}
	sock, err := socket.Dial(ctx, raw, u, nil, subprotocol, socket.AnswerBuffer)
	if err != nil {
		return err
	}
	c.link.mu.Lock()
	c.sock = sock
	c.link.mu.Unlock()
	stop := c.hurry(ctx, by)
	text, err := c.text(maxText)
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	said, err := decodeChallenge(text)
	if err == nil {
		c.seals, c.secret, err = proved(secrets, g, said)
	}
	if err != nil {
		c.tell(err)
	}
	return err
}

// Dial opens a stream of a tunnel on the peer p, for which it waits a second for p's
// word, and while p says that it is at it. Nothing was sent to the device when it
// fails: with ErrNotHere, ErrAway, the error of ctx, or the *answers.Error that
// DialTunnel has failed with there.
//
// The stream's reads and writes fail as those of a stream of p's do, *answers.Error,
// stream.ErrLost and stream.ErrUnsent included. If it is the link that breaks, or p that
// says nothing more, it is device_offline with stream.ErrLost.
func (l *Link) Dial(ctx context.Context, p Peer, o Open) (*stream.Stream, error) {
	return l.open(ctx, p, &request{Kind: kindOpen, Device: o.Device, Tunnel: o.Tunnel, Port: o.Port, From: o.From}, stream.Options{Why: why})
}

// Pass returns a connection to ServeConn of the peer p. It fails as Dial does.
func (l *Link) Pass(ctx context.Context, p Peer, a Agent) (net.Conn, error) {
	s, err := l.open(ctx, p, &request{Kind: kindAgent, Remote: a.Remote, TLS: a.TLS}, stream.Options{})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (l *Link) open(ctx context.Context, p Peer, q *request, o stream.Options) (*stream.Stream, error) {
	c, a, err := l.call(ctx, p, q)
	if err != nil {
		return nil, err
	}
	if a.Kind == kindRefused {
		l.park(c)
		return nil, a.err()
	}
	clean := false
	l.streams.Add(1)
	s := c.begin(o, func() { clean = true; l.park(c) }, func() {
		l.streams.Add(-1)
		if !clean {
			c.close()
		}
	})
	l.attend(p, false)
	return s, nil
}

// ask is call for requests that no stream follows.
func (l *Link) ask(ctx context.Context, p Peer, q *request) (*answer, error) {
	c, a, err := l.call(ctx, p, q)
	if err != nil {
		return nil, err
	}
	l.park(c)
	if a.Kind == kindRefused {
		return nil, a.err()
	}
	return a, nil
}

// Probe asks p whether the agent of a tunnel is alive, for as long as that takes there.
// It fails as Dial does.
func (l *Link) Probe(ctx context.Context, p Peer, device, tunnel string) (alive bool, err error) {
	a, err := l.ask(ctx, p, &request{Kind: kindProbe, Device: device, Tunnel: tunnel})
	if err != nil {
		return false, err
	}
	return a.Kind == kindAlive, nil
}

// Replaced tells p that the tunnel of h has replaced one of p's. It fails as Dial does.
func (l *Link) Replaced(ctx context.Context, p Peer, h registry.Holder) error {
	_, err := l.ask(ctx, p, &request{Kind: kindReplaced, Device: h.Device, Tunnel: h.Tunnel, Generation: h.Generation})
	return err
}

// Info asks p what it knows of a device. It fails as Dial does.
func (l *Link) Info(ctx context.Context, p Peer, device string) (json.RawMessage, error) {
	a, err := l.ask(ctx, p, &request{Kind: kindInfo, Device: device})
	if err != nil {
		return nil, err
	}
	return a.Info, nil
}
