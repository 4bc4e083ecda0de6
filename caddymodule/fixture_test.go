package caddymodule

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/internal/freeport"
	"github.com/iottunnel/iottunnel/internal/leak"
)

const (
	testDomain = "devices.localhost"
	testToken  = "a-token-for-all-tests"
	testWait   = 10 * time.Second
)

// fixture is Caddy in this process, with one configuration after another.
type fixture struct {
	t    testing.TB
	port int
	dir  string
}

// config is what a test varies in the configuration.
type config struct {
	global string // lines of the global options
	app    string // lines of the option iottunnel
	site   string // lines of the site; empty: iottunnel, and what is not for it
	more   string // further sites
	tls    bool   // certificates of Caddy's own
}

func (f *fixture) caddyfile(c config) string {
	if c.site == "" {
		c.site = "route {\niottunnel\nrespond \"not a device\" 200\n}"
	}
	address, transport := fmt.Sprintf("http://*.%s:%d, http://localhost:%d", testDomain, f.port, f.port), ""
	if c.tls {
		address = strings.ReplaceAll(address, "http:", "https:")
		transport = "local_certs\nauto_https disable_redirects\nskip_install_trust\n"
	}
	if !strings.Contains(c.app, "auth ") {
		c.app += "\nauth static {\ndevice cam-1 " + testToken + "\ndevice lyon-1 " + testToken + "\n}"
	}
	return fmt.Sprintf(`{
		admin off
		persist_config off
		grace_period 1s
		storage file_system %q
		log {
			output discard
		}
		%s
		%s
		iottunnel {
			domain %s
			registry memory {
				path %q
			}
			%s
		}
	}
	%s {
		bind 127.0.0.1
		%s
	}
	%s
	`, filepath.Join(f.dir, "caddy"), transport, c.global, testDomain, filepath.Join(f.dir, "leases.db"), c.app, address, c.site, c.more)
}

// start loads the first configuration. Caddy ends with the test, and leaves no
// goroutine of this package or the hub.
func start(t testing.TB, c config) *fixture {
	t.Helper()
	f := &fixture{t: t, port: int(freeport.One(t).Port()), dir: t.TempDir()}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		edges.Range(func(key, _ any) bool {
			t.Errorf("edge %v is left", key)
			return true
		})
		registries.Range(func(key, _ any) bool {
			t.Errorf("registry %v is left", key)
			return true
		})
	})
	f.mustLoad(c)
	return f
}

func (f *fixture) load(c config) error {
	f.t.Helper()
	if err := loadCaddyfile(f.caddyfile(c)); err != nil {
		return err
	}
	f.handedOver()
	return nil
}

func loadCaddyfile(text string) error {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		return err
	}
	return caddy.Load(config, true)
}

func (f *fixture) mustLoad(c config) {
	f.t.Helper()
	if err := f.load(c); err != nil {
		f.t.Fatal(err)
	}
}

// device is a connected device with a web server.
type device struct {
	up    agent.Up
	stop  func()
	ups   chan agent.Up
	downs chan error
}

// connect starts an agent that serves handler on port 80.
func (f *fixture) connect(id string, handler http.Handler) *device {
	f.t.Helper()
	l, forward := agent.Listen(80, agent.HTTP)
	return f.connectForward(id, handler, l, forward)
}

func (f *fixture) connectForward(id string, handler http.Handler, l net.Listener, forward agent.Forward) *device {
	f.t.Helper()
	return f.connectToken(id, testToken, handler, l, forward)
}

func (f *fixture) connectToken(id, token string, handler http.Handler, l net.Listener, forward agent.Forward) *device {
	f.t.Helper()
	return f.connectTo(fmt.Sprintf("ws://localhost:%d", f.port), id, token, handler, l, forward)
}

func (f *fixture) connectTo(server, id, token string, handler http.Handler, l net.Listener, forward agent.Forward) *device {
	f.t.Helper()
	d := &device{ups: make(chan agent.Up, 100), downs: make(chan error, 100)}
	a, err := agent.New(agent.Config{
		Servers:    []string{server},
		Device:     id,
		Token:      token,
		Forwards:   []agent.Forward{forward},
		MaxBackoff: time.Second,
		OnUp:       func(up agent.Up) { d.ups <- up },
		OnDown:     func(err error, _ time.Duration) { d.downs <- err },
	})
	if err != nil {
		f.t.Fatal(err)
	}
	web := &http.Server{Handler: handler}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { web.Serve(l) })
	wg.Go(func() { a.Run(ctx) })
	d.stop = sync.OnceFunc(func() {
		cancel()
		web.Close()
		wg.Wait()
	})
	f.t.Cleanup(d.stop)
	d.up = d.waitUp(f.t)
	return d
}

func (d *device) waitUp(t testing.TB) agent.Up {
	t.Helper()
	select {
	case up := <-d.ups:
		return up
	case <-time.After(testWait):
		for range len(d.downs) {
			t.Log(<-d.downs)
		}
		t.Fatal("the device does not connect")
		return agent.Up{}
	}
}

// client reaches the site, whatever the host of the URL.
func (f *fixture) client() *http.Client {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
		},
	}
	return &http.Client{Transport: tr, Timeout: testWait, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

type reply struct {
	*http.Response
	body string
}

func (f *fixture) do(method, url string, body io.Reader, headers ...string) reply {
	f.t.Helper()
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	res, err := f.client().Do(r)
	for i := 0; i < 3 && body == nil && isReload(err); i++ {
		res, err = f.client().Do(r)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatalf("%s %s: %v after %q", method, url, err, b)
	}
	return reply{res, string(b)}
}

// isReload reports whether a request may have failed because Caddy's old and new
// listeners overlap: of the connections that come just after a reload it resets or
// ends some, with any handler.
func isReload(err error) bool { return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) }

func (f *fixture) get(url string, headers ...string) reply {
	f.t.Helper()
	return f.do("GET", url, nil, headers...)
}

// url is a URL of the site, for another host than the devices'.
func (f *fixture) url(host string) string { return fmt.Sprintf("http://%s:%d/", host, f.port) }

// upgraded is a visitor's connection to /echo of a device after a 101: lines come
// back.
type upgraded struct {
	net.Conn
	r *bufio.Reader
}

func (f *fixture) upgrade(host string) *upgraded {
	f.t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(testWait))
	fmt.Fprintf(c, "GET /echo HTTP/1.1\r\nHost: %s:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", host, f.port)
	u := &upgraded{c, bufio.NewReader(c)}
	res, err := http.ReadResponse(u.r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		f.t.Fatalf("upgrade: %v %v", res, err)
	}
	return u
}

func (u *upgraded) mustEcho(t *testing.T, line string) {
	t.Helper()
	u.SetDeadline(time.Now().Add(testWait))
	io.WriteString(u, line+"\n")
	if got, err := u.r.ReadString('\n'); err != nil || got != line+"\n" {
		t.Fatalf("echo of %q: %q %v", line, got, err)
	}
}

// testSite is the web server of a device.
func testSite() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s %s %q", r.Method, r.URL.Path, b)
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "Host: %s\n", r.Host)
		r.Header.Write(w)
	})
	mux.HandleFunc("/forge", func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Iottunnel-Error", "device_offline")
		h.Set("Link", "</early>")
		w.WriteHeader(http.StatusEarlyHints)
		h.Add("Set-Cookie", "own=1")
		h.Add("Set-Cookie", "parent=1; Domain="+testDomain)
		h.Set("Trailer", "Iottunnel-Error, X-Late")
		io.WriteString(w, "forged")
		h.Set("X-Late", "fine")
		h.Set(http.TrailerPrefix+"Iottunnel-More", "x")
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nIottunnel-Error: x\r\n\r\n")
		io.Copy(c, rw)
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(w, "data: %d\n\n", i); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	return mux
}

// noGoroutines fails the test if functions with one of the names still run.
func noGoroutines(t *testing.T, names ...string) {
	t.Helper()
	for _, stack := range leak.Wait(2 * time.Second) {
		for _, name := range names {
			if strings.Contains(stack, name) {
				t.Errorf("left:\n%s", stack)
			}
		}
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
