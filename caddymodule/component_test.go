package caddymodule

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddytls"

	"github.com/iottunnel/iottunnel/agent"
)

func TestServe(t *testing.T) {
	for name, site := range map[string]string{
		"without an access log": "",
		"with an access log":    "log {\noutput discard\n}\nroute {\niottunnel\nrespond \"not a device\" 200\n}",
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, config{site: site})
			d := f.connect("cam-1", testSite())
			page := d.up.Ports[0].URL
			if want := "http://" + d.up.Label + "." + testDomain + ":" + strconv.Itoa(f.port) + "/"; page != want {
				t.Errorf("the agent was told %s, want %s", page, want)
			}
			for range 3 {
				if r := f.get(page + "a/b"); r.StatusCode != 200 || r.body != `GET /a/b ""` {
					t.Errorf("GET: %d %s", r.StatusCode, r.body)
				}
				body := strings.NewReader("some bytes")
				if r := f.do("POST", page, body); r.StatusCode != 200 || r.body != `POST / "some bytes"` {
					t.Errorf("POST: %d %s", r.StatusCode, r.body)
				}
			}
			f.upgrade(d.up.Hostname).mustEcho(t, "hello")
			if r := f.get(f.url("localhost")); r.body != "not a device" {
				t.Errorf("another host: %d %s", r.StatusCode, r.body)
			}
			if r := f.get(f.url("nobody." + testDomain)); r.StatusCode != 404 || r.Header.Get("Iottunnel-Error") != "unknown_device" {
				t.Errorf("unknown: %d %v", r.StatusCode, r.Header)
			}
			if r := f.get(f.url("a--b." + testDomain)); r.StatusCode != 404 || r.Header.Get("Iottunnel-Error") != "unknown_device" {
				t.Errorf("never leased: %d %v", r.StatusCode, r.Header)
			}
			if r := f.get(f.url("localhost") + ".iottunnel/v1/control"); r.StatusCode != 426 || r.Header.Get("Iottunnel-Error") != "upgrade_required" {
				t.Errorf("agent path without an upgrade: %d %s", r.StatusCode, r.body)
			}
			if r := f.get(page + ".iottunnel/v1/control"); r.body != `GET /.iottunnel/v1/control ""` {
				t.Errorf("agent path on a device's hostname: %d %s", r.StatusCode, r.body)
			}
		})
	}
}

func TestHeadersBothWays(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", testSite())
	page := d.up.Ports[0].URL
	r := f.get(page+"headers", "X-Forwarded-For", "6.6.6.6", "X-Real-Ip", "6.6.6.6", "Iottunnel-X", "6.6.6.6", "Authorization", "Bearer of-the-device")
	if strings.Contains(r.body, "6.6.6.6") || !strings.Contains(r.body, "X-Forwarded-For: 127.0.0.1\r\n") || !strings.Contains(r.body, "Authorization: Bearer of-the-device\r\n") ||
		!strings.Contains(r.body, "Host: "+d.up.Hostname+":") {
		t.Errorf("the device saw\n%s", r.body)
	}
	var early textproto.MIMEHeader
	req, err := http.NewRequest("GET", page+"forge", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		early = h
		return nil
	}})
	res, err := f.client().Do(req.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "forged" {
		t.Fatalf("%q %v", b, err)
	}
	if early.Get("Link") == "" || res.Trailer.Get("X-Late") != "fine" || len(res.Cookies()) != 1 || res.Cookies()[0].Name != "own" {
		t.Errorf("early %v, header %v, trailer %v", early, res.Header, res.Trailer)
	}
	for _, h := range []http.Header{http.Header(early), res.Header, res.Trailer} {
		for name := range h {
			if ours(name) {
				t.Errorf("the device forged %s", name)
			}
		}
	}
}

func TestCutAnswers(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", testSite())
	res, err := f.client().Get(d.up.Ports[0].URL + "cut")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("half an answer looks whole: %q", b)
	}
}

func TestErrorRoutes(t *testing.T) {
	f := start(t, config{
		app:  "wait 0s",
		site: "iottunnel\nhandle_errors 404 {\nrespond \"operator: {err.status_code}\"\n}",
	})
	if r := f.get(f.url("nobody." + testDomain)); r.StatusCode != 404 || r.body != "operator: 404" || r.Header.Get("Iottunnel-Error") != "unknown_device" {
		t.Errorf("with a route: %d %s %v", r.StatusCode, r.body, r.Header)
	}
	d := f.connect("cam-1", testSite())
	d.stop()
	// 503 has no route: without care this would be an empty page.
	if r := f.get(d.up.Ports[0].URL, "Accept", "application/json"); r.StatusCode != 503 || !strings.Contains(r.body, `"device_offline"`) {
		t.Errorf("without a route: %d %s %v", r.StatusCode, r.body, r.Header)
	}
	f.mustLoad(config{
		app:  "wait 0s",
		site: "iottunnel\nhandle_errors {\nrespond \"operator: {err.status_code} {http.iottunnel.device}\"\n}",
	})
	if r := f.get(d.up.Ports[0].URL); r.StatusCode != 503 || r.body != "operator: 503 cam-1" || r.Header.Get("Retry-After") == "" {
		t.Errorf("for all errors: %d %s %v", r.StatusCode, r.body, r.Header)
	}
}

func TestModesAndMatcher(t *testing.T) {
	f := start(t, config{site: `
		@lyon iottunnel device lyon-*
		header @lyon X-Device {http.iottunnel.device}
		@closed iottunnel device cam-?
		route {
			respond @closed "closed: {http.iottunnel.label}" 403
			iottunnel agents
			iottunnel devices
			respond "next" 200
		}`})
	cam := f.connect("cam-1", testSite())
	lyon := f.connect("lyon-1", testSite())
	if r := f.get(cam.up.Ports[0].URL); r.StatusCode != 403 || r.body != "closed: "+cam.up.Label || r.Header.Get("X-Device") != "" {
		t.Errorf("cam-1: %d %s %v", r.StatusCode, r.body, r.Header)
	}
	// A rule for a device holds on all of its ports, offered or not.
	for _, port := range []string{"80", "81"} {
		if r := f.get(f.url(cam.up.Label + "--" + port + "." + testDomain)); r.StatusCode != 403 || r.body != "closed: "+cam.up.Label {
			t.Errorf("cam-1, port %s: %d %s", port, r.StatusCode, r.body)
		}
	}
	if r := f.get(lyon.up.Ports[0].URL); r.StatusCode != 200 || r.Header.Get("X-Device") != "lyon-1" {
		t.Errorf("lyon-1: %d %s %v", r.StatusCode, r.body, r.Header)
	}
	if r := f.get(f.url("nobody." + testDomain)); r.StatusCode != 404 {
		t.Errorf("nobody: %d %s", r.StatusCode, r.body)
	}
	if r := f.get(f.url("localhost")); r.body != "next" {
		t.Errorf("localhost: %d %s", r.StatusCode, r.body)
	}
}

// events reads server-sent events until it is told to stop, and counts gaps.
func events(t *testing.T, f *fixture, page string) (stop func() int) {
	t.Helper()
	client := f.client()
	client.Timeout = 0
	res, err := client.Get(page + "events")
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan int, 1)
	go func() { // ends with the body, which stop closes
		lines, n := bufio.NewScanner(res.Body), 0
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if data != strconv.Itoa(n) {
					t.Errorf("event %s, want %d", data, n)
				}
				n++
			}
		}
		read <- n
	}()
	return func() int {
		select {
		case n := <-read:
			t.Errorf("the events ended by themselves after %d", n)
			return n
		default:
		}
		res.Body.Close()
		return <-read
	}
}

func TestReload(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", testSite())
	page := d.up.Ports[0].URL
	socket := f.upgrade(d.up.Hostname)
	stop := events(t, f, page)
	for i := range 5 {
		f.mustLoad(config{app: "lease " + strconv.Itoa(i+10) + "h"})
		socket.mustEcho(t, "still here")
		if r := f.get(page); r.StatusCode != 200 {
			t.Fatalf("reload %d: %d %s", i, r.StatusCode, r.body)
		}
	}
	select {
	case up := <-d.ups:
		t.Errorf("the device came up again: %v", up)
	default:
	}
	// Failures: in Validate, in another app's Start, in our own.
	for name, c := range map[string]config{
		"validate":      {app: "lease 1ms"},
		"start":         {app: "lease 77h", more: "http://localhost:1 {\nbind 192.0.2.1\n}"},
		"start our own": {app: "node {\nid other\n}\nlease 77h", more: "http://localhost:1 {\nbind 192.0.2.1\n}"},
	} {
		for range 3 {
			if err := f.load(c); err == nil {
				t.Fatalf("%s: the configuration was accepted", name)
			}
			socket.mustEcho(t, name)
			if r := f.get(page); r.StatusCode != 200 {
				t.Fatalf("after failed reload (%s): %d %s", name, r.StatusCode, r.body)
			}
		}
	}
	edges.Range(func(_, e any) bool {
		e.(*edge).mu.Lock()
		defer e.(*edge).mu.Unlock()
		if n := len(e.(*edge).generations); n != 1 {
			t.Errorf("%d configurations lend settings", n)
		} else if lease := e.(*edge).generations[0].settings.Lease; lease != 14*time.Hour {
			t.Errorf("lease %v is in force", lease)
		}
		return true
	})
	if n := stop(); n == 0 {
		t.Error("no events were read")
	}
}

func TestRemovedAndBack(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", testSite())
	page := d.up.Ports[0].URL
	if err := loadCaddyfile("{\nadmin off\npersist_config off\ngrace_period 1s\nlog {\noutput discard\n}\n}\n"); err != nil {
		t.Fatal(err)
	}
	noGoroutines(t, "iottunnel/tunnelcore.(*Hub)")
	if !exists(f.dir + "/leases.db") {
		t.Error("the registry has no file")
	}
	f.mustLoad(config{})
	if up := d.waitUp(t); up.Label != d.up.Label {
		t.Errorf("the label became %s", up.Label)
	}
	if r := f.get(page); r.StatusCode != 200 {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

func TestAnotherNodeID(t *testing.T) {
	f := start(t, config{app: "node {\nid one\n}"})
	d := f.connect("cam-1", testSite())
	socket := f.upgrade(d.up.Hostname)
	// More than travels without a transfer socket: the stream outlives its tunnel.
	socket.mustEcho(t, strings.Repeat("x", 100<<10))
	for _, id := range []string{"two", "one", "three"} {
		f.mustLoad(config{app: "node {\nid " + id + "\n}"})
		if up := d.waitUp(t); up.Label != d.up.Label {
			t.Errorf("the label became %s", up.Label)
		}
		if r := f.get(d.up.Ports[0].URL); r.StatusCode != 200 {
			t.Errorf("%d %s", r.StatusCode, r.body)
		}
		if id == "two" { // what has a transfer socket goes on, for a while
			socket.mustEcho(t, "still here")
		}
	}
}

func TestDeviceSpeaksHTTPS(t *testing.T) {
	f := start(t, config{})
	names := make(chan string, 10)
	certificates := httptest.NewTLSServer(nil)
	defer certificates.Close()
	inner, forward := agent.Listen(443, agent.HTTPS)
	d := f.connectForward("cam-1", testSite(), tls.NewListener(inner, &tls.Config{
		Certificates: certificates.TLS.Certificates,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			names <- hello.ServerName
			return nil, nil
		},
	}), forward)
	if r := f.get(d.up.Ports[0].URL + "a"); r.body != `GET /a ""` {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
	if name := <-names; name != d.up.Hostname {
		t.Errorf("the device was asked for the certificate of %q", name)
	}
	f.upgrade(d.up.Hostname).mustEcho(t, "through TLS")
}

func TestPermission(t *testing.T) {
	f := start(t, config{global: "on_demand_tls {\npermission iottunnel\n}"})
	d := f.connect("cam-1", testSite())
	app, err := caddy.ActiveContext().App("iottunnel")
	if err != nil {
		t.Fatal(err)
	}
	bare := &Permission{app: app.(*App)}
	listed := &Permission{app: app.(*App), Ports: []uint16{80, 81}}
	for name, want := range map[string][2]bool{
		d.up.Hostname:                           {true, true},
		strings.ToUpper(d.up.Hostname):          {true, true},
		d.up.Label + "--80." + testDomain:       {false, true},
		d.up.Label + "--81." + testDomain:       {false, false}, // not served
		d.up.Label + "--82." + testDomain:       {false, false},
		"nobody." + testDomain:                  {false, false},
		"nobody--80." + testDomain:              {false, false},
		testDomain:                              {false, false},
		"x." + d.up.Hostname:                    {false, false},
		"example.com":                           {false, false},
		d.up.Label + "." + testDomain + ".evil": {false, false},
		"":                                      {false, false},
	} {
		for i, p := range []*Permission{bare, listed} {
			err := p.CertificateAllowed(t.Context(), name)
			if (err == nil) != want[i] || err != nil && !errors.Is(err, caddytls.ErrPermissionDenied) {
				t.Errorf("%q with ports %v: %v", name, p.Ports, err)
			}
		}
	}
	d.stop()
	for name, want := range map[string]bool{
		d.up.Hostname:                     true, // its page says that it is offline
		d.up.Label + "--80." + testDomain: false,
	} {
		deadline := time.Now().Add(testWait)
		for (listed.CertificateAllowed(t.Context(), name) == nil) != want {
			if time.Now().After(deadline) {
				t.Fatalf("%q while the device is offline: %t", name, !want)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// TestVisitorLeaves aborts an upload in the middle: the device's connection ends,
// and nobody is told that the device was at fault.
func TestVisitorLeaves(t *testing.T) {
	f := start(t, config{})
	ended := make(chan error, 1)
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	}))
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(f.port))
	if err != nil {
		t.Fatal(err)
	}
	// More than is read before the device is asked.
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+d.up.Hostname+"\r\nContent-Length: 100000\r\n\r\nthe first part")
	time.AfterFunc(50*time.Millisecond, func() { c.Close() }) // in the middle, as far as one can tell
	select {
	case err := <-ended:
		if err == nil {
			t.Error("half an upload looks whole to the device")
		}
	case <-time.After(testWait):
		t.Error("the device was not told")
	}
}
