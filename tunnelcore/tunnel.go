package tunnelcore

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/url"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

const (
	// controlWrite bounds every write to a control socket.
	controlWrite = 15 * time.Second
	// closeTime is how long a peer may take to answer a close frame.
	closeTime = 2 * time.Second
	// settleTime is how long the streams of a tunnel that is about to go may take to
	// end or to get transfer sockets.
	settleTime = 10 * time.Second
	// lookTime is how often it is looked whether a probed agent has answered, or a
	// tunnel has settled.
	lookTime = 10 * time.Millisecond
	// registryTimeout bounds a call to the registry.
	registryTimeout = 5 * time.Second
)

// tunnel is one device's live control connection.
type tunnel struct {
	hub        *Hub
	device     *device
	holder     registry.Holder
	label      string
	hello      wire.Hello
	messageMax int
	caps       wire.Caps // in force
	credit     credit
	mux        *stream.Mux // of the streams that begin on sock; nil without early
	secret     string      // of transfer sockets
	hash       [32]byte
	credential Credential
	agent      string    // how it names itself
	settings   *Settings // under which it was authorised
	notices    int64     // that there were before
	since      time.Time
	sock       *socket.Socket
	greeted    chan struct{} // closed when the agent was told what is in force
	ended      chan struct{} // closed when the tunnel is over

	pulse pulse // of the heartbeat; belongs to housekeeping

	mu      sync.Mutex // guards what follows
	bound   bounds
	public  map[uint16]uint16   // public ports, as they were leased
	opening map[string]*opening // streams without a transfer socket, by id
	parked  map[*socket.Socket]struct{}
	over    bool          // nothing may be added to these
	unmoved int           // streams that would end with the tunnel
	next    uint32        // number of the next stream
	said    chan struct{} // closed when a close frame was tried to be sent; nil: none was
	told    bool          // one says why to the agent; valid when said is closed
	why     string        // it was closed for, on this side; empty while it was not
	code    int           // of the close frame for that
	clean   bool          // the end is a goodbye: the device is not expected back at once
	ousted  bool          // it is closed though no other tunnel has its device
	moving  bool          // the agent was told to leave for another node
	telling bool          // run or announceAll announces
	stale   bool          // and has to do it again
	rested  bool          // rest was called,
	roused  bool          // and the reader has not seen it yet
}

// bounds are what settings decide about a tunnel, and its agent is told.
type bounds struct {
	heartbeat time.Duration
	lease     time.Duration
	streams   int               // at once
	addresses map[uint16]string // of the device's ports that are public
}

// bounds returns those that follow from s and what the agent asked for, without
// addresses.
func (t *tunnel) bounds(s *Settings) bounds {
	b := bounds{heartbeat: s.Heartbeat, lease: s.Lease, streams: within(t.hello.Streams, s.Limits.StreamsPerDevice)}
	if t.hello.Heartbeat > 0 {
		b.heartbeat = time.Duration(t.hello.Heartbeat) * time.Second
	}
	return b
}

// setBounds puts b in force and reports whether it is anything new.
func (t *tunnel) setBounds(b bounds) bool {
	t.mu.Lock()
	old := t.bound
	t.bound = b
	t.mu.Unlock()
	t.device.resize(t, b.streams)
	return old.heartbeat != b.heartbeat || old.lease != b.lease || old.streams != b.streams ||
		!maps.Equal(old.addresses, b.addresses)
}

func (t *tunnel) inForce() bounds {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bound
}

func (t *tunnel) log() *slog.Logger {
	return t.hub.log().With("device", t.holder.Device, "tunnel", t.holder.Tunnel)
}

// run tells the agent what is in force, and has serve do the rest: what it took
// of the stack to say so would be kept for as long as the tunnel lives.
func (t *tunnel) run() {
	if err := t.announce(); err != nil {
		defer t.hub.wg.Done()
		t.end(err)
		return
	}
	close(t.greeted)
	t.mu.Lock()
	if t.telling = t.stale; t.stale { // settings have changed meanwhile
		t.hub.wg.Go(t.announceAll)
	}
	t.mu.Unlock()
	go t.serve()
}

// serve serves the tunnel until it ends, and takes it out of the hub. It is the
// one goroutine that an idle device costs.
func (t *tunnel) serve() {
	var err error
	for err == nil {
		if err = t.receive(); t.wasRoused(err) {
			go t.serve() // counted as this one was
			return
		}
	}
	defer t.hub.wg.Done()
	t.end(err)
}

// announceSoon lets the agent know what is in force now. It does not wait for an
// agent that does not read, which its heartbeat finds.
func (t *tunnel) announceSoon() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stale = true
	if !t.telling {
		t.telling = true
		t.hub.wg.Go(t.announceAll)
	}
}

// announceAll announces until nothing has changed meanwhile: what is said last is
// in force.
func (t *tunnel) announceAll() {
	for {
		t.mu.Lock()
		again := t.stale
		t.stale, t.telling = false, again
		t.mu.Unlock()
		if !again || t.announce() != nil {
			return
		}
	}
}

// announce sends `ready` and a `port` for each port.
func (t *tunnel) announce() error {
	s, b := t.hub.settings.Load(), t.inForce()
	ready := &wire.Ready{
		Tunnel:     t.holder.Tunnel,
		Caps:       t.caps.String(),
		Heartbeat:  int(b.heartbeat / time.Second),
		Label:      t.label,
		Hostname:   t.label + "." + s.Domain,
		Lease:      int64(b.lease / time.Second),
		Streams:    b.streams,
		MessageMax: t.messageMax,
		Transfer:   wire.TransferPath + "?node=" + url.QueryEscape(t.hub.node.ID) + "&tunnel=" + t.holder.Tunnel,
		Secret:     t.secret,
	}
	if t.mux != nil {
		ready.Early, ready.EarlyTotal = t.credit.each, t.credit.total
	}
	messages := []wire.Message{ready}
	for _, p := range t.hello.Ports {
		messages = append(messages, &wire.PortInfo{
			Port: p.Number, Kind: p.Kind,
			URL: s.url(t.label, p, t.hello.Ports), Addr: b.addresses[p.Number],
		})
	}
	for _, m := range messages {
		if err := t.sock.WriteMessage(socket.Text, wire.Encode(m)); err != nil {
			return err
		}
	}
	return nil
}

// receive handles one message of the agent.
func (t *tunnel) receive() error {
	op, err := t.sock.Next() // waits without a buffer
	if err != nil {
		return err
	}
	switch {
	case op == socket.Text:
		return t.receiveText()
	case t.mux == nil:
		t.close(wire.CloseMalformed, whyNoBinary)
		return errors.New("binary message on the control socket")
	}
	for {
		if err = t.mux.ReadFrame(); !t.wasRoused(err) {
			break
		}
	}
	if errors.Is(err, stream.ErrProtocol) {
		t.close(wire.CloseMalformed, whyBadFrame)
	}
	return err
}

// receiveText handles the text message that has begun.
func (t *tunnel) receiveText() error {
	var text []byte
	var err error
	for {
		if text, err = t.sock.Append(text, wire.MaxText); !t.wasRoused(err) {
			break
		}
	}
	switch {
	case errors.Is(err, socket.ErrTooBig):
		t.close(wire.CloseTooBig, whyLong)
		return err
	case err != nil:
		return err
	}
	m, err := wire.Decode(text)
	if errors.Is(err, wire.ErrUnknownMessage) {
		return nil
	}
	if err != nil {
		t.close(wire.CloseMalformed, whyBadMessage)
		return err
	}
	if m, ok := m.(*wire.Refused); ok {
		t.refused(m)
	}
	return nil // messages that only an edge sends are none of ours
}

// close tells the agent that the tunnel is over, and why. run ends soon after.
func (t *tunnel) close(code int, why string) {
	t.mu.Lock()
	if t.why == "" {
		t.why, t.code = why, code
	}
	t.clean = t.clean || code == wire.CloseRevoked
	first := t.said == nil
	if first {
		t.said = make(chan struct{})
	}
	said := t.said
	t.mu.Unlock()
	if !first {
		<-said // one frame is all there is
		return
	}
	// An agent that does not take the frame finds out by the connection's end.
	sent := t.sock.WriteClose(code, why, closeTime) == nil
	_ = t.sock.SetReadDeadline(time.Now().Add(closeTime)) // fails only on a closed socket
	t.told = sent
	close(said)
}

// settle waits until no stream would end with the tunnel, but not for long.
func (t *tunnel) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	look := time.NewTicker(lookTime)
	defer look.Stop()
	for {
		t.mu.Lock()
		n := t.unmoved
		t.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-look.C:
		case <-t.ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// closeSoon is close without waiting for the peer.
func (t *tunnel) closeSoon(code int, why string) {
	t.hub.wg.Go(func() { t.close(code, why) })
}

// end takes the tunnel out of the hub and releases its lease.
func (t *tunnel) end(err error) {
	t.mu.Lock()
	why, code, clean, ousted := t.why, t.code, t.clean, t.ousted
	t.mu.Unlock()
	var closed *socket.CloseError
	if errors.As(err, &closed) && why == "" {
		clean = closed.Code == wire.CloseNormal || closed.Code == wire.CloseGoingAway
	}
	switch {
	case why != "":
	case clean:
		why = whyGoodbye
	default:
		why = whyLost + err.Error()
	}
	t.hub.unregister(t, !clean)
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	close(t.ended)
	if t.mux != nil {
		t.mux.End(lost())
	}
	t.dropParked()
	t.hangUp()
	// The lease is released even while the hub shuts down.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.hub.ctx), registryTimeout)
	defer cancel()
	t.tellHost()
	relErr := t.hub.reg.Release(ctx, t.holder, t.hub.settings.Load().Lease, why)
	lost := errors.Is(relErr, registry.ErrLost)
	replaced := lost && !ousted
	if relErr != nil && !lost {
		t.log().Error("lease not released; it ends by itself", "error", relErr)
	}
	t.log().Info("tunnel down", "why", why, "after", time.Since(t.since).Round(time.Second), "replaced", replaced)
	t.observeClose(code, clean, ousted, replaced)
	if !replaced {
		t.hub.emit("offline", map[string]any{"device": t.holder.Device, "label": t.label, "why": why})
	}
}

// tellHost says that no visitor comes to the tunnel any more. It may be said again.
func (t *tunnel) tellHost() {
	if f := t.hub.settings.Load().TunnelEnded; f != nil {
		f(t.holder.Tunnel)
	}
}

// hangUp closes the socket. After a close frame of ours it lets the agent read
// it first: closing with bytes unread resets the connection, and the frame would
// be lost with it.
func (t *tunnel) hangUp() {
	defer t.sock.Close()
	t.mu.Lock()
	said := t.said
	t.mu.Unlock()
	if said == nil {
		return
	}
	<-said       // within closeTime
	for t.told { // close has set a deadline
		if _, err := t.sock.Next(); err != nil {
			return
		}
	}
}

// alive pings the agent and waits for a sign of life.
func (t *tunnel) alive(ctx context.Context) bool {
	limit := min(max(750*time.Millisecond, 4*t.sock.RTT()), 8*time.Second)
	probe, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	heard := t.sock.Heard()
	t.hub.wg.Go(t.sock.PingSoon) // a write to a full buffer waits
	look := time.NewTicker(lookTime)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			if t.sock.Heard() != heard {
				return true
			}
		case <-t.ended:
			return false
		case <-probe.Done():
			return ctx.Err() != nil // nobody waits for the answer: change nothing
		}
	}
}

// port returns what the device forwards as number.
func (t *tunnel) port(number uint16) (wire.Port, bool) {
	for _, p := range t.hello.Ports {
		if p.Number == number {
			return p, true
		}
	}
	return wire.Port{}, false
}
