package agent

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// connectTimeout is what an edge gets to answer: it waits for a device that
// reconnects, and the device for its service.
const connectTimeout = 45 * time.Second

// Connect reaches a port of another device through an edge, as a technician does
// who was granted it. The device needs no public port for that, only a tunnel.
//
// Of c, Device is the device that is to be reached, Token the grant, and what says
// how an edge is reached counts. The connection has deadlines, and CloseWrite() error
// and Abort() besides the methods of net.Conn; a Read error other than io.EOF says
// that the other end broke off. The error is a *ConfigError, or has a *RefusedError
// in it when an edge answered: its Code is unauthorized for every token that is not
// good for this port of this device, else unknown_device, device_offline,
// device_refused, device_timeout, or one of those that tunnels are refused with.
func Connect(ctx context.Context, c Config, port uint16) (net.Conn, error) {
	k, err := newCaller(c)
	if err == nil && port == 0 {
		err = fmt.Errorf("port 0; 1 to 65535 are possible")
	}
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	var s *stream.Stream
	err = k.each(ctx, func(u *url.URL) error {
		s, err = k.connect(ctx, u, port)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// connect asks one edge (protocol §15).
func (k *caller) connect(ctx context.Context, server *url.URL, port uint16) (*stream.Stream, error) {
	u := *server
	u.Path = wire.Root + "v1/connect"
	u.RawQuery = url.Values{"device": {k.cfg.Device}, "port": {strconv.Itoa(int(port))}}.Encode()
	r, err := k.dialer.route(&u)
	if err != nil {
		return nil, err
	}
	conn, err := k.dialer.connect(ctx, r, 0, nil)
	if err != nil {
		return nil, err
	}
	sock, err := upgradeWithin(ctx, connectTimeout, conn, &u, k.cfg.Token, socket.LargeBuffer)
	if err != nil {
		return nil, err
	}
	return stream.New(sock, stream.Options{MessageMax: wire.DefaultMessage, SkipTexts: true}), nil
}
