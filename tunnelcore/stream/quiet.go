package stream

// Quiet reports whether there is nothing to read, as far as can be told without
// waiting: the peer has sent nothing that was not read, nor an end, and the stream
// goes on. What the TLS of a transfer socket has read ahead only a read tells. While
// somebody reads, a stream is not quiet.
func (c *Stream) Quiet() bool {
	if c.broken.Load() || c.closed.Load() || c.readEnded.Load() || !c.readMu.TryLock() {
		return false
	}
	defer c.readMu.Unlock()
	if c.readErr != nil {
		return false
	}
	if c.inDirect {
		return c.s.Quiet()
	}
	c.mu.Lock()
	e, s := c.e, c.s
	quiet := e.held.size == 0 && e.err == nil && e.in != ended
	moved := e.in == onTransfer
	c.mu.Unlock()
	return quiet && (!moved || s == nil || s.Quiet())
}
