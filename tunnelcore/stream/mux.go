package stream

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// ErrProtocol is what a peer's frames fail with that break the protocol (§4.5,
// §10.9): its control socket is to be closed with 4100.
var ErrProtocol = errors.New("the peer breaks the protocol")

// ErrEnded is Open's answer when the control socket is over.
var ErrEnded = errors.New("the control socket has ended")

// maxBreaches is how many streams a peer may lose by breaking their rules before
// its control socket is closed.
const maxBreaches = 16

const (
	// openTime is how long `open` waits for the first bytes of its stream, to
	// leave together with them.
	openTime = time.Millisecond
	// starveTime is how long spent credit waits for a transfer socket (protocol
	// §10.8).
	starveTime = 10 * time.Second
	// wantTime is the least age at which a stream wants a transfer socket (protocol
	// §10.4).
	wantTime = 20 * time.Millisecond
)

// MuxOptions of a Mux.
type MuxOptions struct {
	// Inline says that no transfer socket ever comes: credit is given back instead
	// (protocol §12).
	Inline bool
	// Owner waits for the goroutine in which frames leave that nobody else sends.
	// It must count something else until End has returned. nil: nobody waits.
	Owner *sync.WaitGroup
	// RTT is the round trip to the peer; nil: that of pings on the control socket.
	RTT func() time.Duration
	// Dropped counts frames of unknown streams, Breached streams that were reset as
	// the peer broke their rules. nil: nobody counts.
	Dropped, Breached *atomic.Uint64
}

// Mux is one end of the streams that begin on one control socket (protocol §9,
// §10, §12). All methods but ReadFrame may be called concurrently.
type Mux struct {
	sock *socket.Socket
	opts MuxOptions

	partial *[]byte // of a frame whose reading a deadline has interrupted

	mu       sync.Mutex // guards what follows; taken inside a stream's
	streams  map[uint32]*Stream
	due      []due // frames that nobody waits for
	flushing bool
	breaches int
	ended    bool
	broken   bool // the control socket takes nothing more, and is about to end
}

// due is a frame to be sent: credit for a stream, or the reset of one.
type due struct {
	credit *Stream // nil: a reset
	reset  uint32  // the stream's number
	told   *Stream // wants to know that its reset was sent
}

// NewMux makes the streams of a control socket, which stays its owner's: who reads
// it hands frames over, by Receive or ReadFrame, and calls End.
func NewMux(sock *socket.Socket, o MuxOptions) *Mux {
	if o.Owner == nil {
		o.Owner = new(sync.WaitGroup)
	}
	if o.RTT == nil {
		o.RTT = sock.RTT
	}
	if o.Dropped == nil {
		o.Dropped = new(atomic.Uint64)
	}
	if o.Breached == nil {
		o.Breached = new(atomic.Uint64)
	}
	return &Mux{sock: sock, opts: o, streams: make(map[uint32]*Stream)}
}

// Open makes a stream with so many bytes of credit in each direction: at the edge
// before its `open` is sent, which Options.Open is for, at the agent when that has
// come. It fails with ErrEnded, maybe before the control socket's reader sees the
// end, or with ErrProtocol when the number is in use.
func (m *Mux) Open(number uint32, credit int, o Options) (*Stream, error) {
	c := newEarly(m, number, credit, o)
	m.mu.Lock()
	switch {
	case m.ended || m.broken:
		m.mu.Unlock()
		return nil, ErrEnded
	case m.streams[number] != nil:
		m.mu.Unlock()
		return nil, fmt.Errorf("%w: stream %d is open already", ErrProtocol, number)
	}
	m.streams[number] = c
	m.mu.Unlock()
	c.start()
	return c, nil
}

// Has reports whether the number is in use.
func (m *Mux) Has(number uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.streams[number] != nil
}

// frames holds buffers for whole frames.
var frames = sync.Pool{New: func() any { b := make([]byte, 0, wire.FrameHeader+wire.MaxFrame); return &b }}

// ReadFrame reads the rest of the binary message that Next has announced on the
// control socket, and receives it. It is the socket's reader who calls it, and
// calls it again after a deadline. Errors are ErrProtocol and the socket's.
func (m *Mux) ReadFrame() error {
	if m.partial == nil {
		m.partial = frames.Get().(*[]byte)
	}
	b, err := m.sock.Append(*m.partial, cap(*m.partial))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		*m.partial = b
		return err
	}
	defer frames.Put(m.partial)
	*m.partial = (*m.partial)[:0]
	m.partial = nil
	switch {
	case errors.Is(err, socket.ErrTooBig):
		return fmt.Errorf("%w: frame too long", ErrProtocol)
	case err != nil:
		return err
	}
	return m.Receive(b)
}

// Receive takes a binary message of the control socket, which it does not keep.
// It never waits. The error is ErrProtocol.
func (m *Mux) Receive(message []byte) error {
	k, number, payload, err := wire.ParseFrame(message)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	m.mu.Lock()
	c := m.streams[number]
	m.mu.Unlock()
	if c == nil {
		m.opts.Dropped.Add(1) // frames cross (protocol §9.3)
		return nil
	}
	if reason := c.receive(k, payload); reason != "" {
		return m.breach(number, reason)
	}
	return nil
}

// breach counts a stream that was reset as the peer broke its rules.
func (m *Mux) breach(number uint32, reason string) error {
	m.opts.Breached.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.breaches++; m.breaches > maxBreaches {
		return fmt.Errorf("%w again and again: stream %d: %s", ErrProtocol, number, reason)
	}
	return nil
}

// End says that the control socket is over. Streams that have not moved with both
// directions are aborted, with err as the reason; the others live on (protocol
// §10.10).
func (m *Mux) End(err error) {
	m.mu.Lock()
	unsent := m.due
	m.ended, m.due = true, nil
	all := make([]*Stream, 0, len(m.streams))
	for _, c := range m.streams {
		all = append(all, c)
	}
	clear(m.streams)
	m.mu.Unlock()
	for _, c := range all {
		c.controlEnded(err)
	}
	tell(unsent)
}

// forget frees the number of c.
func (m *Mux) forget(c *Stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[c.e.number] == c {
		delete(m.streams, c.e.number)
	}
}

// later sends a frame as soon as it can, without letting the caller wait. It reports
// whether somebody cares for that, which nobody does when the control socket is over.
func (m *Mux) later(d due) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return false
	}
	m.due = append(m.due, d) // at most a reset and a credit of each stream
	if !m.flushing {
		m.flushing = true
		m.opts.Owner.Go(m.flush)
	}
	return true
}

// tell lets streams know whose reset was due that it was sent, or cannot be.
func tell(all []due) {
	for _, d := range all {
		if d.told != nil {
			d.told.told()
		}
	}
}

// flush sends what is due. There is one at most. A socket that does not take it
// ends, by its heartbeat or its write timeout.
func (m *Mux) flush() {
	const most = 16
	var turn socket.Turn
	var buf [most * (wire.FrameHeader + 4)]byte
	var messages [most]socket.Message
	var sent [most]due
	for {
		b, n := buf[:0], 0
		for n < most {
			d, ok := m.nextDue(n == 0)
			if !ok {
				break
			}
			start := len(b)
			if d.credit == nil {
				b = wire.AppendFrameHeader(b, wire.FrameReset, d.reset)
			} else if b = d.credit.appendCredit(b); len(b) == start {
				continue
			}
			messages[n], sent[n] = socket.Message{Op: socket.Binary, Head: b[start:]}, d
			n++
		}
		if n == 0 {
			return
		}
		_ = m.wrote(m.sock.WriteMessages(&turn, messages[:n]...)) // tells the reader
		tell(sent[:n])
	}
}

// nextDue takes what is to be sent next. Without anything, the flush is over if
// last says that nothing else is on its way.
func (m *Mux) nextDue(last bool) (due, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.due) == 0 {
		m.due = nil
		m.flushing = !last
		return due{}, false
	}
	d := m.due[0]
	m.due = m.due[1:]
	return d, true
}

// send sends the header of a frame and its payload, behind open, where they are
// not nil.
func (m *Mux) send(t *socket.Turn, open, header, payload []byte) error {
	announced := socket.Message{Op: socket.Text, Head: open}
	frame := socket.Message{Op: socket.Binary, Head: header, Body: payload}
	switch {
	case header == nil:
		return m.wrote(m.sock.WriteMessages(t, announced))
	case open == nil:
		return m.wrote(m.sock.WriteMessages(t, frame))
	}
	return m.wrote(m.sock.WriteMessages(t, announced, frame))
}

// brokenTime is how long the control socket's reader may find what came before the
// socket broke, such as a close frame.
const brokenTime = time.Second

// wrote takes the result of a write to the control socket. After one that failed
// nothing can be written any more, and the reader, who may wait for a peer that
// is silent, is told so.
func (m *Mux) wrote(err error) error {
	if err == nil || errors.Is(err, socket.ErrGaveUp) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.broken && !m.ended {
		m.broken = true
		_ = m.sock.SetReadDeadline(time.Now().Add(brokenTime)) // fails only on a closed socket
	}
	return err
}
