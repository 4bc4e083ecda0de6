package roundtrip

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAnswers(t *testing.T) {
	long := strings.Repeat("0123456789", 10_000)
	for _, c := range []struct {
		name, text string
		body       string
		err        error
		ends       bool // the device closes its connection
	}{
		{"short", ok("hello"), "hello", nil, false},
		{"empty", ok(""), "", nil, false},
		{"long", ok(long), long, nil, false},
		{"cut", ok(long)[:5000], long[:5000-len("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")], io.ErrUnexpectedEOF, true},
		{"to the end", "HTTP/1.1 200 OK\r\n\r\n" + long, long, nil, true},
		{"to the end, empty", "HTTP/1.0 200 OK\r\n\r\n", "", nil, true},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n186A0\r\n" + long + "\r\n0\r\n\r\n", "abc" + long, nil, false},
		{"chunked, cut", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "abc", io.ErrUnexpectedEOF, true},
		{"chunked, cut in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nabc", "abc", io.ErrUnexpectedEOF, true},
		{"large header", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 60_000) + "\r\nContent-Length: 5\r\n\r\nhello", "hello", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, piece := range []int{1, 7, 4096, 1 << 20} {
				if piece < 100 && len(c.text) > 10_000 {
					continue
				}
				d := serve(t, func(_ int32, conn net.Conn, r *bufio.Reader) {
					for {
						if _, err := readRequest(r); err != nil {
							return
						}
						for text := c.text; text != ""; {
							n := min(piece, len(text))
							if _, err := io.WriteString(conn, text[:n]); err != nil {
								return
							}
							text = text[n:]
						}
						if c.ends {
							return
						}
					}
				})
				for range 2 {
					if _, body, err := d.get(request(t, "GET", nil)); body != c.body || !errors.Is(err, c.err) {
						t.Fatalf("in pieces of %d: %d bytes and %v, want %d and %v", piece, len(body), err, len(c.body), c.err)
					}
				}
				if n := d.dials.Load(); n != 1 && !c.ends {
					t.Errorf("in pieces of %d: %d connections", piece, n)
				}
			}
		})
	}
}

func TestBadAnswers(t *testing.T) {
	for name, text := range map[string]string{
		"garbage":           "garbage\r\n\r\n",
		"too long":          "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", MaxHead) + "\r\n\r\n",
		"too long, no line": strings.Repeat("x", MaxHead),
		"too many 1xx":      strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: "+strings.Repeat("x", 1000)+"\r\n\r\n", 70) + ok("late"),
		"bad chunk":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
		"endless trailer":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + strings.Repeat("x", 2*bufferSize),
	} {
		t.Run(name, func(t *testing.T) {
			gone := make(chan error, 1)
			d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
				readRequest(r)
				io.WriteString(c, text)
				_, err := io.Copy(io.Discard, c)
				gone <- errors.Join(err, io.EOF)
			})
			if res, body, err := d.get(request(t, "GET", nil)); !errors.As(err, new(*MalformedError)) {
				t.Errorf("%v %q %v", res, body, err)
			}
			wantGone(t, gone)
			if n := d.dials.Load(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func TestWithoutBody(t *testing.T) {
	for _, c := range []struct{ method, text string }{
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"},
		{"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"GET", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"},
	} {
		d := serve(t, answers(c.text))
		for range 3 {
			if _, body, err := d.get(request(t, c.method, nil)); body != "" || err != nil {
				t.Errorf("%s, %q: %q %v", c.method, c.text, body, err)
			}
		}
		if n := d.dials.Load(); n != 1 {
			t.Errorf("%s, %q: %d connections", c.method, c.text, n)
		}
	}
}

func TestInformational(t *testing.T) {
	d := serve(t, answers("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"+ok("hello")))
	var got []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		got = append(got, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	for range 2 {
		got = nil
		if _, body, err := d.get(request(t, "GET", nil).WithContext(ctx)); body != "hello" || err != nil {
			t.Fatalf("%q %v", body, err)
		}
		if !reflect.DeepEqual(got, []string{"103</a>", "102"}) {
			t.Errorf("%q", got)
		}
	}
	d.mustGet("hello") // nobody wants to know
	ctx = httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { return errTest }})
	if _, _, err := d.get(request(t, "GET", nil).WithContext(ctx)); !errors.Is(err, errTest) {
		t.Error(err)
	}
}

func TestUpgrade(t *testing.T) {
	d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
		readRequest(r)
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nfirst ")
		b, _ := io.ReadAll(r)
		c.Write(b)
	})
	r := request(t, "GET", nil)
	r.Header.Set("Connection", "Upgrade")
	r.Header.Set("Upgrade", "websocket")
	res, err := d.pool.RoundTrip(r, d.call())
	if err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	both := res.Body.(interface {
		io.ReadWriteCloser
		io.ReaderFrom
		CloseWrite() error
	})
	if n, err := both.ReadFrom(strings.NewReader("second ")); n != 7 || err != nil {
		t.Error(n, err)
	}
	pause(2 * patience) // what was set for the head must not end it
	io.WriteString(both, "third")
	if err := both.CloseWrite(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(both); string(b) != "first second third" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	both.Close()
	if n := d.pool.kept(); n != 0 {
		t.Errorf("%d connections are kept", n)
	}
}

// hang serves an answer's beginning and then nothing, and tells when its visitor is
// gone.
func hang(text string, gone chan<- error) func(int32, net.Conn, *bufio.Reader) {
	return func(_ int32, c net.Conn, r *bufio.Reader) {
		readRequest(r)
		io.WriteString(c, text)
		_, err := r.ReadByte()
		gone <- err
	}
}

func TestVisitorLeaves(t *testing.T) {
	for name, text := range map[string]string{
		"before the answer": "",
		"in the head":       "HTTP/1.1 200 OK\r\n",
		"in the body":       "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
		"in chunks":         "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
	} {
		for _, after := range []time.Duration{0, patience / 2, patience * 3 / 2} {
			for _, upload := range []bool{false, true} {
				t.Run(fmt.Sprint(name, after, upload), func(t *testing.T) {
					t.Parallel()
					gone := make(chan error, 1)
					d := serve(t, hang(text, gone))
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					r := request(t, "GET", nil)
					if upload {
						body, w := io.Pipe()
						defer w.Close()
						r = request(t, "POST", body)
					}
					time.AfterFunc(after+10*time.Millisecond, cancel)
					if _, _, err := d.get(r.WithContext(ctx)); !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					wantGone(t, gone)
				})
			}
		}
	}
}

func TestSilence(t *testing.T) {
	for _, timeout := range []time.Duration{patience / 2, patience * 3 / 2} {
		for _, text := range []string{"", "HTTP/1.1 200 OK\r\n"} {
			for _, body := range []string{"", "small", strings.Repeat("large", smallBody)} {
				t.Run(fmt.Sprint(timeout, len(text), len(body)), func(t *testing.T) {
					t.Parallel()
					gone := make(chan error, 1)
					d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
						readRequest(r)
						io.CopyN(io.Discard, r, int64(len(body)))
						io.WriteString(c, text)
						_, err := r.ReadByte()
						gone <- err
					})
					c := d.call()
					c.Timeout = timeout
					begun := time.Now()
					r := request(t, "GET", nil)
					if body != "" {
						r = request(t, "POST", strings.NewReader(body))
					}
					_, err := d.pool.RoundTrip(r, c)
					if took := time.Since(begun); !errors.Is(err, os.ErrDeadlineExceeded) || took < timeout {
						t.Errorf("%v after %v", err, took)
					}
					wantGone(t, gone)
				})
			}
		}
	}
	t.Run("an answer that lasts", func(t *testing.T) {
		d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
			readRequest(r)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
			for _, b := range []byte("hello") {
				pause(patience / 2)
				c.Write([]byte{b})
			}
		})
		c := d.call()
		c.Timeout = patience
		res, err := d.pool.RoundTrip(request(t, "GET", nil), c)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Body); string(b) != "hello" || err != nil {
			t.Errorf("%q %v", b, err)
		}
	})
	t.Run("a kept connection", func(t *testing.T) { // is not asked again
		d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
			readRequest(r)
			io.WriteString(c, ok("hello"))
			readRequest(r)
			r.ReadByte()
		})
		d.mustGet("hello")
		c := d.call()
		c.Timeout = patience / 2
		if _, err := d.pool.RoundTrip(request(t, "GET", nil), c); !errors.Is(err, os.ErrDeadlineExceeded) || d.dials.Load() != 1 {
			t.Errorf("%v after %d connections", err, d.dials.Load())
		}
	})
}

// TestBodyClosed closes bodies in all states: what has not been read takes its
// connection along.
func TestBodyClosed(t *testing.T) {
	gone := make(chan error, 1)
	d := serve(t, hang("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", gone))
	res, err := d.pool.RoundTrip(request(t, "GET", nil), d.call())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	wantGone(t, gone)
	if n, err := res.Body.Read(make([]byte, 10)); n != 0 || err != http.ErrBodyReadAfterClose {
		t.Error(n, err)
	}

	d = serve(t, hang("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", gone))
	if res, err = d.pool.RoundTrip(request(t, "GET", nil), d.call()); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { // ends with the body
		_, err := io.ReadAll(res.Body)
		read <- err
	}()
	pause(10 * time.Millisecond) // in the middle, as far as one can tell
	res.Body.Close()
	if err := <-read; err == nil {
		t.Error("half a body looks whole")
	}
	res.Body.Close()
	wantGone(t, gone)

	d = serve(t, answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
	for range 3 { // all of it is there: it need not be read
		if res, err = d.pool.RoundTrip(request(t, "GET", nil), d.call()); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	d = serve(t, answers(ok("hello")))
	for range 3 {
		if res, err = d.pool.RoundTrip(request(t, "GET", nil), d.call()); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if _, err := res.Body.Read(make([]byte, 10)); err != http.ErrBodyReadAfterClose {
			t.Error(err)
		}
	}
	if n := d.dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestAgain(t *testing.T) {
	for _, c := range []struct {
		name   string
		broken int32 // connections that end without an answer
		again  bool
		method string
		ok     bool
		dials  int32
	}{
		{"none", 0, true, "GET", true, 1},
		{"not wanted", 1, false, "GET", false, 1},
		{"once", 1, true, "GET", true, 2},
		{"always", 100, true, "GET", false, maxTries},
		{"with a body", 1, true, "POST", false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := serve(t, func(n int32, conn net.Conn, r *bufio.Reader) {
				readRequest(r)
				if n > c.broken {
					io.WriteString(conn, ok("hello"))
				}
			})
			d.again = func(r *http.Request, body bool, err error) bool {
				return c.again && errors.Is(err, io.EOF) && !body && r.Method == "GET"
			}
			r := request(t, c.method, nil)
			if c.method == "POST" {
				r = request(t, c.method, strings.NewReader("body"))
			}
			res, err := d.pool.RoundTrip(r, d.call())
			if (err == nil) != c.ok || d.dials.Load() != c.dials {
				t.Errorf("%v after %d connections", err, d.dials.Load())
			}
			if err == nil {
				res.Body.Close()
			}
		})
	}
	for _, body := range []string{"small", strings.Repeat("large", smallBody)} { // nothing of which has left
		d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
			readRequest(r)
			b := make([]byte, len(body))
			if _, err := io.ReadFull(r, b); err == nil && string(b) == body {
				io.WriteString(c, ok("hello"))
			}
		})
		first := true
		d.wrap = func(c net.Conn) net.Conn {
			if first {
				first = false
				return deafConn{c}
			}
			return c
		}
		d.again = func(_ *http.Request, body bool, err error) bool { return body && errors.Is(err, errTest) }
		if _, got, err := d.get(request(t, "POST", strings.NewReader(body))); got != "hello" || err != nil {
			t.Errorf("%.5s: %q %v", body, got, err)
		}
	}
	d := serve(t, answers(ok("hello")))
	d.fail = func(int32) error { return errTest }
	if _, _, err := d.get(request(t, "GET", nil)); err != errTest || d.dials.Load() != 1 {
		t.Errorf("%v after %d connections", err, d.dials.Load())
	}
}

// TestTLS has deadlines come and go in the middle of TLS records.
func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	server.Close()
	step := make(chan bool)
	d := serve(t, func(_ int32, c net.Conn, _ *bufio.Reader) {
		c = tls.Server(c, &tls.Config{Certificates: server.TLS.Certificates})
		r := bufio.NewReader(c)
		for {
			if _, err := readRequest(r); err != nil {
				return
			}
			for _, text := range []string{"HTTP/1.1 200 OK\r\n", "Content-Length: 5\r\n\r\n", "he", "llo"} {
				<-step
				io.WriteString(c, text)
			}
		}
	})
	d.wrap = func(c net.Conn) net.Conn { return tls.Client(c, &tls.Config{InsecureSkipVerify: true}) }
	for range 3 {
		go func() { // ends with the answer
			for range 4 {
				pause(patience * 3 / 2)
				step <- true
			}
		}()
		d.mustGet("hello")
		eventually(t, "it is watched", func() bool { return d.pool.waited() == 1 })
	}
	if n := d.dials.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// deafConn takes nothing.
type deafConn struct{ net.Conn }

func (deafConn) Write([]byte) (int, error) { return 0, errTest }
