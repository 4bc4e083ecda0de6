package caddymodule

import (
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

func (c *cli) devices([]string) error {
	limit, _ := c.cmd.Flags().GetInt("limit")
	if limit < 0 {
		return fmt.Errorf("--limit: %d is not a number from 1 on; 0 is for all", limit)
	}
	all := devicePage{Devices: []deviceView{}}
	for after := c.flag("after"); ; {
		n := maxPage
		if limit > 0 {
			n = min(maxPage, limit-len(all.Devices))
		}
		q := url.Values{"limit": {fmt.Sprint(n)}, "after": {after}, "q": {c.flag("q")}, "state": {c.flag("state")}, "tag": {c.flag("tag")}}
		var page devicePage
		if err := c.call("GET", "devices?"+q.Encode(), nil, &page); err != nil {
			return err
		}
		all.Devices = append(all.Devices, page.Devices...)
		if all.Next = page.Next; page.Next == "" || limit > 0 && len(all.Devices) >= limit {
			break
		}
		after = page.Next
	}
	if c.json {
		return c.printJSON(all)
	}
	rows := make([][]string, len(all.Devices))
	for i, d := range all.Devices {
		rows[i] = []string{d.Device, d.State, ago(d), d.Node, d.Remote, d.Secret, d.Hostname, d.Summary}
	}
	if err := c.table("DEVICE | STATE | FOR | NODE | FROM | SECRET | HOSTNAME | WHY", rows); err != nil {
		return err
	}
	if all.Next != "" {
		fmt.Fprintf(c.say, "There are more: --after %s shows them.\n", all.Next)
	}
	return nil
}

func (c *cli) device(args []string) error {
	var d deviceView
	if err := c.call("GET", "devices/"+url.PathEscape(args[0]), nil, &d); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(d)
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, plain(text))
		}
	}
	line("device", d.Device)
	line("state", strings.TrimSpace(d.State+" "+forSince(d)))
	line("hostname", d.Hostname)
	line("node", d.Node)
	line("from", d.Remote)
	line("agent", d.Agent)
	if d.RTT > 0 {
		line("round trip", fmt.Sprintf("%.1f ms", d.RTT))
	}
	if d.Streams != nil {
		line("streams", fmt.Sprint(*d.Streams))
	}
	if d.BytesIn != nil && d.BytesOut != nil {
		line("bytes", fmt.Sprintf("%s from the device, %s to it", humanize.IBytes(uint64(*d.BytesIn)), humanize.IBytes(uint64(*d.BytesOut))))
	}
	line("secret", d.Secret)
	for _, p := range d.Ports {
		to := p.URL + p.Addr
		if to == "" {
			to = "not public"
		}
		line(fmt.Sprintf("port %d", p.Port), strings.TrimSpace(p.Kind+" "+to))
	}
	line("tags", strings.Join(d.Tags, " "))
	line("connects", fmt.Sprintf("%d in 24 h", d.Connects))
	if d.LeaseUntil != nil {
		line("lease until", d.LeaseUntil.Format(time.RFC3339))
	}
	if l := d.LastClose; l != nil {
		line("last end", l.text()+", "+l.At.Format(time.RFC3339))
	}
	if l := d.LastRefusal; l != nil {
		line("last refusal", fmt.Sprintf("%s: %s, from %s, %s", l.Code, l.Message, l.Remote, l.At.Format(time.RFC3339)))
	}
	for i, e := range d.History {
		name := ""
		if i == 0 {
			name = "history"
		}
		fmt.Fprintf(w, "%s\t%s\n", name, plain(strings.TrimSpace(fmt.Sprintf("%s  %s %s  %s", e.At.Format(time.RFC3339), e.Event, e.Node, e.Detail))))
	}
	line("why", d.Summary)
	return w.Flush()
}

func (c *cli) tag(args []string) error {
	v := tagsView{Device: args[0], Tags: append([]string{}, args[1:]...)}
	if err := c.call("PUT", "devices/"+url.PathEscape(args[0])+"/tags", v, &v); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	_, err := fmt.Fprintf(c.say, "%s has %d tags.\n", plain(v.Device), len(v.Tags))
	return err
}

// doDevice returns a command that does something to a device.
func doDevice(what, say string) func(c *cli, args []string) error {
	return func(c *cli, args []string) error {
		var v doneView
		if err := c.call("POST", "devices/"+url.PathEscape(args[0])+"/"+what, nil, &v); err != nil {
			return err
		}
		if c.json {
			return c.printJSON(v)
		}
		_, err := fmt.Fprintf(c.out, say+"\n", args[0])
		return err
	}
}
