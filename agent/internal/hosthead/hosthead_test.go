package hosthead

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// sink is a connection that keeps what is written, and reads answers.
type sink struct {
	net.Conn
	bytes.Buffer
	answers io.Reader
}

func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }
func (s *sink) Read(p []byte) (int, error)  { return s.answers.Read(p) }

const twoRequests = "GET /a HTTP/1.1\r\nHost: l4bel.devices.example.net\r\nAccept: */*\r\n\r\n" +
	"POST /b HTTP/1.1\r\nX-Forwarded-Host: x\r\nhOST:y\r\nContent-Length: 10\r\n\r\n0\r\n\r\nHost:" +
	"PUT /c HTTP/1.1\r\nHost: z\r\nTransfer-Encoding: chunked\r\n\r\n7;a=b\r\nHost:\r\n\r\n0\r\nHost: t\r\n\r\n" +
	"DELETE /d HTTP/1.0\r\n\r\n" +
	"POST /e HTTP/1.1\r\nContent-Length: 0\r\nHost: a\r\nHost: b\r\n\r\n" +
	"GET /f HTTP/1.1\r\nHost: l4bel\r\n\r\n"

const rewritten = "GET /a HTTP/1.1\r\nHost: cam.lan\r\nAccept: */*\r\n\r\n" +
	"POST /b HTTP/1.1\r\nHost: cam.lan\r\nX-Forwarded-Host: x\r\nContent-Length: 10\r\n\r\n0\r\n\r\nHost:" +
	"PUT /c HTTP/1.1\r\nHost: cam.lan\r\nTransfer-Encoding: chunked\r\n\r\n7;a=b\r\nHost:\r\n\r\n0\r\nHost: t\r\n\r\n" +
	"DELETE /d HTTP/1.0\r\nHost: cam.lan\r\n\r\n" +
	"POST /e HTTP/1.1\r\nHost: cam.lan\r\nContent-Length: 0\r\n\r\n" +
	"GET /f HTTP/1.1\r\nHost: cam.lan\r\n\r\n"

func write(c io.Writer, text string, piece int) error {
	for len(text) > 0 {
		n := min(piece, len(text))
		if m, err := c.Write([]byte(text[:n])); err != nil || m != n {
			return fmt.Errorf("%d of %d bytes: %w", m, n, err)
		}
		text = text[n:]
	}
	return nil
}

// However the bytes are cut, each request of a kept connection has the other Host.
func TestKeepAlive(t *testing.T) {
	for piece := 1; piece <= len(twoRequests); piece++ {
		s := new(sink)
		if err := write(New(s, "cam.lan"), twoRequests, piece); err != nil || s.String() != rewritten {
			t.Fatalf("pieces of %d: %v\n%s", piece, err, s.String())
		}
	}
}

func TestUpgrade(t *testing.T) {
	const request = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
	const looksLike = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	for answer, upgraded := range map[string]bool{
		"HTTP/1.1 101 Switching Protocols\r\n\r\n":                                    true,
		"HTTP/1.1 100 Continue\r\nA: 101\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n": true,
		"HTTP/1.1 200 OK\r\n\r\n":                                                     false,
		"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 426 No\r\n\r\n":                     false,
		"nonsense that is no answer":                                                  false,
	} {
		for _, reader := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.DataErrReader} {
			s := &sink{answers: reader(strings.NewReader(answer))}
			c := New(s, "b")
			if err := write(c, request, 7); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); string(got) != answer || err != nil {
				t.Errorf("answer: %q, %v", got, err)
			}
			s.Reset()
			err := write(c, looksLike, 5)
			want := strings.Replace(looksLike, "Host: a", "Host: b", 1)
			if upgraded {
				want = looksLike
			}
			if err != nil || s.String() != want {
				t.Errorf("after %q: %q, %v", answer, s.String(), err)
			}
		}
	}
	// Whoever does not wait for the answer speaks something else.
	s := new(sink)
	if err := write(New(s, "b"), request+"\x81\x00", 9); err != nil || !strings.HasSuffix(s.String(), "Host: b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x00") {
		t.Errorf("%q, %v", s.String(), err)
	}
}

func TestRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"\x16\x03\x01 no\r\n\r\n":                                                               "not a request of HTTP/1.1",
		"PRI * HTTP/2.0\r\n\r\n":                                                                "not a request of HTTP/1.1",
		"GET /\r\n\r\n":                                                                         "not a request of HTTP/1.1",
		"\r\n\r\nGET / HTTP/1.1\r\n\r\n":                                                        "not a request of HTTP/1.1",
		"GET / HTTP/1.1\r\nno colon\r\n\r\n":                                                    "header is malformed",
		"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n":                                             "header is malformed",
		"GET / HTTP/1.1\r\nHost : a\r\n\r\n":                                                    "header is malformed",
		"GET / HTTP/1.1\r\nA: b\nHost: c\r\n\r\n":                                               "header is malformed",
		"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n":                      "two lengths",
		"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n":                                          "no number",
		"GET / HTTP/1.1\r\nContent-Length:\r\n\r\n":                                             "no number",
		"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n":             "a length and a transfer encoding",
		"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n":                            "other than chunked",
		"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n":                       "longer than its size",
		"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n":                             "no size",
		"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\n":                               "CR LF",
		"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1", maxLine+1): "longer than 4096",
		"GET / HTTP/1.1\r\nA: " + strings.Repeat("a", MaxHead):                                  "longer than 65536",
	} {
		for _, piece := range []int{1, len(text)} {
			c := New(new(sink), "b")
			err := write(c, text, piece)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%.60q: %v; want %s", text, err, want)
			}
			if _, again := c.Write([]byte("GET / HTTP/1.1\r\n\r\n")); again == nil {
				t.Errorf("%.60q: goes on", text)
			}
		}
	}
}

func TestHeadAtItsLimit(t *testing.T) {
	const around = len("GET / HTTP/1.1\r\nA: \r\n\r\n")
	for n, ok := range map[int]bool{MaxHead: true, MaxHead + 1: false} {
		err := write(New(new(sink), "b"), "GET / HTTP/1.1\r\nA: "+strings.Repeat("a", n-around)+"\r\n\r\n", 1000)
		if (err == nil) != ok {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestCheckHost(t *testing.T) {
	for host, ok := range map[string]bool{"cam.lan": true, "192.168.1.20:8080": true, "[::1]:80": true, "": false, "a b": false, "a\r\nX: y": false, "a/b": false, "a,b": false} {
		if err := CheckHost(host); (err == nil) != ok {
			t.Errorf("%q: %v", host, err)
		}
	}
}

// With a real client and server, over one connection.
func TestRealServer(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.RemoteAddr, r.Host, body)
	}))
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := New(conn, "cam.lan")
	br := bufio.NewReader(c)
	for i := range 5 {
		body := io.Reader(strings.NewReader(strings.Repeat("x", 1000*i)))
		if i%2 == 1 {
			body = io.MultiReader(body) // chunked
		}
		r := &http.Request{Method: "POST", URL: &url.URL{Path: "/"}, Host: "l4bel", Body: io.NopCloser(body), ContentLength: -1}
		if i%2 == 0 {
			r.ContentLength = int64(1000 * i)
		}
		if err := r.Write(c); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(br, r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		if want := fmt.Sprintf("%s cam.lan %s", conn.LocalAddr(), strings.Repeat("x", 1000*i)); string(text) != want || err != nil {
			t.Errorf("%d: %.60q, %v", i, text, err)
		}
	}
}

// No cut of the bytes makes a difference, nothing panics, and what comes out is
// requests for the other host.
func FuzzConn(f *testing.F) {
	f.Add([]byte(twoRequests), uint8(7))
	f.Add([]byte("GET / HTTP/1.1\r\nUpgrade: a\r\n\r\nrest"), uint8(1))
	f.Fuzz(func(t *testing.T, text []byte, piece uint8) {
		whole, cut := new(sink), new(sink)
		wholeErr := write(New(whole, "b"), string(text), max(len(text), 1))
		cutErr := write(New(cut, "b"), string(text), int(piece)+1)
		if (wholeErr == nil) != (cutErr == nil) || wholeErr == nil && whole.String() != cut.String() {
			t.Fatalf("%q, %v and %q, %v", whole.String(), wholeErr, cut.String(), cutErr)
		}
		r, err := http.ReadRequest(bufio.NewReader(&whole.Buffer))
		if wholeErr == nil && err == nil && r.Host != "b" && !strings.Contains(r.RequestURI, "://") && r.Method != "CONNECT" {
			t.Errorf("%q: host %q", text, r.Host)
		}
	})
}
