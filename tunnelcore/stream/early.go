package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// direction is where the bytes of one direction travel (protocol §10.3).
type direction int

const (
	onControl  direction = iota // EARLY
	onTransfer                  // MOVED
	ended                       // ENDED on the control socket
)

// early is what a stream has besides that begins on a control socket. It belongs
// to the stream's mu.
type early struct {
	mux    *Mux
	number uint32
	window int // credit at first, in bytes

	// readable tells who reads, or waits for the peer's close; writable who sends.
	readable, writable sync.Cond
	readBy, writeBy    alarm

	in, out direction
	held    held // came on the control socket, not read yet
	owed    int  // the peer may still send on the control socket, in bytes
	credit  int  // we may
	freed   int  // read, and not given back as credit yet; inline only
	telling bool // of that: the mux has it on its list

	open     []byte                 // to be sent before everything else
	sending  bool                   // a frame is on its way: others wait
	tried    bool                   // some of what was written may have been sent
	resetDue bool                   // after that
	untold   bool                   // a reset is due, and was not sent
	leaves   bool                   // finish has left Options.Told to whoever sends it
	turn     socket.Turn            // of what is written
	header   [wire.FrameHeader]byte // of the frame on its way
	timer    *time.Timer            // sends open, or wants a transfer socket

	moved    bool          // Options.Moved was called, or will not be
	wanted   bool          // Options.Wanted was called, or will not be
	unwanted chan struct{} // see Unwanted; made when asked for

	err error // the stream is over before its time
}

// muxed is a stream with what is early of it.
type muxed struct {
	Stream
	e early
}

// newEarly makes a stream of m, which does nothing before start.
func newEarly(m *Mux, number uint32, credit int, o Options) *Stream {
	c := &muxed{Stream: Stream{opts: o.filled()}}
	c.Stream.e = &c.e
	e := &c.e
	e.mux, e.number, e.window, e.owed, e.credit = m, number, credit, credit, credit
	e.open = o.Open
	e.moved = o.Moved == nil
	e.wanted = o.Wanted == nil || m.opts.Inline
	e.readable.L, e.writable.L = &c.mu, &c.mu
	return &c.Stream
}

// start sets the clock of a stream that can be found in its mux.
func (c *Stream) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.e
	switch {
	case e.err != nil:
	case e.open != nil:
		e.timer = time.AfterFunc(openTime, c.openLate)
	case e.credit == 0:
		c.wantLocked()
	case !e.wanted:
		e.timer = time.AfterFunc(max(wantTime, 2*e.mux.opts.RTT()), c.wantLate)
	}
}

// openLate sends `open` without bytes, as none came.
func (c *Stream) openLate() {
	c.mu.Lock()
	if c.e.open == nil || c.e.sending || c.e.err != nil || c.over {
		c.mu.Unlock()
		return
	}
	// The stream is not over: Owner counts something.
	c.opts.Owner.Add(1)
	defer c.opts.Owner.Done()
	defer c.mu.Unlock()
	var turn socket.Turn             // a deadline of writes does not give it up
	_ = c.frameLocked(&turn, 0, nil) // the next write fails too
}

// wantLate is called when the stream has lasted.
func (c *Stream) wantLate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wantLocked()
}

// wantLocked asks for a transfer socket, once, if one makes sense.
func (c *Stream) wantLocked() {
	e := c.e
	if e.wanted || c.s != nil || c.over || e.err != nil || e.in == ended && e.out == ended {
		return
	}
	e.wanted = true
	c.opts.Owner.Go(func() { c.opts.Wanted(c) })
}

// spentLocked looks whether half of the credit is spent.
func (c *Stream) spentLocked() {
	if e := c.e; !e.wanted && (e.credit <= e.window/2 || e.owed <= e.window/2) {
		c.wantLocked()
	}
}

// Unwanted is closed when the stream needs no transfer socket any more: it has
// one, or its bytes have all travelled without, or it is over. For a stream that
// began on a control socket.
func (c *Stream) Unwanted() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.e.unwanted == nil {
		c.e.unwanted = make(chan struct{})
		c.unwantedLocked()
	}
	return c.e.unwanted
}

// unwantedLocked closes unwanted if it is time to, and was not done.
func (c *Stream) unwantedLocked() {
	e := c.e
	if c.s == nil && !c.over && e.err == nil && (e.in != ended || e.out != ended) {
		return
	}
	if e.timer != nil && e.open == nil {
		e.timer.Stop()
	}
	if e.unwanted == nil {
		return
	}
	select {
	case <-e.unwanted:
	default:
		close(e.unwanted)
	}
}

// receive takes a frame. It says how the peer broke the rules, if it did: then
// the stream is reset.
func (c *Stream) receive(k wire.FrameKind, payload []byte) (breach string) {
	c.mu.Lock()
	e := c.e
	if c.over || e.err != nil {
		c.mu.Unlock()
		return ""
	}
	var lost *socket.Socket
	switch k {
	case wire.FrameReset:
		lost = c.failLocked(fmt.Errorf("%w: reset", ErrAborted), false)
	default:
		if breach = c.frameInLocked(k, payload); breach != "" {
			lost = c.failLocked(fmt.Errorf("%w: %s", ErrAborted, breach), true)
		}
	}
	moved, kept := c.leftLocked()
	c.mu.Unlock()
	if lost != nil {
		lost.Close()
	}
	if moved {
		c.opts.Moved(kept)
	}
	return breach
}

// leftLocked reports, once, that nothing of the stream will travel on the control
// socket any more, and how much is kept of what has.
func (c *Stream) leftLocked() (now bool, kept int) {
	e := c.e
	// A frame that is on its way may be `move`, which a close frame of the control socket
	// would overtake. Attach comes back to it.
	if e.moved || c.s == nil || e.in == onControl || e.out == onControl || e.sending {
		return false, 0
	}
	e.moved = true
	return true, max(e.window-e.credit, e.held.size)
}

// frameInLocked does what a frame says, if the rules let it (protocol §10.9).
func (c *Stream) frameInLocked(k wire.FrameKind, payload []byte) (breach string) {
	e := c.e
	if k != wire.FrameCredit && e.in != onControl {
		return "a frame after the end, or after move"
	}
	switch k {
	case wire.FrameData:
		if len(payload) > e.owed {
			return "more data than credit"
		}
		e.owed -= len(payload)
		e.held.add(payload)
		c.spentLocked()
	case wire.FrameFin:
		e.in = ended
		c.unwantedLocked()
	case wire.FrameMove:
		if e.mux.opts.Inline {
			return "move with inline"
		}
		e.in = onTransfer
		c.movedLocked()
	case wire.FrameCredit:
		n := wire.Credit(payload)
		switch {
		case !e.mux.opts.Inline:
			return "credit without inline"
		case e.out != onControl:
			return "" // it has crossed our end
		case e.credit+n > e.window:
			return "more credit than the window"
		}
		e.credit += n
		e.writable.Broadcast()
		return ""
	default:
		return "a frame of an unknown kind"
	}
	e.readable.Broadcast()
	return ""
}

// movedLocked frees the number of a stream that has left the control socket, as
// both ends know.
func (c *Stream) movedLocked() {
	if e := c.e; e.in == onTransfer && e.out != onControl && c.s != nil && !e.sending {
		e.mux.forget(c)
	}
}

// failLocked ends the stream before its time, once, and lets everybody know; the
// peer too if told is set. What is held can still be read. It returns the
// transfer socket, which is to be closed without mu.
func (c *Stream) failLocked(err error, tell bool) *socket.Socket {
	e := c.e
	if e.err != nil {
		return nil
	}
	e.err = err
	c.broken.Store(true)
	switch {
	case !tell:
	case e.sending:
		e.resetDue, e.untold = true, true
	case e.open == nil:
		e.untold = e.mux.later(c.dueReset())
	}
	e.mux.forget(c)
	e.mux.sock.GiveUp(&e.turn)
	if e.timer != nil {
		e.timer.Stop()
	}
	c.unwantedLocked()
	e.readable.Broadcast()
	e.writable.Broadcast()
	return c.s
}

// Fail ends the stream before its time, with err as what calls under way and later
// ones return. The peer sees an abort.
func (c *Stream) Fail(err error) {
	if c.e == nil {
		c.Abort()
		return
	}
	c.fail(err, true)
}

// Refused is Fail for a stream of which `refused` says the same to the peer, or
// has come from it. It does nothing once there is a transfer socket (protocol
// §10.7).
func (c *Stream) Refused(err error) {
	c.mu.Lock()
	attached := c.s != nil
	c.mu.Unlock()
	if !attached {
		c.fail(err, false)
	}
}

func (c *Stream) fail(err error, tell bool) {
	c.mu.Lock()
	var lost *socket.Socket
	if !c.over && c.e.err == nil {
		c.failure.Store(&err)
		lost = c.failLocked(err, tell)
		c.e.held.drop()
	}
	c.mu.Unlock()
	if lost != nil {
		lost.Close()
	}
}

// abortLocked tells the peer of an abort, unless both ends have the transfer
// socket for sure: its end says so.
func (c *Stream) abortLocked() {
	c.failLocked(net.ErrClosed, c.s == nil || c.e.in != onTransfer)
}

// finishLocked lets go of the control socket, and reports whether the end is
// clean indeed.
func (c *Stream) finishLocked(clean bool) bool {
	e := c.e
	if !clean {
		c.abortLocked()
	}
	clean = e.err == nil
	e.mux.forget(c)
	e.held.drop()
	e.readBy.stop()
	e.writeBy.stop()
	c.over = true
	c.unwantedLocked()
	return clean
}

// controlEnded aborts the stream unless it has moved with both directions.
func (c *Stream) controlEnded(err error) {
	c.mu.Lock()
	e := c.e
	gone := e.in != onControl && e.out != onControl && (c.s != nil || e.in == ended && e.out == ended)
	var lost *socket.Socket
	if !gone && !c.over {
		lost = c.failLocked(c.lostLocked(err), false)
	}
	c.mu.Unlock()
	if lost != nil {
		lost.Close()
	}
}

// lostLocked is what the stream fails with as the control socket did with err.
func (c *Stream) lostLocked(err error) error {
	if !c.e.tried {
		return fmt.Errorf("%w: %w: %w: %w", ErrAborted, ErrLost, ErrUnsent, err)
	}
	return fmt.Errorf("%w: %w: %w", ErrAborted, ErrLost, err)
}

// Attach gives the stream its transfer socket, which it owns from then on,
// whatever happens; the peer has done the same, or does so now. It sends `move`,
// for which it may have to wait. The error says that the stream is over, or has a
// transfer socket.
func (c *Stream) Attach(s *socket.Socket) error {
	c.mu.Lock()
	e := c.e
	if err := c.unfitLocked(); err != nil {
		park := c.over && e.err == nil && c.s == nil && c.opts.Parked != nil
		c.mu.Unlock()
		if park { // both ends agree that it is unused
			c.opts.Parked(s)
		} else {
			s.Close()
		}
		return err
	}
	c.s = s
	_, _ = s.SetReadDeadline(e.readBy.at), s.SetWriteDeadline(e.writeBy.at) // fails only on a closed socket
	c.unwantedLocked()
	e.readable.Broadcast()
	for e.sending {
		e.writable.Wait()
	}
	if e.out == onControl && e.err == nil && !c.over {
		// What follows on the transfer socket need not wait for `move` to be sent.
		e.out, e.tried = onTransfer, true
		var turn socket.Turn                          // neither Close nor a deadline gives it up
		_ = c.frameLocked(&turn, wire.FrameMove, nil) // a broken control socket ends, and the stream with it
	}
	c.movedLocked()
	moved, kept := c.leftLocked()
	c.mu.Unlock()
	if moved {
		c.opts.Moved(kept)
	}
	return nil
}

// unfitLocked says why there can be no transfer socket.
func (c *Stream) unfitLocked() error {
	switch e := c.e; {
	case e.err != nil:
		return e.err
	case c.over:
		return net.ErrClosed
	case c.s != nil:
		return errors.New("stream has a transfer socket")
	case e.mux.opts.Inline:
		return errors.New("no transfer sockets with inline")
	}
	return nil
}

// frameLocked sends a frame of the stream, and `open` ahead if that is due; kind 0
// is `open` alone. No other may be on its way. It lets go of mu meanwhile.
func (c *Stream) frameLocked(turn *socket.Turn, k wire.FrameKind, payload []byte) error {
	e := c.e
	open := e.open
	e.open = nil
	if open != nil && e.timer != nil {
		e.timer.Stop()
	}
	tried := e.tried
	e.sending, e.tried = true, tried || k == wire.FrameData
	var header []byte
	if k != 0 {
		header = wire.AppendFrameHeader(e.header[:0], k, e.number)
	}
	c.mu.Unlock()
	err := e.mux.send(turn, open, header, payload)
	c.mu.Lock()
	e.sending = false
	if errors.Is(err, socket.ErrGaveUp) {
		e.open, e.tried = open, tried
		if !tried && errors.Is(e.err, ErrLost) { // which has made it give up
			e.err = fmt.Errorf("%w: %w", e.err, ErrUnsent)
		}
	}
	if e.resetDue && (e.open != nil || !e.mux.later(c.dueReset())) {
		c.mu.Unlock()
		c.told()
		c.mu.Lock()
	}
	e.writable.Broadcast()
	return err
}

// dueReset is the reset of c. It holds no stream that need not be told: what is due is
// kept for as long as the control socket takes nothing.
func (c *Stream) dueReset() due {
	d := due{reset: c.e.number}
	if c.opts.Told != nil {
		d.told = c
	}
	return d
}

// told is called when the reset that was due has been sent, or cannot be.
func (c *Stream) told() {
	c.mu.Lock()
	c.e.untold = false
	left := c.e.leaves
	c.mu.Unlock()
	if left {
		c.opts.Told()
	}
}

// overForPeer calls Options.Told, unless a reset has to be sent first.
func (c *Stream) overForPeer() {
	c.mu.Lock()
	e := c.e
	e.leaves = e.untold
	left := e.leaves
	c.mu.Unlock()
	if !left {
		c.opts.Told()
	}
}

// awaitEarly waits until there is something to read: bytes of the control socket,
// or direct is set, for the transfer socket's. It wants readMu, or to be linger.
func (c *Stream) awaitEarly() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.e
	for {
		switch {
		case e.held.size > 0:
			return nil
		case e.err != nil:
			return c.readFailed(e.err)
		case e.in == ended:
			c.readEnded.Store(true)
			return io.EOF
		case e.in == onTransfer && c.s != nil:
			c.inDirect = true
			return nil
		case e.readBy.passed():
			return c.readFailed(os.ErrDeadlineExceeded)
		}
		e.readable.Wait()
	}
}

// takeEarly reads bytes of the control socket that awaitEarly has seen.
func (c *Stream) takeEarly(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.e
	n := e.held.take(p)
	if e.mux.opts.Inline && e.in == onControl && e.err == nil {
		e.freed += n
		if !e.telling && e.freed >= max(1, e.window/2) {
			e.telling = true
			e.mux.later(due{credit: c})
		}
	}
	return n
}

// appendCredit gives back what was read as credit.
func (c *Stream) appendCredit(b []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.e
	n := e.freed
	e.freed, e.telling = 0, false
	if n == 0 || e.in != onControl || e.err != nil || c.over {
		return b
	}
	e.owed += n
	return wire.AppendCredit(b, e.number, n)
}

// writeEarly sends a piece of p on the control socket; 0 without an error means
// that the direction goes on on the transfer socket. It wants writeMu.
func (c *Stream) writeEarly(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.e
	var starved time.Time
	for {
		switch {
		case e.err != nil:
			return 0, c.writeFailed(e.err)
		case e.out == onTransfer:
			c.outDirect = true
			return 0, nil
		case e.writeBy.passed():
			return 0, c.writeFailed(os.ErrDeadlineExceeded)
		case e.sending || c.s != nil: // `move` is about to be sent
		case e.credit > 0:
			n := min(len(p), e.credit, wire.MaxFrame, c.opts.MessageMax-wire.FrameHeader)
			e.credit -= n
			c.spentLocked()
			if err := c.frameLocked(&e.turn, wire.FrameData, p[:n]); err != nil {
				return 0, c.writeFailed(c.whyLocked(err))
			}
			c.sent.Add(int64(n))
			return n, nil
		case e.open != nil:
			if err := c.frameLocked(&e.turn, 0, nil); err != nil {
				return 0, c.writeFailed(c.whyLocked(err))
			}
			continue
		case !e.mux.opts.Inline && starved.IsZero():
			starved = time.Now().Add(starveTime)
			limit := time.AfterFunc(starveTime, c.wakeWriter)
			defer limit.Stop()
		case !starved.IsZero() && !time.Now().Before(starved):
			return 0, c.writeFailed(fmt.Errorf("no transfer socket came within %v", starveTime))
		}
		e.writable.Wait()
	}
}

func (c *Stream) wakeWriter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.e.writable.Broadcast()
}

// whyLocked is what a frame was not sent for.
func (c *Stream) whyLocked(err error) error {
	switch {
	case c.e.err != nil:
		return c.e.err
	case errors.Is(err, socket.ErrGaveUp):
		return os.ErrDeadlineExceeded
	}
	return c.lostLocked(err) // the reader of the control socket sees it, too
}

// endEarly ends our direction on the control socket, unless it has moved: then
// outDirect is set. It wants writeMu, or to be called for linger.
func (c *Stream) endEarly() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.e
	for {
		switch {
		case e.err != nil:
			return e.err
		case e.out == onTransfer:
			c.outDirect = true
			return nil
		case e.writeBy.passed():
			return os.ErrDeadlineExceeded
		case !e.sending && c.s == nil:
			// Ended before it is sent: the peer may answer at once.
			e.out = ended
			if err := c.frameLocked(&e.turn, wire.FrameFin, nil); err != nil {
				return c.whyLocked(err)
			}
			c.unwantedLocked()
			e.readable.Broadcast()
			return nil
		}
		e.writable.Wait()
	}
}

// awaitSocket waits, after the peer's end was read, until there is a transfer
// socket to watch; nil with no socket means that there is nothing to watch any
// more. It wants readMu.
func (c *Stream) awaitSocket() (*socket.Socket, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.e; ; {
		switch {
		case c.closed.Load():
			return nil, nil
		case e != nil && e.err != nil:
			return nil, c.readFailed(e.err)
		case c.s != nil:
			return c.s, nil
		case e.in == ended && e.out == ended:
			return nil, nil
		}
		e.readable.Wait()
	}
}

// settledLocked reports whether both directions have ended without a transfer
// socket, and all was read.
func (c *Stream) settledLocked() bool {
	e := c.e
	return e != nil && c.s == nil && e.err == nil && !e.sending &&
		e.in == ended && e.out == ended && e.held.size == 0
}

// alarm is a deadline of who waits for the control socket. It belongs to the
// stream's mu.
type alarm struct {
	at    time.Time // zero: never
	timer *time.Timer
}

func (a *alarm) passed() bool { return !a.at.IsZero() && !time.Now().Before(a.at) }

func (a *alarm) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// setReadByLocked and setWriteByLocked set the deadlines of what waits for the
// control socket.
func (e *early) setReadByLocked(t time.Time) {
	e.readBy.at = t
	e.armLocked(&e.readBy)
}

func (e *early) setWriteByLocked(t time.Time) {
	if e.err == nil {
		e.turn.Renew()
	}
	e.writeBy.at = t
	e.armLocked(&e.writeBy)
}

// armLocked makes a ring when it is time.
func (e *early) armLocked(a *alarm) {
	switch {
	case a.at.IsZero():
		a.stop()
	case a.passed():
		a.stop()
		e.ringLocked(a)
	case a.timer != nil:
		a.timer.Reset(time.Until(a.at))
	default:
		a.timer = time.AfterFunc(time.Until(a.at), func() {
			e.readable.L.Lock()
			defer e.readable.L.Unlock()
			e.armLocked(a) // it may have been set again
		})
	}
}

// ringLocked lets go of who waits.
func (e *early) ringLocked(a *alarm) {
	if a == &e.readBy {
		e.readable.Broadcast()
		return
	}
	e.mux.sock.GiveUp(&e.turn)
	e.writable.Broadcast()
}
