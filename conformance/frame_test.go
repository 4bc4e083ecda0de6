package conformance

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"
)

// What is read is what was written, at each edge of the forms of a length; and every
// beginning of it means that more has to come.
func TestFrames(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 70000} {
		for _, masked := range []bool{false, true} {
			f := frame{fin: true, op: opBinary, masked: masked, data: bytes.Repeat([]byte{'x'}, n)}
			if masked {
				f.mask = [4]byte{1, 2, 3, 4}
			}
			wire := f.bytes()
			got, err := readFrame(bufio.NewReader(bytes.NewReader(wire)))
			if err != nil || !bytes.Equal(got.data, f.data) || got.masked != masked || !got.fin || got.op != opBinary {
				t.Errorf("%d bytes, masked: %v: %v", n, masked, err)
			}
			for _, short := range []int{0, 1, 2, 3, len(wire) - 1} {
				if short >= len(wire) {
					continue
				}
				_, err := readFrame(bufio.NewReader(bytes.NewReader(wire[:short])))
				if want := io.ErrUnexpectedEOF; short == 0 && err != io.EOF || short > 0 && !errors.Is(err, want) {
					t.Errorf("%d of %d bytes: %v", short, len(wire), err)
				}
			}
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x81\x05hello"))
	f.Add([]byte("\x82\xfe\x00\x80\x01\x02\x03\x04"))
	f.Add([]byte("\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := readFrame(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		again, err := readFrame(bufio.NewReader(bytes.NewReader(got.bytes())))
		if err != nil || !bytes.Equal(again.data, got.data) || again.op != got.op || again.rsv != got.rsv || again.mask != got.mask {
			t.Errorf("%+v, then %+v, %v", got, again, err)
		}
		_ = event{op: got.op, data: got.data}.String()
	})
}
