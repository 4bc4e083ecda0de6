package report

import (
	"fmt"
	"io"
	"strings"
)

// Goal is a bound on the median of a figure.
type Goal struct {
	What    string `json:"what"`
	Section string `json:"section"`
	Load    string `json:"load"`
	Way     string `json:"way"`
	Figure  string `json:"figure"`
	// One of them counts, the other is 0.
	Least float64 `json:"least,omitempty"`
	Most  float64 `json:"most,omitempty"`

	Measured float64 `json:"measured"` // set by Judge
}

// Reached says whether what was measured is within the bound.
func (g Goal) Reached() bool {
	if g.Least > 0 {
		return g.Measured >= g.Least
	}
	return g.Measured <= g.Most
}

// Judge keeps, of all goals, those whose figure was measured.
func (r *Report) Judge(all []Goal) {
	for _, g := range all {
		measured, found := r.Find(g.Section, g.Load, g.Way, g.Figure)
		if found {
			g.Measured = measured
			r.Goals = append(r.Goals, g)
		}
	}
}

// MarkdownGoals writes the goals as a table, with the section that measures each;
// without any, nothing.
func (r *Report) MarkdownGoals(w io.Writer) error {
	if len(r.Goals) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("\n### Goals\n\n| what | measured | goal | | `-only` |\n| --- | ---: | ---: | --- | --- |\n")
	for _, g := range r.Goals {
		goal, verdict := "≤ "+number(g.Most), "reached"
		if g.Least > 0 {
			goal = "≥ " + number(g.Least)
		}
		if !g.Reached() {
			verdict = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", g.What, number(g.Measured), goal, verdict, g.Section)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
