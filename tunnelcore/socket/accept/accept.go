// Package accept makes sockets of HTTP requests that ask for one.
//
// gorilla/websocket makes that handshake, and only here. It is a package of its own
// because it needs net/http, which a device that only dials has no room for.
package accept

import (
	"bufio"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// Upgrade upgrades a request that offers subprotocol; header, which may be nil, is
// what the 101 has besides. Nothing was answered yet when it fails with a
// *socket.StatusError: the caller answers, with that status. Any other error means
// that the connection is gone. buffer is as of socket.New.
func Upgrade(w http.ResponseWriter, r *http.Request, subprotocol string, buffer int, header http.Header) (*socket.Socket, error) {
	if !offers(r.Header, subprotocol) {
		return nil, refusal(http.StatusBadRequest, "Sec-WebSocket-Protocol does not offer "+subprotocol)
	}
	var refused *socket.StatusError
	u := websocket.Upgrader{
		HandshakeTimeout: 10 * time.Second,
		// gorilla's own buffers are thrown away; not zero, or it would keep
		// net/http's, and through them the server and its configuration.
		ReadBufferSize:  1,
		WriteBufferSize: 1,
		CheckOrigin:     func(*http.Request) bool { return true }, // the caller's business
		Error: func(_ http.ResponseWriter, _ *http.Request, status int, reason error) {
			refused = refusal(status, reason.Error())
		},
	}
	answer := http.Header{protocolHeader: {subprotocol}}
	maps.Copy(answer, header)
	c, err := u.Upgrade(innermost{w}, r, answer)
	if refused != nil {
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	// gorilla made sure that the client had sent nothing yet.
	return socket.New(c.NetConn(), buffer), nil
}

func refusal(status int, why string) *socket.StatusError {
	return &socket.StatusError{Status: status, Reason: http.StatusText(status), Body: []byte(why)}
}

// protocolHeader is as net/http spells it.
const protocolHeader = "Sec-Websocket-Protocol"

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
