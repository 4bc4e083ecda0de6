package leak

import (
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func stayUntil(quit <-chan struct{}) { <-quit }

func TestWait(t *testing.T) {
	// The test's own goroutine has a parent that waits for it; it is no leak.
	const parent = "testing.(*T).Run("
	if stacks := Wait(0, parent); len(stacks) != 0 {
		t.Fatalf("before: %q", stacks)
	}
	quit := make(chan struct{})
	go stayUntil(quit) // ends with the test
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
