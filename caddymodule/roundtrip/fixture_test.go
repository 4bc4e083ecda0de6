package roundtrip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testWait = 10 * time.Second

// device is a listener whose connections are served by a script, one after the
// other told apart by a number that counts from 1.
type device struct {
	t     *testing.T
	l     net.Listener
	pool  *Pool
	dials atomic.Int32
	fail  func(n int32) error // of dial n; nil: none
	again func(r *http.Request, body bool, err error) bool
	wrap  func(net.Conn) net.Conn
	wg    sync.WaitGroup
	mu    sync.Mutex // guards open
	open  []net.Conn
}

// serve starts a device. script ends a connection by returning.
func serve(t *testing.T, script func(n int32, c net.Conn, r *bufio.Reader)) *device {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, l: l, pool: NewPool(16)}
	d.wg.Go(func() {
		for n := int32(1); ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.open = append(d.open, c)
			d.mu.Unlock()
			d.wg.Go(func() {
				defer c.Close()
				script(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		d.pool.Close()
		l.Close()
		d.mu.Lock()
		for _, c := range d.open {
			c.Close()
		}
		d.mu.Unlock()
		d.wg.Wait()
	})
	return d
}

// Dial implements Dialer.
func (d *device) Dial(ctx context.Context) (net.Conn, error) {
	n := d.dials.Add(1)
	if d.fail != nil {
		if err := d.fail(n); err != nil {
			return nil, err
		}
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", d.l.Addr().String())
	if err != nil {
		return nil, err
	}
	if d.wrap != nil {
		c = d.wrap(c)
	}
	return c, nil
}

// Again implements Dialer.
func (d *device) Again(r *http.Request, body bool, err error) bool {
	return d.again != nil && d.again(r, body, err)
}

func (d *device) call() Call { return Call{Dialer: d, Timeout: testWait} }

func request(t *testing.T, method string, body io.Reader) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/a?b", body)
	r.Host = "cam.example"
	r.RequestURI = ""
	return r
}

// get sends a request and reads all of the answer.
func (d *device) get(r *http.Request) (res *http.Response, body string, err error) {
	d.t.Helper()
	res, err = d.pool.RoundTrip(r, d.call())
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	return res, string(b), err
}

func (d *device) mustGet(want string) {
	d.t.Helper()
	res, body, err := d.get(request(d.t, "GET", nil))
	if err != nil || res.StatusCode != 200 || body != want {
		d.t.Fatalf("%+v %q %v, want %q", res, body, err, want)
	}
}

// readRequest reads one request, and returns its head.
func readRequest(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		b.WriteString(line)
		if err != nil || line == "\r\n" {
			return b.String(), err
		}
	}
}

// answers serves each request of a connection with text.
func answers(text string) func(int32, net.Conn, *bufio.Reader) {
	return func(_ int32, c net.Conn, r *bufio.Reader) {
		for {
			if _, err := readRequest(r); err != nil {
				return
			}
			io.WriteString(c, text)
		}
	}
}

// eventually waits for what happens in another goroutine.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testWait); !f(); {
		if time.Now().After(deadline) {
			t.Fatal(what + ": never")
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *Pool) kept() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// waited is how many of them somebody waits for.
func (p *Pool) waited() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range p.idle {
		for _, c := range list {
			if c.watched != nil {
				n++
			}
		}
	}
	return n
}

// wantGone fails the test unless the device reads that its visitor is gone.
func wantGone(t *testing.T, gone <-chan error) {
	t.Helper()
	select {
	case err := <-gone:
		if err == nil {
			t.Error("the device's connection goes on")
		}
	case <-time.After(testWait):
		t.Error("the device was not told")
	}
}

var errTest = errors.New("test")

func ok(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// pause lets time pass where that is the subject: a device that takes its time.
func pause(d time.Duration) { <-time.After(d) }
