package e2e

import (
	"fmt"
	"testing"
	"time"
)

// busy is how much longer than promised something may take in an ordinary run.
const busy = 5

// inTime holds how long something took against what is promised. Promises are for
// a machine that has nothing else to do. In an ordinary run eight cases share the
// processors, with whatever else runs there: it fails at `busy` times the promise, and
// lists what took longer than promised. With IOTTUNNEL_HEAVY=1, which is for cases
// that are run by themselves, the promise itself counts.
func inTime(t testing.TB, what string, took, promised time.Duration) {
	t.Helper()
	if took <= promised {
		return
	}
	says := fmt.Sprintf("%v, promised are %v", took.Round(time.Millisecond), promised)
	if heavy || took > busy*promised {
		t.Errorf("%s: %s", what, says)
		return
	}
	t.Logf("%s: %s", what, says)
	result("("+what+")", "", "slower than on a quiet machine: "+says)
}
