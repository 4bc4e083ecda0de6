package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// avoidTime is how long an address is tried last after it has failed: longer than
	// a few attempts take.
	avoidTime = 2 * time.Minute
	// maxAvoided bounds what is remembered: more addresses than a name has.
	maxAvoided = 32
	// leastDial is how long at least is waited for one of several addresses.
	leastDial = 2 * time.Second
)

// avoided are addresses of edges that took a connection and then said nothing, or fell
// silent later, as a node does that is stopped or overwhelmed. Of the addresses of a name
// they are tried last, since name servers may begin with the same one again and again.
// The zero value has none. It is safe for concurrent use.
type avoided struct {
	mu    sync.Mutex
	until map[netip.Addr]time.Time // guarded by mu
}

// add has the address of a connection tried last from now on; one that is not an
// address of IP is none.
func (a *avoided) add(remote net.Addr) {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return
	}
	addr := tcp.AddrPort().Addr().Unmap()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweepLocked()
	if a.until == nil {
		a.until = make(map[netip.Addr]time.Time)
	}
	if _, known := a.until[addr]; known || len(a.until) < maxAvoided {
		a.until[addr] = time.Now().Add(avoidTime)
	}
}

// sweepLocked forgets those whose time is over. It wants mu.
func (a *avoided) sweepLocked() {
	for addr, until := range a.until {
		if time.Now().After(until) {
			delete(a.until, addr)
		}
	}
}

func (a *avoided) any() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sweepLocked()
	return len(a.until) > 0
}

// last returns addrs with those to avoid at the end, and whether there are any: then
// nobody may ask for the addresses again, whose order changes with each answer.
func (a *avoided) last(addrs []netip.Addr) (ordered []netip.Addr, some bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ordered = make([]netip.Addr, 0, len(addrs))
	for _, avoid := range []bool{false, true} {
		for _, addr := range addrs {
			if _, is := a.until[addr.Unmap()]; is == avoid {
				ordered, some = append(ordered, addr), some || is
			}
		}
	}
	return ordered, some
}

// lookup finds the addresses of a host, as net.Resolver.LookupNetIP does.
type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// dial connects to addr, host:port, by d. While there is none to avoid it is d that
// chooses among the host's addresses.
func (a *avoided) dial(ctx context.Context, d *net.Dialer, find lookup, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !a.any() {
		return d.DialContext(ctx, "tcp", addr)
	}
	addrs, err := find(ctx, "ip", host)
	ordered, some := a.last(addrs)
	if err != nil || !some {
		return d.DialContext(ctx, "tcp", addr) // which says what is wrong
	}
	var failed []error
	for i, to := range ordered {
		conn, err := dialShare(ctx, d, net.JoinHostPort(to.String(), port), len(ordered)-i)
		if err == nil {
			return conn, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failed...)
}

// dialShare connects to one address within its share of the time that ctx leaves for so
// many.
func dialShare(ctx context.Context, d *net.Dialer, addr string, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		share := max(leastDial, time.Until(deadline)/time.Duration(left))
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	return d.DialContext(ctx, "tcp", addr)
}
