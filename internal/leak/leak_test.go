package leak

import (
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func stayUntil(quit <-chan struct{}, here chan<- struct{}) {
	close(here)
	<-quit
}

func TestWait(t *testing.T) {
	// The test's own goroutine has a parent that waits for it; it is no leak.
	const parent = "testing.(*T).Run("
	// Nor is that of a run before, which may be on its way out.
	if stacks := Wait(patience, parent); len(stacks) != 0 {
		t.Fatalf("before: %q", stacks)
	}
	quit, here := make(chan struct{}), make(chan struct{})
	go stayUntil(quit, here) // ends with the test
	<-here                   // before that its stack does not say what it is
	stacks := Wait(10*time.Millisecond, parent)
	if len(stacks) != 1 || !strings.Contains(stacks[0], "leak.stayUntil(") {
		t.Fatalf("with one goroutine left: %q", stacks)
	}
	if stacks := Wait(0, parent, "leak.stayUntil("); len(stacks) != 0 {
		t.Fatalf("ignored: %q", stacks)
	}
	time.AfterFunc(50*time.Millisecond, func() { close(quit) })
	if stacks := Wait(patience, parent); len(stacks) != 0 {
		t.Fatalf("after it has ended: %q", stacks)
	}
}
