package tunnelcore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/stacks"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// TCPPorts are the public ports that devices lease for what is not HTTP.
type TCPPorts struct {
	First, Last uint16
	Bind        []string       // addresses to listen on; none: all
	Host        string         // told to agents; empty: the domain
	Allow       []netip.Prefix // who may connect; none: everybody
	Listen      Listen
}

// Listen says which of the leased public ports a node opens.
type Listen int

const (
	// ListenAll opens all that are leased, wherever their device is connected, so
	// that host and port lead to it through any node. Each costs a descriptor per
	// address of Bind, and about 4 KiB.
	ListenAll Listen = iota
	// ListenOwner opens those of devices that are connected to this node, or were
	// just now.
	ListenOwner
)

// acceptPause is how long a port rests when the process has no descriptor left
// for a visitor.
const acceptPause = 50 * time.Millisecond

// ports holds the listeners of leased public ports. A port stays open while its
// device is connected or expected back, over changes of settings; with ListenAll,
// as long as it is leased.
type ports struct {
	hub *Hub

	mu   sync.Mutex // guards what follows; inside Hub.mu
	open map[uint16]*publicPort
	by   map[string][]*publicPort // by device
	// refused is what did not open, to be tried again.
	refused map[uint16]*refusedPort
	// touched is the ports that a device of this node got or gave back while the list
	// of those leased was asked for, which may not know of it; nil when none is.
	touched map[uint16]struct{}
	closed  bool
}

// publicPort is one public port, and where it leads.
type publicPort struct {
	registry.PortLease
	bind      []string
	listeners []net.Listener
}

// leasePorts leases public ports for the tcp ports of t, listens on them, and
// returns the addresses to tell the agent. A port without one is not public: when
// none is configured, or none is free, which is logged.
func (h *Hub) leasePorts(ctx context.Context, t *tunnel) map[uint16]string {
	tcp := h.settings.Load().TCP
	var want []uint16
	for _, p := range t.hello.Ports {
		if p.Kind == wire.TCP {
			want = append(want, p.Number)
		}
	}
	var first, last uint16
	if tcp != nil {
		first, last = tcp.First, tcp.Last
	} else {
		want, tcp = nil, new(TCPPorts) // what the device had is given back
	}
	leased, err := h.reg.LeasePorts(ctx, t.holder, want, first, last)
	if err != nil {
		var full *registry.PortsFullError
		if errors.As(err, &full) {
			err = fmt.Errorf("%w: widen tcp_ports", err)
		}
		t.log().Error("no public ports for the device", "error", err)
		return nil
	}
	t.mu.Lock()
	t.public = leased
	t.mu.Unlock()
	return h.ports.assign(t.holder.Device, leased, tcp)
}

// assign opens the leased ports of a device that is connected here, and closes
// those that it no longer has. It returns the address of each device port that is
// open.
func (p *ports) assign(device string, leased map[uint16]uint16, tcp *TCPPorts) map[uint16]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var drop []*publicPort
	for _, pp := range p.by[device] {
		p.touchLocked(pp.Public)
		if leased[pp.Port] != pp.Public || !slices.Equal(pp.bind, tcp.Bind) {
			drop = append(drop, pp)
		}
	}
	p.closeLocked(drop)
	addresses := make(map[uint16]string, len(leased))
	var refused refusedPorts
	for port, public := range leased {
		p.touchLocked(public)
		if err := p.openLocked(registry.PortLease{Public: public, Device: device, Port: port}, tcp.Bind); err != nil {
			refused.addLocked(p, public, err)
			continue
		}
		addresses[port] = tcp.address(p.hub.settings.Load(), public)
	}
	refused.log(p.hub.log().With("device", device))
	return addresses
}

// touchLocked notes that a list that was asked for before does not know what became
// of a port. It wants mu.
func (p *ports) touchLocked(public uint16) {
	if p.touched != nil {
		p.touched[public] = struct{}{}
	}
}

// address is where visitors reach a public port.
func (tcp *TCPPorts) address(s *Settings, public uint16) string {
	return net.JoinHostPort(cmp.Or(tcp.Host, s.Domain), strconv.Itoa(int(public)))
}

// openLocked opens a port, unless it is, and closes what another device had there:
// it has lost it. It wants mu.
func (p *ports) openLocked(l registry.PortLease, bind []string) error {
	if p.closed {
		return net.ErrClosed
	}
	if there := p.open[l.Public]; there != nil {
		if there.PortLease == l && slices.Equal(there.bind, bind) {
			return nil
		}
		p.closeLocked([]*publicPort{there})
	}
	pp, err := listen(l, bind)
	if err != nil {
		p.refuseLocked(l)
		return err
	}
	delete(p.refused, l.Public)
	p.open[l.Public] = pp
	p.by[l.Device] = append(p.by[l.Device], pp)
	for _, listener := range pp.listeners {
		p.hub.wg.Go(func() { p.acceptVisitors(pp, listener) })
	}
	return nil
}

// listen listens on a port, without SO_REUSEPORT, so that a stranger's use of it is
// found.
func listen(l registry.PortLease, bind []string) (*publicPort, error) {
	pp := &publicPort{PortLease: l, bind: bind}
	addresses := bind
	if len(addresses) == 0 {
		addresses = []string{""}
	}
	for _, host := range addresses {
		listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(l.Public))))
		if err != nil {
			for _, opened := range pp.listeners {
				opened.Close()
			}
			return nil, err
		}
		pp.listeners = append(pp.listeners, listener)
	}
	return pp, nil
}

// closeLocked closes ports; visitors who are connected stay. It wants mu.
func (p *ports) closeLocked(all []*publicPort) {
	for _, pp := range all {
		for _, l := range pp.listeners {
			l.Close()
		}
		if p.open[pp.Public] == pp {
			delete(p.open, pp.Public)
		}
		p.by[pp.Device] = slices.DeleteFunc(p.by[pp.Device], func(other *publicPort) bool { return other == pp })
		if len(p.by[pp.Device]) == 0 {
			delete(p.by, pp.Device)
		}
	}
}

// release closes the ports of a device that is not expected back here, unless they
// are open for wherever it is.
func (p *ports) release(device string) {
	if p.hub.settings.Load().TCP.listensAll() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closeLocked(slices.Clone(p.by[device]))
	for public, r := range p.refused {
		if r.Device == device {
			delete(p.refused, public)
		}
	}
}

// close closes all ports for good.
func (p *ports) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, pp := range p.open {
		p.closeLocked([]*publicPort{pp})
	}
}

// acceptVisitors takes visitors in until the listener is closed.
func (p *ports) acceptVisitors(pp *publicPort, l net.Listener) {
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, most likely: visitors who leave free some.
			p.hub.log().Error("public port takes no visitor", "device", pp.Device, "port", pp.Public, "error", err)
			select {
			case <-time.After(acceptPause):
			case <-p.hub.ctx.Done():
			}
			continue
		}
		if !p.hub.begin() {
			c.Close()
			continue
		}
		go func() { // Shutdown waits for it
			defer p.hub.wg.Done()
			stacks.Grow8K()
			p.serve(pp, c)
		}()
	}
}

// serve relays one visitor to the device.
func (p *ports) serve(pp *publicPort, c net.Conn) {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	leave, err := p.enter(pp.Device, from.Addr())
	p.hub.relay(c, Visit{Kind: VisitTCP, Device: pp.Device, Port: pp.Port, From: from}, leave, err)
}

// ServeTCP relays a visitor's connection, of TCP or what is on top of it, to a port of
// a device, until both have ended. It returns at once: the hub closes c, and waits for
// it when it ends.
func (h *Hub) ServeTCP(c net.Conn, device string, port uint16, from netip.AddrPort) {
	if !h.begin() {
		c.Close()
		return
	}
	go func() { // Shutdown waits for it
		defer h.wg.Done()
		leave, err := h.enterTCP(device, from.Addr())
		h.relay(c, Visit{Kind: VisitSNI, Device: device, Port: port, From: from}, leave, err)
	}()
}

// relay serves a visitor who was let in, or was not because of refused.
func (h *Hub) relay(c net.Conn, v Visit, leave func(), refused error) {
	if refused != nil {
		stream.Abort(c)
		h.debugVisit("visitor refused", &v, "reason", refused)
		return
	}
	v.Began = time.Now()
	conn, err := h.Dial(h.ctx, v.Device, v.Port, v.From)
	if err != nil {
		stream.Abort(c)
		h.debugVisit("visitor not served", &v, "error", err)
		v.Err = err
		h.audit(v)
		leave()
		return
	}
	// In a goroutine of its own: this one's stack has grown as it dialled, and would stay
	// so for as long as the visitor does.
	h.wg.Go(func() {
		stacks.Grow4K()
		v.In, v.Out, v.Err = stream.Relay(h.ctx, c, conn)
		stacks.Grow8K() // for loggers
		h.visited(&v)
		leave()
	})
}

// visited tells of a visitor that was served.
func (h *Hub) visited(v *Visit) {
	h.debugVisit("visitor gone", v, "bytes_in", v.In, "bytes_out", v.Out, "error", v.Err)
	h.audit(*v)
}

// debugVisit logs what has become of a visitor. No logger is kept for each: most say nothing.
func (h *Hub) debugVisit(message string, v *Visit, args ...any) {
	if log := h.log(); log.Enabled(h.ctx, slog.LevelDebug) {
		log.Debug(message, append([]any{"device", v.Device, "port", v.Port, "remote", v.From}, args...)...)
	}
}

// enter counts a visitor until leave is called; an error says why it may not come
// in.
func (p *ports) enter(device string, addr netip.Addr) (leave func(), err error) {
	s := p.hub.settings.Load()
	if s.TCP == nil {
		return nil, errors.New("public ports are switched off")
	}
	if len(s.TCP.Allow) > 0 && !slices.ContainsFunc(s.TCP.Allow, func(a netip.Prefix) bool { return a.Contains(addr) }) {
		return nil, errors.New("address is not allowed")
	}
	return p.hub.enterTCP(device, addr)
}

// enterTCP is Enter without waiting: a TCP client would take that for a device that is
// slow.
func (h *Hub) enterTCP(device string, addr netip.Addr) (leave func(), err error) {
	if err := h.permit(device); err != nil {
		return nil, err
	}
	return h.visitors.enter(h.ctx, source{device, AddressKey(addr)}, h.settings.Load().Limits.StreamsPerAddress, 0)
}
