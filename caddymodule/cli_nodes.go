package caddymodule

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func (c *cli) nodes([]string) error {
	var v struct {
		Nodes []nodeView `json:"nodes"`
	}
	if err := c.call("GET", "nodes", nil, &v); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	rows := make([][]string, len(v.Nodes))
	for i, n := range v.Nodes {
		state := ""
		switch {
		case n.Draining:
			state = "draining"
		case n.HeartbeatAge > registry.NodeHeartbeat.Milliseconds()*2:
			state = "silent for " + roughly(time.Duration(n.HeartbeatAge)*time.Millisecond)
		}
		rows[i] = []string{n.Node, fmt.Sprint(n.Clients), fmt.Sprint(n.Share), fmt.Sprint(n.Capacity), fmt.Sprintf("%.1fs ago", float64(n.HeartbeatAge)/1000), n.URL, n.Internal, state}
	}
	return c.table("NODE | DEVICES | SHARE | ROOM FOR | HEARTBEAT | URL | INTERNAL | STATE", rows)
}

// drainPatience is how much longer than it should take drain --wait waits.
const drainPatience = 60 * time.Second

func (c *cli) drain([]string) error {
	off, _ := c.cmd.Flags().GetBool("off") // the command has both
	wait, _ := c.cmd.Flags().GetBool("wait")
	within, err := caddy.ParseDuration(c.flag("within"))
	if err != nil {
		return fmt.Errorf("--within: %q is not a duration such as 60s or 10m", c.flag("within"))
	}
	var v drainView
	if err := c.call("POST", "drain", map[string]any{"within": c.flag("within"), "off": off}, &v); err != nil {
		return err
	}
	switch {
	case off && !c.json:
		_, err := fmt.Fprintf(c.out, "%s takes devices again.\n", v.Node)
		return err
	case wait && !off:
		if v, err = c.awaitDrained(v, within+drainPatience); err != nil {
			return err
		}
	}
	if c.json {
		return c.printJSON(v)
	}
	if v.Tunnels > 0 {
		_, err = fmt.Fprintf(c.out, "%s lets its devices go within %s; `caddy iottunnel nodes` shows how many are left. Now: %d.\n", v.Node, within, v.Tunnels)
		return err
	}
	_, err = fmt.Fprintf(c.out, "%s has no device any more: it can be stopped.\n", v.Node)
	return err
}

// awaitDrained tells on how many devices are left, until there is none.
func (c *cli) awaitDrained(v drainView, patience time.Duration) (drainView, error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(patience)
	defer end.Stop()
	for told := -1; v.Tunnels > 0; {
		if v.Tunnels != told {
			told = v.Tunnels
			fmt.Fprintf(c.say, "%s: devices left: %d, connections of visitors: %d\n", v.Node, v.Tunnels, v.Streams)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return v, fmt.Errorf("%s still has devices (%d): their agents do not find another node, or do not know how to change", v.Node, v.Tunnels)
		case <-c.cmd.Context().Done():
			return v, c.cmd.Context().Err()
		}
		if err := c.call("GET", "drain", nil, &v); err != nil {
			return v, err
		}
		if !v.Draining {
			return v, fmt.Errorf("%s takes devices again: somebody has said so, or it was started anew", v.Node)
		}
	}
	return v, nil
}
