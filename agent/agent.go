package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Agent keeps a tunnel to an edge. Its methods may be called concurrently.
type Agent struct {
	cfg       Config
	log       *slog.Logger
	dialer    *dialer
	redirects redirects
	instance  string
	plan      plan     // belongs to Run
	streams   *streams // of this Run
	rhythm    *rhythm  // nil unless the heartbeat is AutoHeartbeat

	mu      sync.Mutex // guards what follows
	running bool
	status  Status
}

// New makes an agent. Its error is a *ConfigError: the field of c that is wrong,
// and what it accepts.
func New(c Config) (*Agent, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	c.Forwards = slices.Clone(c.Forwards)
	for i, f := range c.Forwards {
		if f.Kind == "" {
			c.Forwards[i].Kind = Kind(wire.DefaultKind(f.Port))
		}
	}
	a := &Agent{
		cfg:      c,
		log:      c.Logger.With("device", c.Device),
		dialer:   newDialer(c),
		instance: wire.NewID(),
		status:   Status{State: Stopped},
	}
	if c.Heartbeat == AutoHeartbeat {
		a.rhythm = new(rhythm)
	}
	if len(c.Servers) == 0 {
		return nil, fmt.Errorf("agent: %w", errNoServers)
	}
	for _, s := range c.Servers {
		u, err := parseServer(s, c.AllowPlaintext)
		if err != nil {
			return nil, fmt.Errorf("agent: %w", &ConfigError{"Servers", err})
		}
		a.plan.servers = append(a.plan.servers, &server{url: u})
	}
	a.plan.backoff.max = c.MaxBackoff
	a.redirects = newRedirects(a.plan.servers, c.RedirectTo, c.AllowPlaintext)
	return a, nil
}

// State is what an agent is about.
type State string

// The states of an agent.
const (
	Stopped    State = "stopped"    // Run is not running
	Connecting State = "connecting" // an attempt is under way
	Connected  State = "up"         // the tunnel is up
	Waiting    State = "waiting"    // for the next attempt, at Status.Next
)

// Status is what an agent is about, at a moment.
type Status struct {
	State State
	Since time.Time // of State
	Up    Up        // of the last tunnel; zero before the first
	// Err is why there is no tunnel; nil while there is one, and before the first
	// attempt has failed. Next is when the next attempt is due.
	Err  error
	Next time.Time
	// Tunnels counts tunnels that came up; Failures their ends, and attempts that
	// failed.
	Tunnels, Failures int
	Streams           int // visitors' connections right now
	// Heartbeat is how often the edge pings, of the last tunnel.
	Heartbeat time.Duration
	Traffic   Traffic
}

// Status returns what the agent is about.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.status
	s.Up.Ports = slices.Clone(s.Up.Ports)
	s.Traffic = a.dialer.meter.read()
	if a.running {
		s.Streams = a.streams.number()
	}
	return s
}

// set changes the status.
func (a *Agent) set(state State, change func(*Status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status.State != state {
		a.status.State, a.status.Since = state, time.Now()
	}
	if change != nil {
		change(&a.status)
	}
}

// errMove ends the wait on a tunnel that the edge wants to be left.
var errMove = errors.New("time to move")

// Run keeps a tunnel up until ctx ends, and returns nil then: visitors'
// connections have had Config.Grace, and nothing of it is left. With Config.Once
// it returns the first failure: a *RefusedError or a *ClosedError is in it if it
// was the edge's word. It can run once at a time.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	if a.running {
		a.mu.Unlock()
		return errors.New("agent: already running")
	}
	a.running = true
	a.streams = newStreams(a)
	a.mu.Unlock()
	until, err := a.keep(ctx)
	a.streams.shutdown(until)
	a.set(Stopped, nil)
	a.mu.Lock()
	a.running = false
	a.mu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// keep holds one tunnel after the other until ctx ends, or with Once until one
// fails. It owns their goroutines. until is how long streams may go on.
func (a *Agent) keep(ctx context.Context) (until time.Time, err error) {
	var wg sync.WaitGroup
	var current *tunnel
	// Of old tunnels, which streams still need, when it is the time of all.
	settling, hurry := context.WithCancel(context.Background())
	defer hurry()
	wg.Go(func() { a.dialer.meter.run(settling, a.log) })
	defer func() {
		until = time.Now().Add(max(a.cfg.Grace, 0))
		a.streams.leave()
		if current != nil {
			a.streams.settle(settling, current, time.Time{}, until)
			current.close(wire.CloseNormal, "the agent stops")
		}
		hurry()
		wg.Wait()
	}()
	for {
		next, err := a.round(ctx)
		if err != nil && a.rhythm != nil {
			a.rhythm.failed()
		}
		if err == nil {
			old := current
			current = next
			wg.Go(func() {
				next.err = next.run()
				close(next.ended)
			})
			if old != nil {
				wg.Go(func() {
					now := time.Now()
					a.streams.settle(settling, old, now.Add(leaveTime), now.Add(settleTime))
					old.close(wire.CloseNormal, "moved to another tunnel")
				})
			}
			err = a.hold(ctx, current)
		}
		if ctx.Err() != nil {
			return until, ctx.Err()
		}
		if errors.Is(err, errMove) {
			continue
		}
		if current != nil && ended(current) {
			current = nil
		}
		if a.cfg.Once {
			return until, err
		}
		if err := a.pause(ctx, err, current != nil); err != nil {
			return until, err
		}
	}
}

func ended(t *tunnel) bool {
	select {
	case <-t.ended:
		return true
	default:
		return false
	}
}

// hold waits until t ends, ctx ends, or the moment has come to leave t, which is
// errMove. It tells of what happens in the meantime.
func (a *Agent) hold(ctx context.Context, t *tunnel) error {
	a.log.Info("tunnel up", "server", t.route.url.Host, "hostname", t.latest().Hostname)
	a.set(Connected, func(s *Status) { s.Tunnels++; s.Err = nil; s.Next = time.Time{}; s.Heartbeat = t.heartbeat() })
	beat := a.listen(t)
	defer beat.Stop()
	var told Up
	var move <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.ended:
			if a.rhythm != nil {
				a.rhythm.ended(t.err, t.heartbeat(), time.Since(t.conn.heard()))
			}
			a.plan.afterTunnel(t.err, time.Since(t.since))
			return t.err
		case within := <-t.drained:
			if move == nil {
				a.log.Info("edge is draining", "within", within)
				timer := time.NewTimer(a.plan.move(within, time.Since(t.since)))
				defer timer.Stop()
				move = timer.C
			}
		case <-move:
			return errMove
		case <-beat.C:
			if a.heard(t, beat) {
				return errMove
			}
		case <-t.changed:
			up, ok := t.up()
			if !ok || up.Server == told.Server && up.Hostname == told.Hostname && slices.Equal(up.Ports, told.Ports) {
				continue
			}
			told = up
			a.set(Connected, func(s *Status) { s.Up = up })
			if a.cfg.OnUp != nil {
				a.cfg.OnUp(up)
			}
		}
	}
}

// pause tells why there is no tunnel, and waits until it is time for the next
// attempt. moving says that an older tunnel is still there.
func (a *Agent) pause(ctx context.Context, cause error, moving bool) error {
	wait := a.plan.wait()
	a.complain(cause, wait, moving)
	if !moving {
		a.set(Waiting, func(s *Status) { s.Err, s.Next = cause, time.Now().Add(wait) })
		if a.cfg.OnDown != nil {
			a.cfg.OnDown(cause, wait)
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// complain logs a cause that is new, or came after a tunnel. What goes on is for
// debugging.
func (a *Agent) complain(cause error, wait time.Duration, moving bool) {
	a.mu.Lock()
	again := a.status.State == Connecting && a.status.Err != nil && a.status.Err.Error() == cause.Error()
	a.status.Failures++
	a.mu.Unlock()
	level, message := slog.LevelWarn, "tunnel down"
	if moving {
		message = "move to another tunnel failed"
	}
	if again {
		level = slog.LevelDebug
	}
	a.log.Log(context.Background(), level, message, "error", cause, "retry_in", wait.Round(time.Millisecond))
}

// round asks the servers that may be asked, in random order, for a tunnel (protocol §5.7).
func (a *Agent) round(ctx context.Context) (*tunnel, error) {
	a.mu.Lock()
	moving := a.status.State == Connected
	a.mu.Unlock()
	if !moving {
		a.set(Connecting, nil)
	}
	due := a.plan.due()
	if len(due) == 0 { // only when it is time to move: all have put the agent off
		return nil, errors.New("no server may be asked yet")
	}
	var failed failures
	believe := a.plan.begin() && !a.cfg.Once // which has only this round
	for _, s := range due {
		t, err := a.attempt(ctx, s)
		if err == nil {
			return t, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		a.plan.afterAttempt(s, err)
		failed = append(failed, fmt.Errorf("%s: %w", s.url.Host, err))
		var refused *RefusedError
		if believe && errors.As(err, &refused) && refused.crowd() {
			a.plan.crowded(s)
			break
		}
	}
	return nil, failed
}

// attempt asks one server for a tunnel, and goes where it leads. If that fails in
// any way it asks again, for a tunnel right there.
func (a *Agent) attempt(ctx context.Context, s *server) (*tunnel, error) {
	token, err := a.token(ctx)
	if err != nil {
		return nil, err
	}
	caps := offered(a.cfg.Profile)
	u := a.controlURL(s.url, caps)
	t, err := a.openTunnel(ctx, u, caps, token)
	var refused *RefusedError
	if !errors.As(err, &refused) || !refused.redirect() {
		return t, err
	}
	target, err := a.redirects.target(u, refused.location)
	if err == nil {
		a.log.Debug("redirected", "from", u.Host, "to", target.Host)
		if t, err = a.openTunnel(ctx, target, caps, token); err == nil {
			return t, nil
		}
		err = fmt.Errorf("redirected to %s: %w", target.Host, err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	a.log.Info("redirect failed; asking for a tunnel without one", "error", err)
	caps &^= wire.Redirect
	return a.openTunnel(ctx, a.controlURL(s.url, caps), caps, token)
}

// token is the credential for the next attempt: of TokenSource, which may have another each
// time, or that of the configuration.
func (a *Agent) token(ctx context.Context) (string, error) {
	if a.cfg.TokenSource == nil {
		return a.cfg.Token, nil
	}
	token, err := a.cfg.TokenSource(ctx)
	if err == nil {
		err = checkToken(token)
	}
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return token, nil
}

// controlURL is where the control socket is asked for (protocol §3).
func (a *Agent) controlURL(server *url.URL, caps wire.Caps) *url.URL {
	h := wire.Hello{
		Device:     a.cfg.Device,
		Instance:   a.instance,
		Caps:       caps,
		Streams:    a.cfg.Streams,
		MessageMax: wire.BulkMessage,
		Heartbeat:  int(a.heartbeat() / time.Second),
	}
	if caps.Has(wire.Early) {
		h.Early, h.EarlyTotal = wire.DefaultEarly, wire.DefaultEarlyTotal
	}
	for _, f := range a.cfg.Forwards {
		h.Ports = append(h.Ports, wire.Port{Number: f.Port, Kind: wire.Kind(f.Kind)})
	}
	u := *server
	u.Path, u.RawQuery = wire.ControlPath, h.Query()
	return &u
}

// forward returns the forward of a port.
func (a *Agent) forward(port uint16) (Forward, bool) {
	i := slices.IndexFunc(a.cfg.Forwards, func(f Forward) bool { return f.Port == port })
	if i < 0 {
		return Forward{}, false
	}
	return a.cfg.Forwards[i], true
}

func (a *Agent) forwards(port uint16) bool {
	_, ok := a.forward(port)
	return ok
}
