package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestRequests sends what HTTP allows and wants the device's answer unchanged.
func TestRequests(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))

		t.Run("methods", func(t *testing.T) {
			for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} {
				body := "the body of " + method
				seen := echo(t, do(t, s.client, request(t, method, s.url("/echo?m="+method), strings.NewReader(body))))
				if seen.Method != method || seen.Bytes != int64(len(body)) || seen.URI != "/echo?m="+method {
					t.Errorf("%s reached the device as %s %s with %d bytes", method, seen.Method, seen.URI, seen.Bytes)
				}
			}
		})
		t.Run("HEAD", func(t *testing.T) {
			r := do(t, s.client, request(t, "HEAD", s.url("/bytes?n=12345"), nil))
			if r.StatusCode != 200 || r.ContentLength != 12345 || r.body != "" {
				t.Errorf("HEAD: %v, Content-Length %d", r, r.ContentLength)
			}
			s.mustServe(t) // on the same connection: nothing was left on it
		})
		t.Run("204", func(t *testing.T) {
			if r := s.get(t, "/status?code=204"); r.StatusCode != 204 || r.body != "" {
				t.Errorf("204: %v", r)
			}
			s.mustServe(t)
		})
		t.Run("304", func(t *testing.T) {
			r := s.get(t, "/etag")
			if r.StatusCode != 200 || r.Header.Get("ETag") != `"v1"` {
				t.Fatalf("first: %v", r)
			}
			if r := s.get(t, "/etag", "If-None-Match", r.Header.Get("ETag")); r.StatusCode != 304 || r.body != "" {
				t.Errorf("304: %v", r)
			}
			s.mustServe(t)
		})
		t.Run("the device's own errors", func(t *testing.T) {
			for _, code := range []int{400, 401, 404, 409, 500, 502, 503, 504} {
				r := s.get(t, fmt.Sprintf("/status?code=%d", code))
				if r.StatusCode != code || r.code() != "" || r.body != "" {
					t.Errorf("the device answered %d, the visitor got %v", code, r)
				}
			}
		})
		t.Run("chunked answer", func(t *testing.T) {
			r := s.get(t, "/chunked?n=5")
			if r.body != "piece 0\npiece 1\npiece 2\npiece 3\npiece 4\n" || r.ContentLength != -1 {
				t.Errorf("chunked: %v, Content-Length %d", r, r.ContentLength)
			}
		})
		t.Run("chunked body", func(t *testing.T) {
			body := io.MultiReader(harness.NewPattern(300_000)) // hides its length
			seen := echo(t, do(t, s.client, request(t, "POST", s.url("/sum"), body)))
			if seen.Bytes != 300_000 || seen.SHA256 != harness.PatternSum(300_000) || seen.Length != -1 {
				t.Errorf("the device read %d bytes, length %d", seen.Bytes, seen.Length)
			}
		})
		t.Run("trailers of the device", func(t *testing.T) {
			if lacks(k, "trailers") {
				return
			}
			r := s.get(t, "/trailers")
			if r.Trailer.Get("X-Sum") != "42" || r.Trailer.Get("X-Count") != "1" {
				t.Errorf("trailers: %v", r.Trailer)
			}
		})
		t.Run("trailers of the visitor", func(t *testing.T) {
			if lacks(k, "trailers") {
				return
			}
			req := request(t, "POST", s.url("/echo"), io.MultiReader(strings.NewReader("body")))
			req.Trailer = http.Header{"X-After": nil}
			req.Body = io.NopCloser(&atEnd{r: req.Body, f: func() { req.Trailer.Set("X-After", "sum") }})
			seen := echo(t, do(t, s.client, req))
			if seen.Bytes != 4 || seen.Trailer.Get("X-After") != "sum" {
				t.Errorf("the device read %d bytes and trailers %v", seen.Bytes, seen.Trailer)
			}
		})
		t.Run("a long query", func(t *testing.T) {
			query := strings.Repeat("q", 8000)
			if seen := echo(t, s.get(t, "/echo?"+query)); seen.URI != "/echo?"+query {
				t.Errorf("the device saw a query of %d bytes", len(seen.URI)-6)
			}
			// More than the edge takes, by hand: an HTTP/2 client would refuse to send it.
			resp := s.raw(t, "GET /echo?"+strings.Repeat("q", 100_000)+" HTTP/1.1\r\nHost: "+s.hostPort()+"\r\n\r\n")
			if resp.StatusCode != 431 && resp.StatusCode != 414 {
				t.Errorf("100 kB of query: status %d", resp.StatusCode)
			}
		})
		t.Run("odd paths", func(t *testing.T) {
			for _, path := range []string{"/echo?a=b&c=%2F%00%ff", "/echo?%7e;x=1&&", "/echo?a+b=c%20d"} {
				if seen := echo(t, s.get(t, path)); seen.URI != path {
					t.Errorf("%q reached the device as %q", path, seen.URI)
				}
			}
		})
		t.Run("large headers of the device", func(t *testing.T) {
			if r := s.get(t, "/headers?bytes=30000"); r.StatusCode != 200 || len(r.Header.Get("X-Filler")) != 30000 {
				t.Errorf("30 kB: status %d, %d bytes", r.StatusCode, len(r.Header.Get("X-Filler")))
			}
			if r := s.get(t, "/headers?bytes=200000"); r.StatusCode != 502 { // bound: 64 KiB
				t.Errorf("200 kB: status %d, Iottunnel-Error %q", r.StatusCode, r.code())
			}
			s.mustServe(t)
		})
		t.Run("an answer cut short", func(t *testing.T) {
			r, err := try(s.client, request(t, "GET", s.url("/early-close"), nil))
			if err == nil {
				t.Errorf("100000 bytes were promised, the visitor was told that %d are all", len(r.body))
			}
			s.mustServe(t)
		})
		t.Run("an answer reset", func(t *testing.T) {
			r, err := try(s.client, request(t, "GET", s.url("/reset"), nil))
			if err == nil {
				t.Errorf("the device reset its answer, the visitor was told that %d bytes are all: %d", len(r.body), r.StatusCode)
			}
			s.mustServe(t)
		})
		for _, path := range []string{"/garbage", "/no-answer"} {
			t.Run(path[1:], func(t *testing.T) {
				if r := s.get(t, path); r.StatusCode != 502 || r.code() == "" {
					t.Errorf("%v", r)
				}
				s.mustServe(t)
			})
		}
		t.Run("a visitor who leaves", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan error, 1)
			go func() { // ends with ctx
				_, err := try(s.client, request(t, "GET", s.url("/hang"), nil).WithContext(ctx))
				got <- err
			}()
			harness.Eventually(t, harness.VisitorTimeout, "the request reaches the device", func() error {
				if len(s.origin.Seen("/hang")) == 0 {
					return errors.New("not yet")
				}
				return nil
			})
			cancel()
			<-got
			s.origin.WaitGone(t, "/hang", 10*time.Second)
		})
	})
}

// atEnd calls f when r has ended.
type atEnd struct {
	r io.Reader
	f func()
}

func (a *atEnd) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if err == io.EOF && a.f != nil {
		a.f()
		a.f = nil
	}
	return n, err
}

// TestContinue sends a body only after the 100 that the device's reading causes,
// and none where the device refuses first. The bytes are written by hand, because
// clients send the body anyway after a while.
func TestContinue(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		dial := func(t *testing.T) (net.Conn, *bufio.Reader) {
			c, err := s.face.DialVisitor(t.Context(), s.host)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
			return c, bufio.NewReader(c)
		}
		head := func(path string) string {
			return "POST " + path + " HTTP/1.1\r\nHost: " + s.host + "\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
		}
		t.Run("accepted", func(t *testing.T) {
			c, r := dial(t)
			io.WriteString(c, head("/echo"))
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 100 {
				t.Fatalf("before the body: %v %v", resp, err)
			}
			io.WriteString(c, "hello")
			for err == nil && resp.StatusCode == 100 { // the device's own may follow the edge's
				resp, err = http.ReadResponse(r, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), `"Bytes":5`) {
				t.Fatalf("after the body: status %d, %s, %v", resp.StatusCode, body, err)
			}
		})
		t.Run("refused", func(t *testing.T) {
			if lacks(k, "waiting with 100") {
				return
			}
			c, r := dial(t)
			io.WriteString(c, head("/reject"))
			resp, err := http.ReadResponse(r, nil) // not a byte of the body has been sent
			if err != nil || resp.StatusCode != http.StatusExpectationFailed {
				t.Fatalf("the device refused with 417, the visitor got %v %v", resp, err)
			}
		})
	})
}

// TestServerSentEvents wants every event as it is sent, and the device told when
// the visitor leaves.
func TestServerSentEvents(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		feed := s.openFeed(t)
		if err := feed.want(20); err != nil {
			t.Fatal(err)
		}
		feed.body.Close()
		s.origin.WaitGone(t, "/sse", 10*time.Second)
	})
}

// TestWebSocket echoes messages of all sizes through a visitor's WebSocket.
func TestWebSocket(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		ws := s.openSocket(t)
		for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
			for _, kind := range []int{1, 2} {
				if err := echoes(ws, kind, strings.Repeat("w", n)); err != nil {
					t.Fatalf("%d bytes: %v", n, err)
				}
			}
		}
		ws.Close()
		s.origin.WaitGone(t, "/ws", 10*time.Second)
	})
}

// TestManySlowVisitors has 200 visitors wait on one device at once: each gets its
// own answer, and they wait together, not one after another.
func TestManySlowVisitors(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		const visitors, each = 200, 2 * time.Second
		began := time.Now()
		var wg sync.WaitGroup
		for i := range visitors {
			wg.Go(func() {
				c := harness.Visitor(t, s.face, true) // a connection each
				path := fmt.Sprintf("/slow?ms=%d&id=%d", each.Milliseconds(), i)
				r, err := try(c, request(t, "GET", s.url(path), nil))
				if err != nil || r.body != fmt.Sprintf("slow %d\n", i) {
					t.Errorf("visitor %d: %v %v", i, r, err)
				}
			})
		}
		wg.Wait()
		inTime(t, fmt.Sprintf("%d visitors of %v each at a time", visitors, each), time.Since(began), 20*each)
	})
}

// TestBusyDevice fills a device with visitors: one more waits for room, and is told
// so when there is none after a while.
func TestBusyDevice(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Own(t, k, harness.Setup{Limits: []string{"streams_per_device 4"}}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				c := harness.Visitor(t, s.face, true)
				try(c, request(t, "GET", s.url("/hang"), nil).WithContext(ctx)) // ends with ctx
			})
		}
		harness.Eventually(t, harness.VisitorTimeout, "4 visitors reach the device", func() error {
			if n := len(s.origin.Seen("/hang")); n != 4 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
		r := s.get(t, "/page", "Accept", "application/json")
		wantJSON(t, r, 503, "device_busy")
		inTime(t, "a visitor of a busy device is told", r.took, 20*time.Second)
		if r.took < 5*time.Second || r.Header.Get("Retry-After") == "" {
			t.Errorf("the fifth visitor waited %v, Retry-After %q", r.took, r.Header.Get("Retry-After"))
		}
		waiting := make(chan reply, 1)
		go func() { // ends with its timeout
			r, err := try(s.client, request(t, "GET", s.url("/page"), nil))
			if err != nil {
				t.Error(err)
			}
			waiting <- r
		}()
		cancel() // room again
		wg.Wait()
		if r := <-waiting; r.Response == nil || r.StatusCode != 200 {
			t.Errorf("the sixth visitor, who waited until there was room: %v", r)
		}
	})
}

// wholeVisit does with one client what visitors do: a page, a download, an upload,
// events, all over the protocol version that it wants.
func wholeVisit(t *testing.T, k harness.Kind, s *site, c *http.Client, major int) {
	t.Helper()
	s.client = c
	r := s.get(t, "/page")
	if r.ProtoMajor != major || r.StatusCode != 200 || !strings.Contains(r.body, "the device's page") {
		t.Fatalf("HTTP/%d: the page: %s, %v", major, r.Proto, r)
	}
	const n = 3 << 20
	resp, err := c.Do(request(t, "GET", s.url(fmt.Sprintf("/bytes?n=%d", n)), nil))
	if err != nil {
		t.Fatal(err)
	}
	got, sum, err := harness.Sum(resp.Body)
	resp.Body.Close()
	if err != nil || got != n || sum != harness.PatternSum(n) {
		t.Errorf("HTTP/%d: download of %d bytes: %d came, %v", major, n, got, err)
	}
	up := echo(t, do(t, c, request(t, "PUT", s.url("/sum"), harness.NewPattern(n))))
	if up.Bytes != n || up.SHA256 != harness.PatternSum(n) {
		t.Errorf("HTTP/%d: upload of %d bytes: %d came", major, n, up.Bytes)
	}
	if up.Proto != "HTTP/1.1" || up.Host != s.hostPort() {
		t.Errorf("HTTP/%d: the device saw %s, Host %q", major, up.Proto, up.Host)
	}
	if r := s.get(t, "/trailers"); !lacks(k, "trailers") && r.Trailer.Get("X-Sum") != "42" {
		t.Errorf("HTTP/%d: trailers %v", major, r.Trailer)
	}
	feed := s.openFeed(t)
	if err := feed.want(5); err != nil {
		t.Errorf("HTTP/%d: %v", major, err)
	}
	feed.body.Close()
	s.origin.WaitGone(t, "/sse", 10*time.Second)
}

func TestHTTP1(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		wholeVisit(t, k, s, harness.Visitor(t, s.face, true), 1)
	})
}

func TestHTTP2(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		wholeVisit(t, k, s, harness.Visitor(t, s.face, false), 2)
	})
}

// TestHTTP2Cleartext is a visitor with prior knowledge of h2c, such as a proxy in
// front of the edge.
func TestHTTP2Cleartext(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		transport := &http.Transport{
			Protocols: new(http.Protocols),
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, s.face.VisitorAddr())
			},
		}
		transport.Protocols.SetUnencryptedHTTP2(true)
		t.Cleanup(transport.CloseIdleConnections)
		wholeVisit(t, k, s, &http.Client{Transport: transport, Timeout: harness.VisitorTimeout}, 2)
	})
}

func TestHTTP3(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		transport := &http3.Transport{TLSClientConfig: s.face.VisitorTLS()}
		transport.Dial = dialQUIC(s.face.VisitorAddr())
		t.Cleanup(func() { transport.Close() })
		wholeVisit(t, k, s, &http.Client{Transport: transport, Timeout: harness.VisitorTimeout}, 3)
	})
}
