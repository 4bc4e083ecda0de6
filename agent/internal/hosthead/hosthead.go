// Package hosthead gives the HTTP requests on a connection another Host.
package hosthead

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// MaxHead bounds the head of a request, in bytes: request line and header.
const MaxHead = 64 << 10

// maxLine bounds a line between the chunks of a body, in bytes.
const maxLine = 4 << 10

// Conn is a connection to an HTTP/1.1 server. Requests that are written to it reach
// the server with another Host, one after the other for as long as it is kept
// alive; bodies, answers, and what follows a 101 pass as they are. A head is held
// back until it is whole.
//
// As of net.Conn, Read and Write may be called concurrently. A write fails, for
// good, on what is no request of HTTP/1.0 or 1.1, or where two readers could
// disagree about the end of a body.
type Conn struct {
	net.Conn
	host string

	mu     sync.Mutex // guards what follows
	state  func(c *Conn, p []byte) (used int, out []byte, err error)
	line   []byte // a head, or a line of a chunked body, as far as it has come
	left   uint64 // bytes of a body, or chunk, that are to come
	err    error
	answer *answer // the server's to a request for an upgrade; nil: of no interest
}

// New returns conn with requests for host, as a Host header has it: a name or an
// address, and a port if need be.
func New(conn net.Conn, host string) *Conn {
	return &Conn{Conn: conn, host: host, state: (*Conn).head}
}

// CheckHost says why host cannot stand in a Host header.
func CheckHost(host string) error {
	for _, c := range []byte(host) {
		ok := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("-._~:[]", c) >= 0
		if !ok {
			return fmt.Errorf("%q is not a name or an address, with or without a port", host)
		}
	}
	if host == "" {
		return errors.New("it is empty; give a name such as camera.local")
	}
	return nil
}

// NetConn returns the connection below.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// SyscallConn is that of the connection below: a reset is told from an end there.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// CloseWrite ends the requests.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// Write takes all of p, or fails.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	out, err := c.rewriteLocked(p)
	c.mu.Unlock()
	if len(out) > 0 {
		if _, err := out.WriteTo(c.Conn); err != nil {
			return 0, err
		}
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// rewriteLocked returns what is to be written in place of p, in pieces that may
// alias it. It wants mu.
func (c *Conn) rewriteLocked(p []byte) (out net.Buffers, err error) {
	for len(p) > 0 && c.err == nil {
		used, piece, err := c.state(c, p)
		if len(piece) > 0 {
			out = append(out, piece)
		}
		p, c.err = p[used:], err
	}
	return out, c.err
}

// Read tells an upgrade by the answer.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		if c.answer != nil {
			if decided, upgraded := c.answer.read(p[:n]); decided {
				c.answer = nil
				if upgraded {
					c.state = (*Conn).opaque
				}
			}
		}
		c.mu.Unlock()
	}
	return n, err
}

// opaque passes everything.
func (c *Conn) opaque(p []byte) (int, []byte, error) { return len(p), p, nil }

// head collects the head of a request.
func (c *Conn) head(p []byte) (int, []byte, error) {
	if c.answer != nil && len(c.line) == 0 {
		// More before the answer to a request for an upgrade: no HTTP client does so.
		c.answer, c.state = nil, (*Conn).opaque
		return 0, nil, nil
	}
	const end = "\r\n\r\n"
	before := len(c.line)
	c.line = append(c.line, p[:min(len(p), MaxHead+1-before)]...)
	i := bytes.Index(c.line[max(before-len(end), 0):], []byte(end))
	whole := max(before-len(end), 0) + i + len(end)
	switch {
	case i < 0 && len(c.line) <= MaxHead:
		return len(p), nil, nil
	case i < 0, whole > MaxHead:
		return 0, nil, fmt.Errorf("request head is longer than %d bytes", MaxHead)
	}
	out, err := c.request(string(c.line[:whole]))
	c.line = nil // held for a head alone
	return whole - before, out, err
}

// request returns a head with another Host, and prepares for what follows it.
func (c *Conn) request(head string) ([]byte, error) {
	first, rest, _ := strings.Cut(head, "\r\n")
	method, target, _ := strings.Cut(first, " ")
	i := strings.LastIndexByte(target, ' ')
	if method == "" || i < 1 || target[i:] != " HTTP/1.1" && target[i:] != " HTTP/1.0" || strings.ContainsAny(first, "\r\n\x00") {
		return nil, errors.New("not a request of HTTP/1.1: the option host needs a port of kind http")
	}
	out := make([]byte, 0, len(head)+len(c.host)+8)
	out = append(out, first+"\r\nHost: "+c.host+"\r\n"...)
	var length, coding string
	var upgrade bool
	for rest != "\r\n" {
		line, after, _ := strings.Cut(rest, "\r\n")
		rest = after
		name, value, found := strings.Cut(line, ":")
		if !found || name == "" || strings.ContainsAny(name, " \t\r\n") || strings.ContainsAny(value, "\r\n\x00") {
			return nil, errors.New("request header is malformed")
		}
		value = strings.Trim(value, " \t")
		switch {
		case strings.EqualFold(name, "Host"):
			continue
		case strings.EqualFold(name, "Content-Length"):
			if length != "" {
				return nil, errors.New("request has two lengths")
			}
			length = value + " "
		case strings.EqualFold(name, "Transfer-Encoding"):
			coding += value + " "
		case strings.EqualFold(name, "Upgrade"):
			upgrade = true
		}
		out = append(out, line+"\r\n"...)
	}
	if upgrade || method == "CONNECT" {
		c.answer = new(answer)
	}
	return append(out, "\r\n"...), c.body(strings.TrimSuffix(length, " "), strings.TrimSuffix(coding, " "), length != "")
}

// body prepares for the body of a request (RFC 9112 §6.3).
func (c *Conn) body(length, coding string, given bool) error {
	switch {
	case coding != "" && given:
		return errors.New("request has a length and a transfer encoding")
	case coding != "" && !strings.EqualFold(coding, "chunked"):
		return errors.New("request has a transfer encoding other than chunked")
	case coding != "":
		c.state = (*Conn).chunkSize
		return nil
	case !given:
		c.state = (*Conn).head
		return nil
	}
	n, err := strconv.ParseUint(length, 10, 63) // takes no sign
	if err != nil {
		return errors.New("request has a length that is no number")
	}
	c.left, c.state = n, (*Conn).fixed
	if n == 0 {
		c.state = (*Conn).head
	}
	return nil
}

// fixed passes a body of known length.
func (c *Conn) fixed(p []byte) (int, []byte, error) { return c.pass(p, (*Conn).head) }

// pass passes what is left, and goes on with next.
func (c *Conn) pass(p []byte, next func(*Conn, []byte) (int, []byte, error)) (int, []byte, error) {
	n := int(min(uint64(len(p)), c.left))
	if c.left -= uint64(n); c.left == 0 {
		c.state = next
	}
	return n, p[:n], nil
}

// chunkSize passes the line ahead of a chunk (RFC 9112 §7.1).
func (c *Conn) chunkSize(p []byte) (int, []byte, error) {
	n, whole, err := c.passLine(p)
	if whole == nil || err != nil {
		return n, p[:n], err
	}
	size, _, _ := strings.Cut(string(whole), ";")
	left, err := strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 62)
	if err != nil {
		return n, nil, errors.New("chunk of a request has no size")
	}
	c.left, c.state = left, (*Conn).chunk
	if left == 0 {
		c.state = (*Conn).trailer
	}
	return n, p[:n], nil
}

func (c *Conn) chunk(p []byte) (int, []byte, error) { return c.pass(p, (*Conn).chunkEnd) }

// chunkEnd passes the end of line behind a chunk.
func (c *Conn) chunkEnd(p []byte) (int, []byte, error) {
	n, whole, err := c.passLine(p)
	switch {
	case len(whole) > 0:
		return 0, nil, errors.New("chunk of a request is longer than its size")
	case whole != nil:
		c.state = (*Conn).chunkSize
	}
	return n, p[:n], err
}

// trailer passes the lines behind the last chunk.
func (c *Conn) trailer(p []byte) (int, []byte, error) {
	n, whole, err := c.passLine(p)
	if whole != nil && len(whole) == 0 {
		c.state = (*Conn).head
	}
	return n, p[:n], err
}

// passLine uses p up to the end of a line, which it returns without the end; nil
// while more is needed.
func (c *Conn) passLine(p []byte) (used int, line []byte, err error) {
	i := bytes.IndexByte(p, '\n')
	used = i + 1
	if i < 0 {
		used = len(p)
	}
	if len(c.line)+used > maxLine {
		return 0, nil, fmt.Errorf("line in the body of a request is longer than %d bytes", maxLine)
	}
	c.line = append(c.line, p[:used]...)
	if i < 0 {
		return used, nil, nil
	}
	line, ok := bytes.CutSuffix(c.line, []byte("\r\n"))
	if !ok {
		return 0, nil, errors.New("line in the body of a request does not end with CR LF")
	}
	c.line = c.line[:0]
	return used, line, nil
}

// answer finds the status of an answer.
type answer struct {
	line []byte // as far as it has come, cut
	late bool   // behind the status line of an interim answer
}

// statusEnd is the length of `HTTP/1.1 101`.
const statusEnd = 12

// read reports whether the status is decided, and whether it is an upgrade. What
// an interim answer says is skipped (RFC 9110 §15.2).
func (a *answer) read(p []byte) (decided, upgraded bool) {
	for _, b := range p {
		if b != '\n' {
			if len(a.line) < statusEnd {
				a.line = append(a.line, b)
			}
			if a.late || len(a.line) < statusEnd {
				continue
			}
			switch status := string(a.line[statusEnd-3:]); {
			case status == "101":
				return true, true
			case status[0] != '1' || !bytes.HasPrefix(a.line, []byte("HTTP/1.")):
				return true, false
			}
			continue
		}
		if a.late && strings.Trim(string(a.line), "\r") == "" {
			a.late = false // the next answer
		} else {
			a.late = true
		}
		a.line = a.line[:0]
	}
	return false, false
}

var (
	_ net.Conn     = (*Conn)(nil)
	_ syscall.Conn = (*Conn)(nil)
)
