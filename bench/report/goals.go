package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
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

	// Bound is what bounds the figure, for where it misses the goal; empty: not known.
	Bound string `json:"bound,omitempty"`

	Found    bool    `json:"found"` // false: it was not measured. Set by Judge
	Measured float64 `json:"measured"`
}

// Reached says whether what was measured is within the bound.
func (g Goal) Reached() bool {
	if !g.Found {
		return false
	}
	if g.Least > 0 {
		return g.Measured >= g.Least
	}
	return g.Measured <= g.Most
}

// Judge keeps, of all goals, those of the report's sections, with what was measured.
func (r *Report) Judge(all []Goal) {
	for _, g := range all {
		if !slices.ContainsFunc(r.Sections, func(s *Section) bool { return s.Name == g.Section }) {
			continue
		}
		g.Measured, g.Found = r.Find(g.Section, g.Load, g.Way, g.Figure)
		r.Goals = append(r.Goals, g)
	}
}

// MarkdownGoals writes the goals as a table, with the section that measures each and
// what bounds those that are missed; without any, nothing.
func (r *Report) MarkdownGoals(w io.Writer) error {
	if len(r.Goals) == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString("\n### Goals\n\n| what | measured | goal | | bounded by | `-only` |\n| --- | ---: | ---: | --- | --- | --- |\n")
	for _, g := range r.Goals {
		goal := "≤ " + number(g.Most)
		if g.Least > 0 {
			goal = "≥ " + number(g.Least)
		}
		measured, verdict, bound := number(g.Measured), "reached", ""
		switch {
		case !g.Found:
			measured, verdict = "", "not measured"
		case !g.Reached():
			verdict, bound = "**missed**", cmp.Or(g.Bound, "not known")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", g.What, measured, goal, verdict, bound, g.Section)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
