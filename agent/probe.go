package agent

import (
	"context"
	"errors"
	"net/url"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Probe asks the edge whether it would let this device in, and makes no tunnel
// (protocol §3.6). It reports whether the device is connected already, be it by this
// agent or another one; that tunnel is not disturbed. The error has a *RefusedError in
// it when the edge would refuse the device. It may be called while Run runs.
func (a *Agent) Probe(ctx context.Context) (connected bool, err error) {
	token, err := a.token(ctx)
	if err != nil {
		return false, err
	}
	k := &caller{cfg: a.cfg, dialer: a.dialer}
	for _, s := range a.plan.servers {
		k.servers = append(k.servers, a.controlURL(s.url, offered(a.cfg.Profile)))
	}
	err = k.each(ctx, func(u *url.URL) error {
		u.RawQuery += "&" + wire.ProbeParameter + "=1"
		r, err := a.dialer.route(u)
		if err != nil {
			return err
		}
		conn, err := a.dialer.connect(ctx, r, 0, nil)
		if err != nil {
			return err
		}
		s, err := upgrade(ctx, conn, u, token, socket.SmallBuffer)
		var answer *RefusedError
		switch {
		case err == nil: // an edge of before took it for an ordinary one
			s.Close()
			return nil
		case !errors.As(err, &answer):
			return err
		case answer.Status == statusNoContent:
			return nil
		case wire.Code(answer.Code) == wire.DeviceConnected:
			connected = true
			return nil
		}
		return err
	})
	return connected, err
}

// statusNoContent is the answer of an edge that would let the device in.
const statusNoContent = 204
