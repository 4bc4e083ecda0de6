package socket

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/gorilla/websocket"
)

// Sizes of the buffer that a socket reads through. Payload larger than it goes
// past it, straight to the reader.
const (
	// SmallBuffer is for sockets that mostly wait: it must hold a control frame.
	SmallBuffer = 512
	// LargeBuffer is for sockets that carry streams.
	LargeBuffer = 4 << 10
)

// StatusError is the answer to a handshake that was not 101.
type StatusError struct {
	Status int
	Header http.Header // nil on the server's side
	Body   []byte      // its first KiB
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("socket: handshake answered with status %d %s", e.Status, http.StatusText(e.Status))
}

// Accept upgrades a request that offers subprotocol. Nothing was answered yet
// when it fails with a *StatusError: the caller answers, with that status. Any
// other error means that the connection is gone.
func Accept(w http.ResponseWriter, r *http.Request, subprotocol string, buffer int) (*Socket, error) {
	var refused *StatusError
	u := websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second,
		// gorilla's own buffers are thrown away; not zero, or it would keep
		// net/http's, and through them the server and its configuration.
		ReadBufferSize:  1,
		WriteBufferSize: 1,
		Subprotocols:    []string{subprotocol},
		CheckOrigin:     func(*http.Request) bool { return true }, // the caller's business
		Error: func(_ http.ResponseWriter, _ *http.Request, status int, reason error) {
			refused = &StatusError{Status: status, Body: []byte(reason.Error())}
		},
	}
	c, err := u.Upgrade(innermost{w}, r, nil)
	if refused != nil {
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	conn := c.NetConn()
	// gorilla made sure that the client had sent nothing yet.
	return newSocket(conn, bufio.NewReaderSize(conn, buffer), false), nil
}

// innermost hijacks the connection below every wrapper of a ResponseWriter:
// wrappers may lack Hijack, and those that have it would count and hold on to
// the socket for as long as it lives.
type innermost struct{ http.ResponseWriter }

func (w innermost) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	rw := w.ResponseWriter
	for {
		u, ok := rw.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return http.NewResponseController(rw).Hijack()
		}
		rw = u.Unwrap()
	}
}

// maxAnswer bounds the header of the answer to a handshake.
const maxAnswer = 16 << 10

// Dial makes the client's handshake for u over conn, on which TCP, proxy and TLS
// are done, and which it owns from then on. An answer other than 101 is a
// *StatusError.
func Dial(ctx context.Context, conn net.Conn, u *url.URL, header http.Header, subprotocol string, buffer int) (*Socket, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	answer := &answerConn{Conn: conn, br: bufio.NewReaderSize(conn, buffer)}
	ready := func(context.Context, string, string) (net.Conn, error) { return answer, nil }
	d := websocket.Dialer{
		NetDialContext:    ready,
		NetDialTLSContext: ready,
		ReadBufferSize:    1, // gorilla reads nothing but the answer's header
		WriteBufferSize:   1,
		Subprotocols:      []string{subprotocol},
	}
	ws := *u
	switch u.Scheme {
	case "http":
		ws.Scheme = "ws"
	case "https":
		ws.Scheme = "wss"
	}
	_, resp, err := d.DialContext(ctx, ws.String(), header)
	switch {
	case errors.Is(err, websocket.ErrBadHandshake):
		conn.Close()
		body, _ := io.ReadAll(resp.Body) // a buffer of at most 1 KiB
		return nil, &StatusError{Status: resp.StatusCode, Header: resp.Header, Body: body}
	case err != nil:
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("handshake: %w", err)
	case resp.Header.Get("Sec-WebSocket-Protocol") != subprotocol:
		conn.Close()
		return nil, fmt.Errorf("handshake: the server does not speak %s", subprotocol)
	}
	if !stop() { // the deadline in the past is set, or about to be
		conn.Close()
		return nil, ctx.Err()
	}
	return newSocket(conn, answer.br, true), nil
}

// answerConn gives gorilla the header of a 101 and not a byte more, so that
// frames which follow at once stay in br. Other answers it gives whole.
type answerConn struct {
	net.Conn
	br      *bufio.Reader
	line    []byte // rest of the current line of the header
	total   int
	status  bool // the status line has been read
	upgrade bool // it says 101
	ended   bool // so has the empty line that ends the header
}

func (c *answerConn) Read(p []byte) (int, error) {
	if len(c.line) == 0 {
		if c.ended {
			if c.upgrade {
				return 0, io.EOF
			}
			return c.br.Read(p)
		}
		if err := c.nextLine(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.line)
	c.line = c.line[n:]
	return n, nil
}

func (c *answerConn) nextLine() error {
	c.line = c.line[:0]
	for {
		part, err := c.br.ReadSlice('\n')
		c.total += len(part)
		if c.total > maxAnswer {
			return fmt.Errorf("answer's header is longer than %d bytes", maxAnswer)
		}
		c.line = append(c.line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			if err == io.EOF && c.total > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	switch {
	case !c.status:
		c.status = true
		_, rest, _ := bytes.Cut(c.line, []byte(" "))
		c.upgrade = bytes.HasPrefix(rest, []byte("101"))
	case len(bytes.TrimRight(c.line, "\r\n")) == 0:
		c.ended = true
	}
	return nil
}
