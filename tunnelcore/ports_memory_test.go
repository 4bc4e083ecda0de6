package tunnelcore

import (
	"runtime"
	"strings"
	"testing"
)

// TestMemoryOfPublicStreams has visitors of a public port stay who have been answered. What
// must not come back are a larger buffer below a transfer socket, 3 KiB, and a goroutine
// that relays on a stack that has grown while it opened the stream, 4 KiB.
func TestMemoryOfPublicStreams(t *testing.T) {
	const visitors, most = 50, 13 << 10 // bytes of heap, of which 7 KiB are the device's end
	e := startPorts(t, 2, func(s *Settings) { s.Limits.StreamsPerAddress = 2 * visitors })
	a := e.connect(hello("cam-17"))
	for range 10 { // what only the first ones make
		v, c := a.knock()
		carries(t, v, c)
	}
	heap := liveHeap()
	for range visitors {
		v, c := a.knock()
		carries(t, v, c)
	}
	// What goroutines hold that have done their part goes with them.
	eventually(t, "a visitor costs no more heap than it may", func() bool {
		each := (liveHeap() - heap) / visitors
		t.Logf("each has %d bytes on the heap, and may have %d", each, most)
		return each <= most
	})
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	var relays int
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		stack, _, _ = strings.Cut(stack, "created by")
		if !strings.Contains(stack, "stream.Relay(") {
			continue
		}
		relays++
		if strings.Contains(stack, "(*Hub).relay(") {
			t.Fatalf("who has opened the stream relays:\n%s", stack)
		}
	}
	if relays < visitors {
		t.Errorf("%d goroutines relay, want one for each of %d visitors", relays, visitors)
	}
}

// liveHeap is what lives on the heap, in bytes, without what pools hold.
func liveHeap() int64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
