package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
)

// each runs body with each transport of the control socket, and each end in both
// roles.
func each(t *testing.T, o MuxOptions, reuse bool, body func(t *testing.T, l *link, credit int)) {
	for _, transport := range ends.Transports {
		for _, credit := range []int{0, 1, 1000, 64 << 10} {
			if o.Inline && credit == 0 {
				continue
			}
			t.Run(transport+"/"+sized(credit), func(t *testing.T) {
				body(t, newLink(t, transport, o, reuse), credit)
			})
		}
	}
}

func sized(n int) string {
	switch n {
	case 0:
		return "no credit"
	case 1:
		return "a byte of credit"
	case 1000:
		return "little credit"
	}
	return "credit"
}

// Bytes and ends cross, with a transfer socket at any time, or without one.
func TestEarlyHalfClose(t *testing.T) {
	for _, when := range []string{"never", "at once", "after the request", "after its end", "inline"} {
		t.Run(when, func(t *testing.T) {
			each(t, MuxOptions{Inline: when == "inline"}, false, func(t *testing.T, l *link, credit int) {
				request, answer := bytes.Repeat([]byte("request "), 20000), bytes.Repeat([]byte("answer! "), 30000)
				if credit == 1 { // a round trip for each byte
					request, answer = request[:200], answer[:300]
				}
				if when == "never" {
					request, answer = request[:min(credit, len(request))], answer[:min(credit, len(answer))]
				}
				ends.Within(t, "half close", func() {
					edge, agent := l.pair(credit)
					attach := func(now string) {
						if when == now {
							l.attach(edge, agent)
						}
					}
					attach("at once")
					var wg sync.WaitGroup
					sent := request
					wg.Go(func() {
						if _, err := edge.Write(sent); err != nil {
							t.Error(err)
						}
						if err := errors.Join(edge.CloseWrite(), edge.CloseWrite()); err != nil {
							t.Error(err)
						}
					})
					if when == "after the request" {
						if _, err := io.ReadFull(agent, make([]byte, min(credit, 1))); err != nil {
							t.Error(err)
						}
						request = request[min(credit, 1):]
						attach(when)
					}
					got := reading(agent)
					if when == "after its end" && len(request) > credit {
						attach(when)
					}
					if got := <-got; got.err != nil || got.data != string(request) {
						t.Errorf("the agent read %d bytes, %v", len(got.data), got.err)
					}
					wg.Wait()
					if edge.s == nil {
						attach("after its end")
					}
					wg.Go(func() {
						if _, err := agent.Write(answer); err != nil {
							t.Error(err)
						}
						agent.Close()
					})
					if got := readAll(edge); got.err != nil || got.data != string(answer) {
						t.Errorf("the edge read %d bytes, %v", len(got.data), got.err)
					}
					edge.Close()
					wg.Wait()
					edge.opts.Owner.Wait() // both let go long before lingerTime
					agent.opts.Owner.Wait()
				})
			})
		})
	}
}

// What leaves first: `open` together with the first bytes.
func TestOpenLeavesWithFirstBytes(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	writes := &counted{Conn: near}
	_, edge := sockettest.Pair(t, far, writes)
	defer edge.Close()
	m := NewMux(edge, MuxOptions{})
	writes.n.Store(0)
	ends.Within(t, "open", func() {
		c, err := m.Open(7, 100, Options{Open: []byte(`{"type":"open"}`)})
		if err != nil {
			t.Error(err)
			return
		}
		go c.Write([]byte("GET /"))
		want := "\x81\x0f{\"type\":\"open\"}\x82\x0a\x01\x00\x00\x00\x07GET /"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(far, got); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
		c.Abort()
		reset := make([]byte, 7)
		if _, err := io.ReadFull(far, reset); err != nil || string(reset) != "\x82\x05\x03\x00\x00\x00\x07" {
			t.Errorf("% x, %v", reset, err)
		}
		if n := writes.n.Load(); n != 2 {
			t.Errorf("%d writes", n)
		}
	})
}

type counted struct {
	net.Conn
	n atomic.Int32
}

func (c *counted) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

// An abort at one end is one at the other, in every state.
func TestEarlyAbort(t *testing.T) {
	for _, state := range []string{"early", "attached", "attached at one end", "ended one way", "ended the other way", "inline"} {
		for _, by := range []string{"edge", "agent"} {
			t.Run(state+"/"+by, func(t *testing.T) {
				each(t, MuxOptions{Inline: state == "inline"}, false, func(t *testing.T, l *link, credit int) {
					ends.Within(t, "abort", func() {
						edge, agent := l.pair(credit)
						aborter, other := edge, agent
						if by == "agent" {
							aborter, other = other, aborter
						}
						switch state {
						case "attached":
							l.attach(edge, agent)
						case "attached at one end":
							a, e := l.transfer()
							defer a.Close()
							edge.Attach(e)
						case "ended one way":
							other.CloseWrite()
							if _, err := aborter.Read(make([]byte, 1)); err != io.EOF {
								t.Error(err)
							}
						case "ended the other way":
							aborter.CloseWrite()
							if _, err := other.Read(make([]byte, 1)); err != io.EOF {
								t.Error(err)
							}
						}
						closed := make(chan error, 1)
						go func() {
							if state == "ended the other way" {
								closed <- other.awaitClose()
								return
							}
							_, err := other.Read(make([]byte, 1))
							closed <- err
						}()
						aborter.Abort()
						if err := <-closed; !errors.Is(err, ErrAborted) {
							t.Errorf("%v", err)
						}
						if _, err := aborter.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
							t.Errorf("%v", err)
						}
						other.Close()
					})
				})
			})
		}
	}
}

// A transfer socket whose stream has ended both ways carries the next one.
func TestReuse(t *testing.T) {
	for _, transport := range ends.Transports {
		t.Run(transport, func(t *testing.T) {
			l := newLink(t, transport, MuxOptions{}, true)
			ends.Within(t, "reuse", func() {
				sa, se := l.transfer()
				for i := range 20 {
					edge, agent := l.pair(i % 3 * 100)
					if err := errors.Join(edge.Attach(se), agent.Attach(sa)); err != nil {
						t.Fatal(err)
					}
					done := make(chan outcome, 1)
					service, inner := net.Conn(nil), net.Conn(nil)
					if i%2 == 0 {
						service, inner = ends.Loopback(t)
					} else {
						service, inner = halfPipes()
					}
					go func() {
						up, down, err := Relay(t.Context(), agent, inner)
						done <- outcome{up, down, err}
					}()
					go func() {
						io.Copy(service, service)
						closeWriteOf(t, service)
						service.Close()
					}()
					want := strings.Repeat("echo", i*100)
					go func() {
						io.WriteString(edge, want)
						edge.CloseWrite()
					}()
					if got := readAll(edge); got != (result{want, nil}) {
						t.Errorf("%d bytes, %v", len(got.data), got.err)
					}
					edge.Close()
					if got := <-done; got.err != nil {
						t.Error(got.err)
					}
					sa, se = <-l.agent.parked, <-l.edge.parked
					if i%2 == 0 { // what the agent sends next is the next stream's
						go sa.WriteMessage(socket.Text, []byte("attach"))
						if op, m, err := se.ReadMessage(100); op != socket.Text || string(m) != "attach" || err != nil {
							t.Errorf("%v %q %v", op, m, err)
						}
					}
				}
				sa.Close()
				se.Close()
			})
		})
	}
}
