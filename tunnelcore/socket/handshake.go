package socket

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// StatusError is the answer to a handshake that was not 101.
type StatusError struct {
	Status int
	Reason string               // beside the status; the server's text
	Header textproto.MIMEHeader // nil on the server's side
	Body   []byte               // its first KiB
}

func (e *StatusError) Error() string {
	return strings.TrimRight("socket: handshake answered with status "+strconv.Itoa(e.Status)+" "+e.Reason, " ")
}

// New makes the server's end of a socket of conn, on which the handshake is done and
// nothing was read behind it. buffer is SmallBuffer, LargeBuffer or what is between.
func New(conn net.Conn, buffer int) *Socket {
	trimTLS(conn)
	return newSocket(conn, newReader(conn, buffer), false)
}

// Dial makes the client's handshake for u over conn, on which TCP, proxy and TLS
// are done, and which it owns from then on. header, by canonical names, is what the
// request has besides. An answer other than 101 is a *StatusError. When ctx ends
// first, the error is ctx's.
func Dial(ctx context.Context, conn net.Conn, u *url.URL, header map[string][]string, subprotocol string, buffer int) (*Socket, error) {
	s, _, err := DialAnswer(ctx, conn, u, header, subprotocol, buffer)
	return s, err
}

// DialAnswer is Dial, and returns the header of the 101.
func DialAnswer(ctx context.Context, conn net.Conn, u *url.URL, header map[string][]string, subprotocol string, buffer int) (*Socket, textproto.MIMEHeader, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	br := newReader(conn, buffer)
	a, err := handshake(conn, br, u, header, subprotocol)
	stopped := stop() // else the deadline in the past is set, or about to be
	var refused *StatusError
	switch {
	case errors.As(err, &refused): // tells more than that ctx has ended
	case !stopped:
		err = ctx.Err()
	case err == nil:
		err = conn.SetDeadline(time.Time{})
	}
	if err == nil {
		return newSocket(conn, br, true), a.Header, nil
	}
	conn.Close()
	if refused == nil {
		err = fmt.Errorf("handshake: %w", err)
	}
	return nil, nil, err
}

// handshake sends the request and reads the answer, and nothing behind its header if
// that is a 101.
func handshake(conn net.Conn, br *bufio.Reader, u *url.URL, header map[string][]string, subprotocol string) (Answer, error) {
	key := newKey()
	request, err := request(u, header, subprotocol, key)
	if err != nil {
		return Answer{}, err
	}
	if _, err := conn.Write(request); err != nil {
		return Answer{}, err
	}
	a, err := ReadAnswer(br)
	switch {
	case err != nil:
		return a, err
	case a.Status != 101:
		return a, &StatusError{Status: a.Status, Reason: a.Reason, Header: a.Header, Body: a.Body(br)}
	case !lists(a.Header["Upgrade"], "websocket"), !lists(a.Header["Connection"], "upgrade"):
		return a, errors.New("the server upgrades to something else than a WebSocket")
	case a.Header.Get("Sec-Websocket-Accept") != acceptKey(key):
		return a, errors.New("the server's Sec-WebSocket-Accept does not fit")
	case a.Header.Get("Sec-Websocket-Protocol") != subprotocol:
		return a, fmt.Errorf("the server does not speak %s", subprotocol)
	case len(a.Header["Sec-Websocket-Extensions"]) > 0: // RFC 6455 §4.1: none was offered
		return a, errors.New("the server wants an extension")
	}
	return a, nil
}

// request is the client's part of a handshake (RFC 6455 §4.1).
func request(u *url.URL, header map[string][]string, subprotocol, key string) ([]byte, error) {
	target := u.RequestURI()
	if !printable(target) || strings.Contains(target, " ") || !printable(u.Host) || u.Host == "" {
		return nil, fmt.Errorf("%q is no URL for a request", u.Redacted())
	}
	b := make([]byte, 0, 1<<10)
	b = append(b, "GET "+target+" HTTP/1.1\r\nHost: "+withoutZone(u.Host)+"\r\n"...)
	for name, values := range header {
		for _, v := range values {
			if !printable(v) {
				return nil, fmt.Errorf("header %s has a value that cannot be sent", name)
			}
			b = append(b, name+": "+v+"\r\n"...)
		}
	}
	return append(b, "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: "+key+"\r\nSec-WebSocket-Protocol: "+subprotocol+"\r\n\r\n"...), nil
}

// printable reports whether s can stand in the head of a request, on its line.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// withoutZone is a host without the zone of an IPv6 address, which says something on
// this machine alone (RFC 6874 §1).
func withoutZone(host string) string {
	i, j := strings.IndexByte(host, '%'), strings.LastIndexByte(host, ']')
	if !strings.HasPrefix(host, "[") || i < 0 || j < i {
		return host
	}
	return host[:i] + host[j:]
}

// lists reports whether one of the lists in a header's lines has token, in any case.
func lists(lines []string, token string) bool {
	return slices.ContainsFunc(lines, func(line string) bool {
		for t := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.Trim(t, " \t"), token) {
				return true
			}
		}
		return false
	})
}

// newKey is a Sec-WebSocket-Key.
func newKey() string {
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails (crypto/rand)
	return base64.StdEncoding.EncodeToString(nonce[:])
}

// acceptKey is the answer to a key (RFC 6455 §4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
