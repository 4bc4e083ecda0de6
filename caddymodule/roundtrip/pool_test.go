package roundtrip

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestKept(t *testing.T) {
	d := serve(t, answers(ok("hello")))
	for range 5 {
		d.mustGet("hello")
	}
	if n := d.dials.Load(); n != 1 {
		t.Errorf("%d connections for requests one after the other", n)
	}
	for range 3 { // somebody waits for the connection to end, and lets it go
		eventually(t, "idle connections are watched", func() bool { return d.pool.waited() == 1 })
		d.mustGet("hello")
	}
	if n := d.dials.Load(); n != 1 {
		t.Errorf("%d connections with pauses in between", n)
	}
	other := d.call()
	other.Port = 81
	if res, err := d.pool.RoundTrip(request(t, "GET", nil), other); err != nil {
		t.Error(err)
	} else if res.Body.Close(); d.dials.Load() != 2 {
		t.Error("the connection to one port served another")
	}
	alone := d.call()
	alone.Alone = true
	if res, err := d.pool.RoundTrip(request(t, "GET", nil), alone); err != nil {
		t.Error(err)
	} else if res.Body.Close(); d.dials.Load() != 3 || d.pool.kept() != 2 {
		t.Errorf("%d connections, %d of them kept", d.dials.Load(), d.pool.kept())
	}
}

func TestNotKept(t *testing.T) {
	for name, text := range map[string]string{
		"close":                 "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
		"1.0":                   "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"more than was said":    ok("hello") + "!",
		"another answer":        ok("hello") + ok("evil"),
		"chunked and length":    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"more behind chunks":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\r\n",
		"more behind a trailer": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: 1\r\n\r\n0",
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, answers(text))
			for range 3 {
				d.mustGet("hello")
			}
			if n := d.dials.Load(); n != 3 {
				t.Errorf("%d connections, want 3", n)
			}
		})
	}
}

// TestStale has a device close its connections, or say what nobody asked for, while
// they are idle: nobody notices.
func TestStale(t *testing.T) {
	for name, last := range map[string]string{"closed": "", "too much": "late", "an answer": ok("evil")} {
		t.Run(name, func(t *testing.T) {
			next := make(chan bool)
			d := serve(t, func(n int32, c net.Conn, r *bufio.Reader) {
				readRequest(r)
				io.WriteString(c, ok("hello"))
				<-next
				io.WriteString(c, last)
				if last != "" {
					r.ReadByte() // until the edge closes
				}
			})
			d.mustGet("hello")
			eventually(t, "it is watched", func() bool { return d.pool.waited() == 1 })
			next <- true
			eventually(t, "it is dropped", func() bool { return d.pool.kept() == 0 })
			d.mustGet("hello")
			close(next)
		})
	}
}

// TestEndsWithRequest has a kept connection end when it is used: the request is
// sent again on a new one.
func TestEndsWithRequest(t *testing.T) {
	for name, last := range map[string]string{
		"nothing":              "",
		"the rest of the last": "<html>a body where none should be</html>",
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, func(n int32, c net.Conn, r *bufio.Reader) {
				readRequest(r)
				io.WriteString(c, ok("hello"))
				readRequest(r)
				io.WriteString(c, last)
			})
			for range 3 {
				d.mustGet("hello")
			}
		})
	}
	t.Run("half an answer", func(t *testing.T) {
		d := serve(t, func(n int32, c net.Conn, r *bufio.Reader) {
			readRequest(r)
			io.WriteString(c, ok("hello"))
			readRequest(r)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-")
		})
		d.mustGet("hello")
		if _, _, err := d.get(request(t, "GET", nil)); err == nil || d.dials.Load() != 1 {
			t.Errorf("%v after %d connections", err, d.dials.Load())
		}
	})
}

// quietConn knows whether something has come.
type quietConn struct {
	net.Conn
	loud *bool
}

func (c quietConn) Quiet() bool { return !*c.loud }

func TestQuiet(t *testing.T) {
	d := serve(t, answers(ok("hello")))
	var loud bool
	d.wrap = func(c net.Conn) net.Conn { return quietConn{c, &loud} }
	d.mustGet("hello")
	d.mustGet("hello")
	if n := d.dials.Load(); n != 1 {
		t.Fatalf("%d connections", n)
	}
	loud = true
	d.mustGet("hello")
	if n := d.dials.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// aheadConn has read more than it gives, as TLS does.
type aheadConn struct {
	net.Conn
	most int
	rest []byte
}

func (c *aheadConn) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		b := make([]byte, 1000)
		n, err := c.Conn.Read(b)
		if err != nil {
			return 0, err
		}
		c.rest = b[:n]
	}
	n := copy(p[:min(len(p), c.most)], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (*aheadConn) Quiet() bool { return true } // as far as the connection below goes

func TestReadAhead(t *testing.T) {
	d := serve(t, answers(ok("hello")+ok("evil!")))
	d.wrap = func(c net.Conn) net.Conn { return &aheadConn{Conn: c, most: len(ok("hello"))} }
	for range 3 {
		d.mustGet("hello")
	}
	if n := d.dials.Load(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

func TestIdleTime(t *testing.T) {
	gone := make(chan error, 1)
	d := serve(t, func(n int32, c net.Conn, r *bufio.Reader) {
		readRequest(r)
		io.WriteString(c, ok("hello"))
		_, err := r.ReadByte()
		gone <- err
	})
	d.pool.idleTime = 50 * time.Millisecond
	d.mustGet("hello")
	wantGone(t, gone)
	if n := d.pool.kept(); n != 0 {
		t.Errorf("%d are kept", n)
	}
}

func TestPoolIsFull(t *testing.T) {
	release := make(chan bool)
	d := serve(t, func(n int32, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := readRequest(r); err != nil {
				return
			}
			<-release
			io.WriteString(c, ok("hello"))
		}
	})
	d.pool.Max = 2
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { d.mustGet("hello") })
	}
	for range 4 {
		release <- true
	}
	wg.Wait()
	if n := d.pool.kept(); n != 2 {
		t.Errorf("%d are kept, want 2", n)
	}
	d.pool.CloseIdle()
	if n := d.pool.kept(); n != 0 {
		t.Errorf("%d are kept", n)
	}
	close(release)
	d.mustGet("hello")
	if n := d.pool.kept(); n != 1 {
		t.Errorf("%d are kept after room was made, want 1", n)
	}
	d.pool.Close()
	d.mustGet("hello")
	if n := d.pool.kept(); n != 0 {
		t.Errorf("%d are kept by a closed pool", n)
	}
}

// TestManyVisitors compares the answers of a real server with what was asked for,
// under load, while connections come and go.
func TestManyVisitors(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		text := r.URL.RawQuery + string(body)
		switch n := len(text) % 5; {
		case r.Method == "HEAD" || n == 0:
			w.Header().Set("X-Text", text)
			w.WriteHeader(204)
		case n == 1:
			fmt.Fprint(w, text)
			http.NewResponseController(w).Flush()
			fmt.Fprint(w, text)
			w.Header().Set(http.TrailerPrefix+"X-Text", text[:5])
		case n == 2:
			w.Header().Set("Connection", "close")
			fmt.Fprint(w, text)
		case n == 3:
			panic(http.ErrAbortHandler)
		default:
			fmt.Fprint(w, strings.Repeat(text, 100))
		}
	}))
	defer server.Close()
	d := &device{t: t, l: server.Listener, pool: NewPool(8)}
	defer d.pool.Close()
	var wg sync.WaitGroup
	for visitor := range 16 {
		wg.Go(func() {
			for i := range 100 {
				query := fmt.Sprintf("%d-%d-%s", visitor, i, strings.Repeat("q", i%7))
				method, body := "GET", ""
				switch i % 10 {
				case 3:
					method, body = "POST", strings.Repeat("b", i*i*3)
				case 4:
					method = "HEAD"
				}
				r := request(t, method, strings.NewReader(body))
				r.URL.RawQuery = query
				text := query + body
				res, got, err := d.get(r)
				if err != nil {
					if len(text)%5 != 3 || method == "HEAD" {
						t.Errorf("%s %s: %v", method, query, err)
					}
					continue
				}
				want := text
				switch n := len(text) % 5; {
				case method == "HEAD" || n == 0:
					want = ""
					if res.Header.Get("X-Text") != text {
						t.Errorf("%s %s: %v", method, query, res.Header)
					}
				case n == 1:
					want += text
					if res.Trailer.Get("X-Text") != text[:5] {
						t.Errorf("%s %s: trailer %v", method, query, res.Trailer)
					}
				case n == 4:
					want = strings.Repeat(text, 100)
				}
				if got != want {
					t.Errorf("%s %s: %d bytes, want %d", method, query, len(got), len(want))
				}
			}
		})
	}
	wg.Wait()
}

// TestAllocations bounds what a request costs that is served on a kept connection.
func TestAllocations(t *testing.T) {
	answer := []byte("HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000))
	d := serve(t, func(_ int32, c net.Conn, r *bufio.Reader) {
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == 2 {
				c.Write(answer)
			}
		}
	})
	r := request(t, "GET", nil)
	r.Header.Set("Accept", "*/*")
	p := make([]byte, 2000)
	n := testing.AllocsPerRun(1000, func() {
		res, err := d.pool.RoundTrip(r, d.call())
		if err != nil {
			t.Fatal(err)
		}
		if n, err := res.Body.Read(p); n != 1000 || err != io.EOF {
			t.Fatal(n, err)
		}
		res.Body.Close()
	})
	// The text of the head, its map in two pieces, its values, the answer.
	if n > 5 {
		t.Errorf("%v allocations, want 5", n)
	}
}
