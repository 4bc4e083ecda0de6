package socket

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/internal/ends"
)

const subprotocol = "iottunnel.v1"

var target = &url.URL{Scheme: "ws", Host: "edge.test", Path: "/.iottunnel/v1/control", RawQuery: "device=a"}

// keyAnswer is RFC 6455 §4.2.2, once more.
func keyAnswer(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// answerWith reads a request from conn and writes what answer makes of it, step
// bytes at a time (0: all).
func answerWith(conn net.Conn, step int, answer func(*http.Request) string) {
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	b := []byte(answer(r))
	for len(b) > 0 {
		n := len(b)
		if step > 0 {
			n = min(step, n)
		}
		if _, err := conn.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}

func switching(r *http.Request) string {
	return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + keyAnswer(r.Header.Get("Sec-WebSocket-Key")) + "\r\n" +
		"Sec-WebSocket-Protocol: " + subprotocol + "\r\n\r\n"
}

func TestDialRequest(t *testing.T) {
	client, server := ends.Conns(t, "pipe")
	var got *http.Request
	go answerWith(server, 0, func(r *http.Request) string { got = r; return switching(r) })
	s, err := Dial(t.Context(), client, target, http.Header{"Authorization": {"Bearer x"}}, subprotocol, SmallBuffer)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if got.Method != "GET" || got.RequestURI != "/.iottunnel/v1/control?device=a" || got.Host != "edge.test" ||
		got.Header.Get("Authorization") != "Bearer x" || got.Header.Get("Sec-WebSocket-Protocol") != subprotocol ||
		got.Header.Get("Sec-WebSocket-Version") != "13" || got.Header.Get("Upgrade") != "websocket" {
		t.Errorf("%s %s %s %v", got.Method, got.RequestURI, got.Host, got.Header)
	}
}

// Frames right behind the 101 are kept, wherever the stream is cut.
func TestDialKeepsWhatFollows(t *testing.T) {
	frames := cat(plain(0x81, "ready"), plain(0x82, strings.Repeat("x", 700)), plain(0x88, "\x03\xe9"))
	for step := range 300 {
		client, server := ends.Conns(t, "pipe")
		go answerWith(server, step, func(r *http.Request) string { return switching(r) + string(frames) })
		ends.Within(t, "Dial", func() {
			s, err := Dial(t.Context(), client, target, nil, subprotocol, SmallBuffer)
			if err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			go io.Copy(io.Discard, server) // the echo of the close frame
			got, err := all(s, 1000)
			var end *CloseError
			if !slices.Equal(got, []string{"1:ready", "2:" + strings.Repeat("x", 700)}) || !errors.As(err, &end) || end.Code != 1001 {
				t.Errorf("step %d: %.100q, %v", step, got, err)
			}
			s.Close()
		})
	}
}

func TestDialRefused(t *testing.T) {
	key := func(r *http.Request) string { return keyAnswer(r.Header.Get("Sec-WebSocket-Key")) }
	for _, c := range []struct {
		name   string
		answer func(*http.Request) string
		status int    // of a *StatusError; 0: another error
		body   string // prefix
		header [2]string
	}{
		{"401 with a body", func(*http.Request) string {
			return "HTTP/1.1 401 Unauthorized\r\nContent-Length: 24\r\n\r\n{\"error\":\"unauthorized\"}"
		}, 401, `{"error":"unauthorized"}`, [2]string{}},
		{"503 with Retry-After", func(*http.Request) string {
			return "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
		}, 503, "", [2]string{"Retry-After", "7"}},
		{"302", func(*http.Request) string {
			return "HTTP/1.1 302 Found\r\nLocation: wss://other.test/\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nthere\r\n0\r\n\r\n"
		}, 302, "there", [2]string{"Location", "wss://other.test/"}},
		{"404 from something else, until the end", func(*http.Request) string {
			return "HTTP/1.0 404 Not Found\r\n\r\n" + strings.Repeat("y", 5000)
		}, 404, strings.Repeat("y", 1024), [2]string{}},
		{"200", func(*http.Request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" }, 200, "hi", [2]string{}},
		{"204", func(*http.Request) string { return "HTTP/1.1 204 No Content\r\n\r\n" }, 204, "", [2]string{}},
		{"101 with a wrong key", func(*http.Request) string {
			return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + keyAnswer("x") + "\r\n\r\n"
		}, 0, "", [2]string{}},
		{"101 to something else", func(r *http.Request) string {
			return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + key(r) + "\r\n\r\n"
		}, 0, "", [2]string{}},
		{"101 without the subprotocol", func(r *http.Request) string {
			return strings.Replace(switching(r), "Sec-WebSocket-Protocol: "+subprotocol+"\r\n", "", 1)
		}, 0, "", [2]string{}},
		{"101 with another", func(r *http.Request) string { return strings.Replace(switching(r), subprotocol, "mqtt", 1) }, 0, "", [2]string{}},
		{"101 with an extension", func(r *http.Request) string {
			return strings.Replace(switching(r), "\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n\r\n", 1)
		}, 0, "", [2]string{}},
		{"header too long", func(*http.Request) string {
			return "HTTP/1.1 101 Switching Protocols\r\nX: " + strings.Repeat("x", MaxAnswer) + "\r\n\r\n"
		}, 0, "", [2]string{}},
		{"header of too many lines", func(*http.Request) string {
			return "HTTP/1.1 401 Unauthorized\r\n" + strings.Repeat("X: x\r\n", MaxAnswer) + "\r\n"
		}, 0, "", [2]string{}},
		{"not HTTP", func(*http.Request) string { return "SSH-2.0-OpenSSH_9.9\r\n" }, 0, "", [2]string{}},
		{"nothing", func(*http.Request) string { return "" }, 0, "", [2]string{}},
		{"half a header", func(*http.Request) string { return "HTTP/1.1 101 Switching Protocols\r\nUpgr" }, 0, "", [2]string{}},
	} {
		for _, step := range []int{0, 1, 100} {
			t.Run(fmt.Sprint(c.name, "/", step), func(t *testing.T) {
				client, server := ends.Conns(t, "pipe")
				go func() {
					answerWith(server, step, c.answer)
					server.Close()
				}()
				ends.Within(t, "Dial", func() {
					s, err := Dial(t.Context(), client, target, nil, subprotocol, SmallBuffer)
					if s != nil || err == nil {
						t.Fatalf("got %v, %v", s, err)
					}
					var refused *StatusError
					if errors.As(err, &refused) != (c.status != 0) {
						t.Fatalf("%v", err)
					}
					if refused != nil && (refused.Status != c.status || string(refused.Body) != c.body || c.header[0] != "" && refused.Header.Get(c.header[0]) != c.header[1]) {
						t.Errorf("%+v", refused)
					}
				})
				if _, err := client.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("left open: %v", err)
				}
			})
		}
	}
}

// Dial returns when ctx ends, whatever it is waiting for, and with a deadline in
// ctx that is far away too.
func TestDialCancelled(t *testing.T) {
	for _, c := range []struct {
		name  string
		serve func(t *testing.T, server net.Conn, cancel func())
	}{
		{"before", nil},
		{"while it sends", func(t *testing.T, server net.Conn, cancel func()) {
			server.Read(make([]byte, 1)) // and no more: the rest of the request blocks
			cancel()
		}},
		{"before the answer", func(t *testing.T, server net.Conn, cancel func()) {
			http.ReadRequest(bufio.NewReader(server))
			cancel()
		}},
		{"inside the header", func(t *testing.T, server net.Conn, cancel func()) {
			answerWith(server, 0, func(*http.Request) string { return "HTTP/1.1 101 Switching Protocols\r\nUpgr" })
			cancel()
		}},
	} {
		for _, transport := range ends.Transports {
			t.Run(c.name+"/"+transport, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				client, server := ends.Conns(t, transport)
				if c.serve == nil {
					cancel()
				} else {
					go c.serve(t, server, cancel)
				}
				ends.Within(t, "Dial", func() {
					if _, err := Dial(ctx, client, target, nil, subprotocol, SmallBuffer); !errors.Is(err, context.Canceled) {
						t.Errorf("%v", err)
					}
				})
			})
		}
	}
	t.Run("inside the body", func(t *testing.T) { // the status is known, and tells more
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		client, server := ends.Conns(t, "pipe") // takes it all before it is cancelled
		go func() {
			answerWith(server, 0, func(*http.Request) string { return "HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\nhalf" })
			cancel()
		}()
		ends.Within(t, "Dial", func() {
			_, err := Dial(ctx, client, target, nil, subprotocol, SmallBuffer)
			var refused *StatusError
			if !errors.As(err, &refused) || refused.Status != 403 {
				t.Errorf("%v", err)
			}
		})
	})
	t.Run("at any moment", func(t *testing.T) {
		for i := range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			client, server := ends.Conns(t, "pipe")
			go answerWith(server, 0, switching)
			timer := time.AfterFunc(time.Duration(i)*time.Microsecond, cancel)
			ends.Within(t, "Dial", func() {
				s, err := Dial(ctx, client, target, nil, subprotocol, SmallBuffer)
				switch {
				case err != nil && !errors.Is(err, context.Canceled):
					t.Error(err)
				case err == nil: // then it is fit for use: no deadline is left
					timer.Stop()
					go server.Write(plain(0x81, "x"))
					if _, err := s.Next(); err != nil {
						t.Error(err)
					}
					s.Close()
				}
			})
			cancel()
		}
	})
}

// Dial sets no deadline that could undo the one by which a cancellation works.
func TestDialSetsNoDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	client, server := ends.Conns(t, "pipe")
	go answerWith(server, 0, switching)
	s, err := Dial(ctx, &watched{Conn: client, t: t}, target, nil, subprotocol, SmallBuffer)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

type watched struct {
	net.Conn
	t *testing.T
}

func (w *watched) SetDeadline(d time.Time) error {
	if !d.IsZero() {
		w.t.Errorf("deadline set: %v", d)
	}
	return w.Conn.SetDeadline(d)
}

// A deadline of the handshake does not outlive it.
func TestDialClearsDeadlines(t *testing.T) {
	client, server := ends.Conns(t, "pipe")
	client.SetDeadline(time.Now().Add(time.Hour))
	ctx, cancel := context.WithTimeout(t.Context(), ends.Patience)
	go answerWith(server, 0, switching)
	s, err := Dial(ctx, client, target, nil, subprotocol, SmallBuffer)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	go server.Write(plain(0x81, "x"))
	if _, err := s.Next(); err != nil {
		t.Error(err)
	}
}

// accepting serves one socket after another, and hands them out. The handshake is
// gorilla's: package accept, which is ours, is above this one.
func accepting(t testing.TB, buffer int) (*httptest.Server, <-chan *Socket) {
	t.Helper()
	sockets := make(chan *Socket, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := websocket.Upgrader{Subprotocols: []string{subprotocol}, ReadBufferSize: 1}
		if c, err := u.Upgrade(w, r, nil); err == nil {
			sockets <- New(c.NetConn(), buffer)
		}
	}))
	t.Cleanup(srv.Close)
	return srv, sockets
}

// Both ends, over TCP and TLS, with the schemes that mean the same.
func TestHandshake(t *testing.T) {
	for _, scheme := range []string{"ws", "http", "wss", "https"} {
		t.Run(scheme, func(t *testing.T) {
			srv, sockets := accepting(t, LargeBuffer)
			u := *target
			u.Scheme = scheme
			secure := strings.HasSuffix(scheme, "s") && scheme != "ws"
			if secure {
				srv.TLS = ends.ServerTLS()
				srv.StartTLS()
			} else {
				srv.Start()
			}
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if secure {
				conn = tls.Client(conn, ends.ClientTLS())
			}
			a, err := Dial(t.Context(), conn, &u, nil, subprotocol, LargeBuffer)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b := <-sockets
			defer b.Close()
			for _, s := range []*Socket{a, b} {
				if err := s.WriteMessage(Binary, []byte("hello")); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range []*Socket{a, b} {
				if op, m, err := s.ReadMessage(10); op != Binary || string(m) != "hello" || err != nil {
					t.Errorf("%d %q %v", op, m, err)
				}
			}
		})
	}
}
