package socket

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"strconv"
	"strings"
)

// MaxAnswer bounds the head of an answer, in bytes: status line and header.
const MaxAnswer = 16 << 10

// maxBody is how much of the body of a refusal is kept, in bytes.
const maxBody = 1 << 10

// Answer is the head of an HTTP/1.1 answer (RFC 9112 §4).
type Answer struct {
	Status int
	Reason string // a peer's text; may be empty
	Header textproto.MIMEHeader
}

// ReadAnswer reads the head of an answer, which is at most MaxAnswer bytes long, and
// takes nothing from br that follows it. io.ErrUnexpectedEOF means that the
// connection has ended before it was whole.
func ReadAnswer(br *bufio.Reader) (a Answer, err error) {
	h := headReader{br: br, left: MaxAnswer}
	line, err := h.line()
	if err != nil {
		return a, err
	}
	version, rest, _ := strings.Cut(line, " ")
	code, reason, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	status, err := strconv.ParseUint(code, 10, 16)
	if err != nil || len(code) != 3 || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return a, fmt.Errorf("malformed HTTP answer %.40q", line)
	}
	a = Answer{Status: int(status), Reason: reason, Header: make(textproto.MIMEHeader)}
	var name string
	for {
		line, err := h.line()
		if err != nil || line == "" {
			return a, err
		}
		folded := line[0] == ' ' || line[0] == '\t' // RFC 9112 §5.2
		value := line
		if !folded {
			var found bool
			name, value, found = strings.Cut(line, ":")
			if !found || name == "" || strings.ContainsAny(name, " \t") {
				return a, fmt.Errorf("malformed HTTP header %.40q", line)
			}
			name = textproto.CanonicalMIMEHeaderKey(name)
		}
		value = strings.Trim(value, " \t")
		values := a.Header[name]
		switch {
		case !folded:
			a.Header[name] = append(values, value)
		case values == nil:
			return a, fmt.Errorf("malformed HTTP header %.40q", line)
		default:
			values[len(values)-1] += " " + value
		}
	}
}

// headReader reads lines, up to a number of bytes.
type headReader struct {
	br   *bufio.Reader
	left int
}

// line reads a line, without its end.
func (h *headReader) line() (string, error) {
	var line []byte
	for {
		part, err := h.br.ReadSlice('\n')
		if h.left -= len(part); h.left < 0 {
			return "", fmt.Errorf("answer's header is longer than %d bytes", MaxAnswer)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			s := strings.TrimSuffix(string(line[:len(line)-1]), "\r")
			if strings.ContainsAny(s, "\r\x00") { // RFC 9112 §2.2
				return "", fmt.Errorf("malformed HTTP header %.40q", s)
			}
			return s, nil
		case err == io.EOF:
			return "", io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		}
	}
}

// Body reads what there is of a body, up to 1 KiB: the status tells more than an
// error does (RFC 9112 §6.3).
func (a Answer) Body(br *bufio.Reader) []byte {
	if a.Status < 200 || a.Status == 204 || a.Status == 304 {
		return nil
	}
	var r io.Reader = br
	if codings := a.Header["Transfer-Encoding"]; len(codings) > 0 {
		if !strings.EqualFold(codings[len(codings)-1], "chunked") {
			return nil
		}
		r = &chunkReader{head: headReader{br: br, left: MaxAnswer}}
	} else if length := a.Header.Get("Content-Length"); length != "" {
		n, err := strconv.ParseUint(length, 10, 63)
		if err != nil {
			return nil
		}
		r = io.LimitReader(br, int64(n))
	}
	body, _ := io.ReadAll(io.LimitReader(r, maxBody))
	return body
}

// chunkReader reads a chunked body (RFC 9112 §7.1), without its trailers.
type chunkReader struct {
	head  headReader
	left  uint64 // of this chunk
	begun bool
	ended bool
}

func (c *chunkReader) Read(p []byte) (int, error) {
	for c.left == 0 {
		if c.ended {
			return 0, io.EOF
		}
		if c.begun {
			if line, err := c.head.line(); err != nil || line != "" {
				return 0, errors.Join(errChunk, err)
			}
		}
		line, err := c.head.line()
		if err != nil {
			return 0, err
		}
		size, _, _ := strings.Cut(line, ";")
		if c.left, err = strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 62); err != nil {
			return 0, errChunk
		}
		c.begun, c.ended = true, c.left == 0
	}
	n, err := c.head.br.Read(p[:min(uint64(len(p)), c.left)])
	c.left -= uint64(n)
	return n, err
}

var errChunk = errors.New("malformed chunk")
