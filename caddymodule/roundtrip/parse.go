package roundtrip

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// MalformedError says why an answer is not HTTP/1.1, or not to be trusted.
type MalformedError struct{ Reason string }

func (e *MalformedError) Error() string { return "malformed answer: " + e.Reason }

func malformed(format string, args ...any) error {
	return &MalformedError{fmt.Sprintf(format, args...)}
}

// framing is how the end of a body is found (RFC 9112 §6.3).
type framing byte

const (
	noBody framing = iota
	byLength
	byChunks
	byEnd // of the connection
)

// head is what the head of an answer says.
type head struct {
	proto   string // HTTP/1.0 to HTTP/1.9
	minor   int
	status  int
	line    string // status and reason: "200 OK"
	header  http.Header
	trailer http.Header // announced names, without values; nil: none
	framing framing
	length  int64 // Content-Length, also where there is no body; -1: not said, or chunked
	reuse   bool  // the connection may serve another request
}

// headEnd returns how long the head is that b begins with, its empty line
// included; 0: its end is not there yet. from is where the caller has looked
// before.
//
// Lines end with CR LF, or with a bare LF, which small servers send (RFC 9112
// §2.2).
func headEnd(b []byte, from int) int {
	for i := max(0, from-2); ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0
		}
		i += n + 1
		switch rest := b[i:]; {
		case len(rest) > 0 && rest[0] == '\n':
			return i + 1
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return i + 2
		}
	}
}

// parseHead reads the head of an answer to a request of that method: what
// headEnd has found. It keeps nothing of b. Every error is a *MalformedError.
func parseHead(b []byte, method string) (h head, err error) {
	text := string(b) // all that the head holds are parts of this
	line, text := cutLine(text)
	if err := h.parseStatus(line); err != nil {
		return h, err
	}
	if h.header, err = parseFields(text); err != nil {
		return h, err
	}
	return h, h.frame(method)
}

// cutLine cuts the first line off, without its end.
func cutLine(s string) (line, rest string) {
	line, rest, _ = strings.Cut(s, "\n")
	return strings.TrimSuffix(line, "\r"), rest
}

// version is what answers begin with.
const version = "HTTP/1."

// parseStatus reads `HTTP/1.1 200 OK` (RFC 9112 §4). Reasons are left out by
// many.
func (h *head) parseStatus(line string) error {
	if len(line) < len(version)+1 || line[:len(version)] != version || line[len(version)] < '0' || line[len(version)] > '9' {
		return malformed("it begins with %.40q", line)
	}
	h.proto, line = line[:len(version)+1], line[len(version)+1:]
	h.minor = int(h.proto[len(version)] - '0')
	h.line = strings.TrimLeft(line, " ")
	code, reason, _ := strings.Cut(h.line, " ")
	if h.line == line || len(code) != 3 || code[0] < '1' || code[0] > '9' || !validValue(reason) {
		return malformed("status %.40q", line)
	}
	status, err := strconv.ParseUint(code, 10, 16)
	if err != nil {
		return malformed("status %.40q", line)
	}
	h.status = int(status)
	return nil
}

// parseFields reads the lines of a header or a trailer, up to an empty one or
// the end.
func parseFields(text string) (http.Header, error) {
	hint := min(strings.Count(text, "\n"), 64)
	header := make(http.Header, hint)
	values := make([]string, hint) // one array for all, as far as it goes
	for {
		var line string
		if line, text = cutLine(text); line == "" {
			return header, nil
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || name[0] == ' ' || name[0] == '\t' {
			return nil, malformed("a line of its header is %.40q", line)
		}
		if text != "" && (text[0] == ' ' || text[0] == '\t') {
			value, text = unfold(value, text)
		}
		value = strings.Trim(value, " \t")
		// RFC 9112 §5.1: a proxy takes away space in front of the colon.
		name = strings.TrimRight(name, " \t")
		if !validName(name) {
			if strings.ContainsAny(name, " \t") {
				continue // means nothing to anybody, and is not passed on
			}
			return nil, malformed("a line of its header is %.40q", line)
		}
		if !validValue(value) {
			return nil, malformed("the value of its %.40s is %.40q", name, value)
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		switch had := header[name]; {
		case had != nil:
			header[name] = append(had, value)
		case len(values) == 0:
			header[name] = []string{value}
		default:
			values[0] = value
			header[name], values = values[:1:1], values[1:]
		}
	}
}

// unfold joins a value with the lines that continue it (RFC 9112 §5.2).
func unfold(value, text string) (string, string) {
	var b strings.Builder
	b.WriteString(strings.Trim(value, " \t"))
	for text != "" && (text[0] == ' ' || text[0] == '\t') {
		var line string
		line, text = cutLine(text)
		b.WriteByte(' ')
		b.WriteString(strings.Trim(line, " \t"))
	}
	return b.String(), text
}

// frame finds out where the body ends, and whether the connection goes on after
// it (RFC 9112 §6.3, §9.3). Fields that speak of one connection alone are the
// caller's to drop.
func (h *head) frame(method string) error {
	options := h.header["Connection"]
	h.reuse = !hasToken(options, "close") && (h.minor >= 1 || hasToken(options, "keep-alive"))
	var err error
	if h.length, err = contentLength(h.header); err != nil {
		return err
	}
	coding, chunked := h.header["Transfer-Encoding"]
	if chunked {
		// A coding that is not known, or HTTP/1.0 that uses one: nobody can say
		// where such a body ends (§6.1).
		if len(coding) != 1 || !strings.EqualFold(coding[0], "chunked") || h.minor == 0 {
			return malformed("Transfer-Encoding %.40q in %s", coding, h.proto)
		}
		if h.length >= 0 { // a server that is confused, or an attack: the last answer here
			h.reuse, h.length = false, -1
			delete(h.header, "Content-Length")
		}
		delete(h.header, "Transfer-Encoding")
	}
	switch {
	case h.status == http.StatusSwitchingProtocols:
		h.reuse = false
	case h.status < 200 || h.status == http.StatusNoContent:
		if chunked || h.length > 0 { // it may send a body all the same
			h.reuse = false
		}
		h.length = 0
	case method == http.MethodHead:
	case h.status == http.StatusNotModified:
		h.length = 0
	case chunked:
		h.framing = byChunks
		return h.announce()
	case h.length > 0:
		h.framing = byLength
	case h.length < 0:
		h.framing, h.reuse = byEnd, false
	}
	return nil
}

// contentLength returns what the header says, -1 if nothing. Several are one if
// they are the same.
func contentLength(header http.Header) (int64, error) {
	values := header["Content-Length"]
	if len(values) == 0 {
		return -1, nil
	}
	for _, v := range values {
		if v != values[0] {
			return 0, malformed("Content-Length %.40q", values)
		}
	}
	header["Content-Length"] = values[:1]
	for _, c := range []byte(values[0]) {
		if c < '0' || c > '9' {
			return 0, malformed("Content-Length %.40q", values[0])
		}
	}
	n, err := strconv.ParseInt(values[0], 10, 64)
	if err != nil {
		return 0, malformed("Content-Length %.40q", values[0])
	}
	return n, nil
}

// announce turns the field Trailer into the names that it lists.
func (h *head) announce() error {
	lists, ok := h.header["Trailer"]
	if !ok {
		return nil
	}
	delete(h.header, "Trailer")
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			name = textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t"))
			switch {
			case name == "":
			case ofFraming(name) || !validName(name):
				return malformed("its trailer is to hold %.40q", name)
			default:
				if h.trailer == nil {
					h.trailer = make(http.Header)
				}
				h.trailer[name] = nil
			}
		}
	}
	return nil
}

// ofFraming reports whether a field says where bodies end: in a trailer it has
// no say.
func ofFraming(name string) bool {
	return name == "Content-Length" || name == "Transfer-Encoding" || name == "Trailer"
}

// hasToken reports whether a list such as that of Connection holds token.
func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for one := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.Trim(one, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// tchar are the bytes of a token (RFC 9110 §5.6.2).
var tchar = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		t[c] = true
	}
	return t
}()

func validName(s string) bool {
	for i := range len(s) {
		if !tchar[s[i]] {
			return false
		}
	}
	return s != ""
}

// validValue refuses control characters (RFC 9110 §5.5).
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// maxChunkLine bounds the line in front of a chunk, extensions included.
const maxChunkLine = 256

// errMore asks for more input.
var errMore = errors.New("more input is needed")

// chunks undoes the chunked coding (RFC 9112 §7.1).
type chunks struct {
	state   chunkState
	left    int64 // bytes of the chunk
	trailer http.Header
}

type chunkState byte

const (
	atSize chunkState = iota
	inData
	afterData
	inTrailer
	atEnd
)

// decode moves data from src to p. It returns how much of p it has filled and how
// much of src it has used up, with errMore if that was all that src gave, io.EOF's
// stead atEnd in state, or a *MalformedError.
func (d *chunks) decode(p, src []byte) (n, used int, err error) {
	for d.state != atEnd && (n < len(p) || d.state != inData) {
		rest := src[used:]
		switch d.state {
		case atSize:
			line := bytes.IndexByte(rest[:min(len(rest), maxChunkLine)], '\n')
			if line < 0 {
				if len(rest) >= maxChunkLine {
					return n, used, malformed("the line before a chunk is too long")
				}
				return n, used, errMore
			}
			if d.left, err = chunkSize(rest[:line]); err != nil {
				return n, used, err
			}
			used += line + 1
			d.state = inData
			if d.left == 0 {
				d.state = inTrailer
			}
		case inData:
			if len(rest) == 0 {
				return n, used, errMore
			}
			moved := copy(p[n:], rest[:min(int64(len(rest)), d.left)])
			n, used, d.left = n+moved, used+moved, d.left-int64(moved)
			if d.left == 0 {
				d.state = afterData
			}
		case afterData:
			if len(rest) < 2 {
				return n, used, errMore
			}
			if rest[0] != '\r' || rest[1] != '\n' {
				return n, used, malformed("a chunk is longer than it said")
			}
			used += 2
			d.state = atSize
		case inTrailer:
			size, err := d.readTrailer(rest)
			if err != nil {
				return n, used, err
			}
			used += size
			d.state = atEnd
		}
	}
	return n, used, nil
}

// chunkSize reads a line such as `1f4;name=value\r`. Both CR and LF must be there:
// others might see the line's end elsewhere.
func chunkSize(line []byte) (int64, error) {
	text, ok := bytes.CutSuffix(line, []byte("\r"))
	digits, extension, _ := bytes.Cut(text, []byte(";"))
	digits = bytes.TrimRight(digits, " \t")
	if !ok || len(digits) == 0 || len(digits) > 15 || bytes.IndexByte(extension, '\r') >= 0 {
		return 0, malformed("the line before a chunk is %.40q", line)
	}
	var n int64
	for _, c := range digits {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, malformed("the line before a chunk is %.40q", line)
		}
		n = n<<4 | int64(c)
	}
	return n, nil
}

// readTrailer reads what follows the last chunk.
func (d *chunks) readTrailer(src []byte) (used int, err error) {
	if len(src) < 2 {
		return 0, errMore
	}
	if src[0] == '\r' && src[1] == '\n' {
		return 2, nil
	}
	end := bytes.Index(src, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, errMore
	}
	end += 4
	if d.trailer, err = parseFields(string(src[:end])); err != nil {
		return 0, err
	}
	for name := range d.trailer {
		if ofFraming(name) {
			delete(d.trailer, name)
		}
	}
	return end, nil
}
