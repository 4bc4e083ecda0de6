package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
)

// serve serves h for visitors of port 80, and returns an edge with its tunnel.
func serve(t *testing.T, h http.Handler) (*edge, *edgeTunnel) {
	l, f := Listen(80, "")
	s := &http.Server{Handler: h}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	e := startEdge(t)
	start(t, mustNew(t, config(e, f)))
	tunnel := receive(t, e.tunnels)
	tunnel.greet("25")
	return e, tunnel
}

func TestListenServesHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /who", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.RemoteAddr, " ", r.Context().Value(http.LocalAddrContextKey))
	})
	mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	e, tunnel := serve(t, mux)
	c := e.open(tunnel, "80")
	c.SetDeadline(time.Now().Add(patience))
	br := bufio.NewReader(c)
	// Several requests on one stream: the server's background reads come and go.
	for range 3 {
		io.WriteString(c, "GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := body(t, br); got != "203.0.113.9:51234 80/http" {
			t.Errorf("got %q", got)
		}
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
		if got := body(t, br); got != "hello" {
			t.Errorf("got %q", got)
		}
	}
	io.WriteString(c, "GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	body(t, br)
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("after the last answer: %v", err)
	}
}

func body(t *testing.T, br *bufio.Reader) string {
	t.Helper()
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestListenServesEvents(t *testing.T) {
	gone := make(chan struct{})
	e, tunnel := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: 1\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(gone)
	}))
	c := e.open(tunnel, "80")
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 9)
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "data: 1\n\n" {
		t.Errorf("got %q, %v", b, err)
	}
	c.Abort()
	receive(t, gone) // the handler learns that its visitor has left
}

func TestListenServesWebSockets(t *testing.T) {
	e, tunnel := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := accept.Upgrade(w, r, "echo", socket.SmallBuffer, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		for {
			op, b, err := s.ReadMessage(1000)
			if err != nil {
				return
			}
			s.WriteMessage(op, b)
		}
	}))
	c := e.open(tunnel, "80")
	s, err := socket.Dial(t.Context(), c, &url.URL{Scheme: "ws", Host: "x"}, nil, "echo", socket.SmallBuffer)
	if err != nil {
		t.Fatal(err)
	}
	s.SetReadDeadline(time.Now().Add(patience))
	for _, text := range []string{"one", "two"} {
		s.WriteMessage(socket.Text, []byte(text))
		if _, b, err := s.ReadMessage(1000); string(b) != text || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	}
	s.WriteClose(1000, "", time.Second)
	if _, _, err := s.ReadMessage(1000); err == nil {
		t.Error("no close")
	}
}

func TestListenCloses(t *testing.T) {
	l, f := Listen(80, HTTP)
	if l.Addr().String() != "80/http" || l.Addr().Network() == "" {
		t.Errorf("address %v", l.Addr())
	}
	errs := make(chan error)
	go func() {
		_, err := l.Accept()
		errs <- err
	}()
	l.Close()
	l.Close()
	if err := <-errs; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := f.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a visitor after Close: %v", err)
	}
	_, f = Listen(81, HTTP)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Dial(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a visitor whom nobody accepts: %v", err)
	}
}
