package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/iottunnel/iottunnel/agent/internal/hosthead"
)

// dialTarget connects to the target of f on behalf of a visitor.
func (a *Agent) dialTarget(ctx context.Context, f Forward, from netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, targetTimeout, fmt.Errorf("no answer within %v", targetTimeout))
	defer cancel()
	dial := f.Dial
	if dial == nil {
		dial = func(ctx context.Context) (net.Conn, error) {
			d := net.Dialer{Resolver: a.cfg.Resolver}
			return d.DialContext(ctx, "tcp", f.Target)
		}
	}
	conn, err := dial(context.WithValue(ctx, visitorKey{}, from))
	if err != nil {
		return nil, err
	}
	if f.ProxyProtocol {
		if err := writeProxyHeader(conn, from, f.Port); err != nil {
			conn.Close()
			return nil, fmt.Errorf("PROXY header: %w", err)
		}
	}
	if f.Host != "" {
		conn = hosthead.New(conn, f.Host)
	}
	return conn, nil
}

func writeProxyHeader(conn net.Conn, from netip.AddrPort, port uint16) error {
	// The peer has just accepted: a header fits into its buffer.
	if err := conn.SetWriteDeadline(time.Now().Add(targetTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(proxyHeader(from, port)); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// proxySignature starts each header of version 2 of the PROXY protocol (§2.2 of
// its text).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader is the header for a visitor at from. The destination has the port
// that the visitor asked for and no address: which one that was stands with the
// edge. A visitor without an address is announced as LOCAL, for which receivers
// use the real endpoints of the connection.
func proxyHeader(from netip.AddrPort, port uint16) []byte {
	const (
		local  = 0x20 // version 2, command LOCAL
		proxy  = 0x21 // version 2, command PROXY
		stream = 0x01 // in the low bits of the family
		inet   = 0x10
		inet6  = 0x20
	)
	b := []byte(proxySignature)
	if !from.IsValid() {
		return append(b, local, 0, 0, 0) // family UNSPEC, length 0
	}
	source, family := from.Addr().AsSlice(), byte(inet|stream)
	if from.Addr().Is6() {
		family = inet6 | stream
	}
	b = append(b, proxy, family)
	b = binary.BigEndian.AppendUint16(b, uint16(2*len(source)+4))
	b = append(b, source...)
	b = append(b, make([]byte, len(source))...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	return binary.BigEndian.AppendUint16(b, port)
}
