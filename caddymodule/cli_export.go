package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

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
		fmt.Fprintf(c.out, "Devices imported: %d; lines of which everything was known: %d.\n", all.Imported, all.Skipped)
		for _, one := range all.Failed {
			of := ""
			if one.Device != "" {
				of = plain(one.Device) + ": "
			}
			fmt.Fprintf(c.say, "line %d: %s%s\n", one.Line, of, plain(one.Error))
		}
	}
	if len(all.Failed) > 0 {
		return fmt.Errorf("lines not imported: %d", len(all.Failed))
	}
	return nil
}
