// Package leak fails a package's tests when they leave goroutines behind.
package leak

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines that are on their way out get to be gone.
const patience = 2 * time.Second

// harness names functions whose goroutines belong to the runtime or to package
// testing, and stay until the process ends.
var harness = []string{
	"created by runtime.",
	"os/signal.signal_recv(",
	"os/signal.loop(",
	"testing.(*M).",
	"testing.runFuzz",
}

// Main runs the tests of m and ends the process with their exit code, or with 1
// when the tests passed but left goroutines, whose stacks it prints. It is the
// whole body of a TestMain:
//
//	func TestMain(m *testing.M) { leak.Main(m) }
//
// Idle connections of http.DefaultTransport are closed first; those of other
// transports are for the tests to close. A goroutine whose stack contains one of
// ignore is let be: the way for what a dependency starts and never ends.
func Main(m *testing.M, ignore ...string) {
	code := m.Run()
	if code == 0 {
		if stacks := Wait(patience, ignore...); len(stacks) > 0 {
			fmt.Fprintf(os.Stderr, "leak: %d goroutines are left after the tests:\n\n%s\n",
				len(stacks), strings.Join(stacks, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// Wait returns the stacks of the goroutines that are still there after at most
// patience, besides the caller's, the harness' and those that match ignore. It
// returns as soon as there are none.
func Wait(patience time.Duration, ignore ...string) []string {
	if t, ok := http.DefaultTransport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		stacks := others(ignore)
		if len(stacks) == 0 || time.Now().After(deadline) {
			return stacks
		}
		time.Sleep(pause)
	}
}

// others returns the stacks of all goroutines but the caller's and the ignored.
func others(ignore []string) []string {
	buf := make([]byte, 1<<20)
	n := runtime.Stack(buf, true)
	for n == len(buf) && n < 1<<28 {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	all := strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n")
	var left []string
	for _, stack := range all[1:] { // the first is the caller's
		if !contains(stack, harness) && !contains(stack, ignore) {
			left = append(left, stack)
		}
	}
	return left
}

func contains(stack string, any []string) bool {
	for _, s := range any {
		if strings.Contains(stack, s) {
			return true
		}
	}
	return false
}
