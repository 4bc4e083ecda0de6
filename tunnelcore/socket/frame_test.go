package socket

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// masked is a client's frame with the mask 37 fa 21 3d, spelled out: payload as
// it is before masking.
func masked(first byte, payload string) []byte {
	mask := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 65536:
		b = append(b, 0x80|126, byte(n>>8), byte(n))
	default:
		b = append(b, 0x80|127)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = append(b, mask[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^mask[i%4])
	}
	return b
}

// plain is a server's frame.
func plain(first byte, payload string) []byte {
	b := masked(first, payload)
	head := len(b) - len(payload) - 4
	b[1] &^= 0x80
	return append(b[:head:head], payload...)
}

func cat(frames ...[]byte) []byte { return bytes.Join(frames, nil) }

// all reads messages until an error, resuming after deadlines.
func all(s *Socket, limit int) (messages []string, err error) {
	for {
		op, b, err := s.ReadMessage(limit)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, ErrTooBig):
			messages = append(messages, "too big")
		case err != nil:
			return messages, err
		default:
			messages = append(messages, fmt.Sprintf("%d:%s", op, b))
		}
	}
}

// pieces does the same with Next and Read.
func pieces(s *Socket, size int) (messages []string, err error) {
	buf := make([]byte, size)
	for {
		op, err := s.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return messages, err
		}
		m := fmt.Appendf(nil, "%d:", op)
		for {
			n, err := s.Read(buf)
			m = append(m, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return messages, err
			}
		}
		messages = append(messages, string(m))
	}
}

// RFC 6455 §5.7, and what its examples leave out.
func TestReadBytes(t *testing.T) {
	long126, long127 := strings.Repeat("x", 256), strings.Repeat("x", 65536)
	for _, c := range []struct {
		name   string
		client bool
		in     []byte
		want   []string
		out    []byte // masked out for clients: only compared on the server's side
	}{
		{"unmasked text", true, []byte{0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f}, []string{"1:Hello"}, nil},
		{"masked text", false, []byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}, []string{"1:Hello"}, nil},
		{"fragments", true, []byte{0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f}, []string{"1:Hello"}, nil},
		{"ping", true, []byte{0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f}, nil, nil},
		{"masked ping", false, []byte{0x89, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58}, nil,
			[]byte{0x8a, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f}},
		{"pong, not asked for", false, masked(0x8a, "Hello"), nil, nil},
		{"256 bytes", true, append([]byte{0x82, 0x7e, 0x01, 0x00}, long126...), []string{"2:" + long126}, nil},
		{"64 KiB", true, append([]byte{0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0}, long127...), []string{"2:" + long127}, nil},
		{"empty", false, []byte{0x82, 0x80, 1, 2, 3, 4}, []string{"2:"}, nil},
		{"empty fragments", false, cat(masked(0x02, ""), masked(0x00, ""), masked(0x00, "a"), masked(0x00, ""), masked(0x80, "")), []string{"2:a"}, nil},
		{"all fragments empty", false, cat(masked(0x02, ""), masked(0x80, "")), []string{"2:"}, nil},
		{"control between fragments", false, cat(masked(0x01, "Hel"), masked(0x89, "p"), masked(0x8a, ""), masked(0x80, "lo"), masked(0x82, "!")),
			[]string{"1:Hello", "2:!"}, []byte{0x8a, 0x01, 'p'}},
	} {
		for _, step := range []int{0, 1, 2, 3, 7} {
			for _, stutter := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/step %d/%v", c.name, step, stutter), func(t *testing.T) {
					read := func(how func(*Socket) ([]string, error)) {
						t.Helper()
						conn := &script{in: c.in, step: step, stutter: stutter}
						s := on(conn, c.client)
						got, err := how(s)
						var end *CloseError
						if !slices.Equal(got, c.want) || !errors.As(err, &end) || end.Code != CloseAbnormal {
							t.Errorf("got %.100q, %v; want %.100q", got, err, c.want)
						}
						settle(s)
						if out := conn.written(); c.out != nil && !bytes.Equal(out, c.out) {
							t.Errorf("wrote % x, want % x", out, c.out)
						}
					}
					read(func(s *Socket) ([]string, error) { return all(s, 1<<17) })
					read(func(s *Socket) ([]string, error) { return pieces(s, 3) })
					read(func(s *Socket) ([]string, error) { return pieces(s, 1<<17) })
				})
			}
		}
	}
}

// Each length at the edge of its encoding and either side.
func TestLengths(t *testing.T) {
	heads := map[int]string{
		0: "82 00", 1: "82 01", 124: "82 7c", 125: "82 7d",
		126: "82 7e 00 7e", 127: "82 7e 00 7f", 65534: "82 7e ff fe", 65535: "82 7e ff ff",
		65536: "82 7f 00 00 00 00 00 01 00 00", 65537: "82 7f 00 00 00 00 00 01 00 01",
		copyBelow: "82 7e 10 00", copyBelow + 1: "82 7e 10 01",
		pieceSize: "82 7e 40 00", pieceSize + 1: "82 7e 40 01",
	}
	for length, want := range heads {
		payload := make([]byte, length)
		for i := range payload {
			payload[i] = byte(rand.Uint32())
		}
		conn := &script{}
		if err := on(conn, false).WriteMessage(Binary, payload); err != nil {
			t.Fatal(err)
		}
		out := conn.written()
		head := len(out) - length
		if got := fmt.Sprintf("% x", out[:head]); got != want || !bytes.Equal(out[head:], payload) {
			t.Errorf("length %d: header % x, want %s", length, out[:head], want)
		}
	}
	bothWays(t, func(t *testing.T, a, b *Socket) {
		for length := range heads {
			for _, inPlace := range []bool{false, true} {
				buf := make([]byte, Headroom+length)
				for i := range buf {
					buf[i] = byte(rand.Uint32())
				}
				want := bytes.Clone(buf[Headroom:])
				sent := make(chan error, 1)
				go func() {
					if inPlace {
						sent <- a.WriteInPlace(Binary, buf)
					} else {
						sent <- a.WriteMessage(Binary, buf[Headroom:])
					}
				}()
				ends.Within(t, "ReadMessage", func() {
					op, got, err := b.ReadMessage(1 << 20)
					if op != Binary || !bytes.Equal(got, want) || err != nil {
						t.Errorf("length %d, in place %v: op %d, %d bytes, %v", length, inPlace, op, len(got), err)
					}
				})
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				if !inPlace && !bytes.Equal(buf[Headroom:], want) {
					t.Error("WriteMessage changed what it was given")
				}
			}
		}
	})
}

func TestBrokenFrames(t *testing.T) {
	for _, c := range []struct {
		name   string
		client bool
		in     []byte
	}{
		{"RSV1", false, masked(0xc2, "x")},
		{"RSV2", false, masked(0xa2, "x")},
		{"RSV3", false, masked(0x92, "x")},
		{"RSV1 on a ping", false, masked(0xc9, "")},
		{"client's frame not masked", false, plain(0x82, "x")},
		{"server's frame masked", true, masked(0x82, "x")},
		{"server's ping masked", true, masked(0x89, "")},
		{"opcode 3", false, masked(0x83, "")},
		{"opcode 7", false, masked(0x87, "")},
		{"opcode 11", false, masked(0x8b, "")},
		{"opcode 15", false, masked(0x8f, "")},
		{"continuation of nothing", false, masked(0x80, "x")},
		{"continuation after an end", false, cat(masked(0x82, "x"), masked(0x80, "x"))},
		{"text inside binary", false, cat(masked(0x02, "x"), masked(0x81, "x"))},
		{"ping in fragments", false, masked(0x09, "")},
		{"ping of 126 bytes", false, masked(0x89, strings.Repeat("x", 126))},
		{"close of 126 bytes", false, masked(0x88, "\x03\xe8"+strings.Repeat("x", 124))},
		{"16 bits for 125", false, []byte{0x82, 0xfe, 0, 125, 1, 2, 3, 4}},
		{"64 bits for 65535", false, []byte{0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4}},
		{"64 bits, the highest set", false, []byte{0x82, 0xff, 0x80, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4}},
		{"close of one byte", false, masked(0x88, "x")},
		{"close reason not UTF-8", false, masked(0x88, "\x03\xe8\xff")},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := &script{in: c.in, step: 1, stutter: true}
			s := on(conn, c.client)
			_, err := all(s, 100)
			var broken *FrameError
			if !errors.As(err, &broken) {
				t.Fatalf("error %v, want a *FrameError", err)
			}
			if _, again := s.Next(); again != err {
				t.Errorf("read on: %v", again)
			}
			if c.client {
				return
			}
			settle(s)
			if out := conn.written(); len(out) < 4 || out[0] != 0x88 || out[2] != 0x03 || out[3] != 0xea {
				t.Errorf("wrote % x, want a close frame with 1002", out)
			}
			if err := s.WriteMessage(Binary, nil); err != ErrClosed {
				t.Errorf("write after it: %v", err)
			}
		})
	}
}

func TestReadMessageLimit(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want []string
	}{
		{"one below", masked(0x82, "123456789"), []string{"2:123456789"}},
		{"at it", masked(0x82, "1234567890"), []string{"2:1234567890"}},
		{"one above", cat(masked(0x82, "1234567890a"), masked(0x81, "next")), []string{"too big", "1:next"}},
		{"at it in fragments", cat(masked(0x02, "12345"), masked(0x80, "67890")), []string{"2:1234567890"}},
		{"above in fragments", cat(masked(0x02, "12345"), masked(0x00, "678901"), masked(0x80, "."), masked(0x81, "next")), []string{"too big", "1:next"}},
		{"of 2^63-1 bytes", []byte{0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5}, []string{"too big"}},
		{"2^63-1 after a fragment", cat(masked(0x02, "1"), []byte{0x80, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5}), []string{"too big"}},
	} {
		for _, stutter := range []bool{false, true} {
			s := on(&script{in: c.in, step: 2, stutter: stutter}, false)
			if got, _ := all(s, 10); !slices.Equal(got, c.want) {
				t.Errorf("%s: got %q, want %q", c.name, got, c.want)
			}
		}
	}
}

// A part that was read and one that was skipped must not put the mask out of
// step.
func TestNextSkips(t *testing.T) {
	for read := range 12 {
		s := on(&script{in: cat(masked(0x02, "0123456789a"), masked(0x80, "bcdef"), masked(0x82, "next")), step: 5, stutter: true}, false)
		if got, err := skipAfter(s, read); got != "next" {
			t.Errorf("after %d bytes: %q, %v", read, got, err)
		}
	}
}

func skipAfter(s *Socket, read int) (string, error) {
	for next, got := 0, 0; next < 2; {
		if _, err := s.Next(); err == nil {
			next++
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return "", err
		}
		for next == 1 && got < read {
			n, err := s.Read(make([]byte, read-got))
			if got += n; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return "", err
			}
		}
	}
	var b []byte
	for {
		buf := make([]byte, 3)
		n, err := s.Read(buf)
		b = append(b, buf[:n]...)
		if err == io.EOF {
			return string(b), nil
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return "", err
		}
	}
}

// Each proper prefix of a stream of frames means "more": nothing is returned
// that the whole would not have had, and going on gives the rest.
func TestPrefixes(t *testing.T) {
	whole := cat(
		masked(0x01, "text "), masked(0x89, "ping"), masked(0x80, "in two"),
		masked(0x82, strings.Repeat("b", 126)), masked(0x82, ""),
		masked(0x88, "\x03\xe8bye"),
	)
	want := []string{"1:text in two", "2:" + strings.Repeat("b", 126), "2:"}
	for cut := range whole {
		conn := &script{in: whole[:cut], after: os.ErrDeadlineExceeded}
		s := on(conn, false)
		var got []string
		read := func() error {
			for {
				op, b, err := s.ReadMessage(1000)
				if err != nil {
					return err
				}
				got = append(got, fmt.Sprintf("%d:%s", op, b))
			}
		}
		if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("cut at %d: got %q", cut, got)
		}
		conn.in = whole[cut:]
		err := read()
		var end *CloseError
		if !errors.As(err, &end) || *end != (CloseError{1000, "bye"}) || !slices.Equal(got, want) {
			t.Fatalf("cut at %d, then the rest: %q, %v", cut, got, err)
		}
	}
}

func TestCloseCodes(t *testing.T) {
	valid := func(code int) bool {
		return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
	}
	for _, code := range []int{0, 1, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015, 1016,
		1100, 2000, 2999, 3000, 3999, 4000, 4001, 4100, 4999, 5000, 65535} {
		conn := &script{in: masked(0x88, string([]byte{byte(code >> 8), byte(code)})+"why")}
		s := on(conn, false)
		_, err := s.Next()
		settle(s)
		out := conn.written()
		var end *CloseError
		if valid(code) {
			if !errors.As(err, &end) || *end != (CloseError{code, "why"}) {
				t.Errorf("code %d: %v", code, err)
			}
			if want := []byte{0x88, 2, byte(code >> 8), byte(code)}; !bytes.Equal(out, want) {
				t.Errorf("code %d: echo % x, want % x", code, out, want)
			}
			continue
		}
		var broken *FrameError
		if !errors.As(err, &broken) || len(out) < 4 || out[2] != 0x03 || out[3] != 0xea {
			t.Errorf("code %d: %v, answered % x", code, err, out)
		}
	}
	// An empty close frame has no code, and is echoed empty.
	conn := &script{in: masked(0x88, "")}
	s := on(conn, false)
	_, err := s.Next()
	settle(s)
	var end *CloseError
	if !errors.As(err, &end) || *end != (CloseError{Code: CloseNoStatus}) {
		t.Errorf("empty close frame: %v", err)
	}
	if out := conn.written(); !bytes.Equal(out, []byte{0x88, 0}) {
		t.Errorf("empty close frame: echo % x", out)
	}
}

func TestWriteCloseBytes(t *testing.T) {
	for _, c := range []struct {
		code   int
		reason string
		want   string
	}{
		{1000, "", "88 02 03 e8"},
		{4001, "replaced", "88 0a 0f a1 72 65 70 6c 61 63 65 64"},
		{CloseNoStatus, "not sent", "88 00"},
		{CloseAbnormal, "not sent", "88 00"},
		{1000, strings.Repeat("x", 123), "88 7d 03 e8" + strings.Repeat(" 78", 123)},
		{1000, strings.Repeat("x", 124), "88 7d 03 e8" + strings.Repeat(" 78", 123)},
		{1000, strings.Repeat("x", 122) + "é", "88 7c 03 e8" + strings.Repeat(" 78", 122)}, // not half a character
		{1000, "\xff", "88 03 03 e8 3f"},
	} {
		conn := &script{}
		s := on(conn, false)
		if err := s.WriteClose(c.code, c.reason, ends.Patience); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("% x", conn.written()); got != c.want {
			t.Errorf("%d %q: wrote %s, want %s", c.code, c.reason, got, c.want)
		}
		// Nothing follows it, and it goes out once.
		err := errors.Join(s.WriteClose(1001, "", ends.Patience))
		if err != nil || s.WriteMessage(Text, nil) != ErrClosed || s.WriteInPlace(Text, make([]byte, Headroom)) != ErrClosed {
			t.Errorf("after it: %v", err)
		}
		if _, err := s.Ping(); err != ErrClosed {
			t.Errorf("ping after it: %v", err)
		}
		if got := fmt.Sprintf("% x", conn.written()); got != c.want {
			t.Errorf("after it: wrote %s", got)
		}
	}
}

func TestApplyMask(t *testing.T) {
	for n := range 200 {
		mask := [4]byte{1, 2, 4, 8}
		b, want := make([]byte, n), make([]byte, n)
		for i := range b {
			b[i] = byte(rand.Uint32())
			want[i] = b[i] ^ mask[i%4]
		}
		split := n / 3
		rest := applyMask(b[:split], mask)
		last := applyMask(b[split:], rest)
		if !bytes.Equal(b, want) {
			t.Fatalf("%d bytes, split at %d: wrong", n, split)
		}
		for i := range last {
			if last[i] != mask[(n+i)%4] {
				t.Fatalf("%d bytes: next mask %v", n, last)
			}
		}
	}
}

// A connection that returns no bytes and no error says nothing, not for ever.
func TestEmptyReads(t *testing.T) {
	a, b := ends.Conns(t, "pipe")
	s := on(b, false)
	go func() {
		frame := masked(0x82, strings.Repeat("x", 2000))
		a.Write(frame[:1000])
		a.Write(nil) // net.Pipe makes it a read of 0 bytes
		a.Write(frame[1000:])
	}()
	ends.Within(t, "pieces", func() {
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, readerOnly{s})
		if n != 2000 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

type readerOnly struct{ s *Socket }

func (r readerOnly) Read(p []byte) (int, error) {
	n, err := r.s.Read(p)
	if n == 0 && err == nil && len(p) > 0 {
		err = errors.New("nothing, and no error")
	}
	return n, err
}
