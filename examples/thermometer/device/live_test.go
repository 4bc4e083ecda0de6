package device

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/socket"
)

var testLogger = slog.New(slog.DiscardHandler)

// runFor runs d; what it returns ends it and waits.
func runFor(t *testing.T, d *Device) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { d.Run(ctx) })
	return func() {
		cancel()
		wg.Wait()
	}
}

func dialSocket(t *testing.T, s *httptest.Server, header http.Header) (*socket.Socket, error) {
	t.Helper()
	u, err := url.Parse(s.URL + "/ws")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	c, err := socket.Dial(t.Context(), conn, u, header, subprotocol, socket.SmallBuffer)
	if err == nil {
		t.Cleanup(func() { c.Close() })
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return c, err
}

func ask(t *testing.T, c *socket.Socket, message string) map[string]any {
	t.Helper()
	if err := c.WriteMessage(socket.Text, []byte(message)); err != nil {
		t.Fatal(err)
	}
	return receive(t, c)
}

func receive(t *testing.T, c *socket.Socket) (m map[string]any) {
	t.Helper()
	_, b, err := c.ReadMessage(1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return m
}

func TestSocketCommands(t *testing.T) {
	d, s := serve(t)
	c, err := dialSocket(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, `{"ping":12.5}`); got["pong"] != 12.5 {
		t.Errorf("ping: %v", got)
	}
	if got := ask(t, c, `{"read":true}`); got["reading"].(map[string]any)["name"] != DefaultSettings().Name {
		t.Errorf("read: %v", got)
	}
	for _, command := range []string{
		`{"set":"unit","value":"F"}`, `{"set":"name","value":"<b>Cellar"}`, `{"set":"alarm","value":5.5}`,
	} {
		if got := ask(t, c, command); got["settings"] == nil {
			t.Errorf("%s: %v", command, got)
		}
	}
	if want := (Settings{"<b>Cellar", Fahrenheit, 5.5}); d.Settings() != want {
		t.Errorf("settings %v, want %v", d.Settings(), want)
	}
	for _, command := range []string{
		``, `x`, `[]`, `{}`, `null`, `{"set":"unit","value":"K"}`, `{"set":"name","value":""}`, `{"set":"name"}`,
		`{"set":"alarm","value":1e9}`, `{"set":"alarm","value":"5"}`, `{"set":"firmware","value":1}`, `{"ping":"x"}`,
	} {
		if got := ask(t, c, command); got["error"] == "" || got["error"] == nil {
			t.Errorf("%s: %v, want an error", command, got)
		}
	}
	if want := (Settings{"<b>Cellar", Fahrenheit, 5.5}); d.Settings() != want {
		t.Errorf("settings %v, want %v", d.Settings(), want)
	}
}

func TestSocketWatch(t *testing.T) {
	_, s := serve(t)
	c, err := dialSocket(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, c, `{"watch":true}`); got["watch"] != true && got["reading"] == nil {
		t.Errorf("watch: %v", got)
	}
	for range 5 {
		if got := receive(t, c); got["reading"] == nil && got["watch"] == nil {
			t.Errorf("got %v, want a reading", got)
		}
	}
	if err := c.WriteMessage(socket.Text, []byte(`{"watch":false}`)); err != nil {
		t.Fatal(err)
	}
	for receive(t, c)["watch"] != false {
	}
	// One reading may have been on its way.
	if got := ask(t, c, `{"ping":1}`); got["pong"] == nil && receive(t, c)["pong"] == nil {
		t.Error("readings after watch ended")
	}
}

func TestSocketClose(t *testing.T) {
	_, s := serve(t)
	for _, c := range []struct {
		name string
		op   socket.Opcode
		n    int
		code int
	}{
		{"longest", socket.Text, socketMessage, 0},
		{"too long", socket.Text, socketMessage + 1, 1009},
		{"binary", socket.Binary, 2, 1003},
	} {
		conn, err := dialSocket(t, s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.WriteMessage(c.op, []byte(strings.Repeat(" ", c.n))); err != nil {
			t.Fatal(err)
		}
		_, _, err = conn.ReadMessage(1 << 16)
		closed := new(socket.CloseError)
		if c.code == 0 {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if !errors.As(err, &closed) || closed.Code != c.code {
			t.Errorf("%s: %v, want code %d", c.name, err, c.code)
		}
	}
}

func TestSocketRefusals(t *testing.T) {
	_, s := serve(t)
	refused := new(socket.StatusError)
	if _, err := dialSocket(t, s, http.Header{"Origin": {"https://evil.example"}}); !errors.As(err, &refused) || refused.Status != 403 {
		t.Errorf("another origin: %v", err)
	}
	u, _ := url.Parse(s.URL)
	if _, err := dialSocket(t, s, http.Header{"Origin": {"https://" + u.Host}}); err != nil {
		t.Errorf("the same origin: %v", err)
	}
	if resp, text := get(t, s, "/ws"); resp.StatusCode != 426 || resp.Header.Get("Upgrade") != "websocket" {
		t.Errorf("no upgrade: %s %s", resp.Status, text)
	}
}

// TestSocketStop: a device that stops says so, and waits for its sockets.
func TestSocketStop(t *testing.T) {
	d := New(Config{Interval: time.Hour, Logger: testLogger})
	s := httptest.NewServer(d.Handler())
	defer s.Close()
	end := runFor(t, d)
	c, err := dialSocket(t, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	ask(t, c, `{"ping":1}`)
	end()
	_, _, err = c.ReadMessage(1 << 10)
	if closed := new(socket.CloseError); !errors.As(err, &closed) || closed.Code != 1001 {
		t.Errorf("%v, want code 1001", err)
	}
}
