package tunnelcore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/cluster"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// An agent dials its transfer sockets where it found this edge, and one name may lead
// to any node. The URL names the node that waits; another one passes the connection on
// to it as it is, and that node authenticates it.

// statusSize is the length of `HTTP/1.1 101`: as much of an answer as says whether the
// agent was let in.
const statusSize = 12

// passTransfer passes a handshake for a transfer socket on to the node of that id, and
// then what follows it in both directions.
func (h *Hub) passTransfer(w http.ResponseWriter, r *http.Request, a Arrival, id string) error {
	n, ok := h.admission.peers.Find(id)
	if !ok || n.Internal == "" {
		return otherNode()
	}
	done, retry, ok := h.handshakes.begin(a.From, "")
	if !ok {
		return tooMany(retry)
	}
	proved := true // unless the node says otherwise
	defer func() { done(proved) }()
	timeout := h.settings.Load().Limits.HandshakeTimeout
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	peer, err := h.link.Pass(ctx, cluster.Peer{NodeRef: n.NodeRef, Internal: n.Internal}, cluster.Agent{Remote: a.From, TLS: a.Secure})
	switch {
	case errors.Is(err, cluster.ErrNotHere):
		return otherNode()
	case err != nil:
		return &answers.Error{Code: wire.Unavailable, RetryAfter: time.Second, Cause: err, Message: "the node that this is for does not answer"}
	}
	defer context.AfterFunc(ctx, func() { stream.Abort(peer) })()
	begun, err := passHead(peer, r)
	if err != nil {
		stream.Abort(peer)
		return &answers.Error{Code: wire.Unavailable, RetryAfter: time.Second, Cause: err, Message: "the node that this is for does not answer"}
	}
	proved = !bytes.HasSuffix(begun, []byte(" 401")) // what it does not call a wrong secret is none
	agent, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil || !h.beginTransfer() {
		stream.Abort(peer)
		if err == nil {
			agent.Close()
		}
		return errors.Join(errGone, err)
	}
	go func() { // Shutdown waits for it
		defer h.wg.Done()
		h.relayPassed(agent, peer, begun, buffered.Reader)
	}()
	return nil
}

func otherNode() error {
	return &answers.Error{Code: wire.NotHere, Message: "this is another node"}
}

// passHead sends the head of a request, and returns the beginning of the answer.
func passHead(peer io.ReadWriter, r *http.Request) (begun []byte, err error) {
	var head bytes.Buffer
	fmt.Fprintf(&head, "GET %s?%s HTTP/1.1\r\nHost: %s\r\n", wire.TransferPath, r.URL.RawQuery, r.Host)
	_ = r.Header.Write(&head) // a buffer takes it
	head.WriteString("\r\n")
	if _, err := peer.Write(head.Bytes()); err != nil {
		return nil, err
	}
	begun = make([]byte, statusSize)
	_, err = io.ReadFull(peer, begun)
	return begun, err
}

// relayPassed joins an agent and the node that it is for. It owns both.
func (h *Hub) relayPassed(agent, peer net.Conn, begun []byte, buffered *bufio.Reader) {
	ahead, _ := buffered.Peek(buffered.Buffered()) // no more than there is: it cannot fail
	_ = agent.SetDeadline(time.Now().Add(controlWrite))
	_, err := peer.Write(ahead)
	if err == nil {
		_, err = agent.Write(begun)
	}
	if err != nil {
		stream.Abort(agent)
		stream.Abort(peer)
		return
	}
	_, _, _ = stream.Relay(h.ctx, agent, peer) // both ends have learned how it went
}

// ServeConn implements cluster.Local: it serves the handshake for a transfer socket
// that an agent has made at another node.
func (s served) ServeConn(ctx context.Context, c net.Conn, a cluster.Agent) {
	h := s.hub
	limits := h.settings.Load().Limits
	_ = c.SetDeadline(time.Now().Add(limits.HandshakeTimeout)) // fails only on a closed stream
	// More than a handshake may have, so that checkHandshake says so.
	head := bufio.NewReader(io.LimitReader(c, int64(2*limits.HeaderBytes)+4<<10))
	w := &passedWriter{conn: c, reader: head}
	r, err := http.ReadRequest(head)
	if err != nil {
		h.log().Debug("malformed handshake from another node", "remote", a.Remote, "error", err)
		stream.Abort(c)
		return
	}
	r = r.WithContext(ctx)
	r.RemoteAddr = netip.AddrPortFrom(a.Remote, 0).String()
	arrival := Arrival{From: a.Remote, Secure: a.TLS, Routed: true}
	if err := h.servePassed(w, r, arrival); err != nil {
		h.refuse(w, r, a.Remote, err)
	}
	if !w.hijacked {
		c.Close()
	}
}

// servePassed accepts a transfer socket for a tunnel of this node.
func (h *Hub) servePassed(w http.ResponseWriter, r *http.Request, a Arrival) error {
	if !h.beginTransfer() {
		return stopping
	}
	defer h.wg.Done()
	if r.URL.Path != wire.TransferPath || r.URL.Query().Get("node") != h.node.ID {
		return otherNode()
	}
	if err := h.checkHandshake(r, a); err != nil {
		return err
	}
	return h.acceptTransfer(w, r, a)
}

// passedWriter answers the one request of a connection.
type passedWriter struct {
	conn     net.Conn
	reader   *bufio.Reader
	header   http.Header
	status   int
	hijacked bool
}

// Header implements http.ResponseWriter.
func (w *passedWriter) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

// WriteHeader sends the head of the answer.
func (w *passedWriter) WriteHeader(status int) {
	if w.status != 0 || w.hijacked {
		return
	}
	w.status = status
	w.Header().Set("Connection", "close")
	var head bytes.Buffer
	fmt.Fprintf(&head, "HTTP/1.1 %03d %s\r\n", status, http.StatusText(status))
	_ = w.header.Write(&head) // a buffer takes it
	head.WriteString("\r\n")
	_, _ = w.conn.Write(head.Bytes()) // an agent that has left reads nothing
}

// Write sends a piece of the answer's body.
func (w *passedWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.conn.Write(b)
}

// Hijack implements http.Hijacker.
func (w *passedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.hijacked || w.status != 0 {
		return nil, nil, http.ErrHijacked
	}
	w.hijacked = true
	return w.conn, bufio.NewReadWriter(w.reader, bufio.NewWriter(w.conn)), nil
}

var _ http.Hijacker = (*passedWriter)(nil)
