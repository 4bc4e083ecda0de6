package caddymodule

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"
)

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
		return fmt.Errorf("devices not enrolled: %d", failed)
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
				"  iottunnel-agent enroll --server wss://EDGE --device %s --code CODE --token-file FILE\n",
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
