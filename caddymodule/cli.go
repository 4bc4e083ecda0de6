package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
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
		Use: use, Short: short, Long: strings.TrimSpace(short + ".\n\n" + strings.TrimSpace(long)),
		Args: func(cmd *cobra.Command, given []string) error {
			if args(cmd, given) == nil {
				return nil
			}
			return fmt.Errorf("wrong number of arguments (%d); use: %s", len(given), cmd.UseLine())
		},
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

// group lets cmd tell which commands there are below it. Cobra by itself would print the
// help for a misspelt one, and a script would take that for success.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.DisableFlagsInUseLine = true
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		var names []string
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				names = append(names, c.Name())
			}
		}
		cmd.SilenceUsage = true
		return fmt.Errorf("%s: no command %q; there are: %s", cmd.Name(), args[0], strings.Join(names, ", "))
	}
	return cmd
}

func addCommands(root *cobra.Command) {
	group(root)
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

	codes := group(&cobra.Command{Use: "code", Short: "Manages the codes by which devices enrol themselves"})
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
