package stream

import "sync"

// held is what came of a stream and was not read yet: memory is taken as bytes
// come, and given back as they are read.
type held struct {
	first, last *chunk
	size        int // bytes
}

// chunk is a piece of it.
type chunk struct {
	next     *chunk
	from, to int // of data, what is not read yet
	data     [4 << 10]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// add appends a copy of p.
func (h *held) add(p []byte) {
	h.size += len(p)
	for len(p) > 0 {
		if h.last == nil || h.last.to == len(h.last.data) {
			c := chunks.Get().(*chunk)
			c.next, c.from, c.to = nil, 0, 0
			if h.last == nil {
				h.first = c
			} else {
				h.last.next = c
			}
			h.last = c
		}
		n := copy(h.last.data[h.last.to:], p)
		h.last.to += n
		p = p[n:]
	}
}

// take moves bytes to p, as many as fit.
func (h *held) take(p []byte) (n int) {
	for n < len(p) && h.first != nil {
		c := h.first
		k := copy(p[n:], c.data[c.from:c.to])
		n += k
		if c.from += k; c.from == c.to {
			h.pop()
		}
	}
	h.size -= n
	return n
}

// drop gives everything back.
func (h *held) drop() {
	for h.first != nil {
		h.pop()
	}
	h.size = 0
}

func (h *held) pop() {
	c := h.first
	if h.first = c.next; h.first == nil {
		h.last = nil
	}
	c.next = nil
	chunks.Put(c)
}
