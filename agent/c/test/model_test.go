package c_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestModel has bytes come in pieces of any size, a network that takes little at a time or
// nothing, a service that takes little, and visitors that reset: whatever happens, a service
// gets what its visitor has sent, in order and once, up to its end or a break.
func TestModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 1))
			p := up(t, "inline")
			type visitor struct {
				sent, got    string // hex; what the service was given
				ended, reset bool
			}
			var visitors [2]*visitor
			var wire string // of the edge, and not fed yet
			number := 0
			slots := map[int]*visitor{} // what the client calls them
			var waiting []*visitor      // opened, in the order of their opens
			for range 300 {
				i := random.IntN(2)
				v := visitors[i]
				switch {
				case v == nil:
					number++
					v = &visitor{}
					visitors[i] = v
					wire += open(number, `,"early":1024`)
					waiting = append(waiting, v)
					n := 1 + random.IntN(600)
					piece := make([]byte, n)
					for j := range piece {
						piece[j] = byte(random.Uint32())
					}
					wire += message(0x82, append([]byte{1, 0, 0, byte(number >> 8), byte(number)}, piece...))
					v.sent = hex.EncodeToString(piece)
					if v.reset = random.IntN(3) == 0; v.reset {
						wire += message(0x82, []byte{3, 0, 0, byte(number >> 8), byte(number)})
					} else {
						wire += message(0x82, []byte{2, 0, 0, byte(number >> 8), byte(number)})
					}
				case v.ended:
					visitors[i] = nil
				}
				p.do("room %d", []int{0, 1, 7, 4096}[random.IntN(4)])
				p.do("take %d", []int{0, 1, 100, 4096}[random.IntN(4)])
				n := min(len(wire)/2, random.IntN(200))
				p.feed(0, wire[:2*n])
				wire = wire[2*n:]
				p.poll(random.IntN(20))
				for line := p.next(); line != ""; line = p.next() {
					var slot, port int
					var data, from string
					switch words := strings.Fields(line); words[0] {
					case "open":
						fmt.Sscanf(line, "open %d %d %s", &slot, &port, &from)
						slots[slot], waiting = waiting[0], waiting[1:]
					case "data":
						fmt.Sscanf(line, "data %d %s", &slot, &data)
						slots[slot].got += data
					case "end":
						fmt.Sscanf(line, "end %d", &slot)
						if v := slots[slot]; v.reset || v.got != v.sent {
							t.Fatalf("reset %v: the service got %d of %d bytes, and an end", v.reset, len(v.got)/2, len(v.sent)/2)
						}
						p.do("finish %d", slot)
					case "over", "abort":
						fmt.Sscanf(line, words[0]+" %d", &slot)
						v := slots[slot]
						if v.ended = true; v.reset != (words[0] == "abort") || !strings.HasPrefix(v.sent, v.got) {
							t.Fatalf("reset %v: %s after %d of %d bytes", v.reset, words[0], len(v.got)/2, len(v.sent)/2)
						}
					default:
						t.Fatalf("the client said %q", line)
					}
				}
			}
			if number < 4 {
				t.Errorf("only %d streams", number)
			}
		})
	}
}
