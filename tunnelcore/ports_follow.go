package tunnelcore

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const (
	// portsGap is how long the list of leased ports is let be after it was asked for,
	// however much changes: four times a second a large one costs little.
	portsGap = 250 * time.Millisecond
	// portsAnew is how often the list is read although its version is the same: nodes
	// of an earlier version change it without telling.
	portsAnew = time.Minute
	// portsAtOnce is how many ports are opened before others, who want one for a
	// device that has just come, get their turn.
	portsAtOnce = 64
	// A port that did not open is tried again after firstRefusal, and then after twice
	// as long each time, up to lastRefusal; retriesAtOnce of them with each look.
	firstRefusal, lastRefusal = 3 * time.Second, 5 * time.Minute
	retriesAtOnce             = 64
)

// listensAll says whether every leased port is opened.
func (tcp *TCPPorts) listensAll() bool { return tcp != nil && tcp.Listen == ListenAll }

// portList is what a node knows of the ports that are leased.
type portList struct {
	version int64 // 0: nothing is known
	read    time.Time
	bind    []string
	first   uint16
	last    uint16
}

// follow keeps open what is leased: it looks with every heartbeat, and soon after a
// hint.
func (p *ports) follow() {
	tick := time.NewTicker(registry.NodeHeartbeat)
	defer tick.Stop()
	hints := p.hub.reg.Hints(p.hub.ctx)
	var known portList
	for {
		p.look(&known)
		gap := time.NewTimer(portsGap)
		select {
		case <-p.hub.ctx.Done():
			gap.Stop()
			return
		case <-gap.C:
		}
		for wanted := false; !wanted; {
			select {
			case <-p.hub.ctx.Done():
				return
			case <-tick.C:
				wanted = true
			case hint, open := <-hints:
				wanted = hint.Ports || open && hint == registry.Hint{}
				if !open {
					hints = nil
				}
			}
		}
		for range len(hints) { // what was said before this look
			<-hints
		}
	}
}

// look opens and closes what the registry says, if that has changed. When it does
// not answer, all stays as it is.
func (p *ports) look(known *portList) {
	tcp := p.hub.settings.Load().TCP
	if !tcp.listensAll() {
		if known.version != 0 {
			*known = portList{}
			p.onlyOwn()
		}
		p.retry(tcp)
		return
	}
	if !slices.Equal(known.bind, tcp.Bind) || known.first != tcp.First || known.last != tcp.Last || time.Since(known.read) > portsAnew {
		known.version = 0
	}
	p.mu.Lock()
	p.touched = map[uint16]struct{}{}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.hub.ctx, registryTimeout)
	defer cancel()
	leases, now, err := p.hub.reg.Ports(ctx, known.version)
	switch {
	case leases != nil && err != nil: // some may be lost that are leased all the same
		p.openAll(leases, tcp, p.hub.ownPorts())
		known.version = 0
	case err != nil:
		p.hub.log().Debug("leased ports are not known; those that are open stay", "error", err)
	case leases != nil:
		*known = portList{version: now, read: time.Now(), bind: tcp.Bind, first: tcp.First, last: tcp.Last}
		if !p.apply(leases, tcp) {
			known.version = 0
		}
	}
	p.mu.Lock()
	p.touched = nil
	p.mu.Unlock()
	p.retry(tcp)
}

// apply opens the ports of a list, and closes those that are not in it. One that is
// out of the range is not opened, but stays open while it is leased. Those of tunnels
// of this node stay in any case: they end with their tunnel, should it be lost. It
// says whether none is open that the list has not.
func (p *ports) apply(leases []registry.PortLease, tcp *TCPPorts) (agrees bool) {
	own := p.hub.ownPorts()
	wanted := make(map[uint16]registry.PortLease, len(leases))
	for _, l := range leases {
		wanted[l.Public] = l
	}
	p.mu.Lock()
	var drop []*publicPort
	agrees = true
	for public, pp := range p.open {
		_, touched := p.touched[public]
		switch {
		case wanted[public] == pp.PortLease && slices.Equal(pp.bind, tcp.Bind):
		case touched || own[public] == pp.PortLease:
			agrees = false
		default:
			drop = append(drop, pp)
		}
	}
	p.closeLocked(drop)
	for public, r := range p.refused {
		if _, touched := p.touched[public]; !touched && own[public] != r.PortLease && wanted[public] != r.PortLease {
			delete(p.refused, public)
		}
	}
	p.mu.Unlock()
	p.openAll(leases, tcp, own)
	return agrees
}

// openAll opens the ports of a list, but none that a tunnel of this node has for
// another device: own.
func (p *ports) openAll(leases []registry.PortLease, tcp *TCPPorts, own map[uint16]registry.PortLease) {
	var refused refusedPorts
	for piece := range slices.Chunk(leases, portsAtOnce) {
		p.mu.Lock()
		for _, l := range piece {
			_, touched := p.touched[l.Public]
			if touched || p.refused[l.Public] != nil || l.Public < tcp.First || l.Public > tcp.Last {
				continue
			}
			if mine, is := own[l.Public]; is && mine != l {
				continue
			}
			if err := p.openLocked(l, tcp.Bind); err != nil {
				refused.addLocked(p, l.Public, err)
			}
		}
		p.mu.Unlock()
	}
	refused.log(p.hub.log())
}

// ownPorts is what the tunnels of this node have, by public port.
func (h *Hub) ownPorts() map[uint16]registry.PortLease {
	own := map[uint16]registry.PortLease{}
	for _, t := range h.live() {
		t.mu.Lock()
		for port, public := range t.public {
			own[public] = registry.PortLease{Public: public, Device: t.holder.Device, Port: port}
		}
		t.mu.Unlock()
	}
	return own
}

// onlyOwn closes the ports of devices that are not connected here, and were not just
// now.
func (p *ports) onlyOwn() {
	p.hub.mu.Lock()
	defer p.hub.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for device, all := range p.by {
		d := p.hub.devices[device]
		if _, gone := p.hub.gone[d]; gone {
			continue // for forgetGone to close
		}
		if d != nil {
			if t, _ := d.live(); t != nil {
				continue
			}
		}
		p.closeLocked(slices.Clone(all))
	}
	p.refused = nil
}

// A refusedPort is one that did not open.
type refusedPort struct {
	registry.PortLease
	tries int
	next  time.Time // when it is tried again
}

// refuseLocked notes that a port did not open. It wants mu.
func (p *ports) refuseLocked(l registry.PortLease) {
	r := p.refused[l.Public]
	if r == nil || r.PortLease != l {
		r = &refusedPort{PortLease: l}
		if p.refused == nil {
			p.refused = map[uint16]*refusedPort{}
		}
		p.refused[l.Public] = r
	}
	r.next = time.Now().Add(min(firstRefusal<<min(r.tries, 10), lastRefusal))
	r.tries++
}

// retry tries some of those that did not open.
func (p *ports) retry(tcp *TCPPorts) {
	p.mu.Lock()
	if tcp == nil {
		p.refused = nil // they are wanted no more
	}
	var due []registry.PortLease
	for _, r := range p.refused { // starts anywhere: all get their turn
		if len(due) < retriesAtOnce && !time.Now().Before(r.next) {
			due = append(due, r.PortLease)
		}
	}
	opened := map[string]struct{}{}
	for _, l := range due {
		if p.openLocked(l, tcp.Bind) == nil {
			opened[l.Device] = struct{}{}
			p.hub.log().Info("public port opens after all", "device", l.Device, "port", l.Public)
		}
	}
	p.mu.Unlock()
	if len(opened) == 0 {
		return
	}
	for _, t := range p.hub.live() {
		if _, ok := opened[t.holder.Device]; ok {
			p.hub.rebound(t) // its agent is told the address
		}
	}
}

// refusedPorts gathers what is logged of ports that did not open: each once, and
// many together.
type refusedPorts struct {
	first []uint16 // some of them
	count int
	err   error // of the first
}

// addLocked notes that a port did not open, if it is the first time. It wants mu of p.
func (r *refusedPorts) addLocked(p *ports, public uint16, err error) {
	if there := p.refused[public]; there == nil || there.tries > 1 {
		return
	}
	const most = 10
	if r.count++; r.count <= most {
		r.first = append(r.first, public)
	}
	if r.err == nil {
		r.err = err
	}
}

func (r *refusedPorts) log(to *slog.Logger) {
	if r.count > 0 {
		to.Error("public ports do not open; another program may have them, or descriptors have run out", "count", r.count, "ports", r.first, "error", r.err)
	}
}
