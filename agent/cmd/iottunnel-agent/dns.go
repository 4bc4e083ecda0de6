package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
)

// dnsTimeout bounds the connection to a name server.
const dnsTimeout = 5 * time.Second

// resolver asks the name servers at addrs, each of which may be a list; nil, the
// system's, when there are none.
func resolver(addrs []string) (*net.Resolver, error) {
	var servers []string
	for _, list := range addrs {
		for s := range strings.SplitSeq(list, ",") {
			addr, err := netip.ParseAddr(s)
			if err == nil {
				servers = append(servers, netip.AddrPortFrom(addr, 53).String())
				continue
			}
			ap, err := netip.ParseAddrPort(s)
			if err != nil {
				return nil, fmt.Errorf("%q is not the IP address of a name server, such as 192.168.1.1 or 192.168.1.1:53", s)
			}
			servers = append(servers, ap.String())
		}
	}
	if servers == nil {
		return nil, nil
	}
	n := &nameServers{addrs: servers}
	return &net.Resolver{PreferGo: true, Dial: n.dial}, nil
}

// nameServers are asked in their order: the next one takes over when one does not
// answer, and stays.
type nameServers struct {
	addrs []string
	turn  atomic.Uint32 // the server's, modulo their number
}

// dial connects to the server whose turn it is, whatever the system's would be. The
// resolver dials again for each try.
func (n *nameServers) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	turn := n.turn.Load()
	d := net.Dialer{Timeout: dnsTimeout}
	conn, err := d.DialContext(ctx, network, n.addrs[int(turn)%len(n.addrs)])
	if err != nil {
		n.turn.CompareAndSwap(turn, turn+1)
		return nil, err
	}
	if packets, ok := conn.(net.PacketConn); ok { // the resolver tells UDP by that
		return &packetQuery{query{conn, n, turn}, packets}, nil
	}
	return &query{conn, n, turn}, nil
}

// query is a connection to a name server that passes the turn on when it fails.
type query struct {
	net.Conn
	servers *nameServers
	turn    uint32
}

func (q *query) Read(p []byte) (int, error) {
	count, err := q.Conn.Read(p)
	if err != nil {
		q.servers.turn.CompareAndSwap(q.turn, q.turn+1) // once, however many fail at a time
	}
	return count, err
}

type packetQuery struct {
	query
	packets net.PacketConn
}

func (q *packetQuery) ReadFrom(p []byte) (int, net.Addr, error) { return q.packets.ReadFrom(p) }
func (q *packetQuery) WriteTo(p []byte, to net.Addr) (int, error) {
	return q.packets.WriteTo(p, to)
}
