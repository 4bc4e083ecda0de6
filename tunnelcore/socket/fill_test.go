package socket

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// Pieces and fills of any size carry the same bytes, whatever comes in between.
func TestFillAndPieces(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b *Socket) {
		const total = 1 << 20
		rng := rand.New(rand.NewPCG(1, 2))
		want := make([]byte, total)
		for i := range want {
			want[i] = byte(rng.Uint32())
		}
		var got []byte
		ends.Within(t, "the bytes", func() {
			go func() {
				rng := rand.New(rand.NewPCG(3, 4))
				for rest := want; len(rest) > 0; {
					n := min(len(rest), 1+rng.IntN(1<<(2+rng.IntN(16))))
					buf := append(make([]byte, Headroom), rest[:n]...)
					rest = rest[n:]
					if err := a.WritePieces(Binary, buf, max(1+rng.IntN(n), n/20)); err != nil {
						t.Error(err)
					}
					if rng.IntN(4) == 0 {
						a.PingSoon()
					}
				}
				if err := a.WriteMessage(Binary, nil); err != nil {
					t.Error(err)
				}
			}()
			for buf := make([]byte, 256<<10+Headroom); ; {
				if _, err := b.Next(); err != nil {
					t.Fatal(err)
				}
				if b.More() == io.EOF && b.final && len(got) == total {
					return
				}
				for {
					most := 1 + rng.IntN(1<<(1+rng.IntN(18)))
					n, err := b.Fill(buf[:most+rng.IntN(Headroom+1)], most)
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					for n < most && b.Following() {
						if _, err := b.Next(); err != nil {
							t.Fatal(err)
						}
						k := b.FillNow(buf[n:], most-n)
						if n += k; k == 0 {
							break
						}
					}
					got = append(got, buf[:n]...)
				}
			}
		})
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes came that are others than the %d sent", len(got), len(want))
		}
	})
}

// looped is a connection to itself that counts its reads.
type looped struct {
	net.Conn
	bytes.Buffer
	reads int
}

func (c *looped) Write(p []byte) (int, error) { return c.Buffer.Write(p) }

func (c *looped) Read(p []byte) (int, error) {
	c.reads++
	return c.Buffer.Read(p)
}

// A large frame costs one read: the header of the next one comes with it.
func TestFillReadsOnce(t *testing.T) {
	const frames, size = 20, 32 << 10
	c := &looped{}
	from, to := on(c, false), on(c, true)
	for range frames {
		if err := from.WriteMessage(Binary, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, size+Headroom)
	for range frames {
		if _, err := to.Next(); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < size; {
			k, err := to.Fill(buf, size)
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
	}
	if c.reads > frames+1 {
		t.Errorf("%d reads for %d frames", c.reads, frames)
	}
}

// A frame that is a little longer than the buffer comes in one piece, too: its end is
// not left to a read, and a write of whoever passes it on, of their own.
func TestFillTakesAll(t *testing.T) {
	for _, size := range []int{SmallBuffer - Headroom, SmallBuffer, SmallBuffer + 1, 2*SmallBuffer - 1, 4 * SmallBuffer} {
		from, to := pair(t, "tcp")
		ends.Within(t, "the frames", func() {
			for range 3 {
				if err := from.WriteMessage(Binary, make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				if _, err := to.Next(); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 8*SmallBuffer)
				if n, err := to.Fill(buf, len(buf)); n != size || err != nil {
					t.Fatalf("%d bytes of %d at once: %v", n, size, err)
				}
			}
		})
	}
}
