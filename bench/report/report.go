// Package report keeps what a benchmark measured, and writes it as Markdown and
// as JSON.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Report is one run.
type Report struct {
	Date     string     `json:"date"`
	Machine  string     `json:"machine"`
	Method   string     `json:"method"`
	Sections []*Section `json:"sections"`
	Goals    []Goal     `json:"goals"`
}

// Section is one kind of load over several ways.
type Section struct {
	Name  string   `json:"name"`
	Title string   `json:"title"`
	Notes []string `json:"notes,omitempty"`
	Rows  []*Row   `json:"rows"`
}

// Row is one load over one way.
type Row struct {
	Load    string    `json:"load"`
	Way     string    `json:"way"`
	Figures []*Figure `json:"figures"`
}

// Figure is one measured quantity. Its values stand in the order of the repeats,
// in which ways take turns: values of the same repeat belong together.
type Figure struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	Median float64   `json:"median"` // set by Close
}

// Section begins a section.
func (r *Report) Section(name, title string) *Section {
	s := &Section{Name: name, Title: title}
	r.Sections = append(r.Sections, s)
	return s
}

// Note adds a sentence below the table.
func (s *Section) Note(format string, args ...any) {
	if note := fmt.Sprintf(format, args...); !slices.Contains(s.Notes, note) {
		s.Notes = append(s.Notes, note)
	}
}

// Add adds the value of one repeat.
func (s *Section) Add(load, way, name, unit string, value float64) {
	f := s.row(load, way).figure(name, unit)
	f.Values = append(f.Values, value)
}

func (s *Section) row(load, way string) *Row {
	for _, r := range s.Rows {
		if r.Load == load && r.Way == way {
			return r
		}
	}
	r := &Row{Load: load, Way: way}
	s.Rows = append(s.Rows, r)
	return r
}

func (r *Row) figure(name, unit string) *Figure {
	for _, f := range r.Figures {
		if f.Name == name {
			return f
		}
	}
	f := &Figure{Name: name, Unit: unit}
	r.Figures = append(r.Figures, f)
	return f
}

// Ratio adds a figure, called as, to each row: its own figure of that name,
// divided in each repeat by that of the row with the same load and the way base. A
// repeat in which that is nothing is left out.
func (s *Section) Ratio(name, base, as string) {
	for _, r := range s.Rows {
		over, under := s.find(r.Load, r.Way, name), s.find(r.Load, base, name)
		if over == nil || under == nil {
			continue
		}
		for i := range min(len(over.Values), len(under.Values)) {
			if under.Values[i] != 0 {
				s.Add(r.Load, r.Way, as, "×", over.Values[i]/under.Values[i])
			}
		}
	}
}

func (s *Section) find(load, way, name string) *Figure {
	for _, r := range s.Rows {
		if r.Load != load || r.Way != way {
			continue
		}
		for _, f := range r.Figures {
			if f.Name == name {
				return f
			}
		}
	}
	return nil
}

// Find is the median of a figure; false: it was not measured.
func (r *Report) Find(section, load, way, name string) (float64, bool) {
	for _, s := range r.Sections {
		if s.Name != section {
			continue
		}
		if f := s.find(load, way, name); f != nil {
			return f.Median, true
		}
	}
	return 0, false
}

// Close finds the medians: no value comes after it.
func (s *Section) Close() {
	for _, r := range s.Rows {
		for _, f := range r.Figures {
			f.Median = Median(f.Values)
		}
	}
}

// Median is the value in the middle, or between the two in the middle; NaN of
// none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[half-1] + sorted[half]) / 2
	}
	return sorted[half]
}

// Markdown writes the section as a table of medians.
func (s *Section) Markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n### %s\n\n", s.Title)
	names, units := s.columns()
	if len(s.Rows) > 0 {
		fmt.Fprintf(&b, "| load | way |")
		for i, name := range names {
			fmt.Fprintf(&b, " %s |", strings.TrimSuffix(name+", "+units[i], ", ×"))
		}
		fmt.Fprintf(&b, "\n| --- | --- |%s\n", strings.Repeat(" ---: |", len(names)))
	}
	for _, r := range s.Rows {
		fmt.Fprintf(&b, "| %s | %s |", r.Load, r.Way)
		for _, name := range names {
			cell := ""
			if f := s.find(r.Load, r.Way, name); f != nil {
				cell = number(f.Median)
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		b.WriteByte('\n')
	}
	for _, note := range s.Notes {
		fmt.Fprintf(&b, "\n%s\n", note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// columns are the names of the figures, in the order in which they first appear.
func (s *Section) columns() (names, units []string) {
	for _, r := range s.Rows {
		for _, f := range r.Figures {
			if !slices.Contains(names, f.Name) {
				names, units = append(names, f.Name), append(units, f.Unit)
			}
		}
	}
	return names, units
}

// number writes three digits that mean something.
func number(f float64) string {
	switch abs := math.Abs(f); {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return "–"
	case abs >= 100:
		return fmt.Sprintf("%.0f", f)
	case abs >= 10:
		return fmt.Sprintf("%.1f", f)
	default:
		return fmt.Sprintf("%.2f", f)
	}
}

// JSON writes the whole report, with the value of every repeat.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
