package main

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/iottunnel/iottunnel/agent"
)

// The ports by which visitors know the device. Neither is open on it.
const (
	pagePort  = 80
	linesPort = 4001
)

// tunnel is everything that this program needs to be on the internet: two
// listeners to serve on as if they were sockets, and an agent behind them.
type tunnel struct {
	page, lines net.Listener
	agent       *agent.Agent
}

// newTunnel prepares a tunnel that prints its ports to stdout when it is up.
func newTunnel(o options, stdout io.Writer) (*tunnel, error) {
	page, pageForward := agent.Listen(pagePort, agent.HTTP)
	lines, linesForward := agent.Listen(linesPort, agent.TCP)
	a, err := agent.New(agent.Config{
		Servers:        o.servers,
		Device:         o.device,
		Token:          o.token,
		AllowPlaintext: o.allowPlaintext,
		Forwards:       []agent.Forward{pageForward, linesForward},
		Logger:         o.logger,
		OnUp: func(up agent.Up) {
			for _, p := range up.Ports {
				if p.URL != "" { // an edge without TCP ports has none for the lines
					fmt.Fprintf(stdout, "%d/%s %s\n", p.Number, p.Kind, p.URL)
				}
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return &tunnel{page: page, lines: lines, agent: a}, nil
}

// run keeps the tunnel up until ctx ends. The agent comes back by itself after
// whatever happens to the network or the edge.
func (t *tunnel) run(ctx context.Context) error { return t.agent.Run(ctx) }
