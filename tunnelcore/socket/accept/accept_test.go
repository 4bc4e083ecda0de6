package accept

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"

	"github.com/iottunnel/iottunnel/internal/leak"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

func TestMain(m *testing.M) { leak.Main(m) }

const subprotocol = "iottunnel.v1"

// accepting serves one socket after another, and hands them out.
func accepting(t testing.TB, header http.Header) (*httptest.Server, <-chan *socket.Socket) {
	t.Helper()
	sockets := make(chan *socket.Socket, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := Upgrade(wrapped{w}, r, subprotocol, socket.SmallBuffer, header)
		var refused *socket.StatusError
		switch {
		case errors.As(err, &refused):
			http.Error(w, string(refused.Body), refused.Status)
		case err == nil:
			sockets <- s
		}
	}))
	t.Cleanup(srv.Close)
	return srv, sockets
}

// wrapped hides the Hijacker, as middleware does, and is unwrapped.
type wrapped struct{ w http.ResponseWriter }

func (w wrapped) Header() http.Header         { return w.w.Header() }
func (w wrapped) Write(p []byte) (int, error) { return w.w.Write(p) }
func (w wrapped) WriteHeader(status int)      { w.w.WriteHeader(status) }
func (w wrapped) Unwrap() http.ResponseWriter { return w.w }

func TestBytes(t *testing.T) {
	srv, sockets := accepting(t, nil)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"+
		"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Protocol: other, "+subprotocol+"\r\n\r\n")
	s := <-sockets
	defer s.Close()
	want := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: iottunnel.v1\r\n\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v", got, err)
	}
	// RFC 6455 §5.7: a masked text, "Hello".
	go conn.Write([]byte{0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58})
	if _, b, err := s.ReadMessage(10); string(b) != "Hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestRefuses(t *testing.T) {
	srv, _ := accepting(t, nil)
	good := http.Header{
		"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Sec-Websocket-Protocol": {subprotocol},
	}
	for _, c := range []struct{ method, name, value string }{
		{"GET", "Upgrade", ""}, {"GET", "Connection", "close"}, {"GET", "Sec-Websocket-Version", "8"},
		{"GET", "Sec-Websocket-Key", "short"}, {"GET", "Sec-Websocket-Key", ""}, {"POST", "", ""},
		{"GET", "Sec-Websocket-Protocol", ""}, {"GET", "Sec-Websocket-Protocol", "iottunnel.v10"},
	} {
		req, err := http.NewRequest(c.method, srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = good.Clone()
		if c.name != "" {
			req.Header.Set(c.name, c.value)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[string]int{"GET": 400, "POST": 405}[c.method]; resp.StatusCode != want {
			t.Errorf("%s %s: %q: %d, want %d", c.method, c.name, c.value, resp.StatusCode, want)
		}
	}
}

// The client's end is package socket's; it sees what else the 101 says.
func TestBothEnds(t *testing.T) {
	srv, sockets := accepting(t, http.Header{"X-Nonce": {"n1"}})
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	a, header, err := socket.DialAnswer(t.Context(), conn, u, nil, subprotocol, socket.LargeBuffer)
	if err != nil || !slices.Equal(header["X-Nonce"], []string{"n1"}) {
		t.Fatalf("%v, %v", header, err)
	}
	defer a.Close()
	b := <-sockets
	defer b.Close()
	for _, s := range []*socket.Socket{a, b} {
		if err := s.WriteMessage(socket.Binary, []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*socket.Socket{a, b} {
		if op, m, err := s.ReadMessage(10); op != socket.Binary || string(m) != "hello" || err != nil {
			t.Errorf("%d %q %v", op, m, err)
		}
	}
}
