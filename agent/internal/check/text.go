package check

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// width is how long lines get, in characters.
const width = 100

var marks = map[Verdict]string{OK: "ok", Warning: "warn", Failed: "FAIL", Skipped: "-"}

// Writer returns a function that writes findings to w for people, each as it comes.
func Writer(w io.Writer) func(Finding) {
	const indent = "                      "
	server := ""
	return func(f Finding) {
		var b strings.Builder
		if f.Server != server && f.Server != "" {
			fmt.Fprintf(&b, "\n%s\n", f.Server)
		}
		if f.Server != server && f.Server == "" {
			b.WriteByte('\n')
		}
		server = f.Server
		fmt.Fprintf(&b, "  %-4s  %-13s %s\n", marks[f.Verdict], f.Hop, wrap(f.Text, indent))
		if f.Cure != "" {
			fmt.Fprintf(&b, "%s→ %s\n", indent, wrap(f.Cure, indent+"  "))
		}
		_, _ = io.WriteString(w, b.String()) // nobody may be reading
	}
}

// wrap breaks text into lines that begin with indent, the first of them excepted.
func wrap(text, indent string) string {
	var b strings.Builder
	column := len(indent)
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+n > width:
			b.WriteString("\n" + indent)
			column = len(indent)
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}
