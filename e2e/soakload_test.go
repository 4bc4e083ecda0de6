package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// wrong is an answer that no fault excuses: other bytes than were sent, another
// device's, an end that was none, or a name that is lost.
type wrong struct{ what string }

func (w wrong) Error() string { return w.what }

func wrongf(format string, args ...any) error { return wrong{fmt.Sprintf(format, args...)} }

// isPattern reads r to its end, which must be that of a pattern of n bytes.
func isPattern(r io.Reader, n int64) error {
	want := harness.NewPattern(n)
	got, expected := make([]byte, 32<<10), make([]byte, 32<<10)
	for read := int64(0); ; {
		k, err := r.Read(got)
		if _, short := io.ReadFull(want, expected[:k]); short != nil && k > 0 || !bytes.Equal(got[:k], expected[:k]) {
			return wrongf("other bytes than were sent, after %d of %d", read, n)
		}
		read += int64(k)
		switch {
		case err == io.EOF && read < n:
			return wrongf("an end after %d of %d bytes", read, n)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// station is what a device serves: it says who it is, and checks what it gets.
func station(id string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /id", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", id, r.URL.Query().Get("nonce"))
	})
	mux.HandleFunc("GET /bytes", func(w http.ResponseWriter, r *http.Request) {
		n := r.URL.Query().Get("n")
		var size int64
		fmt.Sscan(n, &size)
		w.Header().Set("Content-Length", n)
		io.Copy(w, harness.NewPattern(size)) // the visitor may leave
	})
	mux.HandleFunc("POST /sum", func(w http.ResponseWriter, r *http.Request) {
		if err := isPattern(r.Body, r.ContentLength); errors.As(err, new(wrong)) {
			fmt.Fprintf(w, "%v", err)
		} else if err == nil {
			fmt.Fprintf(w, "all %d", r.ContentLength)
		}
	})
	mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
		c, err := up.Upgrade(w, r, http.Header{"X-Device": {id}})
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, data, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, data) != nil {
				return
			}
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Device", id)
		mux.ServeHTTP(w, r)
	})
}

// banner is the TCP service of a station: its name, then an echo that ends with its
// visitor.
func banner(id string) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		fmt.Fprintln(c, id)
		io.Copy(c, c)
		c.CloseWrite()
	}
}

// soakVisitor is somebody who does all that visitors do to one device.
type soakVisitor struct {
	s      *soak
	d      *soaked
	rng    *rand.Rand
	client *http.Client
}

// actions are what visitors do, and how often.
var actions = []struct {
	name   string
	weight int
	do     func(v *soakVisitor, ctx context.Context) error
}{
	{"page", 10, (*soakVisitor).page},
	{"download", 5, (*soakVisitor).download},
	{"slow download", 1, (*soakVisitor).slowDownload},
	{"aborted download", 2, (*soakVisitor).abortDownload},
	{"upload", 4, (*soakVisitor).upload},
	{"aborted upload", 1, (*soakVisitor).abortUpload},
	{"WebSocket", 3, (*soakVisitor).socket},
	{"TCP in bulk", 3, (*soakVisitor).tcpBulk},
	{"TCP in lines", 3, (*soakVisitor).tcpLines},
}

// next picks an action and does it.
func (v *soakVisitor) next(ctx context.Context) (name string, err error) {
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	at := v.rng.IntN(total)
	for _, a := range actions {
		if at -= a.weight; at < 0 {
			return a.name, a.do(v, ctx)
		}
	}
	panic("unreachable")
}

// ask sends a request, and takes only the device's own answer.
func (v *soakVisitor) ask(ctx context.Context, method, path string, n int64) (*http.Response, error) {
	var body io.Reader
	if method == http.MethodPost {
		body = harness.NewPattern(n)
	}
	req, err := http.NewRequestWithContext(ctx, method, v.s.face.URL(v.d.host, path), body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.ContentLength = n
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return nil, err
	}
	return resp, v.s.judge(resp, v.d)
}

func (v *soakVisitor) page(ctx context.Context) error {
	nonce := fmt.Sprint(v.rng.Uint64())
	resp, err := v.ask(ctx, "GET", "/id?nonce="+nonce, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if want := v.d.setup.Device.ID + " " + nonce; err == nil && string(text) != want {
		return wrongf("the page is %q, not %q", text, want)
	}
	return err
}

func (v *soakVisitor) download(ctx context.Context) error {
	n := 1 + v.rng.Int64N(1<<v.rng.IntN(22))
	resp, err := v.ask(ctx, "GET", fmt.Sprintf("/bytes?n=%d", n), 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return isPattern(resp.Body, n)
}

// slowly reads a little at a time.
type slowly struct{ r io.Reader }

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(15 * time.Millisecond) // what it is about
	return s.r.Read(p[:min(len(p), 16<<10)])
}

func (v *soakVisitor) slowDownload(ctx context.Context) error {
	const n = 1 << 20
	resp, err := v.ask(ctx, "GET", fmt.Sprintf("/bytes?n=%d", n), 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return isPattern(slowly{resp.Body}, n)
}

func (v *soakVisitor) abortDownload(ctx context.Context) error {
	resp, err := v.ask(ctx, "GET", fmt.Sprintf("/bytes?n=%d", 64<<20), 0)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, resp.Body, v.rng.Int64N(1<<20))
	resp.Body.Close()
	return err
}

func (v *soakVisitor) upload(ctx context.Context) error {
	n := 1 + v.rng.Int64N(1<<v.rng.IntN(22))
	resp, err := v.ask(ctx, "POST", "/sum", n)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if want := fmt.Sprintf("all %d", n); err == nil && string(text) != want {
		return wrongf("of an upload of %d bytes the device says: %s", n, text)
	}
	return err
}

func (v *soakVisitor) abortUpload(ctx context.Context) error {
	c, err := v.s.visitor(ctx, v.d.host)
	if err != nil {
		return err
	}
	defer c.Close()
	_, hostPort, _ := strings.Cut(v.s.face.URL(v.d.host, ""), "://")
	fmt.Fprintf(c, "POST /sum HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", hostPort, 8<<20)
	_, err = io.CopyN(c, harness.NewPattern(8<<20), v.rng.Int64N(2<<20))
	return err
}

func (v *soakVisitor) socket(ctx context.Context) error {
	d := websocket.Dialer{
		HandshakeTimeout: harness.VisitorTimeout,
		NetDialContext:   func(ctx context.Context, _, _ string) (net.Conn, error) { return v.s.visitor(ctx, v.d.host) },
	}
	_, place, _ := strings.Cut(v.s.face.URL(v.d.host, "/ws"), "://")
	ws, resp, err := d.DialContext(ctx, "ws://"+place, nil)
	if resp != nil && errors.Is(err, websocket.ErrBadHandshake) {
		return v.s.judge(resp, v.d)
	}
	if err != nil {
		return err
	}
	defer ws.Close()
	if id := resp.Header.Get("X-Device"); id != v.d.setup.Device.ID {
		return wrongf("the WebSocket is %q's", id)
	}
	for range 1 + v.rng.IntN(20) {
		text := strings.Repeat(fmt.Sprint(v.rng.Uint64()), 1+v.rng.IntN(200))
		ws.SetReadDeadline(time.Now().Add(harness.VisitorTimeout))
		if err := ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			return err
		}
		_, back, err := ws.ReadMessage()
		if err != nil {
			return err
		}
		if string(back) != text {
			return wrongf("the WebSocket echoes other bytes")
		}
		rest(ctx, time.Duration(v.rng.IntN(20))*time.Millisecond)
	}
	return nil
}

// tcp opens a connection to the device's public port, and reads who it is.
func (v *soakVisitor) tcp(ctx context.Context) (*net.TCPConn, *bufio.Reader, error) {
	c, err := v.s.dial(ctx, v.d.port)
	if err != nil {
		return nil, nil, err
	}
	c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	br := bufio.NewReader(c)
	line, err := br.ReadString('\n')
	if err == nil && line != v.d.setup.Device.ID+"\n" {
		err = wrongf("public port %s is %q's", v.d.port, line)
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c.(*net.TCPConn), br, nil
}

func (v *soakVisitor) tcpBulk(ctx context.Context) error {
	c, br, err := v.tcp(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	n := 1 + v.rng.Int64N(1<<v.rng.IntN(21))
	sent := make(chan error, 1)
	go func() { // ends with the connection
		_, err := io.Copy(c, harness.NewPattern(n))
		sent <- errors.Join(err, c.CloseWrite())
	}()
	err = isPattern(br, n)
	if _, bad := errors.AsType[wrong](err); bad && strings.HasPrefix(err.Error(), "an end after") {
		err = fmt.Errorf("TCP: %s", err) // without a length nobody can tell an end from another
	}
	c.Close()
	return errors.Join(err, <-sent)
}

func (v *soakVisitor) tcpLines(ctx context.Context) error {
	c, br, err := v.tcp(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for range 1 + v.rng.IntN(20) {
		line := fmt.Sprintln(v.rng.Uint64())
		if _, err := io.WriteString(c, line); err != nil {
			return err
		}
		back, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		if back != line {
			return wrongf("TCP: %q came back for %q", back, line)
		}
		rest(ctx, time.Duration(v.rng.IntN(30))*time.Millisecond)
	}
	return nil
}

// soakLoad is the visitors of one cycle.
type soakLoad struct {
	s      *soak
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// calm counts up when faults begin and end; it is odd while all must work.
	calm         atomic.Int64
	done, broken atomic.Int64 // actions that went well, and that broke by a fault
	served       []atomic.Int64
}

const soakVisitors = 3 // for each device

func (s *soak) startLoad(t *testing.T, cycle int) *soakLoad {
	ctx, cancel := context.WithCancel(t.Context())
	l := &soakLoad{s: s, cancel: cancel, served: make([]atomic.Int64, len(s.devices))}
	for i, d := range s.devices {
		for n := range soakVisitors {
			v := &soakVisitor{
				s: s, d: d, client: s.clients[(i+n)%len(s.clients)],
				rng: rand.New(rand.NewPCG(s.seed, uint64(cycle)<<16|uint64(i)<<8|uint64(n))),
			}
			l.wg.Go(func() { l.run(ctx, v, i) })
		}
	}
	return l
}

func (l *soakLoad) run(ctx context.Context, v *soakVisitor, device int) {
	for ctx.Err() == nil {
		before := l.calm.Load()
		name, err := v.next(ctx)
		bad, isWrong := errors.AsType[wrong](err)
		switch {
		case isWrong:
			l.s.fail("%s at %s: WRONG: %s", name, v.d.setup.Device.ID, bad.what)
		case ctx.Err() != nil: // the cycle is over
		case err == nil:
			l.done.Add(1)
			if before%2 == 1 {
				l.served[device].Add(1)
			}
		case before%2 == 1 && l.calm.Load() == before:
			l.s.fail("%s at %s, with nothing amiss: %v", name, v.d.setup.Device.ID, err)
		default:
			l.broken.Add(1)
		}
		rest(ctx, time.Duration(5+v.rng.IntN(40))*time.Millisecond)
	}
}

// end waits until the visitors have left.
func (l *soakLoad) end() {
	l.cancel()
	l.wg.Wait()
	for _, c := range l.s.clients {
		c.CloseIdleConnections()
	}
}
