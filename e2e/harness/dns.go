package harness

import (
	"net"
	"net/netip"
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
	serveDNS(tb, c, name+".", addrs)
}

// LocalDNS starts a name server on loopback that knows every name, at 127.0.0.1,
// and returns its address.
func LocalDNS(tb testing.TB) string {
	tb.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	serveDNS(tb, c, "", []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})})
	return c.LocalAddr().String()
}

// serveDNS answers for a name, with its dot; empty: for all.
func serveDNS(tb testing.TB, c net.PacketConn, name string, addrs []netip.Addr) {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return // closed below
			}
			if answer := answerDNS(buf[:n], name, addrs); answer != nil {
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
func answerDNS(query []byte, name string, addrs []netip.Addr) []byte {
	var q dnsmessage.Message
	if q.Unpack(query) != nil || len(q.Questions) != 1 {
		return nil
	}
	asked := q.Questions[0]
	a := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true},
		Questions: q.Questions,
	}
	if name != "" && asked.Name.String() != name {
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
