package roundtrip

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestHeadEnd(t *testing.T) {
	for text, want := range map[string]int{
		"":                                0,
		"HTTP/1.1 200 OK\r\n":             0,
		"HTTP/1.1 200 OK\r\n\r":           0,
		"HTTP/1.1 200 OK\r\n\r\n":         19,
		"HTTP/1.1 200 OK\r\n\r\nbody":     19,
		"HTTP/1.1 200 OK\n\n":             17,
		"HTTP/1.1 200 OK\r\nA: b\n\r\n\n": 24,
		"a\n\r\r\n\r\nb":                  7,
		"\r\n":                            0,
		"\n\nx":                           2,
	} {
		if got := headEnd([]byte(text), 0); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
		for i := range text { // however it comes
			seen := 0
			if headEnd([]byte(text[:i]), 0) == 0 {
				seen = i
			}
			if got := headEnd([]byte(text), seen); got != want {
				t.Errorf("%q, looked up to %d: %d, want %d", text, i, got, want)
			}
		}
	}
}

func TestParseHead(t *testing.T) {
	header := func(pairs ...string) http.Header {
		h := make(http.Header)
		for i := 0; i < len(pairs); i += 2 {
			h[pairs[i]] = append(h[pairs[i]], pairs[i+1])
		}
		return h
	}
	for _, c := range []struct {
		name, method, text string
		want               head
	}{
		{
			"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Content-Length", "5", "X-A", "b"), nil, byLength, 5, true},
		},
		{
			"bare LF", "GET", "HTTP/1.1 200 OK\nContent-Length: 5\n\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Content-Length", "5"), nil, byLength, 5, true},
		},
		{
			"no body", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Content-Length", "0"), nil, noBody, 0, true},
		},
		{
			"no reason", "GET", "HTTP/1.1 404\r\ncontent-length:0\r\n\r\n",
			head{"HTTP/1.1", 1, 404, "404", header("Content-Length", "0"), nil, noBody, 0, true},
		},
		{
			"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: x-sum, X-Late,\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header(), http.Header{"X-Sum": nil, "X-Late": nil}, byChunks, -1, true},
		},
		{
			"chunked and length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header(), nil, byChunks, -1, false},
		},
		{
			"to the end", "GET", "HTTP/1.1 200 OK\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header(), nil, byEnd, -1, false},
		},
		{
			"close", "GET", "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 1\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Connection", "x, Close", "Content-Length", "1"), nil, byLength, 1, false},
		},
		{
			"1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
			head{"HTTP/1.0", 0, 200, "200 OK", header("Content-Length", "1"), nil, byLength, 1, false},
		},
		{
			"1.0 that stays", "GET", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\n",
			head{"HTTP/1.0", 0, 200, "200 OK", header("Connection", "Keep-Alive", "Content-Length", "1"), nil, byLength, 1, true},
		},
		{
			"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Content-Length", "5"), nil, noBody, 5, true},
		},
		{
			"HEAD, chunked", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header(), nil, noBody, -1, true},
		},
		{
			"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n",
			head{"HTTP/1.1", 1, 204, "204 No Content", header(), nil, noBody, 0, true},
		},
		{
			"204 with a body", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
			head{"HTTP/1.1", 1, 204, "204 No Content", header("Content-Length", "5"), nil, noBody, 0, false},
		},
		{
			"304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
			head{"HTTP/1.1", 1, 304, "304 Not Modified", header("Content-Length", "5"), nil, noBody, 0, true},
		},
		{
			"101", "GET", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
			head{"HTTP/1.1", 1, 101, "101 Switching Protocols", header("Upgrade", "websocket"), nil, noBody, -1, false},
		},
		{
			"same length twice", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5 \r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Content-Length", "5"), nil, byLength, 5, true},
		},
		{
			"several values", "GET", "HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\nB:\r\nA:  3\t\r\nContent-Length: 0\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("A", "1", "A", "2", "A", "3", "B", "", "Content-Length", "0"), nil, noBody, 0, true},
		},
		{
			"folded", "GET", "HTTP/1.1 200 OK\r\nA: 1\r\n\t2\r\n  3 \r\nContent-Length:\r\n 7\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("A", "1 2 3", "Content-Length", "7"), nil, byLength, 7, true},
		},
		{
			"space in front of the colon", "GET", "HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Content-Length", "3"), nil, byLength, 3, true},
		},
		{
			"space in a name", "GET", "HTTP/1.1 200 OK\r\nContent Length: 4\r\nContent-Length: 3\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 OK", header("Content-Length", "3"), nil, byLength, 3, true},
		},
		{
			"not ASCII", "GET", "HTTP/1.1 200 \xe4h\r\nX-Name: \xc3\xa4\r\nContent-Length: 0\r\n\r\n",
			head{"HTTP/1.1", 1, 200, "200 \xe4h", header("X-Name", "\xc3\xa4", "Content-Length", "0"), nil, noBody, 0, true},
		},
	} {
		got, err := parseHead([]byte(c.text), c.method)
		if c.name == "chunked" || c.name == "chunked and length" || c.name == "HEAD, chunked" {
			c.want.length = -1
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v %v\nwant %+v", c.name, got, err, c.want)
		}
	}
}

func TestMalformedHeads(t *testing.T) {
	for _, text := range []string{
		"\r\n",
		"garbage\r\n\r\n",
		"HTTP/1.1\r\n\r\n",
		"HTTP/1.1200 OK\r\n\r\n",
		"HTTP/1.1 20 OK\r\n\r\n",
		"HTTP/1.1 2000 OK\r\n\r\n",
		"HTTP/1.1 +20 OK\r\n\r\n",
		"HTTP/1.1 0xa OK\r\n\r\n",
		"HTTP/1.1 099 OK\r\n\r\n",
		"HTTP/1.1 200\tOK\r\n\r\n",
		"HTTP/1.1 200 O\rK\r\n\r\n",
		"HTTP/1.1 200 O\x00K\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n",
		"HTTP/0.9 200 OK\r\n\r\n",
		"HTTP/1.x 200 OK\r\n\r\n",
		"http/1.1 200 OK\r\n\r\n",
		"ICY 200 OK\r\n\r\n",
		" HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
		"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
		"HTTP/1.1 200 OK\r\n A: folded, after nothing\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA: b\r\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA\x00: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA(: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nA: b\r\n \x01\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
		"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: a b\r\n\r\n",
	} {
		h, err := parseHead([]byte(text), "GET")
		if bad := (*MalformedError)(nil); !errors.As(err, &bad) {
			t.Errorf("%q: %+v, %v", text, h, err)
		}
	}
}

// readChunks decodes text, given in pieces, into a buffer of some size.
func readChunks(text string, piece, size int) (body string, trailer http.Header, rest string, err error) {
	var d chunks
	var src []byte
	p := make([]byte, size)
	var out strings.Builder
	for {
		n, used, err := d.decode(p, src)
		out.Write(p[:n])
		src = src[used:]
		switch {
		case err == errMore && text == "":
			return out.String(), nil, "", io.ErrUnexpectedEOF
		case err == errMore:
			next := min(piece, len(text))
			src, text = append(src, text[:next]...), text[next:]
		case err != nil:
			return out.String(), nil, "", err
		case d.state == atEnd:
			return out.String(), d.trailer, string(src) + text, nil
		}
	}
}

func TestChunks(t *testing.T) {
	const text = "5\r\nhello\r\n006 ; ext=\"a\"\r\n world\r\n1a;x\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nX-Sum: 1\r\nContent-Length: 3\r\n\r\nmore"
	for piece := 1; piece <= len(text); piece++ {
		for _, size := range []int{1, 2, 7, 100} {
			body, trailer, rest, err := readChunks(text, piece, size)
			if body != "hello worldabcdefghijklmnopqrstuvwxyz" || !reflect.DeepEqual(trailer, http.Header{"X-Sum": {"1"}}) || rest != "more" || err != nil {
				t.Fatalf("in pieces of %d, into %d: %q %v %q %v", piece, size, body, trailer, rest, err)
			}
		}
	}
	for i := range strings.Index(text, "more") {
		if _, _, _, err := readChunks(text[:i], 3, 8); err != io.ErrUnexpectedEOF {
			t.Errorf("cut after %d: %v", i, err)
		}
	}
	for _, bad := range []string{
		"5\nhello\n0\n\n",
		"5\r\nhello\n0\r\n\r\n",
		"5\r\nhello!\r\n0\r\n\r\n",
		"\r\nhello",
		"-1\r\n",
		"+1\r\nx",
		"0x1\r\nx",
		" 1\r\nx",
		"g\r\n",
		"1\r2\r\n",
		"1;\r2\r\n",
		"1000000000000000\r\n", // 16 digits
		strings.Repeat("0", maxChunkLine+1),
		"1;" + strings.Repeat("x", maxChunkLine) + "\r\n",
		"0\r\nno colon\r\n\r\n",
	} {
		if body, _, _, err := readChunks(bad, len(bad), 8); !errors.As(err, new(*MalformedError)) {
			t.Errorf("%q: %q %v", bad, body, err)
		}
	}
}

// FuzzParseHead wants whatever is accepted to be what net/http understands.
func FuzzParseHead(f *testing.F) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n c\r\n\r\n",
		"HTTP/1.0 200\nConnection: keep-alive\nTrailer: x\n\n",
		"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\nTrailer: a,b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: a,b\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n",
		"HTTP/1.1 304 \r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
	} {
		f.Add([]byte(text), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, isHead bool) {
		end := headEnd(text, 0)
		if end == 0 {
			return
		}
		text = text[:end]
		method := "GET"
		if isHead {
			method = "HEAD"
		}
		h, err := parseHead(text, method)
		if err != nil {
			if !errors.As(err, new(*MalformedError)) {
				t.Fatal(err)
			}
			return
		}
		for name, values := range h.header {
			if !validName(name) || !slices.ContainsFunc(values, validValue) {
				t.Fatalf("%q: %q", name, values)
			}
		}
		for line := range bytes.Lines(text) {
			if name, _, ok := bytes.Cut(line, []byte(":")); ok && bytes.ContainsAny(name, " \t") || line[0] == ' ' || line[0] == '\t' {
				return // net/http passes on names with spaces, and trims otherwise
			}
		}
		want, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http refuses what we accept: %v", err)
		}
		if len(want.Header["Pragma"]) > 0 { // net/http adds to it
			delete(want.Header, "Cache-Control")
			delete(h.header, "Cache-Control")
		}
		if h.framing == noBody { // net/http takes the announcement out all the same
			delete(want.Header, "Trailer")
			delete(h.header, "Trailer")
		}
		if h.status != want.StatusCode || h.line != want.Status || h.proto != want.Proto || !maps.EqualFunc(h.header, want.Header, slices.Equal) {
			t.Fatalf("%+v\nwant %+v", h, want)
		}
		if h.length != want.ContentLength && h.status >= 200 && !(h.status == 204 && h.length == 0) {
			t.Fatalf("length %d, want %d", h.length, want.ContentLength)
		}
		if h.reuse && want.Close {
			t.Fatalf("reused where net/http closes")
		}
		if (h.framing == noBody) != (want.Body == http.NoBody) && h.status >= 200 {
			t.Fatalf("framing %d, want a body: %t", h.framing, want.Body != http.NoBody)
		}
		if h.framing == byChunks && !maps.EqualFunc(h.trailer, want.Trailer, slices.Equal) {
			t.Fatalf("trailer %v, want %v", h.trailer, want.Trailer)
		}
	})
}

// FuzzChunks wants the same of chunks, however they come.
func FuzzChunks(f *testing.F) {
	f.Add("5\r\nhello\r\n0\r\n\r\n", 1)
	f.Add("5;x\r\nhello\r\n0\r\nX-A: b\r\n\r\nmore", 3)
	f.Add("ffffffffff\r\nhello", 100)
	f.Fuzz(func(t *testing.T, text string, piece int) {
		piece = max(1, piece%64)
		body, trailer, rest, err := readChunks(text, piece, 1+piece%7)
		whole, wholeTrailer, wholeRest, wholeErr := readChunks(text, len(text)+1, 100)
		if body != whole || !reflect.DeepEqual(trailer, wholeTrailer) || rest != wholeRest || (err == nil) != (wholeErr == nil) {
			t.Fatalf("in pieces: %q %v %q %v\nas a whole: %q %v %q %v", body, trailer, rest, err, whole, wholeTrailer, wholeRest, wholeErr)
		}
		if err != nil {
			return
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(strings.NewReader(text)))
		if err != nil || string(want) != body {
			t.Fatalf("%q, want %q %v", body, want, err)
		}
	})
}
