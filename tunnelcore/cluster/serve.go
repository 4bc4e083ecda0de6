package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// maxInbound bounds the sockets of peers. With their buffers and goroutines, 16384
	// take about 300 MiB while they carry streams.
	maxInbound = 16384
	// maxUnproved bounds those among them that have proved nothing yet, and proveTime
	// how long one may take for it. When there are more, the oldest goes: a peer proves
	// itself at once, so that strangers who say nothing keep no peer out.
	maxUnproved = 256
	proveTime   = 2 * time.Second
	// sayTime bounds the writing of an answer.
	sayTime = 5 * time.Second
	// waitingEvery is how often a peer is told that its request takes its time.
	waitingEvery = 250 * time.Millisecond
	// serveTime bounds a request, up to its answer.
	serveTime = time.Minute
)

// Serve answers a peer's request at Path. It returns after the upgrade; what follows
// goes on until the peer or the link ends it.
func (l *Link) Serve(w http.ResponseWriter, r *http.Request) {
	g, err := l.admit(r)
	if err == nil {
		err = l.upgrade(w, r, g)
	}
	if err == nil {
		return
	}
	answer := answers.From(err)
	if answer.Code != wire.NotHere {
		l.refuse("peer refused", g.from.ID, r.RemoteAddr, err)
	}
	if !errors.Is(err, errGone) {
		answer.WriteJSON(w)
	}
}

// errGone: the peer left during the upgrade, or the link is closed; nobody is answered.
var errGone = errors.New("the peer left during the upgrade")

// admit decides on a request before the upgrade, and counts a socket if it may come.
func (l *Link) admit(r *http.Request) (g greeting, err error) {
	if len(l.inForce()) == 0 {
		return g, &answers.Error{Code: wire.Unauthorized, Message: "this node has no secret to know its peers by"}
	}
	if g, err = parseGreeting(r.URL.RawQuery); err != nil {
		return g, &answers.Error{Code: wire.BadRequest, Message: err.Error()}
	}
	switch {
	case r.Header.Get("Origin") != "":
		return g, &answers.Error{Code: wire.Forbidden, Message: "this is for nodes, not for browsers"}
	case g.to != l.config.Node:
		return g, &answers.Error{Code: wire.NotHere, Message: "this is another node, or another start of it"}
	case g.from.ID == l.config.Node.ID:
		return g, &answers.Error{Code: wire.BadRequest, Message: "a node has no link to itself"}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.inbound >= maxInbound {
		return g, &answers.Error{Code: wire.Unavailable, Message: "this node takes no more sockets of peers", RetryAfter: time.Second}
	}
	l.inbound++
	return g, nil
}

// upgrade makes a link socket of an admitted request, and a goroutine that serves it.
func (l *Link) upgrade(w http.ResponseWriter, r *http.Request, g greeting) error {
	sock, err := accept.Upgrade(w, r, subprotocol, socket.StreamBuffer, nil)
	if err != nil {
		l.leave()
		var refused *socket.StatusError
		if errors.As(err, &refused) {
			return &answers.Error{Code: wire.BadRequest, Message: string(refused.Body), Cause: err}
		}
		return errors.Join(errGone, err)
	}
	c := &conn{link: l, node: g.from, inbound: true, raw: sock, sock: sock}
	if !l.add(c) {
		sock.Close()
		l.leave()
		return errGone
	}
	go l.serve(c, g, r.RemoteAddr) // add counted it; Close waits for it
	return nil
}

// leave undoes admit.
func (l *Link) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inbound--
}

// serve answers the requests of one socket, one after the other.
func (l *Link) serve(c *conn, g greeting, remote string) {
	defer func() {
		l.leave()
		c.close()
	}()
	message, err := c.prove(g)
	if err != nil {
		if errors.Is(err, errUnproved) {
			l.unprovedCount.Add(1)
		}
		l.refuse("peer refused", g.from.ID, remote, err)
		c.tell(err)
		return
	}
	for {
		q, err := decodeRequest(message)
		if err != nil {
			err = &stray{wire.CloseMalformed, err.Error()}
			l.refuse("peer says what it must not", g.from.ID, remote, err)
			c.tell(err)
			return
		}
		if !l.answerTo(c, q) {
			return
		}
		c.deadline(time.Now().Add(idlePatience))
		text, err := c.text(maxText)
		if err == nil {
			message, err = c.seals.open(text)
		}
		if err != nil {
			c.tell(err)
			return
		}
		if !l.shares(c.secret) {
			return // it was taken out of force
		}
	}
}

// prove challenges the peer, and returns its first message.
func (c *conn) prove(g greeting) ([]byte, error) {
	l := c.link
	defer l.unprovedYet(c)()
	c.deadline(time.Now().Add(proveTime))
	secrets := l.inForce()
	said, all := newChallenge(secrets, g)
	b, err := encode(said)
	if err != nil {
		return nil, err
	}
	if err := c.sock.WriteMessage(socket.Text, b); err != nil {
		return nil, err
	}
	text, err := c.text(maxText)
	if ended := (*socket.CloseError)(nil); errors.As(err, &ended) && ended.Code == closeUnproved {
		return nil, errUnproved // it has found no secret of its own
	}
	if err != nil {
		return nil, err
	}
	for i, s := range all {
		if message, err := s.open(text); err == nil {
			c.seals, c.secret = s, secrets[i]
			return message, nil
		}
	}
	return nil, errUnproved
}

// unprovedYet counts c among those that have proved nothing, until done is called.
func (l *Link) unprovedYet(c *conn) (done func()) {
	l.mu.Lock()
	l.unproved = append(l.unproved, c)
	var oldest *conn
	if len(l.unproved) > maxUnproved {
		oldest = l.unproved[0]
		l.unproved = slices.Delete(l.unproved, 0, 1)
	}
	l.mu.Unlock()
	if oldest != nil {
		oldest.raw.Close()
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if i := slices.Index(l.unproved, c); i >= 0 {
			l.unproved = slices.Delete(l.unproved, i, i+1)
		}
	}
}

// answerTo serves one request, and the stream that may follow; false when the socket
// is of no use any more.
func (l *Link) answerTo(c *conn, q request) (again bool) {
	local := l.config.Local
	switch q.Kind {
	case kindOpen:
		var s *stream.Stream
		err, waits := c.meanwhile(func(ctx context.Context) (err error) {
			s, err = local.DialTunnel(ctx, Open{Device: q.Device, Tunnel: q.Tunnel, Port: q.Port, From: q.From})
			return err
		})
		switch {
		case err != nil:
			return waits && c.say(refusal(err))
		case !waits || !c.say(&answer{Kind: kindAccepted}):
			s.Abort() // nothing was written to it
			return false
		}
		return c.carry(stream.Options{Farewell: farewell}, func(peer *stream.Stream) {
			_, _, _ = stream.Relay(l.ctx, s, peer) // both ends have learned how it went
		})
	case kindAgent:
		if !c.say(&answer{Kind: kindAccepted}) {
			return false
		}
		o := stream.Options{Remote: &net.TCPAddr{IP: q.Remote.AsSlice(), Zone: q.Remote.Zone()}}
		return c.carry(o, func(peer *stream.Stream) {
			local.ServeConn(l.ctx, peer, Agent{Remote: q.Remote, TLS: q.TLS})
		})
	case kindProbe:
		a := &answer{Kind: kindSilent}
		_, waits := c.meanwhile(func(ctx context.Context) error {
			if local.Probe(ctx, q.Device, q.Tunnel) {
				a.Kind = kindAlive
			}
			return nil
		})
		return waits && c.say(a)
	case kindReplaced:
		local.Replaced(registry.Holder{Device: q.Device, Tunnel: q.Tunnel, Generation: q.Generation})
		return c.say(&answer{Kind: kindAccepted})
	default: // info: check has let nothing else through
		return c.say(l.known(q.Device))
	}
}

// known is the answer to info.
func (l *Link) known(device string) *answer {
	v, ok := l.config.Local.Info(device)
	if !ok {
		return refusal(ErrNotHere)
	}
	b, err := json.Marshal(v)
	if err == nil && len(b) > maxInfo {
		err = errors.New("more than 64 KiB")
	}
	if err != nil {
		l.log().Error("what peers may know of a device cannot be told", "device", device, "error", err)
		return refusal(err)
	}
	return &answer{Kind: kindKnown, Info: b}
}

// say sends an answer. The socket is without deadlines after it.
func (c *conn) say(a *answer) bool {
	_ = c.sock.SetWriteDeadline(time.Now().Add(sayTime)) // fails only on a closed socket
	err := c.send(a)
	c.deadline(time.Time{})
	return err == nil
}

// carry makes a stream of the socket for use, and waits until it is over; true when
// the socket is between two requests then.
func (c *conn) carry(o stream.Options, use func(*stream.Stream)) (clean bool) {
	over := make(chan struct{})
	s := c.begin(o, func() { clean = true }, func() { close(over) })
	use(s)
	<-over
	return clean
}

// waiting tells a peer now and then that its request takes its time.
type waiting struct {
	c      *conn
	cancel context.CancelFunc

	mu    sync.Mutex // held while it writes
	timer *time.Timer
	over  bool // it says nothing any more
	gone  bool // the peer does not wait
}

// meanwhile calls f, and waits reports whether the peer still waits for the answer, and
// gets one: when not, ctx ends.
func (c *conn) meanwhile(f func(ctx context.Context) error) (err error, waits bool) {
	ctx, cancel := context.WithTimeout(c.link.ctx, serveTime)
	defer cancel()
	w := &waiting{c: c, cancel: cancel}
	w.mu.Lock()
	w.timer = time.AfterFunc(waitingEvery, w.tell)
	w.mu.Unlock()
	err = f(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
	return err, !w.gone && c.link.ctx.Err() == nil
}

func (w *waiting) tell() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	// Nothing is to come from a peer that waits: neither bytes nor an end.
	if !w.c.sock.Quiet() || !w.c.say(&answer{Kind: kindWaiting}) {
		w.over, w.gone = true, true
		w.cancel()
		return
	}
	w.timer.Reset(waitingEvery)
}
