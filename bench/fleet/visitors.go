//go:build linux

package fleet

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"strings"
	"time"
)

// What a device answers every request with.
var answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nup\n")

// Kinds of frames on the control socket (protocol §9.2).
const (
	frameData = 1
	frameFin  = 2
)

// message is given a text message of the edge.
func (d *device) message(ctx context.Context, text []byte) error {
	var m struct {
		Type   string `json:"type"`
		Stream uint32 `json:"stream"`
		ID     string `json:"id"`
		Early  int    `json:"early"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	switch {
	case m.Type == "ready": // it has changed, but nothing that a load uses
	case m.Type != "open":
	case m.Early > 0:
		d.w.opens.Add(1)
		if d.early == nil {
			d.early = make(map[uint32]*strings.Builder)
		}
		d.early[m.Stream] = new(strings.Builder)
	default:
		d.w.opens.Add(1)
		transfer, secret := d.ready.Transfer+"&id="+m.ID, d.ready.Secret
		d.w.streams.Go(func() { d.stream(ctx, transfer, secret) })
	}
	return nil
}

// frame is given a frame of the control socket: a stream that is answered there,
// within its credit, and ended.
func (d *device) frame(s *socket, frame []byte) error {
	if len(frame) < 5 {
		return nil
	}
	number := binary.BigEndian.Uint32(frame[1:])
	asked := d.early[number]
	if asked == nil {
		return nil
	}
	if frame[0] != frameData {
		delete(d.early, number)
		return nil
	}
	asked.Write(frame[5:])
	if !strings.Contains(asked.String(), "\r\n\r\n") {
		return nil
	}
	delete(d.early, number)
	head := func(kind byte) []byte { return binary.BigEndian.AppendUint32([]byte{kind}, number) }
	if err := s.write(opBinary, append(head(frameData), answer...)); err != nil {
		return err
	}
	return s.write(opBinary, head(frameFin))
}

// stream serves a visitor on a transfer socket.
func (d *device) stream(ctx context.Context, transfer, secret string) {
	s, _, err := d.dial(ctx, transfer, secret)
	if err != nil {
		return // the edge tells the visitor
	}
	defer s.close()
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()
	var asked []byte
	for {
		if s.conn.SetReadDeadline(time.Now().Add(5*time.Minute)) != nil {
			return
		}
		op, payload, err := s.read()
		switch {
		case err != nil:
			return
		case op == opPing:
			err = s.write(opPong, payload)
		case op == opBinary && len(payload) == 0: // the visitor has ended: so do we
			if s.write(opBinary, nil) == nil {
				_ = s.write(opClose, []byte{3, 232}) // 1000; nothing comes after it
			}
		case op == opBinary:
			asked = append(asked, payload...)
			if bytes.HasSuffix(asked, []byte("\r\n\r\n")) {
				asked = asked[:0]
				err = s.write(opBinary, answer)
			}
		case op == opClose:
			return
		}
		if err != nil || len(asked) > 64<<10 {
			return
		}
	}
}
