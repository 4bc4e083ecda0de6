package cluster

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
	"github.com/iottunnel/iottunnel/tunnelcore/stream"
)

// exchanged is one stream of the model: what each end has sent, and how it ended.
type exchanged struct {
	t       *testing.T
	number  int
	aborted atomic.Bool // by one of them, on purpose
	sent    [2]atomic.Int64
	ended   [2]atomic.Bool // it said its end, after all of that
}

// at is the byte that an end of a stream sends at a place: loss, repetition, and bytes
// of another stream or direction are seen.
func (x *exchanged) at(end int, place int64) byte {
	return byte(place*31>>3 + place + int64(end)*101 + int64(x.number)*57)
}

// run does random things at one end, 0 for the visitor's and 1 for the device's.
func (x *exchanged) run(c *stream.Stream, end int) {
	rng := rand.New(rand.NewPCG(uint64(x.number), uint64(end)))
	total := int64(rng.IntN(1 << rng.IntN(20)))
	abort := rng.IntN(8) == 0
	var read sync.WaitGroup
	read.Go(func() { x.read(c, 1-end, rand.New(rand.NewPCG(uint64(x.number), uint64(end+2)))) })
	for place := int64(0); place < total; {
		p := make([]byte, min(total-place, int64(1+rng.IntN(1<<rng.IntN(17)))))
		for i := range p {
			p[i] = x.at(end, place+int64(i))
		}
		x.sent[end].Add(int64(len(p))) // at most so much is read
		if _, err := c.Write(p); err != nil {
			x.failed("write", end, err)
			break
		}
		place += int64(len(p))
		if abort && rng.IntN(4) == 0 {
			break
		}
	}
	if abort {
		x.aborted.Store(true)
		c.Abort()
		read.Wait()
		return
	}
	if !x.aborted.Load() {
		x.ended[end].Store(true)
		if err := c.CloseWrite(); err != nil {
			x.failed("end", end, err)
		}
	}
	read.Wait()
	c.Close()
}

func (x *exchanged) failed(what string, end int, err error) {
	if !x.aborted.Load() {
		x.t.Errorf("stream %d: %s at end %d: %v, and nobody has aborted it", x.number, what, end, err)
	}
}

func (x *exchanged) read(c *stream.Stream, from int, rng *rand.Rand) {
	buf := make([]byte, 1+rng.IntN(64<<10))
	for place := int64(0); ; {
		n, err := c.Read(buf)
		for i, b := range buf[:n] {
			if b != x.at(from, place+int64(i)) {
				x.t.Errorf("stream %d: byte %d of end %d is %d", x.number, place+int64(i), from, b)
				c.Abort()
				return
			}
		}
		place += int64(n)
		sent := x.sent[from].Load()
		switch {
		case place > sent:
			x.t.Errorf("stream %d: end %d sent %d bytes, and %d came", x.number, from, sent, place)
		case err == io.EOF:
			if !x.ended[from].Load() || place != sent {
				x.t.Errorf("stream %d: an end after %d bytes of %d, ended %v", x.number, place, sent, x.ended[from].Load())
			}
			return
		case err != nil:
			x.failed("read", 1-from, err)
			return
		}
	}
}

// Streams of every kind, one after the other over the same sockets and many at once:
// nothing is lost, repeated, or leaks from one into another.
func TestModel(t *testing.T) {
	const workers, each = 4, 30
	streams := make([]*exchanged, workers*each)
	var devices sync.WaitGroup
	a, b := two(t, &local{dial: func(_ context.Context, o Open) (*stream.Stream, error) {
		number, err := strconv.Atoi(o.Device)
		if err != nil {
			return nil, err
		}
		edge, device := pair(t, stream.Options{})
		devices.Go(func() { streams[number].run(device, 1) })
		return edge, nil
	}})
	type asked struct{} // the key of what was asked for by a stream, not for a sign of life
	var handshakes atomic.Int64
	connect := a.connect
	a.connect = func(ctx context.Context, network, address string) (c net.Conn, err error) {
		if ctx.Value(asked{}) != nil {
			handshakes.Add(1)
		}
		return connect(ctx, network, address)
	}
	ends.Within(t, "streams", func() {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range each {
					x := &exchanged{t: t, number: w*each + i}
					streams[x.number] = x
					o := open()
					o.Device = fmt.Sprint(x.number)
					s, err := a.Dial(context.WithValue(t.Context(), asked{}, true), b.peer, o)
					if err != nil {
						t.Errorf("stream %d: %v", x.number, err)
						return
					}
					x.run(s, 0)
				}
			})
		}
		wg.Wait()
		devices.Wait()
	})
	clean := 0
	for _, x := range streams {
		if x != nil && !x.aborted.Load() {
			clean++
		}
	}
	if n := int(handshakes.Load()); n == 0 || n > workers*each-clean+2*workers {
		t.Errorf("%d handshakes for %d streams, of which %d ended cleanly", n, workers*each, clean)
	}
	until(t, "all have let go", func() bool { s := a.Stats(); return s.Out == s.Idle && b.Stats().In == s.Idle })
}
