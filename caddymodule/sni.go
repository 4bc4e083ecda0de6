package caddymodule

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/iottunnel/iottunnel/tunnelcore"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

func init() {
	caddy.RegisterModule(new(SNI))
}

// SNI makes ports of devices that do not speak HTTP reachable on the port of HTTPS: a
// TLS client that asks for `LABEL--22.domain` (by SNI), and not for HTTP (by ALPN),
// is connected to the device's port 22, with TLS taken off. Any client will do, such
// as `openssl s_client`, `socat` or `stunnel`. Everything else on the listener is
// HTTP as before.
//
// What guards the devices' sites, such as `basic_auth`, is for HTTP and does not stand
// here: `allow` says who may connect, and services have logins of their own. Where a
// site has `access shared`, nobody may whom `allow` does not name.
type SNI struct {
	// The addresses that may connect. Default: all.
	Allow []string `json:"allow,omitempty"`

	// The devices' ports that may be reached. Default: all of kind tcp.
	Ports []uint16 `json:"ports,omitempty"`

	app     *App
	allow   []netip.Prefix
	holding bool
}

// CaddyModule returns the Caddy module information.
func (*SNI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.listeners.iottunnel",
		New: func() caddy.Module { return new(SNI) },
	}
}

// Provision sets up the wrapper.
func (s *SNI) Provision(ctx caddy.Context) (err error) {
	if s.app, err = appOf(ctx); err != nil {
		return err
	}
	if s.allow, err = prefixes(s.Allow); err != nil {
		return fmt.Errorf("listener_wrappers: iottunnel: allow: %w", err)
	}
	s.app.hold()
	s.holding = true
	return nil
}

// Cleanup lets go of the edge. Connections go on.
func (s *SNI) Cleanup() error {
	if !s.holding {
		return nil
	}
	s.holding = false
	return s.app.release()
}

// WrapListener has connections looked at before HTTP gets them.
func (s *SNI) WrapListener(l net.Listener) net.Listener {
	w := &sniListener{
		Listener: l, sni: s, ready: make(chan net.Conn), ended: make(chan struct{}),
		places: sniPlaces{most: sniWaiting, each: sniPerAddress, by: make(map[netip.Addr]int)},
	}
	w.open, w.hurry = context.WithCancel(context.Background())
	go w.accept() // until l is closed; Accept waits for it
	return w
}

const (
	// sniHandshake bounds a TLS handshake, and sniWaiting how many are under way at
	// once on a listener: beyond, connections are HTTP's, which has bounds of its own.
	sniHandshake = 10 * time.Second
	sniWaiting   = 4096
	// sniPerAddress is how many of these one address may have.
	sniPerAddress = 64
	// sniClosing bounds those that are under way when the listener is closed.
	sniClosing = time.Second
	// sniLookup bounds how long the registry is asked.
	sniLookup = 5 * time.Second
	// acceptPause is how long a listener rests that has failed, such as for want of
	// descriptors.
	acceptPause = 50 * time.Millisecond
)

// sniListener hands on what is HTTP's.
type sniListener struct {
	net.Listener
	sni     *SNI
	ready   chan net.Conn
	looking sync.WaitGroup
	places  sniPlaces       // of handshakes
	open    context.Context // of handshakes
	hurry   context.CancelFunc
	ended   chan struct{} // closed when no more connections will come
	err     error         // why; set before ended
}

// Accept returns the next connection of HTTP. After Close it goes on to return those
// whose handshakes are under way: on a reload nobody is turned away.
func (w *sniListener) Accept() (net.Conn, error) {
	select {
	case c := <-w.ready:
		return c, nil
	case <-w.ended:
		return nil, w.err
	}
}

// accept takes connections until the listener is closed.
func (w *sniListener) accept() {
	for {
		c, err := w.Listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				<-time.After(acceptPause)
				continue
			}
			w.err = err
			break
		}
		secure, ok := c.(*tls.Conn)
		from := tunnelcore.AddressKey(remoteAddr(c).Addr())
		ok = ok && w.places.take(from)
		w.looking.Add(1)
		go func() {
			defer w.looking.Done()
			if ok {
				ours := w.look(secure)
				w.places.leave(from)
				if ours {
					return
				}
			}
			w.ready <- c
		}()
	}
	late := time.AfterFunc(sniClosing, w.hurry)
	w.looking.Wait()
	late.Stop()
	w.hurry()
	close(w.ended)
}

// look finishes the handshake of c, and serves c if it is for a device's port. It
// reports whether HTTP need not look at c.
func (w *sniListener) look(c *tls.Conn) (done bool) {
	ctx, cancel := context.WithTimeout(w.open, sniHandshake)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		c.Close()
		return true
	}
	state := c.ConnectionState()
	label, _, _ := strings.Cut(state.ServerName, ".")
	if state.NegotiatedProtocol != "" || !strings.Contains(label, "--") {
		return false
	}
	ctx, cancel = context.WithTimeout(w.open, sniLookup)
	defer cancel()
	e := w.sni.app.await(ctx)
	if e == nil {
		return false
	}
	from := remoteAddr(c)
	// The hub bounds by it who asks for names that there are not.
	ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: from.Addr().String()})
	target, err := e.hub.LookupTCP(ctx, state.ServerName)
	if err != nil || !target.Online {
		return false // HTTP says why
	}
	if !from.IsValid() || !w.sni.allows(from.Addr(), target) {
		stream.Abort(c)
		return true
	}
	e.hub.ServeTCP(c, target.Device, target.Port, from)
	return true
}

// remoteAddr is where a connection comes from; zero where that is no address.
func remoteAddr(c net.Conn) netip.AddrPort {
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// sniPlaces are the handshakes that are under way on a listener. So that no address
// takes all of them, each has a bound of its own.
type sniPlaces struct {
	most, each int

	mu    sync.Mutex // guards what follows
	taken int
	by    map[netip.Addr]int
}

// take takes a place for an address, if there is one.
func (p *sniPlaces) take(from netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.most || p.by[from] >= p.each {
		return false
	}
	p.taken++
	p.by[from]++
	return true
}

// leave gives a place back.
func (p *sniPlaces) leave(from netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.by[from]--; p.by[from] == 0 {
		delete(p.by, from)
	}
}

// allows reports whether a visitor may reach a port. One who may not learns nothing
// about the device.
func (s *SNI) allows(from netip.Addr, t tunnelcore.Target) bool {
	if len(s.allow) == 0 && s.app.closed() {
		return false // a link is nothing that TLS could show
	}
	if len(s.allow) > 0 && !slices.ContainsFunc(s.allow, func(p netip.Prefix) bool { return p.Contains(from) }) {
		return false
	}
	return len(s.Ports) == 0 || slices.Contains(s.Ports, t.Port)
}

var sniSettings = []setting[*SNI]{
	textsSetting("iottunnel: allow", func(s *SNI) *[]string { return &s.Allow }, "ranges of addresses"),
	{"ports", parseSNIPorts},
}

func parseSNIPorts(s *SNI, d *caddyfile.Dispenser) error {
	texts, err := someValues(d, "iottunnel: ports", "port numbers")
	if err != nil {
		return err
	}
	for _, text := range texts {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return d.Errf("iottunnel: ports: %q is not a port number", text)
		}
		s.Ports = append(s.Ports, uint16(port))
	}
	return nil
}

// UnmarshalCaddyfile sets up the wrapper from Caddyfile tokens. Syntax, in the global
// options:
//
//	servers :443 {
//		listener_wrappers {
//			iottunnel {
//				allow <ranges...>
//				ports <ports...>
//			}
//		}
//	}
func (s *SNI) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the wrapper's name
	if err := noValue(d, "listener_wrappers: iottunnel"); err != nil {
		return err
	}
	return parseBlock(d, "iottunnel", s, sniSettings)
}

// Interface guards
var (
	_ caddy.Provisioner     = (*SNI)(nil)
	_ caddy.CleanerUpper    = (*SNI)(nil)
	_ caddy.ListenerWrapper = (*SNI)(nil)
	_ caddyfile.Unmarshaler = (*SNI)(nil)
)
