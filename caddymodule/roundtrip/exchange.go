package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"sync"
	"time"
)

// patience is how long a request without a body waits for its answer before it is
// looked whether its visitor has left: most are answered sooner, and need not look.
const patience = 100 * time.Millisecond

// Call says how a request is to be sent.
type Call struct {
	// Port tells the services of the pool's device apart.
	Port uint16
	// Dialer makes new connections.
	Dialer Dialer
	// Alone gives the request a connection of its own, which is closed after it. A
	// request with a body has one in any case: it may have an effect, and a
	// connection that has served before could be ending just now (RFC 9110 §9.2.2).
	Alone bool
	// Timeout bounds the time from the end of the request to the header of its
	// answer; 0: no bound. When it is over, the error is os.ErrDeadlineExceeded.
	Timeout time.Duration
}

// maxTries bounds the connections that one request may use up.
const maxTries = 3

// heads are buffers for requests.
var heads = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// maxPooledHead is what is kept in heads.
const maxPooledHead = 16 << 10

// RoundTrip sends r and returns the answer. It is as of http.RoundTripper, save
// that r.Trailer may change until the body has been read.
//
// A request that may use a kept connection is sent again on a new one when the
// kept one turns out to have ended, or to have said something before. All else is
// the dialer's to decide. The body of a 101 is an io.ReadWriteCloser with
// CloseWrite.
func (p *Pool) RoundTrip(r *http.Request, c Call) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		closeBody(r)
		return nil, err
	}
	b, err := bodyOf(r)
	if err != nil {
		return nil, err
	}
	alone := c.Alone || b.length != 0
	out := heads.Get().(*[]byte)
	defer func() {
		if cap(*out) <= maxPooledHead {
			heads.Put(out)
		}
	}()
	if *out, err = appendHead((*out)[:0], r, b.length, alone); err != nil {
		b.close()
		return nil, err
	}
	*out = append(*out, b.small...)
	for tries := 1; ; tries++ {
		res, err := p.try(r, *out, b, !alone && tries == 1, alone, c)
		f, ok := err.(failure)
		if !ok {
			return res, err
		}
		if tries == maxTries || r.Context().Err() != nil || !f.kept && !c.Dialer.Again(r, b.length != 0, f.error) {
			b.close()
			return nil, f.error
		}
	}
}

// failure is the error of a try that may be followed by another.
type failure struct {
	error
	kept bool // its connection was: another try needs no leave
}

// try sends a request on one connection: a kept one, if it may be. Of the body, out
// holds what is small.
func (p *Pool) try(r *http.Request, out []byte, b requestBody, kept, alone bool, c Call) (*http.Response, error) {
	var conn *conn
	if kept {
		conn = p.take(c.Port)
		kept = conn != nil
	}
	if !kept {
		var err error
		if conn, err = p.dial(r.Context(), c); err != nil {
			b.close()
			return nil, err
		}
	}
	if b.rest != nil {
		return conn.exchangeBody(r, out, b, c.Timeout)
	}
	return conn.exchange(r, out, kept, alone, c.Timeout)
}

func (p *Pool) dial(ctx context.Context, c Call) (*conn, error) {
	nc, err := c.Dialer.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: nc, pool: p, port: c.Port}, nil
}

// exchange sends a request that is all in out, and reads its answer.
func (c *conn) exchange(r *http.Request, out []byte, kept, alone bool, timeout time.Duration) (*http.Response, error) {
	w := watch{ctx: r.Context(), c: c}
	if !kept || len(out) > bufferSize {
		// A kept connection mostly takes what it is given at once: the last request
		// was answered. Others may have to wait.
		w.begin()
	}
	if err := c.writeHead(w.ctx, out, timeout); err != nil {
		w.end()
		c.abort()
		if err = w.reason(err); errors.Is(err, errNotTaken) {
			return nil, err
		}
		return nil, failure{err, kept}
	}
	now := time.Now()
	end := time.Time{}
	if timeout > 0 {
		end = now.Add(timeout)
	}
	if w.begun {
		c.setUntil(end)
	} else if soon := now.Add(patience); !end.IsZero() && end.Before(soon) {
		c.setUntil(end)
	} else if c.until.Before(now.Add(patience/2)) || c.until.After(soon) {
		c.setUntil(soon) // else it is about that already
	}
	expired := func() error {
		if !end.IsZero() && !time.Now().Before(end) {
			return fmt.Errorf("no answer within %v: %w", timeout, os.ErrDeadlineExceeded)
		}
		if !w.begun {
			w.begin()
		}
		c.setUntil(end)
		return nil
	}
	c.heard = false
	h, err := c.readAnswer(r, nil, expired)
	if err != nil {
		w.end()
		c.abort()
		c.dropBuffer()
		err = w.reason(err)
		// What has come on a kept connection may have been the rest of the answer
		// before: small servers send bodies where there are none (HEAD, 204, 304).
		stale := kept && errors.As(err, new(*MalformedError))
		if stale || !c.heard && !errors.Is(err, os.ErrDeadlineExceeded) {
			err = failure{err, kept}
		}
		return nil, err
	}
	return c.respond(r, h, w, nil, h.reuse && !alone), nil
}

// readAnswer reads heads of answers up to the final one, and passes informational
// ones to the trace of r. continued, which may be nil, is called for a 100.
func (c *conn) readAnswer(r *http.Request, continued func(), expired func() error) (head, error) {
	limit := MaxHead
	for {
		text, err := c.readHead(&limit, expired)
		if err != nil {
			return head{}, err
		}
		h, err := parseHead(text, r.Method)
		if err != nil || h.status >= 200 || h.status == http.StatusSwitchingProtocols {
			return h, err
		}
		if h.status == http.StatusContinue && continued != nil {
			continued()
		}
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(h.status, textproto.MIMEHeader(h.header)); err != nil {
				return head{}, err
			}
		}
	}
}

// answer is a response and its body in one piece of memory.
type answer struct {
	http.Response
	body body
}

// respond makes the response of a head that c has read.
func (c *conn) respond(r *http.Request, h head, w watch, u *upload, reuse bool) *http.Response {
	a := &answer{Response: http.Response{
		Status: h.line, StatusCode: h.status,
		Proto: h.proto, ProtoMajor: 1, ProtoMinor: h.minor,
		Header: h.header, ContentLength: h.length, Trailer: h.trailer,
		Close: !h.reuse, Request: r, Body: http.NoBody,
	}}
	b := &a.body
	b.watch, b.upload, b.res, b.framing, b.reuse, b.left = w, u, &a.Response, h.framing, reuse, h.length
	switch h.framing {
	case noBody:
		if h.status == http.StatusSwitchingProtocols {
			a.Body = b.upgrade()
		} else {
			b.end(true)
		}
		return &a.Response
	case byLength:
		b.detach()
	case byChunks:
		a.TransferEncoding = []string{"chunked"}
	}
	a.Body = b
	return &a.Response
}

// watch aborts a connection when the visitor leaves.
type watch struct {
	ctx   context.Context
	c     *conn
	begun bool
	stop  func() bool
}

func (w *watch) begin() {
	w.begun = true
	if w.ctx.Done() != nil {
		w.stop = context.AfterFunc(w.ctx, w.c.abort)
	}
}

// end reports whether the connection is whole: false means that it has been
// aborted, or is about to be.
func (w *watch) end() bool { return w.stop == nil || w.stop() }

// reason prefers the visitor's leaving to what came of it.
func (w *watch) reason(err error) error {
	if cause := w.ctx.Err(); cause != nil {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}
