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
	"strings"
	"time"

	"github.com/gorilla/websocket"
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
	if !offers(r.Header, subprotocol) {
		return nil, &StatusError{
			Status: http.StatusBadRequest,
			Body:   []byte("Sec-WebSocket-Protocol does not offer " + subprotocol),
		}
	}
	var refused *StatusError
	u := websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second,
		// gorilla's own buffers are thrown away; not zero, or it would keep
		// net/http's, and through them the server and its configuration.
		ReadBufferSize:  1,
		WriteBufferSize: 1,
		CheckOrigin:     func(*http.Request) bool { return true }, // the caller's business
		Error: func(_ http.ResponseWriter, _ *http.Request, status int, reason error) {
			refused = &StatusError{Status: status, Body: []byte(reason.Error())}
		},
	}
	c, err := u.Upgrade(innermost{w}, r, http.Header{protocolHeader: {subprotocol}})
	if refused != nil {
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	conn := c.NetConn()
	trimTLS(conn)
	// gorilla made sure that the client had sent nothing yet.
	return newSocket(conn, newReader(conn, buffer), false), nil
}

// Headers of a handshake, as net/http spells them.
const (
	protocolHeader   = "Sec-Websocket-Protocol"
	extensionsHeader = "Sec-Websocket-Extensions"
)

// offers reports whether subprotocol is among those that a client offers, in any
// of its headers (RFC 6455 §11.3.4: there may be several).
func offers(h http.Header, subprotocol string) bool {
	for _, line := range h[protocolHeader] {
		for offer := range strings.SplitSeq(line, ",") {
			if strings.Trim(offer, " \t") == subprotocol {
				return true
			}
		}
	}
	return false
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
// *StatusError. When ctx ends first, the error is ctx's.
func Dial(ctx context.Context, conn net.Conn, u *url.URL, header http.Header, subprotocol string, buffer int) (*Socket, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	answer := &answerConn{Conn: conn, br: newReader(conn, buffer)}
	err := answer.handshake(ctx, u, header, subprotocol)
	if !stop() { // the deadline in the past is set, or about to be
		var refused *StatusError
		if !errors.As(err, &refused) { // an answer tells more
			err = fmt.Errorf("handshake: %w", ctx.Err())
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return newSocket(conn, answer.br, true), nil
}

// handshake sends the request and reads the answer.
func (c *answerConn) handshake(ctx context.Context, u *url.URL, header http.Header, subprotocol string) error {
	ready := func(context.Context, string, string) (net.Conn, error) { return c, nil }
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
	// gorilla would turn the deadline of ctx into one of the connection, and undo
	// a cancellation.
	_, resp, err := d.DialContext(context.WithoutCancel(ctx), ws.String(), header)
	switch {
	case errors.Is(err, websocket.ErrBadHandshake) && resp.StatusCode != http.StatusSwitchingProtocols:
		body, _ := io.ReadAll(resp.Body) // a buffer of at most 1 KiB
		return &StatusError{Status: resp.StatusCode, Header: resp.Header, Body: body}
	case err != nil:
		return fmt.Errorf("handshake: %w", err)
	case resp.Header.Get(protocolHeader) != subprotocol:
		return fmt.Errorf("handshake: the server does not speak %s", subprotocol)
	case len(resp.Header[extensionsHeader]) > 0: // RFC 6455 §4.1: none was offered
		return errors.New("handshake: the server wants an extension")
	}
	return nil
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
		c.upgrade = bytes.HasPrefix(bytes.TrimLeft(rest, " "), []byte("101"))
	case len(bytes.TrimRight(c.line, "\r\n")) == 0:
		c.ended = true
	}
	return nil
}
