package report

import (
	"bytes"
	"fmt"
)

// markBegin and markEnd stand around what Update writes.
const (
	markBegin = "<!-- what follows was written by bench -update -->\n"
	markEnd   = "<!-- what bench -update wrote ends here -->\n"
)

// Update returns a document with the report between its two marks, in place of what
// is there: goals first, then each section.
func (r *Report) Update(document []byte) ([]byte, error) {
	before, rest, begins := bytes.Cut(document, []byte(markBegin))
	_, after, ends := bytes.Cut(rest, []byte(markEnd))
	if !begins || !ends {
		return nil, fmt.Errorf("no place for figures: it is between the lines %q and %q", markBegin, markEnd)
	}
	var b bytes.Buffer
	b.Write(before)
	fmt.Fprintf(&b, "%s\n%s; %s; %s.\n", markBegin, r.Date, r.Machine, r.Method)
	if err := r.MarkdownGoals(&b); err != nil {
		return nil, err
	}
	for _, s := range r.Sections {
		if err := s.Markdown(&b); err != nil {
			return nil, err
		}
	}
	b.WriteString("\n" + markEnd)
	b.Write(after)
	return b.Bytes(), nil
}
