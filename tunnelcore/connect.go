package tunnelcore

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/names"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// ConnectPath is where technicians reach a port of a device by a grant (protocol §15).
const ConnectPath = wire.Root + "v1/connect"

const (
	// connectAnswer is how long a device may keep silent before the technician's client
	// is told that the stream is open: one that refuses has said so by then.
	connectAnswer = time.Second
	// connectFirst is how much of what the device says first is read before that.
	connectFirst = 4 << 10
	// connectKeep is how often an idle client is pinged.
	connectKeep = 25 * time.Second
)

// serveConnect opens a stream to a device for somebody who has a grant, and joins it
// to the socket that it upgrades.
func (h *Hub) serveConnect(w http.ResponseWriter, r *http.Request, a Arrival) error {
	s := h.settings.Load()
	if !s.Connect {
		return &answers.Error{Code: wire.BadRequest, Message: "no such path: this edge has no connect (`connect` is not in its configuration)"}
	}
	q := r.URL.Query()
	device := q.Get("device")
	if err := names.CheckDevice(device); err != nil {
		return &answers.Error{Code: wire.BadRequest, Message: "device: " + err.Error()}
	}
	port, err := strconv.ParseUint(q.Get("port"), 10, 16)
	if err != nil || port == 0 {
		return &answers.Error{Code: wire.BadRequest, Message: "port: not a number from 1 to 65535"}
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.Wait+s.OpenTimeout+s.Limits.HandshakeTimeout)
	defer cancel()
	grant, err := h.CheckGrant(ctx, bearer(r), registry.GrantConnect, device, uint16(port), a.From)
	if err != nil {
		return err
	}
	// Held from now on: who is kept waiting by a device has no right by a grant that
	// has ended meanwhile.
	held, end := context.WithCancelCause(h.ctx)
	defer context.AfterFunc(held, cancel)()
	release := h.HoldGrant(grant.ID, end)
	drop := func() {
		release()
		end(nil)
	}
	leave, err := h.Enter(ctx, grant.Device, a.From)
	if err != nil {
		drop()
		return err
	}
	c := &connection{hub: h, visit: Visit{
		Kind: VisitConnect, Device: grant.Device, Port: grant.Port, From: remoteOf(r, a.From),
		Grant: grant.ID, By: grant.By, Began: time.Now(),
	}}
	err = c.open(ctx, w, r)
	switch {
	case err != nil && errors.Is(context.Cause(held), ErrGrantEnded):
		err = errNoGrant
	case err != nil && errors.Is(context.Cause(held), ErrGrantUnconfirmed):
		err = registryAway(ErrGrantUnconfirmed)
	case err == nil && !h.begin():
		c.abort()
		err = errGone
	}
	if err != nil {
		leave()
		drop()
		return err
	}
	go func() { // Shutdown waits for it
		defer h.wg.Done()
		defer leave()
		defer drop()
		c.run(held)
	}()
	return nil
}

// remoteOf is the address of who sent r, with its port unless a proxy is in between.
func remoteOf(r *http.Request, from netip.Addr) netip.AddrPort {
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && remote.Addr().Unmap() == from.Unmap() {
		return netip.AddrPortFrom(from.Unmap(), remote.Port())
	}
	return netip.AddrPortFrom(from.Unmap(), 0)
}

// connection joins a technician's client and a device.
type connection struct {
	hub    *Hub
	visit  Visit
	device net.Conn
	client *stream.Stream
	first  []byte // what the device has said already
}

// open opens both sides, that of the device first.
func (c *connection) open(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	conn, err := c.hub.Dial(ctx, c.visit.Device, c.visit.Port, c.visit.From)
	if err != nil {
		return err
	}
	c.device = conn
	if err := c.listen(ctx); err != nil {
		stream.Abort(conn)
		return err
	}
	sock, err := upgrade(w, r, socket.StreamBuffer)
	if err != nil {
		stream.Abort(conn)
		return err
	}
	c.client = stream.New(sock, stream.Options{MessageMax: wire.DefaultMessage, Owner: &c.hub.wg, SkipTexts: true})
	return nil
}

// listen waits for the device's word, or until it has refused no more: with `early` a
// stream is there before its service was reached.
func (c *connection) listen(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = c.device.SetReadDeadline(time.Unix(1, 0)) })() // the client has left
	_ = c.device.SetReadDeadline(time.Now().Add(connectAnswer))                              // the read fails if it does
	first := make([]byte, connectFirst)
	n, err := c.device.Read(first)
	c.first = first[:n]
	switch {
	case ctx.Err() != nil:
		return answers.From(ctx.Err())
	case err == nil, err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	}
	return err
}

// abort ends both sides.
func (c *connection) abort() {
	stream.Abort(c.device)
	stream.Abort(c.client)
}

// run relays until both sides have ended, or ctx has.
func (c *connection) run(ctx context.Context) {
	h := c.hub
	keep := make(chan struct{})
	h.wg.Go(func() { c.keepAlive(keep) })
	defer close(keep)
	if err := c.greet(ctx); err != nil {
		c.abort()
		c.over(err)
		return
	}
	in, out, err := stream.Relay(ctx, c.client, c.device)
	c.visit.In, c.visit.Out = in, c.visit.Out+out
	c.over(err)
}

// greet passes on what the device has said already, until ctx ends.
func (c *connection) greet(ctx context.Context) error {
	if len(c.first) == 0 {
		return nil
	}
	aborted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { // a client that reads nothing
		c.abort()
		close(aborted)
	})
	n, err := c.client.Write(c.first)
	c.visit.Out = int64(n)
	if !stop() {
		<-aborted
		return context.Cause(ctx)
	}
	return err
}

// keepAlive pings a client that says nothing until done is closed.
func (c *connection) keepAlive(done <-chan struct{}) {
	tick := time.NewTicker(connectKeep)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			c.client.KeepAlive()
		}
	}
}

// over tells how it ended.
func (c *connection) over(err error) {
	c.visit.Err = err
	c.hub.audit(c.visit)
	c.hub.log().Debug("technician gone", "device", c.visit.Device, "port", c.visit.Port, "remote", c.visit.From,
		"grant", c.visit.Grant, "bytes_in", c.visit.In, "bytes_out", c.visit.Out, "error", err)
}
