package conformance

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// logLines is how much of what crossed a failure shows.
const logLines = 16

// Report writes a line for each rule, in their order, with what its cases found, and a
// summary. Rules that were not chosen are left out.
func Report(w io.Writer, results []Result, verbose bool) (failed int) {
	byRule := make(map[string][]Result)
	for _, r := range results {
		byRule[r.Rule] = append(byRule[r.Rule], r)
	}
	counts := make(map[Verdict]int)
	for _, rule := range Rules {
		list := byRule[rule.Number]
		if len(list) == 0 && (rule.Unseen == "" || len(byRule) < tried()) {
			continue
		}
		v, why := verdict(rule, list)
		counts[v]++
		line := fmt.Sprintf("%-9s  %-5s  %s", v, rule.Number, rule.Title)
		if why != "" {
			line += ": " + why
		}
		fmt.Fprintln(w, line)
		for _, r := range list {
			writeCase(w, r, verbose, len(list) > 1)
		}
	}
	fmt.Fprintf(w, "\n%d rules pass, %d fail, %d were not tried\n", counts[Pass], counts[Fail], counts[NotTried])
	return counts[Fail]
}

// tried is how many rules have cases.
func tried() (n int) {
	for _, r := range Rules {
		if r.Unseen == "" {
			n++
		}
	}
	return n
}

// verdict sums up a rule's cases: one that fails decides, then one that passes.
func verdict(rule Rule, list []Result) (v Verdict, why string) {
	if len(list) == 0 {
		return NotTried, rule.Unseen
	}
	v = NotTried
	var whys []string
	passed, left := 0, 0
	for _, r := range list {
		switch r.Verdict {
		case Fail:
			v = Fail
		case Pass:
			passed++
			if v == NotTried {
				v = Pass
			}
		case NotTried:
			left++
			if len(whys) == 0 || whys[len(whys)-1] != r.Why {
				whys = append(whys, r.Why)
			}
		}
	}
	switch {
	case v == NotTried:
		return v, strings.Join(whys, "; ")
	case left > 0:
		return v, fmt.Sprintf("%d of %d cases not tried: %s", left, len(list), strings.Join(whys, "; "))
	}
	return v, ""
}

func writeCase(w io.Writer, r Result, verbose, several bool) {
	if r.Verdict != Fail {
		if verbose && (several || r.Verdict == Pass) {
			fmt.Fprintf(w, "             %s: %s (%d ms)\n", r.Verdict, r.Name, r.Took.Milliseconds())
		}
		return
	}
	fmt.Fprintf(w, "             %s\n             expected: %s\n             came:     %s\n", r.Name, printable(r.Want), printable(r.Came))
	log := r.Log
	if len(log) > logLines && !verbose {
		fmt.Fprintf(w, "             … (%d more with --verbose)\n", len(log)-logLines)
		log = log[len(log)-logLines:]
	}
	for _, line := range log {
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(printable(line), "\n", "\n    "))
	}
}

// The elements of JUnit's report that every reader of it knows.
type (
	junitSuite struct {
		XMLName  xml.Name    `xml:"testsuite"`
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		Time    string        `xml:"time,attr"`
		Failure *junitFailure `xml:"failure,omitempty"`
		Skipped *junitSkipped `xml:"skipped,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Log     string `xml:",chardata"`
	}
	junitSkipped struct {
		Message string `xml:"message,attr"`
	}
)

// JUnit writes the results, and the rules that nobody can try, as JUnit XML.
func JUnit(w io.Writer, results []Result) error {
	suite := junitSuite{Name: "iottunnel-conformance"}
	skip := func(rule, name, why string, took time.Duration) junitCase {
		suite.Skipped++
		return junitCase{Class: rule, Name: rule + " " + name, Time: seconds(took), Skipped: &junitSkipped{why}}
	}
	for _, rule := range Rules {
		if rule.Unseen != "" {
			suite.Cases = append(suite.Cases, skip(rule.Number, rule.Title, rule.Unseen, 0))
		}
		for _, r := range results {
			if r.Rule != rule.Number {
				continue
			}
			c := junitCase{Class: r.Rule, Name: r.Rule + " " + r.Name, Time: seconds(r.Took)}
			switch r.Verdict {
			case NotTried:
				c = skip(r.Rule, r.Name, r.Why, r.Took)
			case Fail:
				suite.Failures++
				c.Failure = &junitFailure{
					Message: fmt.Sprintf("expected: %s; came: %s", r.Want, r.Came),
					Log:     printable(strings.Join(r.Log, "\n")),
				}
				c.Failure.Message = printable(c.Failure.Message)
			}
			suite.Cases = append(suite.Cases, c)
		}
	}
	suite.Tests = len(suite.Cases)
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(suite); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }

// printable replaces what XML cannot hold, and a terminal should not get.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0xfffe || r == 0xffff {
			return '�'
		}
		return r
	}, s)
}

// List writes the rules, with what is tried of each.
func List(w io.Writer) {
	for _, rule := range Rules {
		fmt.Fprintf(w, "%-5s  %s\n", rule.Number, rule.Title)
		if rule.Unseen != "" {
			fmt.Fprintf(w, "         not tried: %s\n", rule.Unseen)
		}
		for _, c := range cases {
			if c.rule == rule.Number {
				fmt.Fprintf(w, "         %s\n", c.name)
			}
		}
	}
}
