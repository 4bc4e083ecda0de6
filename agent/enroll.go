package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// maxCode bounds a claim code, as people write it, in bytes: the edge takes requests
// of 1024 (protocol §14.2).
const maxCode = 256

// Enroll exchanges a claim code for the device's own secret, which is Config.Token
// from then on. The edge gives it out once: store it before anything else is done.
//
// Of c, Device and what says how an edge is reached count. The error is a
// *ConfigError, or has a *RefusedError in it when an edge answered: its Code is
// "unauthorized" when the code is wrong, was used, or has expired. Otherwise the same
// code may be tried again; when the answer was lost on the way, it has been used.
func Enroll(ctx context.Context, c Config, code string) (token string, err error) {
	k, err := newCaller(c)
	if err == nil && (strings.TrimSpace(code) == "" || len(code) > maxCode) {
		err = errNoCode
	}
	if err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	err = k.each(ctx, func(u *url.URL) error {
		token, err = k.enroll(ctx, u, code)
		return err
	})
	return token, err
}

var errNoCode = errors.New("a claim code is needed, as its operator wrote it, such as 7KQ2M-X04TB-9ZC6H-WD3NA")

// enroll asks one edge (protocol §14).
func (k *caller) enroll(ctx context.Context, server *url.URL, code string) (string, error) {
	r, err := k.dialer.route(server)
	if err != nil {
		return "", err
	}
	conn, err := k.dialer.connect(ctx, r, 0, nil)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return hop(ctx, "enroll", handshakeTimeout, func(ctx context.Context) (string, error) {
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) // ends calls under way
		defer stop()
		return k.exchange(conn, server.Host, code)
	})
}

// exchange sends the request and reads the answer.
func (k *caller) exchange(conn net.Conn, host, code string) (string, error) {
	body, err := json.Marshal(map[string]string{"device": k.cfg.Device, "code": code})
	if err != nil {
		return "", err // there is nothing in it that has no JSON
	}
	_, err = fmt.Fprintf(conn, "POST %sv1/enroll HTTP/1.1\r\nHost: %s\r\nUser-Agent: iottunnel-agent\r\nConnection: close\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", wire.Root, host, len(body), body)
	if err != nil {
		return "", err
	}
	br := bufio.NewReaderSize(conn, 1<<10)
	a, err := socket.ReadAnswer(br)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("closed without an answer")
		}
		return "", err
	}
	text := a.Body(br)
	if a.Status != 200 {
		return "", newRefused(&socket.StatusError{Status: a.Status, Reason: a.Reason, Header: a.Header, Body: text})
	}
	answer := wire.Texts(text)
	device, token := answer["device"], answer["token"]
	switch {
	case token == "", len(token) > maxSecret, checkToken(token) != nil:
		return "", errors.New("answered 200 without a token: that is no iottunnel edge")
	case device != k.cfg.Device:
		return "", fmt.Errorf("answered for the device %q", printable(device, 80))
	}
	return token, nil
}

// maxSecret bounds the token of an answer, in bytes (protocol §14.3).
const maxSecret = 128
