package roundtrip

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// echoes answers with the request: its head, and what is behind it up to an end.
func echoes(end string) func(int32, net.Conn, *bufio.Reader) {
	return func(_ int32, c net.Conn, r *bufio.Reader) {
		var b strings.Builder
		for !strings.HasSuffix(b.String(), end) {
			one, err := r.ReadByte()
			if err != nil {
				return
			}
			b.WriteByte(one)
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"+b.String())
	}
}

func TestRequests(t *testing.T) {
	const head = " /a?b HTTP/1.1\r\nHost: cam.example\r\n"
	large := strings.Repeat("large", smallBody) + "!"
	slowly := func(s string) io.Reader { return iotest.OneByteReader(strings.NewReader(s)) }
	for _, c := range []struct {
		name, method string
		body         io.Reader
		length       int64
		header       http.Header
		trailer      http.Header
		want         string
	}{
		{"GET", "GET", nil, 0, nil, nil, "GET" + head + "\r\n"},
		{"default", "", nil, 0, nil, nil, "GET" + head + "\r\n"},
		{"empty POST", "POST", nil, 0, nil, nil, "POST" + head + "Content-Length: 0\r\nConnection: close\r\n\r\n"},
		{"empty DELETE", "DELETE", nil, 0, nil, nil, "DELETE" + head + "Connection: close\r\n\r\n"},
		{
			"header", "GET", nil, 0,
			http.Header{"Content-Length": {"7"}, "Transfer-Encoding": {"x"}, "Host": {"evil"}, "Trailer": {"x"}, "User-Agent": {""}, "X-A": {"1", "2"}},
			nil, "GET" + head + "X-A: 1\r\nX-A: 2\r\n\r\n",
		},
		{"user agent", "GET", nil, 0, http.Header{"User-Agent": {"curl"}}, nil, "GET" + head + "User-Agent: curl\r\n\r\n"},
		{"upgrade", "DELETE", nil, 0, http.Header{"Connection": {"Upgrade"}}, nil, "DELETE" + head + "Connection: Upgrade\r\n\r\n"},
		{"small body", "PUT", slowly("body!"), 5, nil, nil, "PUT" + head + "Content-Length: 5\r\nConnection: close\r\n\r\nbody!"},
		{"large body", "PUT", strings.NewReader(large), int64(len(large)), nil, nil, "PUT" + head + "Content-Length: 20481\r\nConnection: close\r\n\r\n" + large},
		{"chunks", "POST", slowly("abc"), -1, nil, nil, "POST" + head + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"},
		{"no chunks", "POST", strings.NewReader(""), -1, nil, nil, "POST" + head + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"},
		{
			"trailer", "POST", strings.NewReader("abc"), -1, nil,
			http.Header{"X-Sum": {"1"}, "Content-Length": {"3"}, "A": {"2"}},
			"POST" + head + "Transfer-Encoding: chunked\r\nTrailer: A,X-Sum\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n",
		},
		{"GET with a body", "GET", strings.NewReader("abc"), -1, nil, nil, "GET" + head + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"},
		{"GET without one after all", "GET", iotest.DataErrReader(strings.NewReader("")), -1, nil, nil, "GET" + head + "\r\n"},
		{"not said, small", "PUT", strings.NewReader("abc"), 0, nil, nil, "PUT" + head + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			end := c.want
			if c.trailer != nil {
				end = "\r\n\r\n"
			}
			d := serve(t, echoes(end[max(0, len(end)-20):]))
			r := request(t, c.method, nil)
			r.Method, r.ContentLength = c.method, c.length
			if c.body != nil {
				r.Body = io.NopCloser(c.body)
			}
			if c.header != nil {
				r.Header = c.header
			}
			r.Trailer = c.trailer
			if c.trailer != nil {
				d = serve(t, func(_ int32, conn net.Conn, br *bufio.Reader) {
					first, _ := readRequest(br)
					second, _ := readRequest(br)
					io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"+first+second)
				})
			}
			call := d.call()
			call.Alone = c.method != "" && c.method != "GET"
			res, err := d.pool.RoundTrip(r, call)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			got := string(b)
			if c.trailer != nil {
				got, _, _ = strings.Cut(got, "0\r\n")
				got += "0\r\n"
			}
			if got != c.want || err != nil {
				t.Errorf("%q %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestRequestsThatCannotBeSent(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"method":       func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\nX:" },
		"host":         func(r *http.Request) { r.Host = "a\r\nX: y" },
		"no host":      func(r *http.Request) { r.Host, r.URL.Host = "", "" },
		"query":        func(r *http.Request) { r.URL.RawQuery = "a b" },
		"query, LF":    func(r *http.Request) { r.URL.RawQuery = "a\nb" },
		"header name":  func(r *http.Request) { r.Header["X\r\nY"] = []string{"z"} },
		"header space": func(r *http.Request) { r.Header["X Y"] = []string{"z"} },
		"header value": func(r *http.Request) { r.Header["X"] = []string{"z\r\nY: z"} },
		"user agent":   func(r *http.Request) { r.Header["User-Agent"] = []string{"z\nY: z"} },
		"trailer name": func(r *http.Request) { r.Trailer = http.Header{"X\n": nil}; r.ContentLength = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, answers(ok("")))
			body := &closed{Reader: strings.NewReader("x")}
			r := request(t, "POST", body)
			r.ContentLength = 1
			r.Body = body
			change(r)
			if _, _, err := d.get(r); err == nil || d.dials.Load() != 0 || !body.is {
				t.Errorf("%v, %d connections, body closed: %t", err, d.dials.Load(), body.is)
			}
		})
	}
	d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
		_, err := io.Copy(io.Discard, r)
		_ = err
	})
	r := request(t, "POST", nil)
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("abc")), -1
	r.Trailer = http.Header{"X": {"a\r\nb"}}
	if _, _, err := d.get(r); err == nil {
		t.Error("a bad trailer was sent")
	}
}

type closed struct {
	io.Reader
	is bool
}

func (c *closed) Close() error { c.is = true; return nil }

// TestEarlyAnswer answers before the body is there.
func TestEarlyAnswer(t *testing.T) {
	gone := make(chan error, 1)
	d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
		readRequest(r)
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nhello")
		_, err := io.Copy(io.Discard, r)
		gone <- errors.Join(err, io.EOF)
	})
	body, w := io.Pipe()
	defer w.Close()
	res, got, err := d.get(request(t, "POST", body))
	if err != nil || res.StatusCode != 413 || got != "hello" {
		t.Errorf("%v %q %v", res, got, err)
	}
	wantGone(t, gone)
	// The same, with a device that closes at once while the body is on its way.
	d = serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
		readRequest(r)
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nhello")
		c.(*net.TCPConn).CloseWrite()
		io.CopyN(io.Discard, r, 1<<20)
	})
	res, got, err = d.get(request(t, "POST", io.LimitReader(endless{}, 10<<20)))
	if err != nil || res.StatusCode != 413 || got != "hello" {
		t.Errorf("%v %q %v", res, got, err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestDuplex reads the answer while the body is being sent.
func TestDuplex(t *testing.T) {
	d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
		readRequest(r)
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		for {
			line, err := r.ReadString('\n')
			if line == "0\r\n" || err != nil {
				return
			}
			io.WriteString(c, line)
		}
	})
	body, w := io.Pipe()
	res, err := d.pool.RoundTrip(request(t, "POST", body), d.call())
	if err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(res.Body)
	for range 5 {
		io.WriteString(w, "ping")
		for _, want := range []string{"4\r\n", "ping\r\n"} {
			if line, err := answers.ReadString('\n'); line != want || err != nil {
				t.Fatalf("%q %v", line, err)
			}
		}
	}
	w.Close()
	if b, err := io.ReadAll(answers); len(b) != 0 || err != nil {
		t.Errorf("%q %v", b, err)
	}
	res.Body.Close()
}

func TestVisitorFails(t *testing.T) {
	for name, length := range map[string]int64{"small": 100, "large": 100_000, "chunked": -1} {
		for _, reason := range []error{errTest, io.EOF} {
			if length < 0 && reason == io.EOF {
				continue
			}
			t.Run(name+reason.Error(), func(t *testing.T) {
				gone := make(chan error, 1)
				d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
					head, _ := readRequest(r)
					_, err := io.Copy(io.Discard, r)
					if head == "" {
						err = io.EOF
					}
					gone <- errors.Join(err, io.EOF)
				})
				r := request(t, "POST", nil)
				r.Body = io.NopCloser(io.MultiReader(strings.NewReader("begun"), iotest.ErrReader(reason)))
				r.ContentLength = length
				if _, _, err := d.get(r); !errors.As(err, new(*BodyError)) {
					t.Error(err)
				}
				if length != 100 {
					wantGone(t, gone)
				} else if n := d.dials.Load(); n != 0 {
					t.Errorf("%d connections", n)
				}
			})
		}
	}
}

func TestContinue(t *testing.T) {
	post := func() *http.Request {
		r := request(t, "POST", strings.NewReader("hello"))
		r.Header.Set("Expect", "100-continue")
		return r
	}
	body := make([]byte, 5)
	for name, first := range map[string]string{"asked": "HTTP/1.1 100 Continue\r\n\r\n", "not asked": ""} {
		t.Run(name, func(t *testing.T) {
			var early int
			d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
				head, _ := readRequest(r)
				early = r.Buffered()
				io.WriteString(c, first)
				if _, err := io.ReadFull(r, body); err == nil && strings.Contains(head, "Expect: 100-continue\r\n") {
					io.WriteString(c, ok(string(body)))
				}
			})
			begun := time.Now()
			_, got, err := d.get(post())
			took := time.Since(begun)
			if got != "hello" || err != nil || early != 0 || (took >= continueWait) != (first == "") {
				t.Errorf("%q %v after %v, %d bytes too early", got, err, took, early)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		rest := make(chan []byte, 1)
		d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
			readRequest(r)
			io.WriteString(c, "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
			b, _ := io.ReadAll(r)
			rest <- b
		})
		res, _, err := d.get(post())
		if err != nil || res.StatusCode != 417 {
			t.Errorf("%v %v", res, err)
		}
		if b := <-rest; len(b) > 0 {
			t.Errorf("the body was sent all the same: %q", b)
		}
	})
}

// TestSlowProbe has a GET whose body is a long time coming.
func TestSlowProbe(t *testing.T) {
	d := serve(t, echoes("0\r\n\r\n"))
	body, w := io.Pipe()
	go func() { // ends with the body
		pause(2 * probeTime)
		io.WriteString(w, "late")
		w.Close()
	}()
	_, got, err := d.get(request(t, "GET", body))
	if err != nil || !strings.HasSuffix(got, "\r\n\r\n1\r\nl\r\n3\r\nate\r\n0\r\n\r\n") {
		t.Errorf("%q %v", got, err)
	}
}

// TestSwitchInRequest has a device switch protocols while the body is being sent.
func TestSwitchInRequest(t *testing.T) {
	gone := make(chan error, 1)
	d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
		readRequest(r)
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, err := io.Copy(io.Discard, r)
		gone <- errors.Join(err, io.EOF)
	})
	body, w := io.Pipe()
	defer w.Close()
	if _, _, err := d.get(request(t, "POST", body)); !errors.As(err, new(*MalformedError)) {
		t.Error(err)
	}
	wantGone(t, gone)
}
