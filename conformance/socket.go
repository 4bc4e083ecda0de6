package conformance

import (
	"bufio"
	"fmt"
	"net"
	"sync"
	"time"
)

// sock is the edge's end of a WebSocket. A goroutine of its own reads it, answers
// pings, and keeps what came for the case, which reads it in order by next.
type sock struct {
	t      *T
	name   string // in the log
	conn   net.Conn
	events chan event // closed behind opEnd

	echoClose bool // answer a close frame at once

	turn chan struct{} // who may write; holds one

	mu         sync.Mutex // guards what follows
	closeSent  bool
	muted      bool
	sent       time.Time // when the last bytes were
	violations []string  // of RFC 6455
	masks      [][4]byte
}

// newSock starts to read conn, on which the handshake is done.
func newSock(t *T, name string, conn net.Conn, br *bufio.Reader, echoClose bool) *sock {
	s := &sock{t: t, name: name, conn: conn, events: make(chan event, 128), turn: make(chan struct{}, 1), echoClose: echoClose}
	t.rig.own(conn)
	t.rig.wg.Go(func() { s.read(br) })
	return s
}

// read turns frames into events until the connection ends or the rig is taken down.
func (s *sock) read(br *bufio.Reader) {
	defer close(s.events)
	var message []byte
	var op byte // of the message under way; 0 outside
	for {
		f, err := readFrame(br)
		if err != nil {
			s.t.logf("agent → edge", s.name, nil, "%v", event{op: opEnd, err: err})
			s.emit(event{op: opEnd, err: err})
			return
		}
		s.t.logf("agent → edge", s.name, f.bytes(), "%v", event{op: f.op, data: f.data})
		s.judge(f, op)
		switch f.op {
		case opText, opBinary, opContinuation:
			if f.op != opContinuation {
				op, message = f.op, nil
			}
			message = append(message, f.data...)
			if !f.fin {
				continue
			}
			ok := s.emit(event{op: op, data: message})
			op = 0
			if !ok {
				return
			}
			continue
		case opPing:
			s.send(whole(opPong, f.data))
		case opClose:
			if s.echoClose {
				s.sendClose(event{op: opClose, data: f.data}.code())
			}
		}
		if !s.emit(event{op: f.op, data: f.data}) {
			return
		}
	}
}

func (s *sock) emit(e event) bool {
	select {
	case s.events <- e:
		return true
	case <-s.t.rig.ctx.Done():
		return false
	}
}

// judge notes what RFC 6455 forbids; inside is the opcode of the message under way.
func (s *sock) judge(f frame, inside byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bad := func(format string, args ...any) { s.violations = append(s.violations, fmt.Sprintf(format, args...)) }
	if !f.masked {
		bad("a frame without a mask (RFC 6455 §5.3): % x", head(f.bytes(), 16))
	} else if len(f.data) > 0 {
		s.masks = append(s.masks, f.mask)
	}
	switch {
	case f.rsv != 0:
		bad("a reserved bit (§5.2): % x", head(f.bytes(), 16))
	case f.op >= opClose && (!f.fin || len(f.data) > 125):
		bad("a control frame in pieces, or longer than 125 bytes (§5.5): % x", head(f.bytes(), 16))
	case f.op == opContinuation && inside == 0, (f.op == opText || f.op == opBinary) && inside != 0:
		bad("a message begins in another, or goes on that was not begun (§5.4): % x", head(f.bytes(), 16))
	case f.op > opBinary && f.op < opClose, f.op > opPong:
		bad("opcode %d (§5.2)", f.op)
	}
}

// head is at most the first n bytes of b.
func head(b []byte, n int) []byte { return b[:min(n, len(b))] }

// send writes a frame. That it could not is seen by who waits for an answer.
func (s *sock) send(f frame) {
	s.sendRaw(f.bytes(), event{op: f.op, data: f.data}.String())
}

// sendRaw writes bytes that need not be a frame.
func (s *sock) sendRaw(b []byte, what string) {
	s.turn <- struct{}{} // who writes has a deadline
	defer func() { <-s.turn }()
	s.mu.Lock()
	muted := s.muted
	if !muted {
		s.sent = time.Now()
	}
	s.mu.Unlock()
	if muted {
		return
	}
	s.t.logf("edge → agent", s.name, b, "%s", what)
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.t.patience())) // if it fails, so does the write
	_, _ = s.conn.Write(b)                                      // seen by who waits for an answer
}

// mute has nothing sent any more, not even answers to pings, and returns when the last
// bytes were sent.
func (s *sock) mute() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = true
	return s.sent
}

// text sends a text message, and binary a binary one.
func (s *sock) text(m string)   { s.send(whole(opText, []byte(m))) }
func (s *sock) binary(b []byte) { s.send(whole(opBinary, b)) }

// sendClose sends a close frame, once; codes that do not travel become none.
func (s *sock) sendClose(code int) {
	s.mu.Lock()
	sent := s.closeSent
	s.closeSent = true
	s.mu.Unlock()
	if sent {
		return
	}
	if code == 1005 || code == 1006 {
		s.send(whole(opClose, nil))
		return
	}
	s.send(whole(opClose, closing(code, "")))
}

// next returns what comes next; false if nothing does in time. Behind opEnd comes
// opEnd again.
func (s *sock) next(within time.Duration) (event, bool) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case e, ok := <-s.events:
		if !ok {
			return event{op: opEnd, err: net.ErrClosed}, true
		}
		return e, true
	case <-timer.C:
		return event{}, false
	case <-s.t.rig.ctx.Done():
		s.t.skip("interrupted")
		return event{}, false
	}
}

// await returns the first that matches, and lets what does not pass. If there is
// none in time, or the connection ends, the rule is broken: want says what should
// have come.
func (s *sock) await(want string, within time.Duration, match func(event) bool) event {
	limit := time.Now().Add(within)
	var last event
	var some bool
	for {
		e, ok := s.next(time.Until(limit))
		switch {
		case !ok && some:
			s.t.fail(want, "nothing of the kind within %v; the last on the %s was %v", within, s.name, last)
		case !ok:
			s.t.fail(want, "nothing on the %s within %v", s.name, within)
		case match(e):
			return e
		case e.op == opEnd && some:
			s.t.fail(want, "on the %s %v; before that, %v", s.name, e, last)
		case e.op == opEnd:
			s.t.fail(want, "on the %s %v", s.name, e)
		}
		if e.op != opPing {
			last, some = e, true
		}
	}
}

// awaitPong sends a ping and waits for any pong: the agent has then read what was
// sent before.
func (s *sock) awaitPong() {
	s.send(whole(opPing, []byte("?")))
	s.await("the agent goes on, and answers a ping", s.t.patience(), func(e event) bool { return e.op == opPong })
}

// alive reports whether the agent answers a ping.
func (s *sock) alive() bool {
	s.send(whole(opPing, []byte("?")))
	limit := time.Now().Add(s.t.patience())
	for {
		e, ok := s.next(time.Until(limit))
		if !ok || e.op == opEnd || e.op == opClose {
			return false
		}
		if e.op == opPong {
			return true
		}
	}
}

// awaitEnd waits for a close frame or the end of the connection.
func (s *sock) awaitEnd(want string, within time.Duration) event {
	return s.await(want, within, func(e event) bool { return e.op == opClose || e.op == opEnd })
}

// quiet fails the rule if something that matches comes.
func (s *sock) quiet(want string, during time.Duration, match func(event) bool) {
	limit := time.Now().Add(during)
	for {
		e, ok := s.next(time.Until(limit))
		switch {
		case !ok:
			return
		case match(e):
			s.t.fail(want, "on the %s %v", s.name, e)
		case e.op == opEnd:
			return
		}
	}
}

// cut ends the connection without a close frame.
func (s *sock) cut() {
	s.t.logf("edge → agent", s.name, nil, "the end of the connection, without a close frame")
	s.conn.Close()
}

// finish closes with a code, gives the agent time to answer, and ends the connection.
func (s *sock) finish(code int) {
	s.sendClose(code)
	limit := time.Now().Add(s.t.patience())
	for {
		e, ok := s.next(time.Until(limit))
		if !ok || e.op == opClose || e.op == opEnd {
			break
		}
	}
	s.conn.Close()
}
