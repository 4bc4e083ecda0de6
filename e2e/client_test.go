package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// site is a device with an HTTP service behind the edge, up.
type site struct {
	face   harness.Face
	origin *harness.Origin
	agent  *harness.Agent
	host   string
	client *http.Client
}

// newSite brings a device up whose port 80 is a fresh origin.
func newSite(t *testing.T, f harness.Face, flags ...string) *site {
	t.Helper()
	o := harness.StartOrigin(t)
	a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr}, Flags: flags})
	up := a.Up(t)
	return &site{face: f, origin: o, agent: a, host: up.Hostname(t, 80), client: harness.Visitor(t, f, false)}
}

func (s *site) url(path string) string { return s.face.URL(s.host, path) }

// reply is an HTTP answer, read to its end.
type reply struct {
	*http.Response
	body string
	took time.Duration
}

// code is the header that marks answers of the edge itself.
func (r reply) code() string { return r.Header.Get("Iottunnel-Error") }

func (r reply) String() string {
	return fmt.Sprintf("status %d, Iottunnel-Error %q, body %.200q", r.StatusCode, r.code(), r.body)
}

// do sends a request; an error of any kind fails the test.
func do(t *testing.T, c *http.Client, req *http.Request) reply {
	t.Helper()
	r, err := try(c, req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return r
}

func try(c *http.Client, req *http.Request) (reply, error) {
	began := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp, string(body), time.Since(began)}, err
}

func request(t *testing.T, method, url string, body io.Reader, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

// promptly fetches a page, which takes no longer than promised.
func (s *site) promptly(t *testing.T, what string, promised time.Duration) {
	t.Helper()
	r := s.get(t, "/page")
	if r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", what, r)
	}
	inTime(t, what, r.took, promised)
}

// get asks for a path of the site.
func (s *site) get(t *testing.T, path string, header ...string) reply {
	t.Helper()
	return do(t, s.client, request(t, "GET", s.url(path), nil, header...))
}

// hostPort is the Host that a visitor's client sends.
func (s *site) hostPort() string {
	_, rest, _ := strings.Cut(s.url(""), "://")
	return rest
}

// raw sends bytes over a visitor's connection of its own and reads one answer.
func (s *site) raw(t *testing.T, text string) reply {
	t.Helper()
	c, err := s.face.DialVisitor(t.Context(), s.host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	wrote := make(chan struct{})
	go func() { // ends when the connection is closed
		io.WriteString(c, text) // the edge may stop reading
		close(wrote)
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%.60q: %v", text, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%.60q: %v", text, err)
	}
	c.Close()
	<-wrote
	return reply{Response: resp, body: string(body)}
}

// mustServe fails unless the device itself answers.
func (s *site) mustServe(t *testing.T) {
	t.Helper()
	if r := s.get(t, "/page"); r.StatusCode != 200 || !strings.Contains(r.body, "the device's page") {
		t.Fatalf("the device's page: %v", r)
	}
}

// echo decodes an answer of the origin's /echo.
func echo(t *testing.T, r reply) harness.Seen {
	t.Helper()
	var s harness.Seen
	if err := json.Unmarshal([]byte(r.body), &s); err != nil || r.StatusCode != 200 {
		t.Fatalf("echo: %v: %v", err, r)
	}
	return s
}

// feed is a visitor's stream of server-sent events.
type feed struct {
	body  io.ReadCloser
	lines *bufio.Reader
	next  int
}

// openFeed starts to read the origin's /sse.
func (s *site) openFeed(t *testing.T) *feed {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req := request(t, "GET", s.url("/sse"), nil, "Accept", "text/event-stream").WithContext(ctx)
	endless := *s.client
	endless.Timeout = 0 // the answer and each event have a limit instead
	limit := time.AfterFunc(harness.VisitorTimeout, cancel)
	resp, err := endless.Do(req)
	limit.Stop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("feed: status %d, %q", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return &feed{body: resp.Body, lines: bufio.NewReader(resp.Body)}
}

// want reads n events, which must follow one another without a gap.
func (f *feed) want(n int) error {
	stop := time.AfterFunc(harness.VisitorTimeout, func() { f.body.Close() })
	defer stop.Stop()
	for n > 0 {
		line, err := f.lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("feed, after event %d: %w", f.next-1, err)
		}
		var i int
		if _, err := fmt.Sscanf(line, "data: tick %d", &i); err != nil {
			continue
		}
		if i != f.next {
			return fmt.Errorf("feed: event %d where %d was due", i, f.next)
		}
		f.next++
		n--
	}
	return nil
}

// openSocket starts a visitor's WebSocket to the origin's /ws.
func (s *site) openSocket(t *testing.T) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{
		HandshakeTimeout: harness.VisitorTimeout,
		Subprotocols:     []string{"echo.v1"},
		NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.face.DialVisitor(ctx, s.host)
		},
	}
	_, rest, _ := strings.Cut(s.url("/ws"), "://") // DialVisitor has done the TLS already
	ws, resp, err := d.DialContext(t.Context(), "ws://"+rest, http.Header{"Origin": {s.url("")}})
	if err != nil {
		t.Fatalf("visitor's WebSocket: %v (%v)", err, harness.Refusal(resp))
	}
	t.Cleanup(func() { ws.Close() })
	if ws.Subprotocol() != "echo.v1" {
		t.Fatalf("visitor's WebSocket: subprotocol %q", ws.Subprotocol())
	}
	return ws
}

// echoes sends a message and wants it back.
func echoes(ws *websocket.Conn, kind int, data string) error {
	ws.SetReadDeadline(time.Now().Add(harness.VisitorTimeout))
	if err := ws.WriteMessage(kind, []byte(data)); err != nil {
		return err
	}
	k, back, err := ws.ReadMessage()
	if err != nil {
		return err
	}
	if k != kind || string(back) != data {
		return fmt.Errorf("sent %d %.80q, got %d %.80q", kind, data, k, back)
	}
	return nil
}
