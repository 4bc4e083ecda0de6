package conformance

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// page is what the service {http} answers.
const page = "21.5 degrees Celsius\n"

// servePage answers each request with the page, and ends.
func (r *rig) servePage(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	req, err := http.ReadRequest(br)
	if err != nil {
		return // not a visitor
	}
	_, _ = io.Copy(io.Discard, req.Body) // what the visitor sends is not looked at
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 21\r\nConnection: close\r\n\r\n"+page)
	halfClose(conn)
	_, _ = io.Copy(io.Discard, br) // until the agent has ended too
}

// serveEcho sends back what comes, and ends behind it; or leaves the connection to
// the case.
func (r *rig) serveEcho(conn net.Conn) {
	if r.scripted.Load() {
		select {
		case r.services <- &local{rig: r, conn: conn}:
		case <-r.ctx.Done():
		}
		return
	}
	defer conn.Close()
	if _, err := io.Copy(conn, conn); err != nil {
		resetConn(conn)
		return
	}
	halfClose(conn)
}

// halfClose ends the sending side.
func halfClose(conn net.Conn) {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // the peer may have gone
	}
}

// resetConn ends a connection by a reset.
func resetConn(conn net.Conn) {
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0) // a closed one has no need of it
	}
	conn.Close()
}

// local is a connection of the agent to the echo service, which the case plays.
type local struct {
	rig  *rig
	conn net.Conn
}

// script has the case play the echo service from now on.
func (t *T) script() { t.rig.scripted.Store(true) }

// forgetServices ends the connections to the echo service that nobody has asked for:
// a device that was reset may have dialled one for a tunnel of the case before.
func (r *rig) forgetServices() {
	for {
		select {
		case s := <-r.services:
			s.conn.Close()
		default:
			return
		}
	}
}

// service waits for the agent's next connection to the echo service.
func (t *T) service() *local {
	s := t.tryService(t.patience())
	if s == nil {
		t.fail("the agent connects to the service of the port", "no connection within %v", t.patience())
	}
	return s
}

// tryService is service; nil if nothing comes in time.
func (t *T) tryService(within time.Duration) *local {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case s := <-t.rig.services:
		return s
	case <-timer.C:
	case <-t.rig.ctx.Done():
		t.skip("interrupted")
	}
	return nil
}

// say writes to the agent.
func (s *local) say(text string) {
	s.rig.logf("service → agent", "service", nil, "%s", quote([]byte(text)))
	_ = s.conn.SetWriteDeadline(time.Now().Add(time.Minute)) // longer than a case holds it up; if it fails, so does the write
	_, _ = io.WriteString(s.conn, text)                      // seen by who waits for it at the edge
}

func (s *local) end() {
	s.rig.logf("service → agent", "service", nil, "the end of its direction")
	halfClose(s.conn)
}

func (s *local) reset() {
	s.rig.logf("service → agent", "service", nil, "reset")
	resetConn(s.conn)
}

// The ways in which what an agent sends to a service goes on.
const (
	silent  = "silence"
	ended   = "an orderly end"
	aborted = "a reset"
)

// read reads until it has as many bytes as want, or the connection goes another way,
// which it then tells.
func (s *local) read(want int, within time.Duration) (got, how string) {
	_ = s.conn.SetReadDeadline(time.Now().Add(within)) // if it fails, so does the read
	var b strings.Builder
	n, err := io.CopyN(&b, s.conn, int64(want))
	got = b.String()
	switch {
	case n == int64(want):
		how = ""
	case errors.Is(err, io.EOF):
		how = ended
	case errors.Is(err, os.ErrDeadlineExceeded):
		how = silent
	default:
		how = aborted
	}
	if got != "" || how != silent {
		s.rig.logf("agent → service", "service", nil, "%s %s", quote([]byte(got)), how)
	}
	return got, how
}

// expect wants exactly these bytes.
func (s *local) expect(t *T, want, text string) {
	if got, how := s.read(len(text), t.patience()); got != text {
		t.fail(want, "the service got %s, then %s", quote([]byte(got)), how)
	}
}

// expectHow wants the connection to go on in one way, and no further bytes.
func (s *local) expectHow(t *T, want, way string, within time.Duration) {
	if got, how := s.read(1<<30, within); got != "" || how != way {
		t.fail(want, "the service got %s, then %s", quote([]byte(got)), how)
	}
}
