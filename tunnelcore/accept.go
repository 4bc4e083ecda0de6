package tunnelcore

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// How often one device may come: so many times at once, and so many per second in
// the long run.
const arrivalBurst, arrivalRate = 30, 0.5

// Arrival is how an agent's request came, as the host trusts it.
type Arrival struct {
	From   netip.Addr // the agent's address
	Secure bool       // it came by TLS, here or to the router before
	Routed bool       // through a router, which would lead a redirected agent here again
}

// ServeAgent answers a request under wire.Root: it accepts control and transfer
// sockets and refuses the rest. It returns as soon as a socket is handed over,
// so that nothing of the request is kept alive.
func (h *Hub) ServeAgent(w http.ResponseWriter, r *http.Request, a Arrival) {
	from := a.From
	begin := h.begin
	if r.URL.Path == wire.TransferPath {
		begin = h.beginTransfer
	}
	if !begin() {
		h.refuse(w, r, from, stopping)
		return
	}
	defer h.wg.Done()
	var err error
	switch {
	case r.URL.Path == EnrollPath:
		err = h.serveEnroll(w, r, from)
	case r.URL.Path != wire.ControlPath && r.URL.Path != wire.TransferPath && r.URL.Path != ConnectPath:
		err = wrongPath(r.URL.Path)
	default:
		if err = h.checkHandshake(r, a); err != nil {
			break
		}
		switch r.URL.Path {
		case wire.ControlPath:
			err = h.acceptControl(w, r, a)
		case ConnectPath:
			err = h.serveConnect(w, r, a)
		default:
			err = h.acceptTransfer(w, r, a)
		}
	}
	if err != nil {
		h.refuse(w, r, from, err)
	}
}

var stopping = &answers.Error{Code: wire.Unavailable, Message: "this node is stopping", RetryAfter: time.Second}

// errGone: the connection ended during the upgrade; there is nobody to answer.
var errGone = errors.New("the agent left during the upgrade")

// refuse answers a handshake that failed, and logs it.
func (h *Hub) refuse(w http.ResponseWriter, r *http.Request, from netip.Addr, err error) {
	var away *elsewhere
	if errors.As(err, &away) {
		h.log().Debug("agent redirected", "device", r.URL.Query().Get("device"), "remote", from, "to", away.to.ID)
		h.observer.Redirected()
		h.observer.Accepted(string(wire.Redirected))
		w.Header().Set("Location", away.location)
		(&answers.Error{Code: wire.Redirected, Message: "node " + away.to.ID + " has more room"}).WriteJSON(w)
		return
	}
	if h.refusals.take() {
		h.log().Warn("agent refused", "path", cut(r.URL.Path), "device", cut(r.URL.Query().Get("device")),
			"remote", from, "reason", err)
	}
	if errors.Is(err, errGone) {
		return
	}
	answer := answers.From(err)
	h.lastRefusals.note(r, from, answer)
	if r.URL.Path == wire.ControlPath {
		h.observer.Accepted(string(answer.Code))
	}
	if answer.Code == wire.UpgradeRequired {
		if r.ProtoMajor == 1 { // HTTP/2 forbids it (RFC 9113 §8.2.2)
			w.Header().Set("Upgrade", "websocket")
		}
		w.Header().Set(wire.VersionsHeader, wire.Versions)
	}
	answer.WriteJSON(w)
}

// cut bounds what strangers can write into the log.
func cut(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func wrongPath(path string) error {
	version, _, _ := strings.Cut(strings.TrimPrefix(path, wire.Root), "/")
	if version == "v1" {
		return &answers.Error{Code: wire.BadRequest, Message: "no such path: control, transfer, connect or enroll"}
	}
	return &answers.Error{Code: wire.UpgradeRequired, Message: "versions served here: " + wire.Versions}
}

// checkHandshake checks what both sockets have in common (protocol §2).
func (h *Hub) checkHandshake(r *http.Request, a Arrival) error {
	s := h.settings.Load()
	switch {
	case len(r.Header["Origin"]) > 0: // of whatever kind: `null` is a web page's, too
		return &answers.Error{Code: wire.Forbidden, Message: "web pages may not open tunnels (an Origin was sent)"}
	case r.ProtoMajor != 1 || !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket"):
		return &answers.Error{Code: wire.UpgradeRequired, Message: "a WebSocket upgrade over HTTP/1.1 is needed here"}
	case r.Method != http.MethodGet:
		return &answers.Error{Code: wire.BadRequest, Message: "method is not GET"}
	case !hasToken(r.Header, "Sec-Websocket-Protocol", wire.Subprotocol):
		return &answers.Error{Code: wire.BadRequest, Message: "Sec-WebSocket-Protocol does not offer " + wire.Subprotocol}
	case headerSize(r) > s.Limits.HeaderBytes:
		return &answers.Error{Code: wire.BadRequest, Message: "request header is too large"}
	case !a.Secure && !s.AllowPlaintext && !a.From.IsLoopback():
		return &answers.Error{Code: wire.Forbidden, Message: "TLS is needed here: use wss"}
	}
	return nil
}

// hasToken reports whether a header's comma-separated list holds token.
func hasToken(h http.Header, name, token string) bool {
	for _, line := range h[name] {
		for item := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(item), token) {
				return true
			}
		}
	}
	return false
}

// headerSize is about what the header took on the wire.
func headerSize(r *http.Request) int {
	n := len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + 4
		}
	}
	return n
}

func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// acceptControl authenticates an agent, claims its device and starts its tunnel.
func (h *Hub) acceptControl(w http.ResponseWriter, r *http.Request, a Arrival) error {
	from := a.From
	ctx, cancel := context.WithTimeout(r.Context(), h.settings.Load().Limits.HandshakeTimeout)
	defer cancel()
	t, err := h.authorise(ctx, r, from)
	if err != nil {
		return err
	}
	if asksOnly(r) {
		h.arrivals.giveBack()
		return h.answerProbe(ctx, w, t.holder.Device)
	}
	defer h.arrived(t)
	if err := h.admit(t, r, a); err != nil {
		h.arrivals.giveBack()
		return err
	}
	defer h.unclaim(t.holder.Tunnel)
	lease, err := h.claim(ctx, t)
	if err != nil {
		return err
	}
	t.holder, t.label = lease.Holder, lease.Label
	err = h.start(ctx, t, w, r)
	h.tellLoser(lease) // not before its agent has the new tunnel
	if err != nil {
		h.giveBack(t)
		return err
	}
	t.log().Info("tunnel up", "label", t.label, "remote", from, "ports", len(t.hello.Ports), "new_name", lease.Fresh)
	h.observer.Accepted("ok")
	h.emit("online", map[string]any{"device": t.holder.Device, "label": t.label})
	return nil
}

// authorise reads who comes, and makes sure that it is who it says. The tunnel it
// returns has no lease and no socket yet, and a place among the arrivals.
//
// What costs nothing comes first, and authentication, which may ask others, only
// when there is room for what follows it.
func (h *Hub) authorise(ctx context.Context, r *http.Request, from netip.Addr) (*tunnel, error) {
	s := h.settings.Load()
	hello, err := wire.ParseHello(r.URL.RawQuery)
	if err == nil {
		if bad := names.CheckDevice(hello.Device); bad != nil {
			err = &wire.ParamError{Name: "device", Reason: bad.Error()}
		}
	}
	if err != nil {
		return nil, &answers.Error{Code: wire.BadRequest, Message: err.Error()}
	}
	c := Credential{Device: hello.Device, Token: bearer(r), Remote: from, Ports: hello.Ports}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		c.TLS = r.TLS // kept for as long as the tunnel lives, so only where it says something
	}
	done, retry, ok := h.handshakes.begin(from, hello.Device)
	if !ok {
		return nil, tooMany(retry)
	}
	if retry, ok = h.arrivals.enter(); !ok {
		done(true) // nobody knows
		return nil, &answers.Error{Code: wire.TooMany, RetryAfter: retry, Message: "too many agents arrive at once"}
	}
	notices := h.notices.Load()
	err = authenticate(ctx, s.Authenticators, c)
	done(err == nil || errors.Is(err, ErrUndecided))
	if err != nil {
		h.arrivals.giveBack() // who cannot prove anything takes nobody's place
		return nil, authRefusal(err)
	}
	// These are cut out of the request, and would keep it.
	hello.Device, hello.Instance = strings.Clone(hello.Device), strings.Clone(hello.Instance)
	c.Device, c.Token = hello.Device, strings.Clone(c.Token)
	secret := wire.NewID()
	t := &tunnel{
		hub:        h,
		holder:     registry.Holder{Device: hello.Device, Tunnel: wire.NewID()},
		hello:      hello,
		messageMax: cmp.Or(hello.MessageMax, wire.DefaultMessage),
		secret:     secret,
		hash:       hashed(secret),
		credential: c,
		agent:      cut(r.UserAgent()),
		settings:   s,
		notices:    notices,
		since:      time.Now(),
		greeted:    make(chan struct{}),
		ended:      make(chan struct{}),
		caps:       capsFor(hello.Caps, (wire.Early|wire.Reuse|wire.Inline)&^s.Without),
		credit:     creditFor(hello, s.Limits),
		telling:    true,
	}
	t.bound = t.bounds(s)
	return t, nil
}

func tooMany(retry time.Duration) error {
	return &answers.Error{Code: wire.TooMany, RetryAfter: retry, Message: "too many handshakes from this address"}
}

// within is what an agent asks for, if it does, up to most.
func within(asked, most int) int {
	if asked > 0 {
		return min(asked, most)
	}
	return most
}

// start upgrades the connection and puts the tunnel into the hub.
func (h *Hub) start(ctx context.Context, t *tunnel, w http.ResponseWriter, r *http.Request) error {
	sock, err := upgrade(w, r, socket.SmallBuffer)
	if err != nil {
		return err
	}
	sock.SetWriteTimeout(controlWrite)
	sock.SetWriteMost(t.messageMax)
	sock.TuneControl(t.bound.heartbeat + graceTime)
	t.sock = sock
	if t.caps.Has(wire.Early) {
		t.mux = stream.NewMux(sock, stream.MuxOptions{Inline: t.caps.Has(wire.Inline), Owner: &h.wg})
	}
	old, drop, ok := h.register(t)
	if !ok {
		code, why := wire.CloseReplaced, "replaced by a newer tunnel"
		if h.isStopping() {
			code, why = wire.CloseRestart, "edge is stopping"
		}
		_ = sock.WriteClose(code, why, closeTime) // an agent that does not take it comes back
		sock.Close()
		return errGone
	}
	abortAll(drop)
	if old != nil {
		h.observer.TookOver()
		old.leave(whyReplaced)
	}
	// Not before: ports of a device without a tunnel may be closed any moment.
	b := t.inForce()
	b.addresses = h.leasePorts(ctx, t)
	t.setBounds(b)
	// What Update did to the tunnels there were has passed this one by.
	if now := h.settings.Load(); now != t.settings {
		h.reauthorise(t)
		if now.renames(t.settings) {
			t.closeSoon(wire.CloseRestart, whyRenamed)
		}
	}
	if h.notices.Load() != t.notices { // and so may have a notice about its device
		h.recheck(t)
	}
	go t.run() // register counted it; Shutdown waits for it
	return nil
}

func upgrade(w http.ResponseWriter, r *http.Request, buffer int) (*socket.Socket, error) {
	sock, err := accept.Upgrade(w, r, wire.Subprotocol, buffer, nil)
	var refused *socket.StatusError
	switch {
	case errors.As(err, &refused):
		return nil, &answers.Error{Code: wire.BadRequest, Message: string(refused.Body), Cause: err}
	case err != nil:
		return nil, errors.Join(errGone, err)
	}
	return sock, nil
}

// register makes t its device's tunnel, and counts its goroutine. ok is false
// when a newer tunnel is there, or the hub stops.
func (h *Hub) register(t *tunnel) (old *tunnel, drop []*stream.Stream, ok bool) {
	defer func() {
		if ok { // without h.mu, which routes take inside their own
			h.routes.wake(t.holder.Device) // now that the label leads here
		}
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping {
		return nil, nil, false
	}
	t.device = h.deviceLocked(t.holder.Device)
	if old, drop, ok = t.device.take(t, t.bound.streams); !ok {
		return nil, nil, false
	}
	h.wg.Add(1)
	delete(h.gone, t.device)
	h.tunnels[t.holder.Tunnel] = t
	delete(h.coming, t)
	h.admission.count(len(h.tunnels))
	h.labels.Store(t.label, t)
	t.pulse.heard = t.sock.Heard()
	h.wheel.add(t, jitter(t.bound.heartbeat))
	return old, drop, true
}

// unregister takes t out of the hub, once.
func (h *Hub) unregister(t *tunnel, unclean bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.tunnels, t.holder.Tunnel)
	h.admission.count(len(h.tunnels))
	h.wheel.remove(t)
	if t.device.leave(t, unclean) {
		h.gone[t.device] = struct{}{}
	}
	// Last: who finds no tunnel by its label then finds the device without one,
	// and waits for the next.
	h.labels.CompareAndDelete(t.label, t)
}

// deviceLocked returns what is kept of a device, made if need be. It wants mu.
func (h *Hub) deviceLocked(id string) *device {
	d := h.devices[id]
	if d == nil {
		d = &device{id: id, observer: h.observer, gone: time.Now()}
		d.arrives.set(arrivalBurst, arrivalRate)
		d.returns.set(returnBurst, returnRate)
		h.devices[id] = d
		h.gone[d] = struct{}{}
	}
	return d
}

// acceptTransfer hands a transfer socket to the visitor who waits for it.
func (h *Hub) acceptTransfer(w http.ResponseWriter, r *http.Request, a Arrival) error {
	q := r.URL.Query()
	if id := q.Get("node"); id != h.node.ID {
		return h.passTransfer(w, r, a, id)
	}
	h.mu.Lock()
	t := h.tunnels[q.Get("tunnel")]
	h.mu.Unlock()
	var want [32]byte
	if t != nil {
		want = t.hash
	}
	got := hashed(bearer(r))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		done, retry, ok := h.handshakes.begin(a.From, "")
		if !ok {
			return tooMany(retry)
		}
		done(false)
		return &answers.Error{Code: wire.Unauthorized, Message: "tunnel or secret is wrong"}
	}
	var o *opening
	if !t.caps.Has(wire.Inline) {
		o = t.takeOpening(q.Get("id"))
	}
	if o == nil {
		return &answers.Error{Code: wire.UnknownStream, Message: "the id was never given, is used, or is too old"}
	}
	sock, err := upgrade(w, r, socket.AnswerBuffer)
	if err != nil {
		o.unattached(err)
		return err
	}
	o.attach(sock)
	return nil
}
