package stacks

import (
	"testing"
	"unsafe"
)

// TestGrow looks where a variable of a goroutine is before and after a call that needs
// most of the stack: a stack that grows moves.
func TestGrow(t *testing.T) {
	for name, c := range map[string]struct{ grow, need func() }{
		"4 KiB": {Grow4K, func() { need1500() }},
		"8 KiB": {Grow8K, func() { need4000() }},
	} {
		t.Run(name, func(t *testing.T) {
			moved := make(chan bool)
			go func() {
				c.grow()
				var here byte
				before := uintptr(unsafe.Pointer(&here))
				c.need()
				moved <- before != uintptr(unsafe.Pointer(&here))
			}()
			if <-moved {
				t.Error("the stack has grown again")
			}
		})
	}
}

//go:noinline
func need1500() byte {
	var frame [1500]byte
	return frame[zero()]
}

//go:noinline
func need4000() byte {
	var frame [4000]byte
	return frame[zero()]
}
