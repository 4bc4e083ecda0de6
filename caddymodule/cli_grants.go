package caddymodule

import (
	"fmt"
	"net/url"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func grantCommand() *cobra.Command {
	c := command("grant DEVICE:PORT", "Lets somebody reach a port of a device for a while", `
Prints a token on standard output, which is shown this once. Who has it in a file reaches the port, and no other:
  iottunnel-agent connect DEVICE:PORT --server wss://EDGE --token-file FILE
The edge needs 'connect' in its configuration.`, cobra.ExactArgs(1), (*cli).grant)
	c.Flags().String("for", "1h", "how long it lasts, at most 90d")
	return c
}

func shareCommand() *cobra.Command {
	c := command("share DEVICE:PORT", "Makes a link that opens a device's page for a while", `
Prints the link on standard output, which is shown this once. Who follows it gets a cookie for that hostname: one
device, one port. The site needs 'access shared' in its configuration, and is closed to everybody else.`,
		cobra.ExactArgs(1), (*cli).share)
	c.Flags().String("for", "2h", "how long it lasts, at most 90d")
	return c
}

// newGrant asks for a grant of DEVICE:PORT.
func (c *cli) newGrant(target string, kind registry.GrantKind) (v grantView, err error) {
	device, text, ok := strings.Cut(target, ":")
	port, err := strconv.ParseUint(text, 10, 16)
	if !ok || err != nil || port == 0 {
		return v, fmt.Errorf("%q is not DEVICE:PORT, as in cam-17:22", target)
	}
	by := ""
	if u, err := user.Current(); err == nil {
		by = u.Username
	}
	err = c.call("POST", "grants", map[string]any{"device": device, "port": port, "for": c.flag("for"), "kind": kind, "by": by}, &v)
	return v, err
}

func (c *cli) grant(args []string) error {
	v, err := c.newGrant(args[0], registry.GrantConnect)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	fmt.Fprintf(c.say, "Grant %s, until %s. In a FILE that only its owner can read:\n"+
		"  iottunnel-agent connect %s:%d --server wss://EDGE --token-file FILE\n", v.ID, v.Until.Format(time.RFC3339), v.Device, v.Port)
	_, err = fmt.Fprintln(c.out, v.Token)
	return err
}

func (c *cli) share(args []string) error {
	v, err := c.newGrant(args[0], registry.GrantShare)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	fmt.Fprintf(c.say, "Grant %s, until %s. Who has this link may visit port %d of %s:\n", v.ID, v.Until.Format(time.RFC3339), v.Port, v.Device)
	_, err = fmt.Fprintln(c.out, v.URL)
	return err
}

func (c *cli) listGrants([]string) error {
	all := grantsView{Grants: []grantView{}}
	for after := ""; ; after = all.Next {
		var page grantsView
		if err := c.call("GET", "grants?after="+url.QueryEscape(after), nil, &page); err != nil {
			return err
		}
		all.Grants, all.Next = append(all.Grants, page.Grants...), page.Next
		if page.Next == "" {
			break
		}
	}
	if c.json {
		return c.printJSON(all)
	}
	rows := make([][]string, len(all.Grants))
	for i, g := range all.Grants {
		rows[i] = []string{g.ID, string(g.Kind), fmt.Sprintf("%s:%d", g.Device, g.Port), roughly(time.Until(g.Until)), g.By}
	}
	return c.table("ID | KIND | FOR | LEFT | BY", rows)
}

func (c *cli) dropGrant(args []string) error {
	var v map[string]string
	if err := c.call("DELETE", "grants/"+url.PathEscape(args[0]), nil, &v); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	_, err := fmt.Fprintf(c.out, "Grant %s lets nobody in any more; what runs by it ends within 5 s.\n", args[0])
	return err
}
