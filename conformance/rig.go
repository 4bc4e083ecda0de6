package conformance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// What the tool's edge is called, and where its transfer sockets are: not where other
// edges have them, as an agent must take the path out of `ready` (protocol 2.1).
const (
	label     = "c0nf0rmance"
	hostname  = label + ".devices.example.net"
	transfers = wire.Root + "v1/handed/out?node=conformance&tunnel="
)

// nobody is where nothing listens. A free port would not do: soon it could be that of
// another case.
const nobody = "127.0.0.1:1"

// maxHead bounds the head of a request that is read, in bytes; rule 8.2 is stricter.
const maxHead = 64 << 10

// rig is an edge with its listeners, the services behind the agent, and the agent: one
// for each case where the tool starts the agent, else one for all.
type rig struct {
	cfg  *Config
	ctx  context.Context // ends with the rig
	stop context.CancelFunc
	wg   sync.WaitGroup // all its goroutines

	vars       Vars
	usesSecond bool      // the agent knows URL2
	ownService bool      // the echo service is ours
	caps       wire.Caps // offered by the agent and part of the profile
	ports      []wire.Port

	authority *authority // nil without TLS
	cert      atomic.Pointer[tls.Certificate]
	failures  chan error // of TLS

	controls, transfers chan *handshake
	services            chan *local
	scripted            atomic.Bool // connections to the echo service are for the case
	agent               Process     // nil where it is started by hand

	mu    sync.Mutex // guards what follows
	began time.Time
	lines []string
	conns []io.Closer
}

// handshake is a WebSocket handshake that waits for its answer.
type handshake struct {
	rig     *rig
	conn    net.Conn
	br      *bufio.Reader
	request *http.Request
	head    []byte // of the request, as it came
	hello   *tls.ClientHelloInfo
	at      time.Time
}

// newRig listens, and starts no agent.
func newRig(ctx context.Context, cfg *Config) (*rig, error) {
	r := &rig{
		cfg: cfg, began: time.Now(), failures: make(chan error, 64),
		controls: make(chan *handshake, 64), transfers: make(chan *handshake, 64), services: make(chan *local, 64),
	}
	r.ctx, r.stop = context.WithCancel(ctx)
	if err := r.listen(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *rig) listen() error {
	host := hostOf(r.cfg.Listen)
	switch {
	case r.cfg.TLS && (host == "" || host == "127.0.0.1"):
		host = "localhost" // a name, which TLS can send
	case host == "":
		host = "127.0.0.1"
	}
	r.vars = Vars{Device: r.cfg.Device, Token: r.cfg.Token}
	if r.cfg.TLS {
		var err error
		if r.authority, err = newAuthority(); err != nil {
			return err
		}
		cert, err := r.authority.issue(host)
		if err != nil {
			return err
		}
		r.cert.Store(cert)
		r.vars.CA = r.authority.pem
	}
	front, err := r.edge(r.cfg.Listen)
	if err != nil {
		return err
	}
	second, err := r.edge("127.0.0.1:0")
	if err != nil {
		return err
	}
	r.vars.URL, r.vars.URL2 = r.urlOf(host, front), r.urlOf(host, second)
	echo, err := r.cfg.Network("tcp", r.cfg.Echo)
	if err != nil {
		return err
	}
	r.serve(echo, r.serveEcho)
	page, err := r.cfg.Network("tcp", r.cfg.HTTP)
	if err != nil {
		return err
	}
	r.serve(page, r.servePage)
	r.vars.Echo, r.vars.HTTP, r.vars.Dead = echo.Addr().String(), page.Addr().String(), nobody
	return nil
}

// hostOf is the host of HOST:PORT, empty where that names none.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || host == "0.0.0.0" || host == "::" {
		return ""
	}
	return host
}

func (r *rig) urlOf(host string, l net.Listener) string {
	scheme := "ws"
	if r.cfg.TLS {
		scheme = "wss"
	}
	_, port, _ := net.SplitHostPort(l.Addr().String()) // a listener's address has one
	return scheme + "://" + net.JoinHostPort(host, port)
}

// edge listens for agents.
func (r *rig) edge(addr string) (net.Listener, error) {
	l, err := r.cfg.Network("tcp", addr)
	if err == nil {
		r.serve(l, r.receive)
	}
	return l, err
}

// serve calls handle for each connection, in a goroutine of its own.
func (r *rig) serve(l net.Listener, handle func(net.Conn)) {
	r.own(l)
	r.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			r.own(conn)
			r.wg.Go(func() { handle(conn) })
		}
	})
}

// own has c closed with the rig.
func (r *rig) own(c io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns = append(r.conns, c)
	if r.ctx.Err() != nil {
		c.Close()
	}
}

// ended is closed when the agent that the tool has started has ended.
func (r *rig) ended() <-chan struct{} {
	if r.agent == nil {
		return nil
	}
	return r.agent.Done()
}

// close ends the agent, all connections and all goroutines.
func (r *rig) close() {
	if r.agent != nil {
		r.agent.Kill()
	}
	r.stop()
	r.mu.Lock()
	for _, c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// receive reads a handshake, and leaves it to the case.
func (r *rig) receive(conn net.Conn) {
	h := &handshake{rig: r, conn: conn}
	_ = conn.SetReadDeadline(time.Now().Add(r.cfg.Patience + 10*time.Second)) // 8.2; if it fails, so does the read
	if r.cfg.TLS {
		secure := tls.Server(conn, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			h.hello = hello
			return &tls.Config{Certificates: []tls.Certificate{*r.cert.Load()}}, nil
		}})
		r.own(secure)
		if err := secure.HandshakeContext(r.ctx); err != nil {
			r.logf("agent → edge", "TLS", nil, "%v", err)
			select {
			case r.failures <- err:
			default: // nobody asks
			}
			conn.Close()
			return
		}
		h.conn = secure
	}
	h.br = bufio.NewReaderSize(h.conn, 4<<10)
	for !bytes.HasSuffix(h.head, []byte("\r\n\r\n")) && len(h.head) < maxHead {
		line, err := h.br.ReadSlice('\n')
		h.head = append(h.head, line...)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if len(h.head) > 0 {
				r.logf("agent → edge", "handshake", h.head, "not a whole request: %v", err)
			}
			select {
			case r.failures <- err:
			default:
			}
			h.conn.Close()
			return
		}
	}
	h.at = time.Now()
	_ = h.conn.SetReadDeadline(time.Time{})
	var err error
	h.request, err = http.ReadRequest(bufio.NewReader(bytes.NewReader(h.head)))
	r.logf("agent → edge", "handshake", h.head, "")
	if err != nil {
		h.conn.Close()
		return
	}
	queue := r.controls
	if !h.control() {
		queue = r.transfers
	}
	select {
	case queue <- h:
	case <-r.ctx.Done():
	}
}

// control reports whether this seems to be meant for a control socket.
func (h *handshake) control() bool {
	return h.request.URL.Path == wire.ControlPath || h.request.URL.Query().Has("device")
}

// query is what the agent says of itself; what cannot be read is zero.
func (h *handshake) query() wire.Hello {
	hello, err := wire.ParseHello(h.request.URL.RawQuery)
	if err != nil { // the case of another rule looks at what is wrong
		values, _ := url.ParseQuery(h.request.URL.RawQuery)
		hello = wire.Hello{Caps: wire.ParseCaps(values.Get("caps")), Instance: values.Get("instance")}
		early, total, _ := strings.Cut(values.Get("early"), ",")
		for _, bound := range []struct {
			value string
			to    *int
		}{{values.Get("streams"), &hello.Streams}, {values.Get("message_max"), &hello.MessageMax}, {early, &hello.Early}, {total, &hello.EarlyTotal}} {
			*bound.to, _ = strconv.Atoi(bound.value)
		}
		for item := range strings.SplitSeq(values.Get("ports"), ",") {
			if p, err := wire.ParsePort(item); err == nil {
				hello.Ports = append(hello.Ports, p)
			}
		}
	}
	return hello
}

// forwards reports whether the agent has said that it forwards a port.
func (r *rig) forwards(port uint16) bool {
	return slices.ContainsFunc(r.ports, func(p wire.Port) bool { return p.Number == port })
}

// logf notes what crossed: raw are its bytes, if they tell more.
func (r *rig) logf(direction, where string, raw []byte, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	const most = 48
	line := fmt.Sprintf("%8.3f s  %s  %s: %s", time.Since(r.began).Seconds(), direction, where, fmt.Sprintf(format, args...))
	switch {
	case format == "":
		line += "\n" + indent(strings.TrimRight(string(head(raw, 2<<10)), "\r\n"))
	case len(raw) > 0:
		line += fmt.Sprintf("\n            % x", head(raw, most))
		if len(raw) > most {
			line += fmt.Sprintf(" … (%d bytes)", len(raw))
		}
	}
	r.lines = append(r.lines, line)
	if len(r.lines) > maxLines {
		r.lines = slices.Delete(r.lines, 0, len(r.lines)-maxLines)
	}
}

// maxLines bounds the log of a case.
const maxLines = 200

func indent(s string) string {
	return "            " + strings.ReplaceAll(strings.ReplaceAll(s, "\r", ""), "\n", "\n            ")
}

// log is what crossed since the last reset.
func (r *rig) log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// renew makes the rig ready for another case with the same agent: connections end, and
// what waited is forgotten.
func (r *rig) renew() {
	r.mu.Lock()
	r.began, r.lines = time.Now(), nil
	kept := r.conns[:0]
	for _, c := range r.conns {
		if _, ok := c.(net.Listener); ok {
			kept = append(kept, c)
			continue
		}
		c.Close()
	}
	r.conns = kept
	r.mu.Unlock()
	r.scripted.Store(false)
	for {
		select {
		case h := <-r.controls:
			h.conn.Close()
		case h := <-r.transfers:
			h.conn.Close()
		case s := <-r.services:
			s.conn.Close()
		case <-r.failures:
		default:
			return
		}
	}
}
