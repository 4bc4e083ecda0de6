package caddymodule

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

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
