package socket

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// withGorilla runs body with one of our sockets and a peer of gorilla's, as
// client and as server.
func withGorilla(t *testing.T, body func(t *testing.T, s *Socket, peer *websocket.Conn)) {
	t.Run("client", func(t *testing.T) {
		peers := make(chan *websocket.Conn, 1)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			u := websocket.Upgrader{Subprotocols: []string{subprotocol}, WriteBufferSize: 100}
			if c, err := u.Upgrade(w, r, nil); err == nil {
				peers <- c
			}
		}))
		defer srv.Close()
		u, err := url.Parse(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Dial(t.Context(), conn, u, nil, subprotocol, SmallBuffer)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		peer := <-peers
		defer peer.Close()
		body(t, s, peer)
	})
	t.Run("server", func(t *testing.T) {
		srv, sockets := accepting(t, SmallBuffer)
		srv.Start()
		d := websocket.Dialer{Subprotocols: []string{subprotocol}, WriteBufferSize: 100}
		peer, _, err := d.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		s := <-sockets
		defer s.Close()
		body(t, s, peer)
	})
}

func TestInteropMessages(t *testing.T) {
	withGorilla(t, func(t *testing.T, s *Socket, peer *websocket.Conn) {
		sizes := []int{0, 1, 125, 126, 127, 4096, 65535, 65536, 1 << 20}
		var wg sync.WaitGroup
		wg.Go(func() {
			for i, size := range sizes {
				m := strings.Repeat(string(rune('a'+i)), size)
				if err := peer.WriteMessage(websocket.BinaryMessage, []byte(m)); err != nil {
					t.Error(err)
				}
				// In fragments, with pings between.
				w, err := peer.NextWriter(websocket.TextMessage)
				if err != nil {
					t.Error(err)
					return
				}
				for part := range 5 {
					// Flushed as fragments whenever gorilla's buffer is full.
					io.WriteString(w, m[size*part/5:size*(part+1)/5])
					peer.WriteControl(websocket.PingMessage, []byte("between"), time.Now().Add(ends.Patience))
				}
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			}
		})
		ends.Within(t, "from gorilla", func() {
			for i, size := range sizes {
				for _, want := range []Opcode{Binary, Text} {
					op, b, err := s.ReadMessage(1 << 20)
					if err != nil || op != want || string(b) != strings.Repeat(string(rune('a'+i)), size) {
						t.Fatalf("size %d: op %d, %d bytes, %v", size, op, len(b), err)
					}
				}
			}
			wg.Wait()
		})
		wg.Go(func() {
			for i, size := range sizes {
				m := []byte(strings.Repeat(string(rune('a'+i)), size))
				if err := s.WriteMessage(Binary, m); err != nil {
					t.Error(err)
				}
				if err := s.WriteInPlace(Text, append(make([]byte, Headroom), m...)); err != nil {
					t.Error(err)
				}
			}
		})
		pongs := 0
		peer.SetPongHandler(func(string) error { pongs++; return nil })
		ends.Within(t, "to gorilla", func() {
			for i, size := range sizes {
				for _, want := range []int{websocket.BinaryMessage, websocket.TextMessage} {
					op, b, err := peer.ReadMessage()
					if err != nil || op != want || string(b) != strings.Repeat(string(rune('a'+i)), size) {
						t.Fatalf("size %d: op %d, %d bytes, %v", size, op, len(b), err)
					}
				}
			}
			wg.Wait()
		})
		if pongs == 0 {
			t.Error("no ping was answered")
		}
	})
}

func TestInteropPing(t *testing.T) {
	withGorilla(t, func(t *testing.T, s *Socket, peer *websocket.Conn) {
		pong := make(chan string, 1)
		peer.SetPongHandler(func(m string) error { pong <- m; return nil })
		var wg sync.WaitGroup
		defer wg.Wait()
		defer s.Close()
		defer peer.Close()
		wg.Go(func() { peer.NextReader() })
		wg.Go(func() { s.Next() })
		if err := peer.WriteControl(websocket.PingMessage, []byte("payload"), time.Now().Add(ends.Patience)); err != nil {
			t.Fatal(err)
		}
		if got := <-pong; got != "payload" {
			t.Errorf("pong %q", got)
		}
		settle(s) // the pong's turn ends after it was read
		before := s.Heard()
		if sent, err := s.Ping(); !sent || err != nil {
			t.Fatal(sent, err)
		}
		ends.Within(t, "pong", func() { // gorilla answers while it reads
			for s.Heard() == before {
				time.Sleep(time.Millisecond)
			}
		})
	})
}

func TestInteropClose(t *testing.T) {
	for _, code := range []int{1000, 1001, 1012, 4001, 4103} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			withGorilla(t, func(t *testing.T, s *Socket, peer *websocket.Conn) {
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					var end *websocket.CloseError
					if _, _, err := peer.NextReader(); !errors.As(err, &end) || end.Code != code || end.Text != "why" {
						t.Errorf("gorilla read %v", err)
					}
				})
				if err := s.WriteClose(code, "why", ends.Patience); err != nil {
					t.Fatal(err)
				}
				var end *CloseError
				if _, err := s.Next(); !errors.As(err, &end) || end.Code != code {
					t.Errorf("echo: %v", err)
				}
			})
			withGorilla(t, func(t *testing.T, s *Socket, peer *websocket.Conn) {
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					var end *CloseError
					if _, err := s.Next(); !errors.As(err, &end) || *end != (CloseError{code, "why"}) {
						t.Errorf("%v", err)
					}
				})
				if err := peer.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, "why"), time.Now().Add(ends.Patience)); err != nil {
					t.Fatal(err)
				}
				var end *websocket.CloseError
				if _, _, err := peer.NextReader(); !errors.As(err, &end) || end.Code != code {
					t.Errorf("echo: %v", err)
				}
			})
		})
	}
}
