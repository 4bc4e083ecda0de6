package harness

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// ServeDNS answers on a host's port 53 for one name, with its addresses in the
// order given; other names do not exist.
func ServeDNS(tb testing.TB, h *Host, name string, addrs ...netip.Addr) {
	tb.Helper()
	var c net.PacketConn
	h.Do(tb, func() {
		var err error
		if c, err = net.ListenPacket("udp4", h.Addr+":53"); err != nil {
			tb.Fatal(err)
		}
	})
	serveDNS(tb, c, func(asked string) []netip.Addr {
		if asked != name {
			return nil
		}
		return addrs
	})
}

// LocalDNS starts a name server on loopback that knows every name, at 127.0.0.1,
// and returns its address.
func LocalDNS(tb testing.TB) string {
	tb.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	serveDNS(tb, c, func(string) []netip.Addr { return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})} })
	return c.LocalAddr().String()
}

// Names is a name server whose answers may change.
type Names struct {
	Addr string // host:port

	mu    sync.Mutex
	known map[string][]netip.Addr // guarded by mu
	turns bool                    // guarded by mu
}

// TakeTurns has each answer begin with another address, as name servers do.
func (n *Names) TakeTurns() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.turns = true
}

// StartNames starts a name server that knows no name: on a host, or, if that is
// nil, on loopback.
func StartNames(tb testing.TB, h *Host) *Names {
	tb.Helper()
	var c net.PacketConn
	listen := func() {
		var err error
		if c, err = net.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
			tb.Fatal(err)
		}
	}
	if h != nil {
		h.Do(tb, listen)
	} else {
		listen()
	}
	n := &Names{Addr: c.LocalAddr().String(), known: make(map[string][]netip.Addr)}
	serveDNS(tb, c, func(asked string) []netip.Addr {
		n.mu.Lock()
		defer n.mu.Unlock()
		addrs := n.known[asked]
		if n.turns && len(addrs) > 1 {
			n.known[asked] = append(addrs[1:len(addrs):len(addrs)], addrs[0])
		}
		return addrs
	})
	return n
}

// Set makes a name mean hosts (of host:port), in this order.
func (n *Names) Set(name string, hosts ...string) {
	var addrs []netip.Addr
	for _, host := range hosts {
		addrs = append(addrs, netip.MustParseAddrPort(host).Addr())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known[name] = addrs
}

// serveDNS answers with what lookup finds for a name without its last dot; nil: the
// name does not exist.
func serveDNS(tb testing.TB, c net.PacketConn, lookup func(name string) []netip.Addr) {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return // closed below
			}
			if answer := answerDNS(buf[:n], lookup); answer != nil {
				_, _ = c.WriteTo(answer, from) // who asks asks again
			}
		}
	})
	tb.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
}

// answerDNS is the answer to a query; nil when it is not one.
func answerDNS(query []byte, lookup func(name string) []netip.Addr) []byte {
	var q dnsmessage.Message
	if q.Unpack(query) != nil || len(q.Questions) != 1 {
		return nil
	}
	asked := q.Questions[0]
	a := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true},
		Questions: q.Questions,
	}
	addrs := lookup(strings.TrimSuffix(asked.Name.String(), "."))
	if addrs == nil {
		a.RCode = dnsmessage.RCodeNameError
	} else {
		for _, addr := range addrs {
			head := dnsmessage.ResourceHeader{Name: asked.Name, Class: dnsmessage.ClassINET, TTL: 1}
			switch {
			case addr.Is4() && asked.Type == dnsmessage.TypeA:
				a.Answers = append(a.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: addr.As4()}})
			case addr.Is6() && asked.Type == dnsmessage.TypeAAAA:
				a.Answers = append(a.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}})
			}
		}
	}
	packed, err := a.Pack()
	if err != nil {
		return nil
	}
	return packed
}
