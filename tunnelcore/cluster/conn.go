package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// conn is a link socket, in either direction. It belongs to whoever talks on it, or
// to the pool; stream and over are Link.mu's.
type conn struct {
	link    *Link
	node    registry.NodeRef // at the other end
	inbound bool             // the peer has opened it
	raw     io.Closer        // ends it at once
	sock    *socket.Socket   // nil before its handshake
	seals   *seals
	secret  string // that the two ends have found to share

	stream  *stream.Stream // that it carries; nil between two
	over    bool           // it is to carry none any more
	since   time.Time      // when it was parked
	unheard int            // tend's: times in a row that nothing was acknowledged
	pinging atomic.Bool    // the stream is pinged just now
}

// stray is an error of a message that is not what it should be: code and text are for
// the peer, too.
type stray struct {
	code int
	text string
}

func (e *stray) Error() string { return "cluster: the peer said something else: " + e.text }

// send seals message and sends it.
func (c *conn) send(message any) error {
	b, err := encode(message)
	if err != nil {
		return err
	}
	return c.sock.WriteMessage(socket.Text, c.seals.seal(b))
}

// text reads a text of at most limit bytes. Besides errors of the socket it is a
// *stray.
func (c *conn) text(limit int) ([]byte, error) {
	op, text, err := c.sock.ReadMessage(limit)
	switch {
	case errors.Is(err, socket.ErrTooBig):
		return nil, &stray{wire.CloseTooBig, fmt.Sprintf("a message of more than %d bytes", limit)}
	case err != nil:
		return nil, err
	case op != socket.Text:
		return nil, &stray{wire.CloseMalformed, "a binary message between two streams"}
	}
	return text, nil
}

// tell ends the socket so that the peer reads why err has happened, if it can be told.
func (c *conn) tell(err error) {
	var s *stray
	switch {
	case errors.As(err, &s):
	case errors.Is(err, errUnproved):
		s = &stray{closeUnproved, errUnproved.Error()}
	default:
		return
	}
	_ = c.sock.WriteClose(s.code, s.text, time.Second) // the peer is faulty
}

// deadline bounds reads and writes. It fails only on a socket that is closed.
func (c *conn) deadline(t time.Time) { _, _ = c.sock.SetReadDeadline(t), c.sock.SetWriteDeadline(t) }

// hurry bounds reads and writes by t, and by ctx until stop is called, which says
// whether ctx has let the socket be.
func (c *conn) hurry(ctx context.Context, t time.Time) (stop func() bool) {
	c.deadline(t)
	return context.AfterFunc(ctx, func() { c.deadline(time.Unix(1, 0)) })
}

// errStale: a socket from the pool was dead.
var errStale = errors.New("cluster: the socket had ended")

// ask sends a request and waits for the answer until by, or as long as the peer says
// that it is at it. Of a socket that was parked it finds out sooner whether it is
// alive: errStale says that it was not. After an error the socket is of no use.
func (c *conn) ask(ctx context.Context, q *request, parked bool, by time.Time) (*answer, error) {
	first := by
	if soon := time.Now().Add(staleTime); parked && soon.Before(by) {
		first = soon
	}
	stop := c.hurry(ctx, first)
	a, err := c.asked(ctx, q, parked, first, by)
	if !stop() {
		return nil, ctx.Err()
	}
	if err == nil {
		c.deadline(time.Time{})
	}
	return a, err
}

func (c *conn) asked(ctx context.Context, q *request, parked bool, first, by time.Time) (*answer, error) {
	if err := c.send(q); err != nil {
		if parked {
			return nil, errStale
		}
		return nil, err
	}
	limit, heard, last := maxText, false, time.Now().Add(waitTime)
	if q.Kind == kindInfo {
		limit += maxInfo
	}
	for {
		text, err := c.text(limit)
		late := errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case err == nil:
		case late && !heard && first.Before(by):
			if answered, known := c.sock.Acknowledged(0); !known || !answered {
				return nil, errStale
			}
			first = by // it has arrived: the peer is slow
			if err := c.extend(ctx, by); err != nil {
				return nil, err
			}
			continue
		case late:
			return nil, errLate
		case parked && !heard && !errors.As(err, new(*stray)):
			return nil, errStale
		default:
			c.tell(err)
			return nil, err
		}
		a, err := c.answer(text, q.Kind)
		if err != nil {
			c.tell(err)
			return nil, err
		}
		if a.Kind != kindWaiting {
			return a, nil
		}
		heard = true
		next := time.Now().Add(c.link.patience.answer)
		if next.After(last) {
			return nil, errLate
		}
		if err := c.extend(ctx, next); err != nil {
			return nil, err
		}
	}
}

// errLate: the peer has not answered in time.
var errLate = errors.New("cluster: no answer in time")

// extend lets reads go on until t; ctx may have ended, and its deadline be undone.
func (c *conn) extend(ctx context.Context, t time.Time) error {
	_ = c.sock.SetReadDeadline(t) // as deadline
	return ctx.Err()
}

// answer is what text says, if it fits a request of that kind.
func (c *conn) answer(text []byte, of kind) (*answer, error) {
	message, err := c.seals.open(text)
	if err != nil {
		return nil, err
	}
	a, err := decodeAnswer(message)
	if err != nil {
		return nil, &stray{wire.CloseMalformed, err.Error()}
	}
	fits := false
	switch a.Kind {
	case kindWaiting, kindRefused:
		fits = true
	case kindAccepted:
		fits = of == kindOpen || of == kindAgent || of == kindReplaced
	case kindAlive, kindSilent:
		fits = of == kindProbe
	case kindKnown:
		fits = of == kindInfo
	}
	if !fits {
		return nil, &stray{wire.CloseMalformed, fmt.Sprintf("%s to %s", a.Kind, of)}
	}
	return a, nil
}

// begin makes a stream of the socket. When it is over, parked is called if both
// directions have ended, then closed, whatever has happened.
func (c *conn) begin(o stream.Options, parked func(), closed func()) *stream.Stream {
	l := c.link
	o.Owner = &l.wg
	o.Parked = func(*socket.Socket) {
		l.mu.Lock()
		c.stream = nil
		l.mu.Unlock()
		parked()
	}
	o.Closed = func(*stream.Stream) { closed() }
	s := stream.New(c.sock, o)
	l.mu.Lock()
	c.stream = s
	over := c.over
	l.mu.Unlock()
	if over {
		s.AbortFor(lost(net.ErrClosed))
	}
	return s
}

// close ends the socket, and the link does not know it any more.
func (c *conn) close() {
	c.raw.Close()
	c.link.remove(c)
}
