package conformance

import (
	"encoding/xml"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/golden"
)

// made are results as they can be.
var made = []Result{
	{Rule: "5.1", Name: "a ping is answered with its payload"},
	{Rule: "5.1", Name: "of many pings, the last is answered", Verdict: Fail, Want: `pong "49"`, Came: "nothing on the control socket within 5s",
		Log: []string{"   0.011 s  edge → agent  control socket: ping \"?\"\n            89 01 3f"}},
	{Rule: "5.3", Name: "an agent that leaves says so", Verdict: NotTried, Why: "the tool does not start the agent"},
	{Rule: "5.3", Name: "streams go on without their control socket"},
	{Rule: "5.7", Name: "the other edge is tried", Verdict: NotTried, Why: "the command has no {url2}"},
	{Rule: "6.4", Name: "a service that is not there is `refused`", Verdict: Fail, Want: "`refused`", Came: "\x00\x1b[31m <&>"},
}

func TestReport(t *testing.T) {
	for name, verbose := range map[string]bool{"report.txt": false, "verbose.txt": true} {
		var b strings.Builder
		if failed := Report(&b, made, verbose); failed != 2 {
			t.Errorf("%d rules have failed", failed)
		}
		golden.Check(t, name, b.String())
	}
}

func TestJUnit(t *testing.T) {
	var b strings.Builder
	if err := JUnit(&b, made); err != nil {
		t.Fatal(err)
	}
	var suite junitSuite
	if err := xml.Unmarshal([]byte(b.String()), &suite); err != nil {
		t.Fatal(err)
	}
	if suite.Tests != len(suite.Cases) || suite.Failures != 2 || suite.Skipped < 2 {
		t.Errorf("%d tests, %d failures, %d skipped", suite.Tests, suite.Failures, suite.Skipped)
	}
	golden.Check(t, "junit.xml", b.String())
}

func TestList(t *testing.T) {
	var b strings.Builder
	List(&b)
	golden.Check(t, "list.txt", b.String())
}
