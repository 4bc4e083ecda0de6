package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket/sockettest"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// FuzzReceive gives arbitrary frames to a mux with a few streams in different
// states. It must not panic or wait, keep no more of a stream than its credit, and
// give its reader what came, in order, and an end only after fin.
func FuzzReceive(f *testing.F) {
	frame := func(k wire.FrameKind, n uint32, payload string) string {
		return string(append(wire.AppendFrameHeader(nil, k, n), payload...))
	}
	join := func(frames ...string) (all []byte) {
		for _, f := range frames {
			all = append(append(all, byte(len(f))), f...)
		}
		return all
	}
	for _, inline := range []bool{false, true} {
		f.Add(join(frame(wire.FrameData, 1, "hello"), frame(wire.FrameFin, 1, "")), inline)
		f.Add(join(frame(wire.FrameData, 2, "hello"), frame(wire.FrameMove, 2, ""), frame(wire.FrameMove, 2, "")), inline)
		f.Add(join(frame(wire.FrameData, 3, "more than ten bytes"), frame(wire.FrameReset, 3, "")), inline)
		f.Add(join(frame(wire.FrameCredit, 1, "\x00\x00\x00\x01"), frame(77, 4, "?"), frame(wire.FrameFin, 4, "")), inline)
		f.Add(join("", "x", frame(wire.FrameData, 0, "x"), frame(wire.FrameData, 9, "x")), inline)
	}
	f.Fuzz(func(t *testing.T, in []byte, inline bool) {
		near, far := net.Pipe()
		defer far.Close()
		_, sock := sockettest.Pair(t, far, near)
		go io.Copy(io.Discard, far)
		defer sock.Close()
		m := NewMux(sock, MuxOptions{Inline: inline})
		const credit = 10
		streams := make(map[uint32]*Stream)
		want, ended, moved, gone := make(map[uint32]string), make(map[uint32]bool), make(map[uint32]bool), make(map[uint32]bool)
		for n := uint32(1); n <= 4; n++ {
			c, err := m.Open(n, credit, Options{})
			if err != nil {
				t.Fatal(err)
			}
			streams[n] = c
		}
		streams[4].Write([]byte("x"))
		streams[4].CloseWrite()
		for len(in) > 0 {
			size := min(int(in[0]), len(in)-1)
			message := in[1 : 1+size]
			in = in[1+size:]
			err := m.Receive(message)
			if err != nil && !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
			k, n, payload, malformed := wire.ParseFrame(message)
			if (malformed != nil) != (err != nil) {
				t.Fatalf("%v, but %v", malformed, err)
			}
			if err != nil || streams[n] == nil || gone[n] {
				continue
			}
			switch early := !ended[n] && !moved[n]; {
			case k == wire.FrameData && early && len(want[n])+len(payload) <= credit:
				want[n] += string(payload)
			case k == wire.FrameFin && early:
				ended[n] = true
			case k == wire.FrameMove && early && !inline:
				moved[n] = true
			case k == wire.FrameCredit && inline && n == 4: // has ended its direction
			default:
				gone[n] = true
			}
			streams[n].mu.Lock()
			if held := streams[n].e.held.size; held > credit {
				t.Errorf("%d bytes are held", held)
			}
			streams[n].mu.Unlock()
		}
		for n, c := range streams {
			c.SetReadDeadline(time.Unix(1, 0))
			got, err := io.ReadAll(c)
			if string(got) != want[n] {
				t.Errorf("stream %d: %q, want %q", n, got, want[n])
			}
			switch {
			case gone[n]:
				if !errors.Is(err, ErrAborted) {
					t.Errorf("stream %d: %v after an abort", n, err)
				}
			case ended[n]:
				if err != nil {
					t.Errorf("stream %d: %v after an end", n, err)
				}
			case !errors.Is(err, os.ErrDeadlineExceeded):
				t.Errorf("stream %d: %v, but nothing has ended", n, err)
			}
			c.Abort()
		}
		m.End(io.EOF)
	})
}
