package report

import (
	"io"
	"math"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 9, 2}, 3},
	} {
		if got := Median(c.values); got != c.want {
			t.Errorf("median of %v: %v, want %v", c.values, got, c.want)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing: %v", got)
	}
}

// TestRatio is about repeats that differ: each is compared with its own base, and
// the median of the ratios counts, not the ratio of the medians.
func TestRatio(t *testing.T) {
	s := new(Report).Section("s", "S")
	for _, v := range []float64{100, 10, 50} {
		s.Add("l", "base", "rate", "req/s", v)
		s.Add("l", "half", "rate", "req/s", v/2)
	}
	s.Ratio("rate", "base", "of base")
	s.Close()
	for way, want := range map[string]float64{"base": 1, "half": 0.5} {
		if f := s.find("l", way, "of base"); f == nil || f.Median != want {
			t.Errorf("%s: %+v, want %v", way, f, want)
		}
	}
}

// TestNothingToDivideBy is about a base that has measured nothing, as CPU time in steps
// of 10 ms does in a short run: there is no ratio, and JSON has no word for one.
func TestNothingToDivideBy(t *testing.T) {
	r := new(Report)
	s := r.Section("s", "S")
	s.Add("l", "base", "CPU", "s", 0)
	s.Add("l", "other", "CPU", "s", 1)
	s.Ratio("CPU", "base", "of base")
	s.Close()
	if f := s.find("l", "other", "of base"); f != nil {
		t.Errorf("%+v", f)
	}
	if err := r.JSON(io.Discard); err != nil {
		t.Error(err)
	}
}

func TestGoals(t *testing.T) {
	r := new(Report)
	s := r.Section("s", "S")
	s.Add("l", "w", "rate", "req/s", 10)
	s.Close()
	r.Judge([]Goal{
		{What: "enough", Section: "s", Load: "l", Way: "w", Figure: "rate", Least: 9},
		{What: "too much", Section: "s", Load: "l", Way: "w", Figure: "rate", Most: 9, Bound: "the wire"},
		{What: "a riddle", Section: "s", Load: "l", Way: "w", Figure: "rate", Least: 11},
		{What: "left out", Section: "s", Load: "l", Way: "other", Figure: "rate", Most: 9, Bound: "the wire"},
		{What: "of a section that did not run", Section: "t", Load: "l", Way: "w", Figure: "rate", Most: 9},
	})
	var b strings.Builder
	if err := r.MarkdownGoals(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| enough | 10.0 | ≥ 9.00 | reached |  | s |\n",
		"| too much | 10.0 | ≤ 9.00 | **missed** | the wire | s |\n",
		"| a riddle | 10.0 | ≥ 11.0 | **missed** | not known | s |\n",
		"| left out |  | ≤ 9.00 | not measured |  | s |\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "did not run") {
		t.Errorf("a goal of a section that did not run:\n%s", b.String())
	}
}

// Update replaces what stands between the marks, again and again, and nothing else.
func TestUpdate(t *testing.T) {
	r := &Report{Date: "today", Machine: "a machine", Method: "once"}
	s := r.Section("s", "Title")
	s.Add("l", "w", "rate", "req/s", 10)
	s.Close()
	r.Judge([]Goal{{What: "enough", Section: "s", Load: "l", Way: "w", Figure: "rate", Least: 9}})
	first, err := r.Update([]byte("before\n" + markBegin + "old\n" + markEnd + "after\n"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Update(first)
	if err != nil || string(again) != string(first) {
		t.Errorf("%v: once\n%s\ntwice\n%s", err, first, again)
	}
	text := string(first)
	for _, want := range []string{"before\n" + markBegin, markEnd + "after\n", "today", "a machine", "once", "| enough | 10.0 |", "### Title"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "old") {
		t.Errorf("what was there is there still:\n%s", text)
	}
	for _, without := range []string{"", markBegin, markEnd, markEnd + markBegin} {
		if _, err := r.Update([]byte(without)); err == nil {
			t.Errorf("%q has no place for figures", without)
		}
	}
}

func TestMarkdown(t *testing.T) {
	s := new(Report).Section("s", "Title")
	s.Add("l", "one", "rate", "req/s", 1234)
	s.Add("l", "two", "share", "×", 0.5)
	s.Note("A %s.", "note")
	s.Note("A note.")
	s.Close()
	var b strings.Builder
	if err := s.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	want := "\n### Title\n\n| load | way | rate, req/s | share |\n| --- | --- | ---: | ---: |\n" +
		"| l | one | 1234 |  |\n| l | two |  | 0.50 |\n\nA note.\n"
	if b.String() != want {
		t.Errorf("\n%s\nwant\n%s", b.String(), want)
	}
}
