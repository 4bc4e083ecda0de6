// Package conformance plays the edge against an agent, and finds out rule by rule of
// docs/protocol.md whether the agent keeps it.
package conformance

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// A need is what a case cannot do without.
type need int

const (
	basic     need = 1 << iota // streams of the basic profile: none of it in the profile inline
	early                      // the capability `early`, with transfer sockets
	frames                     // `early`, with transfer sockets or inline
	reuse                      // the capability `reuse`
	inline                     // the capability `inline`
	redirect                   // the capability `redirect`
	service                    // that the echo service is the tool's own
	dead                       // a port whose service is not there
	secure                     // TLS
	plain                      // no TLS
	command                    // that the tool starts the agent
	another                    // a second edge, {url2}
	slow                       // half a minute or more
	unstarted                  // the case starts the agent itself
)

// A testCase tries one rule. run fails by T.fail, and passes by returning.
type testCase struct {
	rule  string // its number
	name  string // what the agent does when it keeps it
	needs need
	run   func(*T)
}

// T is a case under way: the tools for it to play the edge. Its methods belong to the
// goroutine of the case; fail and skip end it.
type T struct {
	rig    *rig
	c      *testCase
	tunnel *tunnel // the latest
	result *Result
}

// Verdict is how a case went.
type Verdict int

// The verdicts.
const (
	Pass Verdict = iota
	Fail
	NotTried
)

func (v Verdict) String() string { return [...]string{"pass", "FAIL", "not tried"}[v] }

// Result is what came of a case.
type Result struct {
	Rule, Name string
	Verdict    Verdict
	Want, Came string   // of Fail
	Why        string   // of NotTried
	Log        []string // what crossed, for Fail
	Took       time.Duration
}

// fail ends the case: want is what the rule says, and the rest what came.
func (t *T) fail(want, came string, args ...any) {
	t.result.Verdict, t.result.Want, t.result.Came = Fail, want, fmt.Sprintf(came, args...)
	runtime.Goexit()
}

// skip ends the case, which cannot be tried.
func (t *T) skip(why string, args ...any) {
	t.result.Verdict, t.result.Why = NotTried, fmt.Sprintf(why, args...)
	runtime.Goexit()
}

// check fails the rule unless ok.
func (t *T) check(ok bool, want, came string, args ...any) {
	if !ok {
		t.fail(want, came, args...)
	}
}

// patience is how long what has to come at once may take.
func (t *T) patience() time.Duration { return t.rig.cfg.Patience }

// moment is how long the tool waits to see that something does not come.
const moment = 500 * time.Millisecond

// missing says what a case needs that is not there; empty if nothing is.
func (c *testCase) missing(r *rig) string {
	inlined := r.caps.Has(wire.Early | wire.Inline)
	for _, m := range []struct {
		need need
		have bool
		why  string
	}{
		{basic, !inlined, "in the profile inline there are no transfer sockets"},
		{early, r.caps.Has(wire.Early) && !inlined, "the agent does not offer `early`, or not in this profile"},
		{frames, r.caps.Has(wire.Early), "the agent does not offer `early`, or not in this profile"},
		{reuse, r.caps.Has(wire.Early|wire.Reuse) && !inlined, "the agent does not offer `reuse`, or not in this profile"},
		{inline, inlined, "the agent does not offer `inline`, or not in this profile"},
		{redirect, r.caps.Has(wire.Redirect), "the agent does not offer `redirect`"},
		{service, r.ownService, "the echo service is not the tool's: start the agent with {echo}"},
		{dead, r.forwards(r.cfg.DeadPort), fmt.Sprintf("the agent forwards no port %d: give it one, to {dead}", r.cfg.DeadPort)},
		{secure, r.cfg.TLS, "without --tls"},
		{plain, !r.cfg.TLS, "with --tls"},
		{command, r.cfg.Launch != nil, "the tool does not start the agent"},
		{another, r.usesSecond, "the command has no {url2}"},
		{slow, r.cfg.Slow, "takes long: --slow"},
	} {
		if c.needs&m.need != 0 && !m.have {
			return m.why
		}
	}
	return ""
}

// oneLine is text without line ends, for reports.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
