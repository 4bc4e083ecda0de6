package tunnelcore

import (
	"errors"
	"os"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// parkedTime is how long a transfer socket may be parked: less than the agent
// keeps it, so that its end is known there before it is used again.
const parkedTime = 20 * time.Second

// attachTime bounds the writing of `attached`.
const attachTime = 10 * time.Second

var errWrongNumber = errors.New("the id is that of another stream")

// park keeps a transfer socket whose stream has ended cleanly, for the agent to
// give it to another one (protocol §11.1). It does not wait.
func (t *tunnel) park(sock *socket.Socket) {
	if !t.hub.begin() {
		sock.Close()
		return
	}
	t.mu.Lock()
	room := !t.over && len(t.parked) < wire.MaxParked
	if room {
		if t.parked == nil {
			t.parked = make(map[*socket.Socket]struct{})
		}
		t.parked[sock] = struct{}{}
		t.hub.parked.Add(1)
	}
	t.mu.Unlock()
	go func() { // Shutdown waits for it
		defer t.hub.wg.Done()
		if !room {
			closeIdle(sock, wire.CloseNormal, "")
			return
		}
		t.attendParked(sock)
	}()
}

// attendParked waits for the agent to name a stream for a parked socket.
func (t *tunnel) attendParked(sock *socket.Socket) {
	a, code, err := t.awaitAttach(sock)
	t.mu.Lock()
	delete(t.parked, sock)
	t.mu.Unlock()
	t.hub.parked.Add(-1)
	if err != nil {
		if code == 0 {
			sock.Close()
		} else {
			closeIdle(sock, code, err.Error())
		}
		return
	}
	o := t.takeOpening(a.ID)
	switch {
	case o == nil:
		closeIdle(sock, wire.CloseNormal, "no such stream")
		return
	case o.number != a.Stream:
		o.unattached(errWrongNumber)
		closeIdle(sock, wire.CloseNormal, "no such stream")
		return
	}
	_, _ = sock.SetReadDeadline(time.Time{}), sock.SetWriteDeadline(time.Now().Add(attachTime)) // fails only on a closed socket
	if err := sock.WriteMessage(socket.Text, wire.Encode(&wire.Attached{Stream: a.Stream})); err != nil {
		sock.Close()
		o.unattached(err) // the agent dials
		return
	}
	_ = sock.SetWriteDeadline(time.Time{})
	o.attach(sock)
}

// awaitAttach reads a parked socket until `attach` comes. An error with a code is
// one to tell the agent.
func (t *tunnel) awaitAttach(sock *socket.Socket) (a *wire.Attach, code int, err error) {
	_ = sock.SetReadDeadline(time.Now().Add(t.hub.parkedFor)) // fails only on a closed socket
	t.mu.Lock()
	over := t.over
	t.mu.Unlock()
	if over { // end may have passed this one by
		return nil, wire.CloseNormal, errors.New("the tunnel is over")
	}
	for {
		op, text, err := sock.ReadMessage(wire.MaxText)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, wire.CloseNormal, errors.New("idle")
		case errors.Is(err, socket.ErrTooBig):
			return nil, wire.CloseTooBig, err
		case err != nil:
			return nil, 0, err
		case op != socket.Text:
			return nil, wire.CloseMalformed, errors.New("binary message on a parked socket")
		}
		m, err := wire.Decode(text)
		switch m := m.(type) {
		case *wire.Attach:
			return m, 0, nil
		default:
			if !errors.Is(err, wire.ErrUnknownMessage) {
				return nil, wire.CloseMalformed, errors.New("neither attach nor unknown")
			}
		}
	}
}

// closeIdle closes a socket that carries no stream, so that the agent reads why.
func closeIdle(sock *socket.Socket, code int, why string) {
	defer sock.Close()
	if sock.WriteClose(code, why, closeTime) != nil {
		return
	}
	_ = sock.SetReadDeadline(time.Now().Add(closeTime)) // fails only on a closed socket
	for {
		if _, err := sock.Next(); err != nil {
			return
		}
	}
}

// dropParked closes the parked sockets of a tunnel that is over: their readers
// see that it is.
func (t *tunnel) dropParked() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for sock := range t.parked {
		_ = sock.SetReadDeadline(time.Unix(1, 0)) // fails only on a closed socket
	}
}
