package caddymodule

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/agent"
)

// visitor is a visitor's HTTP/1.1 connection.
type visitor struct {
	net.Conn
	r *bufio.Reader
}

func (f *fixture) visitor() *visitor {
	f.t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(testWait))
	return &visitor{c, bufio.NewReader(c)}
}

// mustAnswer reads the head of an answer.
func (v *visitor) mustAnswer(t *testing.T, status int) *http.Response {
	t.Helper()
	res, err := http.ReadResponse(v.r, nil)
	if err != nil || res.StatusCode != status {
		t.Fatalf("%v %v, want %d", res, err, status)
	}
	return res
}

// TestAnswerDuringUpload has a device answer while the visitor goes on sending.
func TestAnswerDuringUpload(t *testing.T) {
	f := start(t, config{})
	got := make(chan string, 1)
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		first := make([]byte, 5)
		io.ReadFull(r.Body, first)
		w.Write(first)
		rc.Flush()
		b, err := io.ReadAll(r.Body)
		got <- fmt.Sprintf("%q %v", b, err)
		w.Write(b)
	}))
	pieces := map[string][3]string{ // head, first piece, the rest
		"chunked": {"Transfer-Encoding: chunked", "5\r\nfirst\r\n", "4\r\nlast\r\n0\r\n\r\n"},
		"large":   {"Content-Length: 600005", "first", strings.Repeat("x", 600000)},
	}
	for name, p := range pieces {
		t.Run(name, func(t *testing.T) {
			v := f.visitor()
			fmt.Fprintf(v, "POST / HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n%s", d.up.Hostname, p[0], p[1])
			res := v.mustAnswer(t, 200)
			if !res.Close {
				t.Error("the connection is to be used again, in the middle of a body")
			}
			first := make([]byte, 5)
			if _, err := io.ReadFull(res.Body, first); err != nil {
				t.Fatal(err)
			}
			io.WriteString(v, p[2])
			rest := strings.TrimSuffix(strings.TrimPrefix(p[2], "4\r\n"), "\r\n0\r\n\r\n")
			if s := <-got; s != fmt.Sprintf("%q <nil>", rest) {
				t.Errorf("the device read %.99s", s)
			}
			if b, err := io.ReadAll(res.Body); string(b) != rest || err != nil {
				t.Errorf("the visitor read %.99q %v", b, err)
			}
		})
	}
	t.Run("cut", func(t *testing.T) {
		v := f.visitor()
		fmt.Fprintf(v, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", d.up.Hostname)
		v.mustAnswer(t, 200)
		v.Close()
		if s := <-got; strings.HasSuffix(s, "<nil>") {
			t.Errorf("the device read %s of a body that was cut", s)
		}
	})
}

// TestVisitorConnectionGoesOn sends requests with bodies on one connection: it goes
// on unless the device answers without having read the body.
func TestVisitorConnectionGoesOn(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	}))
	large := strings.Repeat("x", 100_000)
	v := f.visitor()
	for range 3 {
		for _, body := range []string{
			"Content-Length: 5\r\n\r\nhello",
			"Content-Length: 100000\r\n\r\n" + large,
			"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			"Transfer-Encoding: chunked\r\n\r\n186a0\r\n" + large + "\r\n0\r\n\r\n",
		} {
			fmt.Fprintf(v, "POST / HTTP/1.1\r\nHost: %s\r\n%s", d.up.Hostname, body)
			res := v.mustAnswer(t, 200)
			b, err := io.ReadAll(res.Body)
			if err != nil || res.Close || !strings.HasSuffix(string(b), "<nil>") {
				t.Fatalf("%q %v, to be closed: %t", b, err, res.Close)
			}
		}
	}
	// The device has answered, and the rest of the body looks like a request.
	fmt.Fprintf(v, "POST /early HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", d.up.Hostname)
	res := v.mustAnswer(t, 413)
	if _, err := io.ReadAll(res.Body); err != nil || !res.Close {
		t.Errorf("early answer: %v, to be closed: %t", err, res.Close)
	}
	io.WriteString(v, "GET / HTTP/1.1\r\nHost: "+d.up.Hostname+"\r\n\r\n")
	if b, _ := io.ReadAll(v.r); len(b) > 0 {
		t.Errorf("what is behind the early answer was answered: %q", b)
	}
}

// TestRefusedBeforeBody has a visitor keep its body back, and a device that cannot
// reach its service: the answer does not wait for the body.
func TestRefusedBeforeBody(t *testing.T) {
	f := start(t, config{app: "wait 0s"})
	unused, _ := agent.Listen(80, agent.HTTP)
	d := f.connectForward("cam-1", testSite(), unused, agent.Forward{
		Port: 80, Kind: agent.HTTP,
		Dial: func(context.Context) (net.Conn, error) { return nil, errors.New("refused") },
	})
	for _, head := range []string{"GET / HTTP/1.1\r\nTransfer-Encoding: chunked", "POST / HTTP/1.1\r\nContent-Length: 100000"} {
		v := f.visitor()
		fmt.Fprintf(v, "%s\r\nHost: %s\r\n\r\n", head, d.up.Hostname)
		if res := v.mustAnswer(t, 502); !res.Close {
			t.Error("the connection is to be used again, in the middle of a body")
		}
	}
}
