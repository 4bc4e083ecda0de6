package conformance

import (
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// How a direction of a stream is sent (protocol 10.3).
const (
	sendEarly = iota
	sendMoved
	sendFin
)

// dstream is a stream of the device: basic, early or inline.
type dstream struct {
	t     *dtunnel
	d     *device
	open  *wire.Open
	basic bool
	local net.Conn

	mu   sync.Mutex // guards what follows
	cond sync.Cond
	// What is sent.
	send      int // sendEarly and so on
	sendEnded bool
	credit    int
	ws        *dsock // the transfer socket, once it is attached
	framed    bool   // a frame was sent
	// What is received.
	frames    [][]byte
	messages  [][]byte
	queued    int // bytes of frames
	left      int // credit of the edge
	recvFin   bool
	recvMoved bool
	wsEnd     bool // an empty message came
	recvEnded bool
	over      bool // in whichever way
	parked    *dpark
	total     int // bytes of messages
	joined    chan struct{}
	ended     chan struct{} // closed when over
}

// dpark is a parked transfer socket.
type dpark struct {
	ws    *dsock
	timer *time.Timer   // closes it
	gone  chan struct{} // closed when it is attached, or has ended
}

// visit begins a stream.
func (t *dtunnel) visit(o *wire.Open) {
	d := t.d
	s := &dstream{t: t, d: d, open: o, basic: !t.caps.Has(wire.Early), credit: o.Early, left: o.Early, joined: make(chan struct{}), ended: make(chan struct{})}
	s.cond.L = &s.mu
	if d.has("less credit than offered") {
		s.left = min(s.left, 8192)
	}
	s.recvMoved = s.basic
	if s.basic {
		s.send = sendMoved
	}
	t.mu.Lock()
	full := len(t.streams) >= 8 && !d.has("fewer streams than offered") || len(t.streams) >= 4 && d.has("fewer streams than offered")
	if !full {
		t.streams[o.Stream] = s
	}
	t.mu.Unlock()
	if full {
		t.refuse(s, "no room")
		return
	}
	d.wg.Go(s.serve)
}

// refuse says that there will be no stream.
func (t *dtunnel) refuse(s *dstream, reason string) {
	o := *s.open
	text := string(wire.Encode(&wire.Refused{Stream: o.Stream, Reason: reason}))
	switch t.d.bug {
	case "refused has another number":
		text = string(wire.Encode(&wire.Refused{Stream: o.Stream + 1, Reason: reason}))
	case "refused has no reason":
		text = string(wire.Encode(&wire.Refused{Stream: o.Stream}))
	case "refused is no flat object":
		text = strings.TrimSuffix(text, "}") + `,"detail":{"errno":111}}`
	case "refused is followed by reset":
		t.ws.write(opText, []byte(text))
		if !s.basic {
			t.ws.write(opBinary, wire.AppendFrameHeader(nil, wire.FrameReset, o.Stream))
		}
		return
	}
	t.ws.write(opText, []byte(text))
}

// serve connects to the service, gets the stream a transfer socket if it wants one,
// and relays.
func (s *dstream) serve() {
	d := s.d
	target := map[uint16]string{7: d.vars.Echo, 80: d.vars.HTTP, 9: d.vars.Dead}[s.open.Port]
	if target == "" && d.has("any port is forwarded") {
		target = d.vars.Echo
		if conn, err := d.net.dial(target); err == nil {
			conn.Close()
		}
		target = ""
	}
	if s.open.Port == 80 && d.has("web pages are not served") {
		target = d.vars.Dead
	}
	conn, err := d.net.dial(target)
	if err != nil {
		s.t.refuse(s, "connection refused")
		s.forget()
		return
	}
	d.own(conn)
	s.mu.Lock()
	s.local = conn
	over := s.over // it was aborted meanwhile
	s.mu.Unlock()
	if over {
		resetConn(conn)
		return
	}
	d.own(s)
	close(s.joined)
	if s.basic {
		ws, status := s.dial()
		if ws == nil {
			if status == 500 && d.has("given up in silence") {
				s.abort(false)
				return
			}
			if status == 404 && d.has("404 is the end of the tunnel") {
				s.t.ws.conn.Close()
			}
			if status == 401 && d.has("the service is left alone") {
				return
			}
			s.t.refuse(s, "no transfer socket")
			s.abort(false)
			return
		}
		s.attach(ws)
	} else if !s.t.caps.Has(wire.Inline) || d.has("inline dials") {
		d.wg.Go(s.provide)
	}
	d.wg.Go(s.up)
	d.wg.Go(s.down)
}

func (s *dstream) forget() {
	s.t.mu.Lock()
	delete(s.t.streams, s.open.Stream)
	s.t.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finishLocked()
}

func (s *dstream) finishLocked() {
	if !s.over {
		s.over = true
		close(s.ended)
	}
	s.cond.Broadcast()
}

// dial makes a transfer socket.
func (s *dstream) dial() (*dsock, int) {
	d, t := s.d, s.t
	t.mu.Lock()
	ready := t.ready
	t.mu.Unlock()
	if d.has("the first ready counts for ever") {
		ready = t.first
	}
	if ready == nil {
		return nil, 0 // it was malformed, and the device does not look
	}
	path := ready.Transfer
	switch d.bug {
	case "transfer is put together":
		path = wire.TransferPath + "?tunnel=" + ready.Tunnel
	case "strings are cut":
		path = path[:min(len(path), 256)]
	}
	u, err := url.Parse(t.u.Scheme + "://" + t.u.Host + path + "&id=" + s.open.ID)
	if err != nil {
		return nil, 0
	}
	ws, status, _, err := d.dial(u, ready.Secret)
	if err != nil {
		return nil, status
	}
	if d.has("an id is used twice") {
		d.wg.Go(func() { d.dial(u, ready.Secret) })
	}
	return ws, status
}

// provide gets a lasting stream its transfer socket.
func (s *dstream) provide() {
	d, t := s.d, s.t
	if s.open.Early > 0 || d.has("streams without credit wait") {
		wait := 20 * time.Millisecond
		if d.has("streams without credit wait") && s.open.Early == 0 {
			wait = time.Hour
		}
		select {
		case <-time.After(wait):
		case <-s.ended:
			return
		}
	}
	if t.caps.Has(wire.Reuse) && s.reuse() {
		return
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		ws, status := s.dial()
		switch {
		case ws != nil:
			s.attach(ws)
			return
		case status == 404 && !d.has("404 is tried again"):
			s.abort(false)
			return
		case d.has("a handshake is made once"):
			return
		}
		if d.has("handshakes are made without a pause") {
			pause = time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-s.ended:
			return
		}
	}
}

// attach joins the stream and its transfer socket.
func (s *dstream) attach(ws *dsock) {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		ws.conn.Close()
		return
	}
	s.ws = ws
	if s.send == sendEarly {
		s.send = sendMoved
		s.frameLocked(wire.FrameMove, nil)
	}
	if s.send == sendFin && s.d.has("move behind fin") {
		s.frameLocked(wire.FrameMove, nil)
	}
	s.cond.Broadcast()
	s.mu.Unlock()
	s.d.wg.Go(func() { s.watch(ws) })
}

func (s *dstream) frameLocked(kind wire.FrameKind, payload []byte) {
	s.framed = true
	s.t.ws.write(opBinary, append(wire.AppendFrameHeader(nil, kind, s.open.Stream), payload...))
}

// up relays what the service sends.
func (s *dstream) up() {
	size := 4096
	if s.d.has("frames of 8192 bytes") {
		size = 8192
	}
	buf := make([]byte, size)
	for {
		n, err := s.local.Read(buf)
		for sent := 0; sent < n; {
			m := s.push(buf[sent:n])
			if m < 0 {
				return
			}
			sent += m
		}
		if err == io.EOF || err != nil && s.d.has("a reset is taken for an end") {
			s.pushEnd()
			return
		}
		if err != nil {
			s.abort(true)
			return
		}
	}
}

// push sends some bytes, and returns how many; -1 if the stream is over.
func (s *dstream) push(b []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var limit time.Time
	inline := s.t.caps.Has(wire.Inline)
	for {
		switch {
		case s.over:
			return -1
		case s.send == sendMoved && s.ws != nil:
			s.ws.write(opBinary, b)
			return len(b)
		case s.send == sendEarly && (s.credit > 0 || s.d.has("credit is ignored")):
			n := min(len(b), s.credit)
			if s.d.has("credit is ignored") {
				n = len(b)
			}
			s.credit -= n
			s.frameLocked(wire.FrameData, b[:n])
			return n
		}
		if limit.IsZero() {
			limit = time.Now().Add(10 * time.Second)
			if inline && !s.d.has("a stream without credit is aborted in inline") || s.d.has("spent credit waits for ever") {
				limit = time.Now().Add(time.Hour)
			}
			time.AfterFunc(time.Until(limit), s.cond.Broadcast)
		} else if past(limit) {
			s.abortLocked(true)
			return -1
		}
		s.cond.Wait()
	}
}

func (s *dstream) pushEnd() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.send == sendMoved && s.ws == nil && !s.over {
		s.cond.Wait()
	}
	switch {
	case s.over:
		return
	case s.send == sendEarly && s.d.has("fin is forgotten"):
		s.send = sendFin
	case s.send == sendEarly:
		s.send = sendFin
		s.frameLocked(wire.FrameFin, nil)
	case s.basic && !s.recvEnded && s.d.has("the end of the service is the end of all"):
		s.ws.close(1000)
		s.abortLocked(false)
		return
	case s.d.has("fin behind move") && !s.basic:
		s.frameLocked(wire.FrameFin, nil)
		s.ws.write(opBinary, nil)
	default:
		s.ws.write(opBinary, nil)
		if s.basic && s.d.has("bytes behind the end") {
			s.ws.write(opBinary, []byte("x"))
		}
	}
	s.sendEnded = true
	s.endLocked()
}

// take is a frame of the edge.
func (s *dstream) take(kind wire.FrameKind, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	violation := func() {
		if s.d.has("violations are ignored") {
			return
		}
		s.abortLocked(true)
	}
	closed := s.recvFin || s.recvMoved
	switch kind {
	case wire.FrameData:
		switch {
		case closed && !s.d.has("bytes behind fin are taken"), len(payload) > s.left && !s.d.has("more than the credit is taken"):
			violation()
			return
		}
		s.left -= len(payload)
		s.queued += len(payload)
		s.frames = append(s.frames, payload)
	case wire.FrameFin:
		if closed {
			violation()
			return
		}
		s.recvFin = true
	case wire.FrameMove:
		if closed {
			violation()
			return
		}
		s.recvMoved = true
	case wire.FrameReset:
		switch {
		case s.d.has("reset is an end"):
			s.recvFin = true
		case s.d.has("reset of an attached stream is ignored") && s.ws != nil:
		default:
			s.abortLocked(false)
		}
	case wire.FrameCredit:
		switch {
		case !s.t.caps.Has(wire.Inline):
			violation()
		case s.send == sendFin && s.d.has("credit for an ended direction is a violation"):
			s.abortLocked(true)
		case s.send == sendFin:
		case s.credit+wire.Credit(payload) > s.open.Early && !s.d.has("credit beyond the window is taken"):
			s.abortLocked(true)
		default:
			s.credit += wire.Credit(payload)
		}
	default:
		if !s.d.has("frames of unknown kinds are ignored") {
			s.abortLocked(true)
		}
	}
	s.cond.Broadcast()
}

// down relays what the visitor sends.
func (s *dstream) down() {
	taken := 0 // since credit was given last
	for {
		s.mu.Lock()
		for !s.over && len(s.frames) == 0 && !s.recvFin && !(s.recvMoved && (len(s.messages) > 0 || s.wsEnd)) &&
			!(s.d.has("the transfer socket is read at once") && len(s.messages) > 0) {
			s.cond.Wait()
		}
		var b []byte
		end := false
		early := len(s.frames) > 0
		switch {
		case s.over:
			s.mu.Unlock()
			return
		case early:
			b, s.frames = s.frames[0], s.frames[1:]
		case s.recvFin:
			end = true
		case len(s.messages) > 0:
			b, s.messages = s.messages[0], s.messages[1:]
			s.cond.Broadcast()
		default:
			end = true
		}
		s.mu.Unlock()
		if end {
			if !s.d.has("an end is not passed on") {
				halfClose(s.local)
			}
			s.mu.Lock()
			s.recvEnded = true
			s.cond.Broadcast()
			s.endLocked()
			s.mu.Unlock()
			return
		}
		if _, err := s.local.Write(b); err != nil {
			s.abort(true)
			return
		}
		if early {
			s.mu.Lock()
			s.queued -= len(b)
			taken += len(b)
			if s.t.caps.Has(wire.Inline) && (2*taken >= s.open.Early) && !s.recvFin && !s.d.has("credit is not given") {
				s.left += taken
				n := taken
				if s.d.has("credit is given twice") {
					n *= 2
				}
				s.t.ws.write(opBinary, wire.AppendCredit(nil, s.open.Stream, n))
				taken = 0
			}
			s.mu.Unlock()
		}
	}
}

// watch reads the transfer socket, until it ends or is parked.
func (s *dstream) watch(ws *dsock) {
	for {
		if s.basic && !s.d.has("a slow service is not waited for") {
			s.mu.Lock()
			for len(s.messages) > 0 && !s.over {
				s.cond.Wait()
			}
			s.mu.Unlock()
		}
		f, err := ws.read()
		s.mu.Lock()
		if s.recvEnded && s.sendEnded && s.over {
			s.mu.Unlock()
			s.after(ws, f, err)
			return
		}
		if s.over {
			s.mu.Unlock()
			ws.conn.Close()
			return
		}
		switch {
		case err != nil, f.op == opClose:
			if s.d.has("a close frame is an end") && f.op == opClose && s.basic || s.d.has("the end of TCP is an end") && f.op != opClose && s.basic {
				s.wsEnd = true
				s.cond.Broadcast()
				s.mu.Unlock()
				return
			}
			if s.d.has("codes of transfer sockets count") && f.op == opClose && (event{op: opClose, data: f.data}).code() == 4001 {
				s.t.ws.conn.Close()
			}
			if s.d.has("the end of the transfer socket is ignored") && !s.basic {
				s.mu.Unlock()
				return
			}
			s.abortLocked(false)
		case f.op == opPing:
			if !s.d.has("pings on transfer sockets are ignored") {
				ws.write(opPong, f.data)
			}
		case f.op == opText && s.d.has("text on a transfer socket is ignored"):
		case f.op == opText, f.op == opBinary && s.wsEnd && !s.d.has("bytes behind the end are ignored"):
			ws.close(4100)
			s.abortLocked(false)
		case f.op == opBinary && len(f.data) == 0:
			s.wsEnd = true
			s.cond.Broadcast()
			// down passes it on, behind what it may be writing; then an over stream is
			// known before the next frame.
			for s.recvMoved && !s.recvEnded && !s.over {
				s.cond.Wait()
			}
		case f.op == opBinary:
			if s.d.has("long messages are cut") {
				f.data = f.data[:min(len(f.data), 8192)]
			}
			if s.total += len(f.data); s.total > 300000 && s.d.has("a byte is wrong now and then") {
				f.data[0] ^= 1
			}
			s.messages = append(s.messages, f.data)
		}
		s.cond.Broadcast()
		over, parks := s.over, s.recvEnded && s.sendEnded
		s.mu.Unlock()
		if over && parks {
			s.after(ws, frame{op: opPong}, nil)
			return
		}
	}
}

// endLocked looks whether both directions have ended.
func (s *dstream) endLocked() {
	if s.over || !s.sendEnded || !s.recvEnded {
		return
	}
	s.finishLocked()
	reused := s.ws != nil && s.t.caps.Has(wire.Reuse) && !s.d.has("nothing is parked")
	code := 1000
	if s.d.has("streams are closed with 1001") {
		code = 1001
	}
	switch {
	case reused:
		most := 30 * time.Second
		if s.d.has("parked sockets stay for ever") {
			most = time.Hour
		}
		s.parked = &dpark{ws: s.ws, gone: make(chan struct{}), timer: time.AfterFunc(most, func() { s.ws.close(1000) })}
		s.t.mu.Lock()
		s.t.parked = append(s.t.parked, s.parked)
		s.t.mu.Unlock()
	case s.ws != nil:
		s.ws.close(code)
	}
	s.d.wg.Go(func() {
		s.forget()
		s.local.Close()
		switch {
		case s.ws == nil, reused, s.d.has("waits for a close frame for ever"):
		case s.d.has("TCP is closed at once"), s.d.sleep(10 * time.Second):
			s.ws.conn.Close()
		}
	})
}

// after is a socket whose stream is over: f or err is what came behind it.
func (s *dstream) after(ws *dsock, f frame, err error) {
	if s.t.caps.Has(wire.Reuse) && !s.d.has("nothing is parked") {
		s.park(ws, f, err)
		return
	}
	for err == nil && f.op != opClose {
		f, err = ws.read()
	}
	if s.d.has("waits for a close frame for ever") && err == nil {
		return
	}
	ws.conn.Close()
}

// park keeps a transfer socket for another stream.
func (s *dstream) park(ws *dsock, f frame, err error) {
	t, d := s.t, s.d
	defer close(s.parked.gone)
	defer s.parked.timer.Stop()
	for {
		switch {
		case err != nil:
			ws.conn.Close()
			return
		case f.op == opPing:
			ws.write(opPong, f.data)
		case f.op == opClose:
			if !d.has("close frames on parked sockets are not answered") {
				ws.close(event{op: opClose, data: f.data}.code())
			}
			ws.conn.Close()
			return
		case f.op == opBinary && d.has("anything goes on parked sockets"):
		case f.op == opBinary:
			ws.close(4100)
			ws.conn.Close()
			return
		case f.op == opText:
			m, bad := wire.Decode(f.data)
			if a, ok := m.(*wire.Attached); ok {
				t.mu.Lock()
				n := t.streams[a.Stream]
				t.mu.Unlock()
				if n != nil {
					n.attach(ws)
					return
				}
			}
			if d.has("anything goes on parked sockets") {
				break
			}
			if bad == wire.ErrUnknownMessage && !d.has("unknown messages on parked sockets are malformed") {
				break
			}
			ws.close(4100)
			ws.conn.Close()
			return
		}
		f, err = ws.read()
	}
}

// reuse gives the stream a parked socket; false if there is none, or in vain.
func (s *dstream) reuse() bool {
	t, d := s.t, s.d
	t.mu.Lock()
	var p *dpark
	if len(t.parked) > 0 {
		p, t.parked = t.parked[0], t.parked[1:]
	}
	t.mu.Unlock()
	if p == nil {
		return false
	}
	a := wire.Attach{Stream: s.open.Stream, ID: s.open.ID}
	if d.has("attach has another id") {
		a.ID = wire.NewID()
	}
	p.ws.write(opText, wire.Encode(&a))
	if d.has("bytes before attached") {
		p.ws.write(opBinary, []byte("x"))
	}
	patience := time.Second
	if d.has("waits for attached for ever") {
		patience = time.Hour
	}
	select {
	case <-p.gone:
	case <-time.After(patience):
		p.ws.conn.Close()
		<-p.gone
	case <-s.ended:
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ws == nil && d.has("no handshake behind attach") {
		return true
	}
	return s.ws != nil
}

// Close is the end of the device.
func (s *dstream) Close() error { s.abort(false); return nil }

func (s *dstream) abort(tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abortLocked(tell)
}

// abortLocked cuts a stream off; tell says whether the edge has to hear of it.
func (s *dstream) abortLocked(tell bool) {
	if s.over {
		return
	}
	s.finishLocked()
	if s.local != nil {
		if s.d.has("aborts are ends") {
			s.local.Close()
		} else {
			resetConn(s.local)
		}
	}
	switch {
	case s.ws != nil:
		s.ws.conn.Close()
	case tell && !s.basic:
		s.frameLocked(wire.FrameReset, nil)
	}
	s.d.wg.Go(s.forget)
}
