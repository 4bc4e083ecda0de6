// Package stacks gives goroutines at their start the stack that they are about to need.
//
// A stack begins with 2 KiB, and doubles when a call does not fit: it is copied, and every
// call under way is looked up to adjust what points into it. Deep down that takes
// microseconds, and short-lived goroutines pay for it once or twice each; at their start
// there is nothing to adjust. A stack that is large enough already stays as it is.
package stacks

// Grow4K is for the start of goroutines that relay.
func Grow4K() { take4K() }

// Grow8K is for the start of goroutines that dial, or log.
func Grow8K() { take8K() }

// take4K has a frame that does not fit into half of its stack, besides what the runtime
// keeps free.
//
//go:noinline
func take4K() byte {
	var frame [2500]byte
	return frame[zero()]
}

//go:noinline
func take8K() byte {
	var frame [5000]byte
	return frame[zero()]
}

//go:noinline
func zero() int { return 0 } // unknown to the compiler, which would do without the frame
