//go:build linux

package load

import (
	"bytes"
	"fmt"
	"strconv"
)

// answer follows one HTTP answer as it comes. Its zero value waits for the first
// byte; the header has to fit into head.
type answer struct {
	head [2048]byte
	n    int // bytes in head
	rest int // of the body, to come; counts once header is set
	seen bool
}

// take is given the next bytes, and says whether the answer is whole. More bytes
// than the answer has, and any status but 200, are errors.
func (a *answer) take(p []byte) (whole bool, err error) {
	if a.seen {
		a.rest -= len(p)
		return a.rest == 0, a.tooMuch()
	}
	kept := copy(a.head[a.n:], p)
	a.n += kept
	end := bytes.Index(a.head[:a.n], []byte("\r\n\r\n"))
	if end < 0 {
		if a.n == len(a.head) {
			return false, fmt.Errorf("answer without an end of its header: %.200q", a.head[:a.n])
		}
		return false, nil
	}
	head := a.head[:end+2]
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("answer: %q", head)
	}
	length, err := contentLength(head)
	if err != nil {
		return false, err
	}
	a.seen, a.rest = true, length-(a.n-kept+len(p)-end-4)
	return a.rest == 0, a.tooMuch()
}

func (a *answer) tooMuch() error {
	if a.rest < 0 {
		return fmt.Errorf("%d bytes behind the answer", -a.rest)
	}
	return nil
}

func (a *answer) reset() { a.n, a.rest, a.seen = 0, 0, false }

var lengthNames = [][]byte{[]byte("\r\nContent-Length: "), []byte("\r\ncontent-length: ")}

func contentLength(head []byte) (int, error) {
	for _, name := range lengthNames {
		_, value, found := bytes.Cut(head, name)
		if !found {
			continue
		}
		value, _, _ = bytes.Cut(value, []byte("\r\n"))
		return strconv.Atoi(string(value))
	}
	return 0, fmt.Errorf("answer without Content-Length: %q", head)
}
