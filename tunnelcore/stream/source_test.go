package stream

import (
	"testing"
	"unsafe"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

// TestBuffersAreAligned looks where the payload begins that the system copies into a
// buffer of each size, and that put finds its pool again.
func TestBuffersAreAligned(t *testing.T) {
	for range 20 {
		for _, p := range []piece{{most: bufferSize}, {most: bufferSize, large: 1}, {most: bufferSize, bulk: true}} {
			used := bulkUsed.Load()
			b, most := p.get()
			if len(*b) != room+most {
				t.Errorf("a buffer of %d bytes for a payload of %d and room of %d", len(*b), most, room)
			}
			at := uintptr(unsafe.Pointer(&(*b)[socket.Headroom])) % cacheLine
			if at != 0 {
				t.Errorf("payload of %d bytes begins %d bytes behind a cache line", most, at)
			}
			putBuffer(b)
			if n := bulkUsed.Load(); n != used {
				t.Errorf("%d large buffers are in use, want %d", n, used)
			}
		}
	}
}
