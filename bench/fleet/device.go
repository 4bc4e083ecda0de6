//go:build linux

// Package fleet plays many devices with few processes. Each has a socket of its own
// and speaks the real protocol, but no more of it than a load needs.
package fleet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// device is one simulated device. Its goroutine is the only one that uses it, save
// for conn.
type device struct {
	w        *worker
	id       string
	source   net.IP
	instance string
	conn     atomic.Pointer[net.TCPConn] // the control socket's; nil: none
	server   *url.URL                    // of the tunnel, or of the attempt that is under way
	later    []time.Time                 // by server: it has said not to come before
	crowded  bool                        // the last round ended with the word of one that has a crowd to let in
	ready    ready
	early    map[uint32]*strings.Builder // requests on the control socket that are not whole
}

// ready is what a device wants to know of the message of that name (protocol §4.1).
type ready struct {
	Type      string `json:"type"`
	Heartbeat int    `json:"heartbeat_s"`
	Caps      string `json:"caps"`
	Transfer  string `json:"transfer"`
	Secret    string `json:"secret"`
}

// statusError is an answer of the edge other than 101.
type statusError struct {
	status int
	after  time.Duration // of Retry-After
}

func (e *statusError) Error() string { return "HTTP " + strconv.Itoa(e.status) }

// crowd reports whether the edge keeps a place for the device, as one of many that come at once.
func (e *statusError) crowd() bool {
	return e.status == http.StatusTooManyRequests && e.after > 0 && e.after <= crowdTime
}

// maxBackoff bounds the pause between attempts.
const maxBackoff = 30 * time.Second

// crowdTime is up to which Retry-After of 429 no other server is asked.
const crowdTime = 30 * time.Second

// run keeps the device connected until ctx ends, and comes back as protocol §5.6
// says.
func (d *device) run(ctx context.Context) {
	wait, backoff := time.Duration(0), time.Second
	for sleep(ctx, wait) {
		begin := time.Now()
		err := d.tunnel(ctx)
		if ctx.Err() != nil {
			return
		}
		d.w.count(err)
		var refused *statusError
		switch {
		case errors.As(err, &refused) && (refused.status == 401 || refused.status == 403):
			wait = 5*time.Minute + rand.N(10*time.Minute)
		case errors.As(err, &refused):
			wait = d.soonest()
		case !errors.Is(err, errLost) || time.Since(begin) < 30*time.Second && wait != 0:
			wait = d.atMost(rand.N(backoff))
			backoff = min(2*backoff, maxBackoff)
		default:
			wait, backoff = rand.N(500*time.Millisecond)+1, time.Second
		}
	}
}

// putOff notes that a server has refused the device.
func (d *device) putOff(server int, refused *statusError) {
	wait := rand.N(maxBackoff)
	if told := min(refused.after, 10*time.Minute); told > 0 {
		spread := told / 5
		if refused.crowd() {
			spread = min(spread, time.Second)
		}
		wait = told + rand.N(spread)
	}
	d.later[server] = time.Now().Add(wait)
}

// soonest is how long it takes until some server may be asked again.
func (d *device) soonest() time.Duration {
	return max(1, time.Until(slices.MinFunc(d.later, time.Time.Compare)))
}

// atMost is a pause, but not past the moment that a server has named.
func (d *device) atMost(pause time.Duration) time.Duration {
	for _, at := range d.later {
		if until := time.Until(at); until > 0 {
			pause = min(pause, until)
		}
	}
	return pause
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// errLost is the end of a tunnel that was up.
var errLost = errors.New("lost")

// tunnel connects, and holds the control socket until it ends.
func (d *device) tunnel(ctx context.Context) error {
	select { // no more handshakes at once than the simulator has strength for
	case d.w.handshakes <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s, err := d.connectAny(ctx)
	<-d.w.handshakes
	if err != nil {
		return err
	}
	defer s.close()
	d.early = nil
	d.w.up.Add(1)
	defer d.w.up.Add(-1)
	err = d.serve(ctx, s)
	return fmt.Errorf("%w: %w", errLost, err)
}

// connectAny connects to the first of the servers, in any order, that takes the device. One
// that has a crowd to let in is believed once that the others have it, too (protocol §5.7).
func (d *device) connectAny(ctx context.Context) (s *socket, err error) {
	err = &statusError{}
	believe := !d.crowded
	d.crowded = false
	for _, i := range rand.Perm(len(d.w.servers)) {
		if time.Now().Before(d.later[i]) {
			continue
		}
		d.server = d.w.servers[i]
		if s, err = d.connect(ctx); err == nil {
			return s, nil
		}
		if refused := (*statusError)(nil); errors.As(err, &refused) {
			d.putOff(i, refused)
			if believe && refused.crowd() {
				d.crowded = true
				for j, at := range d.later {
					d.later[j] = slices.MaxFunc([]time.Time{at, d.later[i]}, time.Time.Compare)
				}
				break
			}
		}
	}
	return nil, err
}

func (d *device) connect(ctx context.Context) (*socket, error) {
	query := url.Values{"device": {d.id}, "ports": {"80"}, "instance": {d.instance}}
	if d.w.config.Caps != "" {
		query.Set("caps", d.w.config.Caps)
	}
	if d.w.config.Heartbeat > 0 {
		query.Set("heartbeat", strconv.Itoa(int(d.w.config.Heartbeat.Seconds())))
	}
	s, raw, err := d.dial(ctx, "/.iottunnel/v1/control?"+query.Encode(), d.w.config.Token)
	if err != nil {
		return nil, err
	}
	if err := d.beReady(s); err != nil {
		s.close()
		return nil, err
	}
	d.conn.Store(raw)
	return s, nil
}

// beReady reads what the edge says first.
func (d *device) beReady(s *socket) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(30 * time.Second)) // it has just been made
	op, text, err := s.read()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &d.ready); err != nil || op != opText || d.ready.Type != "ready" {
		return fmt.Errorf("not ready: %q", text)
	}
	return nil
}

// serve answers pings and visitors. Silence ends it (protocol §5.2).
func (d *device) serve(ctx context.Context, s *socket) error {
	defer d.conn.Store(nil)
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	silence := time.Duration(2*d.ready.Heartbeat+10) * time.Second
	for {
		if err := s.conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return err
		}
		op, payload, err := s.read()
		if err != nil {
			return err
		}
		switch op {
		case opPing:
			d.w.pings.Add(1)
			err = s.write(opPong, payload)
		case opText:
			err = d.message(ctx, payload)
		case opBinary:
			err = d.frame(s, payload)
		case opClose:
			return errors.New("closed")
		}
		if err != nil {
			return err
		}
	}
}

// dial opens a control or transfer socket from the device's address.
func (d *device) dial(ctx context.Context, path, token string) (*socket, *net.TCPConn, error) {
	dialer := net.Dialer{Timeout: 15 * time.Second, KeepAlive: -1}
	if d.source != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: d.source}
		dialer.Control = bindLate
	}
	c, err := dialer.DialContext(ctx, "tcp4", d.server.Host)
	if err != nil {
		return nil, nil, err
	}
	raw := c.(*net.TCPConn)
	c = &counted{c, d.w}
	_ = c.SetDeadline(time.Now().Add(15 * time.Second)) // it has just been made
	if d.server.Scheme == "wss" {
		t := tls.Client(c, d.w.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, nil, err
		}
		c = t
	}
	s := &socket{conn: c}
	if err := s.upgrade(path, d.server.Host, token); err != nil {
		c.Close()
		return nil, nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return s, raw, nil
}

// bindLate leaves the choice of the port to connect: the same port may go to
// different places then, so that ports do not run out.
func bindLate(_, _ string, c syscall.RawConn) (err error) {
	failed := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	return errors.Join(failed, err)
}

// counted counts what crosses a TCP connection.
type counted struct {
	net.Conn
	w *worker
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.in.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.w.out.Add(int64(n))
	return n, err
}
