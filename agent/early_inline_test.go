package agent

import (
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Inline, everything crosses the control socket, and credit comes back as it is
// read.
func TestInline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window, total = 10_000, 500_000
		bulk := strings.Repeat("0123456789", total/10)
		x := startEarly(t, ProfileInline, "early,inline")
		c := x.open(1, window)
		stalled := x.open(2, window) // its service reads nothing
		for left := window; left > 0; {
			n := min(left, 4096)
			x.send(2, strings.Repeat("x", n))
			left -= n
			synctest.Wait()
			for len(x.frames) > 0 { // it has a buffer
				left += wire.Credit([]byte((<-x.frames).payload))
			}
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer c.Close()
		wg.Go(func() { write(t, c, bulk); closeWrite(t, c) })
		wg.Go(func() { read(t, c, bulk); readEnd(t, c, io.EOF) })
		var got strings.Builder
		credit, rest, owed, ended := window, bulk, 0, false
		for {
			for rest != "" && credit > 0 {
				n := min(credit, len(rest), 4096)
				x.send(1, rest[:n])
				rest, credit = rest[n:], credit-n
				if rest == "" {
					x.frame(wire.FrameFin, 1, "")
				}
			}
			if ended && rest == "" {
				break
			}
			f := receive(t, x.frames)
			if f.stream != 1 {
				t.Fatalf("got %+v", f)
			}
			switch f.kind {
			case wire.FrameData:
				got.WriteString(f.payload)
				if owed += len(f.payload); owed > window {
					t.Fatal("more than the window")
				}
				if owed >= window/2 {
					x.frame(wire.FrameCredit, 1, string(wire.AppendCredit(nil, 1, owed)[wire.FrameHeader:]))
					owed = 0
				}
			case wire.FrameCredit:
				n := wire.Credit([]byte(f.payload))
				if credit += n; n < window/2 || credit > window {
					t.Fatalf("%d bytes of credit, %d in all", n, credit)
				}
			case wire.FrameFin:
				ended = true
			default:
				t.Fatalf("got %+v", f)
			}
		}
		wg.Wait()
		if got.String() != bulk {
			t.Errorf("got %d bytes, not those that were sent", got.Len())
		}
		c.Close()
		x.settled(1)
		for len(x.frames) > 0 {
			<-x.frames // credit that has crossed our end
		}
		x.send(2, "x") // beyond its window, as nothing more was read
		x.expectFrame(wire.FrameReset, 2)
		stalled.Close()
		x.settled(0)
		if len(x.edge.transfers) != 0 {
			t.Error("a transfer socket with inline")
		}
	})
}
