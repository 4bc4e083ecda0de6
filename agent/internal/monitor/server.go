// Package monitor serves what an agent is about, to people and to programs that watch it.
package monitor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// It speaks as much of HTTP/1.1 as GET and HEAD need, one request per connection:
// package net/http would make the agent a quarter bigger.

// Bounds of the server.
const (
	maxHead     = 8 << 10         // of a request, in bytes
	maxClients  = 8               // at once; others wait for their turn
	clientTime  = 5 * time.Second // for all of a connection
	acceptPause = 50 * time.Millisecond
)

// Server answers on a listener.
type Server struct {
	listener net.Listener
	about    About
	local    bool // it listens on loopback
}

// Listen starts to listen at addr, an IP address or localhost and a port. Nobody is
// answered before Serve.
func Listen(addr string, about About) (*Server, error) {
	host, port, err := net.SplitHostPort(addr)
	if _, numErr := strconv.ParseUint(port, 10, 16); err != nil || numErr != nil {
		return nil, fmt.Errorf("%q is not ADDRESS:PORT, such as 127.0.0.1:9180", addr)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return nil, fmt.Errorf("%q is not an IP address of this device; 127.0.0.1 is for itself alone", host)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("listen at %s: %w", addr, err)
	}
	tcp, ok := l.Addr().(*net.TCPAddr)
	return &Server{listener: l, about: about, local: ok && tcp.IP.IsLoopback()}, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Local reports whether only this device can ask.
func (s *Server) Local() bool { return s.local }

// Serve answers until ctx ends. The listener is closed then, and nobody is being
// answered any more.
func (s *Server) Serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, s.Close) // ends an Accept
	defer stop()
	defer s.Close() // the one above may not have begun
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, maxClients)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := s.listener.Accept()
		if err != nil {
			<-room
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// No descriptors, most likely: they come back.
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		wg.Go(func() {
			defer func() { <-room }()
			s.serve(ctx, conn)
		})
	}
}

// Close ends the listening, of a server that does not serve as well.
func (s *Server) Close() { s.listener.Close() }

// serve answers one request.
func (s *Server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if conn.SetDeadline(time.Now().Add(clientTime)) != nil {
		return
	}
	limited := io.LimitReader(conn, maxHead)
	r, err := readRequest(bufio.NewReaderSize(limited, 1<<10))
	var answer reply
	switch {
	case errors.Is(err, errMalformed):
		answer = plain(400, err.Error())
	case err != nil:
		return // it left, or was too slow
	default:
		answer = s.answer(r)
	}
	if _, err := conn.Write(answer.bytes(r.method == "HEAD")); err != nil {
		return
	}
	// A close with bytes unread would be a reset, and the client could lose the
	// answer to it.
	if c, ok := conn.(*net.TCPConn); ok && c.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, maxHead)) // until it has read, or time is up
	}
}

// request is what counts of one.
type request struct {
	method, path, host string
	old                bool // HTTP/1.0
}

var errMalformed = errors.New("not a request of HTTP/1.1")

// readRequest reads a request up to the end of its header.
func readRequest(br *bufio.Reader) (r request, err error) {
	line, err := readLine(br)
	if err != nil {
		return r, err
	}
	method, rest, _ := strings.Cut(line, " ")
	target, version, found := strings.Cut(rest, " ")
	if !found || !strings.HasPrefix(version, "HTTP/1.") || !strings.HasPrefix(target, "/") {
		return r, errMalformed
	}
	r.method, r.old = method, version == "HTTP/1.0"
	r.path, _, _ = strings.Cut(target, "?")
	for {
		line, err := readLine(br)
		if err != nil || line == "" {
			return r, err
		}
		name, value, found := strings.Cut(line, ":")
		if !found {
			return r, errMalformed
		}
		if strings.EqualFold(name, "Host") {
			r.host = strings.TrimSpace(value)
		}
	}
}

// readLine reads a line, without its end. A header that is too long ends early.
func readLine(br *bufio.Reader) (string, error) {
	line, err := br.ReadString('\n')
	if err == io.EOF && line != "" {
		return "", errMalformed
	}
	return strings.TrimRight(line, "\r\n"), err
}

// reply is an answer.
type reply struct {
	status int
	kind   string // Content-Type
	body   string
	allow  bool // an Allow header
}

// plain is an answer of one line.
func plain(status int, text string) reply {
	return reply{status: status, kind: "text/plain; charset=utf-8", body: text + "\n"}
}

var reasons = map[int]string{
	200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 421: "Misdirected Request", 503: "Service Unavailable",
}

// bytes is the answer as it is sent, without its body if that is not wanted.
func (r reply) bytes(head bool) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", r.status, reasons[r.status], r.kind, len(r.body))
	if r.allow {
		b.WriteString("Allow: GET, HEAD\r\n")
	}
	b.WriteString("Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n" +
		"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\nConnection: close\r\n\r\n")
	if !head {
		b.WriteString(r.body)
	}
	return []byte(b.String())
}

// answer finds what is asked for.
func (s *Server) answer(r request) reply {
	switch {
	case r.host == "" && !r.old:
		return plain(400, "a Host is missing")
	case s.local && r.host != "" && !isLocal(r.host):
		// A web page elsewhere whose name leads here, for what it can read then.
		return plain(421, "ask for localhost, or for an address of loopback")
	case r.method != "GET" && r.method != "HEAD":
		answer := plain(405, "only GET and HEAD are possible")
		answer.allow = true
		return answer
	}
	status, now := s.about.Status(), time.Now()
	switch r.path {
	case "/":
		return reply{status: 200, kind: "text/html; charset=utf-8", body: s.about.page(status, now)}
	case "/status":
		return reply{status: 200, kind: "application/json", body: s.about.json(status, now)}
	case "/metrics":
		return reply{status: 200, kind: "text/plain; version=0.0.4; charset=utf-8", body: s.about.metrics(status, now)}
	case "/healthz":
		return plain(200, "ok")
	case "/ready":
		if why := notReady(status); why != "" {
			return plain(503, why)
		}
		return plain(200, "ok")
	}
	return plain(404, "there are /, /status, /metrics, /ready and /healthz")
}

// isLocal reports whether a Host stands for this very machine, wherever it is
// asked.
func isLocal(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}
