package caddymodule

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "iottunnel",
		Usage: "<command>",
		Short: "Manages the devices of a running iottunnel edge",
		Long: `
Manages the devices of a running iottunnel edge, through Caddy's admin endpoint.

A device gets a secret of its own with 'enroll', and keeps it in a file on the device; this needs
'auth enrolled' in the global option iottunnel. Fleets can enrol themselves with single-use codes
('code create'), which their agents exchange for a secret.`,
		CobraFunc: addCommands,
	})
}

// cli is one run of a command.
type cli struct {
	cmd     *cobra.Command
	address string // of the admin endpoint
	json    bool
	in      io.Reader
	out     io.Writer // what scripts read
	say     io.Writer // what people read
}

// command makes a subcommand that talks to the edge.
func command(use, short, long string, args cobra.PositionalArgs, run func(c *cli, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: strings.TrimSpace(short + ".\n\n" + strings.TrimSpace(long)), Args: args,
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.SilenceUsage = true
			cmd.SilenceErrors = true
			c := &cli{cmd: cmd, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), say: cmd.ErrOrStderr()}
			err := c.open()
			if err == nil {
				err = run(c, args)
			}
			if err != nil {
				fmt.Fprintln(c.say, "Error:", err)
			}
			return err
		},
	}
}

func addCommands(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.String("output", "text", "text for people, json for scripts")
	flags.String("address", "", "address of Caddy's admin endpoint (default: that of --config, else localhost:2019)")
	flags.StringP("config", "c", "", "configuration file that says where the admin endpoint is")
	flags.StringP("adapter", "a", "", "adapter of that file")

	devices := command("devices", "Lists devices", `
A device is listed while it has a lease (its hostname is kept for it), or is enrolled.`,
		cobra.NoArgs, (*cli).devices)
	devices.Flags().String("q", "", "only those with this in their id, hostname, address or agent")
	devices.Flags().String("state", "", "only those that are online, or offline")
	devices.Flags().String("tag", "", "only those with this tag")
	devices.Flags().String("after", "", "only those with an id after this")
	devices.Flags().Int("limit", 0, "at most so many (default: all)")

	enroll := command("enroll [ID]", "Gives devices secrets of their own", `
Prints the secret on standard output. Only its SHA-256 is kept: it is shown this once. With --file it reads
ids from the first column of a CSV file ('-' is standard input), and prints ID,SECRET for each as CSV. Devices
that have a secret already keep it, and are reported.`, cobra.MaximumNArgs(1), (*cli).enroll)
	enroll.Flags().String("file", "", "CSV file with a device id in the first column of each line")

	codes := &cobra.Command{Use: "code", Short: "Manages the codes by which devices enrol themselves"}
	create := command("create", "Makes a claim code", `
A code serves one device once, which exchanges it for a secret by a POST to /.iottunnel/v1/enroll. Without
--device any device may use it that was never enrolled. With it that device alone may, and loses the secret
that it has.`, cobra.NoArgs, (*cli).createCode)
	create.Flags().String("ttl", "15m", "how long it lasts, at most 30d")
	create.Flags().String("device", "", "the only device that may use it")
	create.Flags().Int("count", 1, "how many to make")
	codes.AddCommand(create,
		command("list", "Lists the codes that were not used and have not expired", "", cobra.NoArgs, (*cli).listCodes),
		command("revoke ID", "Ends a code, which `list` shows the ID of", "", cobra.ExactArgs(1), (*cli).dropCode))

	imports := command("import [FILE]", "Reads what export has written", `
Secrets and hostnames of devices that are known already stay as they are. Without FILE it reads standard input.`,
		cobra.MaximumNArgs(1), (*cli).importDevices)
	imports.Flags().Bool("replace", false, "replace the secrets of devices that are known")

	drain := command("drain", "Sends the devices of this node to the others", `
The node takes no more devices, and each that it has connects to another node before it leaves this one, at a
random moment within the given time. Visitors notice nothing. With --wait it ends when none is left: then Caddy
can be stopped. The state lasts until --off, or until Caddy is started again.`, cobra.NoArgs, (*cli).drain)
	drain.Flags().String("within", "60s", "what the devices are spread over, up to 24h")
	drain.Flags().Bool("wait", false, "wait until no device is left, and say how many are")
	drain.Flags().Bool("off", false, "take devices again")

	root.AddCommand(
		devices,
		command("device ID", "Shows one device", "", cobra.ExactArgs(1), (*cli).device),
		enroll,
		command("rotate ID", "Gives a device another secret", `
Both count until the device first uses the new one: from then on only that does.`, cobra.ExactArgs(1), (*cli).rotate),
		command("revoke ID", "Takes a device's secret away, and cuts it off", `
It is cut off within 5 seconds, whatever node it is connected to. No other authenticator lets it in either. Enrolling
it again ends that.`, cobra.ExactArgs(1), doDevice("revoke", "%s is revoked: it is cut off within 5 s, and cannot come back before it is enrolled again.")),
		command("disconnect ID", "Cuts the connection of a device, which then comes back", "",
			cobra.ExactArgs(1), doDevice("disconnect", "%s is disconnected; its agent connects again.")),
		command("tag ID [TAG…]", "Gives a device tags, in the place of those that it has", `
Tags are for finding devices: lower-case letters, digits and -._:/=, up to 16 of 40 characters. They stay until the
device is forgotten. Without a TAG it has none.`, cobra.MinimumNArgs(1), (*cli).tag),
		command("relabel ID", "Gives a device another hostname, and ends its public ports", "",
			cobra.ExactArgs(1), doDevice("relabel", "%s has lost its hostname, and gets another when it connects.")),
		command("forget ID", "Removes all that is recorded of a device: secret, hostname, public ports", "",
			cobra.ExactArgs(1), doDevice("forget", "%s is forgotten.")),
		codes,
		grantCommand(), shareCommand(),
		command("grants", "Lists the grants and links that have not expired", "", cobra.NoArgs, (*cli).listGrants),
		command("revoke-grant ID", "Ends a grant or link, which `grants` shows the ID of, and what runs by it", "", cobra.ExactArgs(1), (*cli).dropGrant),
		command("nodes", "Lists the nodes of the edge", "", cobra.NoArgs, (*cli).nodes),
		drain,
		command("export", "Writes all devices as JSON lines: hashes of secrets, hostnames", `
For backups, and to move to another registry with import. It holds no secret, but who can change it and have it
imported can let devices in.`, cobra.NoArgs, (*cli).export),
		imports,
	)
}

// open finds out where the admin endpoint is, and how to write.
func (c *cli) open() (err error) {
	flags := c.cmd.Flags()
	flag := func(name string) string { value, _ := flags.GetString(name); return value } // all are there
	switch output := flag("output"); output {
	case "text":
	case "json":
		c.json = true
	default:
		return fmt.Errorf("--output: %q is neither text nor json", output)
	}
	c.address, err = caddycmd.DetermineAdminAPIAddress(flag("address"), nil, flag("config"), flag("adapter"))
	return err
}

func (c *cli) flag(name string) string {
	value, _ := c.cmd.Flags().GetString(name) // the command has it
	return value
}

// call makes a request, and decodes the answer into to unless that is nil.
func (c *cli) call(method, path string, body, to any) error {
	var send io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(text)
	}
	res, err := c.request(method, path, send)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(to); err != nil {
		return fmt.Errorf("answer of the admin endpoint: %w", err)
	}
	return nil
}

func (c *cli) request(method, path string, body io.Reader) (*http.Response, error) {
	// Each request has a connection of its own, which must not stay open.
	res, err := caddycmd.AdminAPIRequest(c.address, method, "/iottunnel/"+path, http.Header{"Connection": {"close"}}, body)
	if err == nil {
		return res, nil
	}
	if _, text, ok := strings.Cut(err.Error(), ": {"); ok { // what Caddy makes of an answer
		var answer struct {
			Error string `json:"error"`
		}
		if json.Unmarshal([]byte("{"+text), &answer) == nil && answer.Error != "" {
			return nil, errors.New(answer.Error)
		}
	}
	return nil, fmt.Errorf("%w\nIs Caddy running, with its admin endpoint at %s? --address or --config says where", err, c.address)
}

// printJSON writes v on a line of its own.
func (c *cli) printJSON(v any) error { return json.NewEncoder(c.out).Encode(v) }

// table writes rows in columns. Text of devices cannot move the cursor.
func (c *cli) table(header string, rows [][]string) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(header, " | ", "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = plain(row[i])
			if row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// plain replaces what a terminal would act on.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '·'
	}, text)
}

func (c *cli) devices([]string) error {
	limit, _ := c.cmd.Flags().GetInt("limit")
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

// ago is how long a device has been in its state.
func ago(d deviceView) string {
	switch {
	case d.State == stateOnline && d.Since != nil:
		return roughly(time.Since(*d.Since))
	case d.LastSeen != nil:
		return roughly(time.Since(*d.LastSeen))
	}
	return ""
}

// roughly writes a duration in one unit.
func roughly(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
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

func forSince(d deviceView) string {
	text := ago(d)
	switch {
	case text == "":
		return "(was never connected)"
	case d.State == stateOnline:
		return "for " + text
	}
	return "(seen " + text + " ago)"
}

func (c *cli) enroll(args []string) error {
	file := c.flag("file")
	switch {
	case file != "" && len(args) == 0:
		return c.enrollFile(file)
	case file != "" || len(args) == 0:
		return errors.New("enroll takes the id of a device, or --file with many: `caddy iottunnel enroll cam-17`")
	}
	return c.token(args[0], "enroll", `%s is enrolled. Its secret, shown only now, belongs into a file on the device that the agent alone can read:
  iottunnel-agent run --device %[1]s --token-file FILE …
`)
}

func (c *cli) rotate(args []string) error {
	return c.token(args[0], "rotate", `Another secret for %s, shown only now. Bring it to the device and restart its agent: the old one ends when
the new one is first used.
`)
}

// token has a device given a secret, and prints it alone on standard output.
func (c *cli) token(device, do, say string) error {
	var v tokenView
	if err := c.call("POST", "devices/"+url.PathEscape(device)+"/"+do, nil, &v); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	fmt.Fprintf(c.say, say, device)
	_, err := fmt.Fprintln(c.out, v.Token)
	return err
}

// enrollFile enrols the devices of a file, some hundreds at a time. What was
// enrolled is printed at once: nobody can tell those secrets again.
func (c *cli) enrollFile(name string) error {
	ids, err := c.readIDs(name)
	if err != nil {
		return err
	}
	out := csv.NewWriter(c.out)
	failed := 0
	for len(ids) > 0 {
		n := min(len(ids), maxBulk)
		var v bulkView
		if err := c.call("POST", "enroll", map[string]any{"devices": ids[:n]}, &v); err != nil {
			return err
		}
		ids = ids[n:]
		failed += len(v.Failed)
		if c.json {
			for _, one := range v.Enrolled {
				if err := c.printJSON(one); err != nil {
					return err
				}
			}
		} else {
			for _, one := range v.Enrolled {
				_ = out.Write([]string{one.Device, one.Token}) // Error tells
			}
			out.Flush()
			if err := out.Error(); err != nil {
				return err
			}
		}
		for _, one := range v.Failed {
			fmt.Fprintf(c.say, "%s: %s\n", plain(one.Device), one.Error)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d devices were not enrolled", failed)
	}
	return nil
}

// readIDs returns the first column of a CSV file, without a heading.
func (c *cli) readIDs(name string) (ids []string, err error) {
	from := c.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close() // only read
		from = f
	}
	lines := csv.NewReader(from)
	lines.Comment, lines.FieldsPerRecord, lines.TrimLeadingSpace = '#', -1, true
	for {
		row, err := lines.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		id := strings.TrimSpace(strings.TrimPrefix(row[0], "\ufeff"))
		if heading := strings.ToLower(id); len(ids) == 0 && (heading == "id" || heading == "device") || id == "" {
			continue
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("%s: no device id in the first column", name)
	}
	return ids, nil
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

func (c *cli) createCode([]string) error {
	count, _ := c.cmd.Flags().GetInt("count")
	if count < 1 {
		return fmt.Errorf("--count: %d is not a number from 1 on", count)
	}
	body := map[string]string{"ttl": c.flag("ttl"), "device": c.flag("device")}
	for i := range count {
		var v codeView
		if err := c.call("POST", "codes", body, &v); err != nil {
			return err
		}
		if c.json {
			if err := c.printJSON(v); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			device := v.Device
			if device == "" {
				device = "ID"
			}
			fmt.Fprintf(c.say, "Until %s, once, shown only now. The device exchanges it for its secret:\n"+
				"  curl -d '{\"device\":\"%s\",\"code\":\"CODE\"}' https://EDGE/.iottunnel/v1/enroll\n",
				v.Until.Format(time.RFC3339), device)
		}
		if _, err := fmt.Fprintln(c.out, v.Code); err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) listCodes([]string) error {
	var v struct {
		Codes []codeView `json:"codes"`
	}
	if err := c.call("GET", "codes", nil, &v); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	rows := make([][]string, len(v.Codes))
	for i, one := range v.Codes {
		device := one.Device
		if device == "" {
			device = "any that was never enrolled"
		}
		rows[i] = []string{one.ID, roughly(time.Until(one.Until)), device}
	}
	return c.table("ID | LEFT | FOR", rows)
}

func (c *cli) dropCode(args []string) error {
	var v map[string]string
	if err := c.call("DELETE", "codes/"+url.PathEscape(args[0]), nil, &v); err != nil {
		return err
	}
	if c.json {
		return c.printJSON(v)
	}
	_, err := fmt.Fprintf(c.out, "Code %s serves nobody any more.\n", args[0])
	return err
}

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
		_, err = fmt.Fprintf(c.out, "%s lets its %d devices go within %s; `caddy iottunnel nodes` shows how many are left.\n", v.Node, v.Tunnels, within)
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
			fmt.Fprintf(c.say, "%s: %d devices and %d connections of visitors are left\n", v.Node, v.Tunnels, v.Streams)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return v, fmt.Errorf("%d devices are still connected to %s: their agents do not find another node, or do not know how to change", v.Tunnels, v.Node)
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

func (c *cli) export([]string) error {
	res, err := c.request("GET", "export", nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(c.out, res.Body)
	return err
}

func (c *cli) importDevices(args []string) error {
	from := c.in
	if len(args) == 1 && args[0] != "-" {
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close() // only read
		from = f
	}
	text, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	replace, _ := c.cmd.Flags().GetBool("replace")
	all := importView{Failed: []failView{}}
	lines := strings.SplitAfter(string(text), "\n")
	for done := 0; done < len(lines); done += maxBulk {
		piece := strings.Join(lines[done:min(len(lines), done+maxBulk)], "")
		res, err := c.request("POST", fmt.Sprintf("import?replace=%t", replace), strings.NewReader(piece))
		if err != nil {
			return err
		}
		var v importView
		err = json.NewDecoder(res.Body).Decode(&v)
		res.Body.Close()
		if err != nil {
			return fmt.Errorf("answer of the admin endpoint: %w", err)
		}
		all.Imported += v.Imported
		all.Skipped += v.Skipped
		for _, one := range v.Failed {
			one.Line += done
			all.Failed = append(all.Failed, one)
		}
	}
	if c.json {
		if err := c.printJSON(all); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(c.out, "%d devices imported; of %d lines everything was known.\n", all.Imported, all.Skipped)
		for _, one := range all.Failed {
			fmt.Fprintf(c.say, "line %d: %s: %s\n", one.Line, plain(one.Device), plain(one.Error))
		}
	}
	if len(all.Failed) > 0 {
		return fmt.Errorf("%d lines could not be imported", len(all.Failed))
	}
	return nil
}
