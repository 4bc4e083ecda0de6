package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Paths and names of the protocol, spelled out a second time: the tests do not
// share them with the product.
const (
	ControlPath = "/.iottunnel/v1/control"
	Subprotocol = "iottunnel.v1"
)

// NewInstance draws the value of an agent's `instance` parameter.
func NewInstance() string { return newSecret()[:32] }

// Query is a well-formed query of a control socket for one http port.
func Query(device string) string {
	return "device=" + url.QueryEscape(device) + "&ports=80&instance=" + NewInstance()
}

// Hand is a control socket driven by hand: an agent of the basic profile without
// the agent.
type Hand struct {
	*websocket.Conn
	Device Device
	Ready  Ready
	face   Face
}

// Ready is the edge's first message.
type Ready struct {
	Type     string `json:"type"`
	Tunnel   string `json:"tunnel"`
	Caps     string `json:"caps"`
	Hostname string `json:"hostname"`
	Transfer string `json:"transfer"`
	Secret   string `json:"secret"`
}

// Open is the edge's word that a visitor waits.
type Open struct {
	Type   string `json:"type"`
	Stream uint32 `json:"stream"`
	ID     string `json:"id"`
	Port   int    `json:"port"`
	From   string `json:"from"`
}

// DialSocket does a WebSocket handshake as an agent would, with any path, query
// and header. A refusal gives its response, with the body read, and an error.
func DialSocket(ctx context.Context, f Face, pathQuery string, h http.Header) (*websocket.Conn, *http.Response, error) {
	conn, host, err := f.DialAgent(ctx)
	if err != nil {
		return nil, nil, err
	}
	d := websocket.Dialer{
		Subprotocols:     []string{Subprotocol},
		HandshakeTimeout: VisitorTimeout,
		NetDialContext:   func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	ws, resp, err := d.DialContext(ctx, "ws://"+host+pathQuery, h)
	if err != nil {
		conn.Close()
	}
	return ws, resp, err
}

// Bearer is the header with a credential; empty: none.
func Bearer(token string) http.Header {
	h := make(http.Header)
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return h
}

// DialHand opens a tunnel for a device by hand.
func DialHand(tb testing.TB, f Face, d Device) *Hand {
	tb.Helper()
	ws, resp, err := DialSocket(tb.Context(), f, ControlPath+"?"+Query(d.ID), Bearer(d.Token))
	if err != nil {
		tb.Fatalf("control socket of %s: %v (%v)", d.ID, err, Refusal(resp))
	}
	tb.Cleanup(func() { ws.Close() })
	h := &Hand{Conn: ws, Device: d, face: f}
	h.Next(tb, "ready", &h.Ready)
	h.Next(tb, "port", nil)
	return h
}

// Next reads messages until one of a type, and decodes it into v.
func (h *Hand) Next(tb testing.TB, kind string, v any) {
	tb.Helper()
	h.SetReadDeadline(time.Now().Add(VisitorTimeout))
	for {
		mt, text, err := h.ReadMessage()
		if err != nil {
			tb.Fatalf("waiting for %q: %v", kind, err)
		}
		var head struct {
			Type string `json:"type"`
		}
		if mt != websocket.TextMessage || json.Unmarshal(text, &head) != nil {
			tb.Fatalf("waiting for %q: message of type %d: %.200q", kind, mt, text)
		}
		if head.Type != kind {
			continue
		}
		if v != nil {
			if err := json.Unmarshal(text, v); err != nil {
				tb.Fatal(err)
			}
		}
		return
	}
}

// DialTransfer tries to open the transfer socket for an id, with the tunnel's own
// secret.
func (h *Hand) DialTransfer(ctx context.Context, id string) (*websocket.Conn, *http.Response, error) {
	return DialSocket(ctx, h.face, h.Ready.Transfer+"&id="+id, Bearer(h.Ready.Secret))
}

// ServeOnce answers the request that waits behind an open with a page.
func (h *Hand) ServeOnce(tb testing.TB, ws *websocket.Conn, page string) {
	tb.Helper()
	ReadRequest(tb, ws)
	answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(page), page)
	for _, piece := range []string{answer, ""} { // an empty message ends the direction
		if err := ws.WriteMessage(websocket.BinaryMessage, []byte(piece)); err != nil {
			tb.Fatalf("transfer socket: %v", err)
		}
	}
}

// ReadRequest reads the head of a visitor's request from a transfer socket.
func ReadRequest(tb testing.TB, ws *websocket.Conn) string {
	tb.Helper()
	ws.SetReadDeadline(time.Now().Add(VisitorTimeout))
	var request []byte
	for !strings.Contains(string(request), "\r\n\r\n") {
		_, piece, err := ws.ReadMessage()
		if err != nil {
			tb.Fatalf("transfer socket: %v", err)
		}
		request = append(request, piece...)
	}
	return string(request)
}

// CloseCode reads until the edge has closed the socket, and returns the code; 1006
// when it went without one. A socket that stays open fails the test.
func CloseCode(tb testing.TB, ws *websocket.Conn, within time.Duration) int {
	tb.Helper()
	within = max(within, Patience)
	ws.SetReadDeadline(time.Now().Add(within))
	for {
		_, _, err := ws.ReadMessage()
		var closed *websocket.CloseError
		var timeout net.Error
		switch {
		case err == nil:
		case errors.As(err, &closed):
			return closed.Code
		case errors.As(err, &timeout) && timeout.Timeout():
			tb.Fatalf("the edge keeps the socket open for %v", within)
		default:
			return websocket.CloseAbnormalClosure
		}
	}
}

// Answer is a refusal of a handshake.
type Answer struct {
	Status  int
	Header  http.Header
	Code    string `json:"error"`
	Message string `json:"message"`
	Body    string
}

func (a Answer) String() string { return fmt.Sprintf("status %d, %.300q", a.Status, a.Body) }

// Refusal reads an answer that is not 101.
func Refusal(resp *http.Response) Answer {
	if resp == nil {
		return Answer{}
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what came counts
	a := Answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
	_ = json.Unmarshal(body, &a) // not JSON: no code
	return a
}

// RawRequest writes bytes to the place where agents arrive and reads one HTTP
// answer. An answer that does not come in time fails the test; a connection that
// is closed without one is status 0.
func RawRequest(tb testing.TB, f Face, within time.Duration, text string) Answer {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), within)
	defer cancel()
	c, _, err := f.DialAgent(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(within))
	wrote := make(chan error, 1)
	go func() { // ends when the connection is closed
		_, err := io.WriteString(c, text)
		wrote <- err
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		tb.Fatalf("no answer within %v to %.80q", within, text)
	}
	if err != nil {
		return Answer{}
	}
	defer resp.Body.Close()
	return Refusal(resp)
}
