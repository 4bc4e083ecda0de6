package agent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// serve starts a server that answers with h.
func answerer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func answering(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { refuseWith(status, body, header...)(w, r) }
}

func TestEnroll(t *testing.T) {
	var asked string
	url := answerer(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Authorization") != "" {
			t.Errorf("%v, %v", err, r.Header)
		}
		asked = r.Method + " " + r.URL.String() + " " + r.Header.Get("Content-Type") + " " + string(body)
		w.(http.Flusher).Flush() // chunked
		io.WriteString(w, `{"device":"cam-17","token":"iott_s3cret","more":[1]}`)
	})
	token, err := Enroll(t.Context(), Config{Servers: []string{"ws://127.0.0.1:1", url}, Device: "cam-17"}, "7KQ2M-X04TB")
	if token != "iott_s3cret" || err != nil {
		t.Errorf("%q, %v", token, err)
	}
	if want := `POST /.iottunnel/v1/enroll application/json {"code":"7KQ2M-X04TB","device":"cam-17"}`; asked != want {
		t.Errorf("asked %s, want %s", asked, want)
	}
}

func TestEnrollFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		code   string // of the edge
		retry  time.Duration
		text   string
	}{
		{"used", answering(401, `{"error":"unauthorized","message":"the code was used"}`), "unauthorized", 0, "enroll: answered 401 unauthorized: the code was used"},
		{"too many", answering(429, `{"error":"too_many","message":"slowly"}`, "Retry-After", "17"), "too_many", 17 * time.Second, "429"},
		{"no edge", answering(404, "<html>"), "", 0, "answered 404 Not Found, not by an iottunnel edge"},
		{"no token", answering(200, `{"device":"cam-17"}`), "", 0, "200 without a token"},
		{"a token that is none", answering(200, `{"device":"cam-17","token":"a b"}`), "", 0, "200 without a token"},
		{"a token too long", answering(200, `{"device":"cam-17","token":"`+strings.Repeat("a", 129)+`"}`), "", 0, "200 without a token"},
		{"another device", answering(200, `{"device":"cam-18","token":"a"}`), "", 0, `answered for the device "cam-18"`},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", 0, "closed without an answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			token, err := Enroll(t.Context(), Config{Servers: []string{answerer(t, test.answer)}, Device: "cam-17"}, "code")
			var refused *RefusedError
			if errors.As(err, &refused) && (refused.Code != test.code || refused.RetryAfter() != test.retry) {
				t.Errorf("refused %+v", refused)
			}
			if token != "" || err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%q, %v", token, err)
			}
		})
	}
	for name, c := range map[string]Config{
		"Device":  {Servers: []string{"wss://a"}, Device: "CAM"},
		"Servers": {Device: "cam"},
	} {
		var wrong *ConfigError
		if _, err := Enroll(t.Context(), c, "code"); !errors.As(err, &wrong) || wrong.Field != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Enroll(t.Context(), Config{Servers: []string{"wss://a"}, Device: "cam"}, " "); !errors.Is(err, errNoCode) {
		t.Error(err)
	}
}

// What is too much for one edge need not be for another, and what an edge says is heard
// behind what is none.
func TestEnrollAsksTheNextEdge(t *testing.T) {
	full := answerer(t, answering(429, `{"error":"too_many"}`, "Retry-After", "17"))
	good := answerer(t, answering(200, `{"device":"cam-17","token":"a"}`))
	other := answerer(t, answering(404, "<html>"))
	for range 10 { // they are asked in any order
		if _, err := Enroll(t.Context(), Config{Servers: []string{full, good}, Device: "cam-17"}, "code"); err != nil {
			t.Error(err)
		}
		_, err := Enroll(t.Context(), Config{Servers: []string{full, other}, Device: "cam-17"}, "code")
		if refused := new(RefusedError); !errors.As(err, &refused) || refused.Code != "too_many" {
			t.Errorf("refused %+v, %v", refused, err)
		}
	}
}

// An edge that answers nothing holds nobody up for longer than they want.
func TestEnrollEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	url := answerer(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // else the server does not see who leaves
		cancel()
		<-r.Context().Done()
	})
	if _, err := Enroll(ctx, Config{Servers: []string{url}, Device: "cam-17"}, "code"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// connectEdge upgrades connect sockets, and has talk do the rest.
func connectEdge(t *testing.T, talk func(*socket.Socket)) string {
	return answerer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/.iottunnel/v1/connect?device=cam-17&port=22" || r.Header.Get("Authorization") != "Bearer gr4nt" {
			t.Errorf("asked for %s, %v", r.URL, r.Header)
		}
		s, err := accept.Upgrade(w, r, wire.Subprotocol, socket.LargeBuffer, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		talk(s)
	})
}

func connectTo22(t *testing.T, url string) (io.ReadWriteCloser, error) {
	return Connect(t.Context(), Config{Servers: []string{url}, Device: "cam-17", Token: "gr4nt"}, 22)
}

func TestConnect(t *testing.T) {
	done := make(chan struct{})
	url := connectEdge(t, func(s *socket.Socket) {
		defer close(done)
		edge := &edgeTransfer{Socket: s}
		edge.expect(t, "hello")
		edge.expect(t, "") // its end
		edge.send(t, "still")
		edge.send(t, " here")
		edge.send(t, "")
		var closed *socket.CloseError
		if _, _, err := s.ReadMessage(100); !errors.As(err, &closed) || closed.Code != wire.CloseNormal {
			t.Errorf("at the end: %v", err)
		}
	})
	c, err := connectTo22(t, url)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "hello")
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(c); string(b) != "still here" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	<-done
}

func TestConnectIsCutOff(t *testing.T) {
	url := connectEdge(t, func(s *socket.Socket) { (&edgeTransfer{Socket: s}).send(t, "hel") })
	c, err := connectTo22(t, url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); string(b) != "hel" || err == nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestConnectIsRefused(t *testing.T) {
	var refused *RefusedError
	_, err := connectTo22(t, answerer(t, answering(503, `{"error":"device_offline","message":"not connected"}`, "Retry-After", "5")))
	if !errors.As(err, &refused) || refused.Code != "device_offline" || refused.Final() || refused.RetryAfter() != 5*time.Second {
		t.Error(err)
	}
	var wrong *ConfigError
	if _, err := Connect(t.Context(), Config{Device: "cam-17"}, 22); !errors.As(err, &wrong) {
		t.Error(err)
	}
	if _, err := Connect(t.Context(), Config{Device: "cam-17", Servers: []string{"wss://a"}}, 0); err == nil {
		t.Error("port 0")
	}
}
