package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestRequestTrailers(t *testing.T) {
	f := start(t, config{site: "iottunnel {\nkeep_headers X-User\n}"})
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		announced := len(r.Trailer)
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %q %v %v", announced, b, err, r.Trailer)
	}))
	r := f.raw("POST / HTTP/1.1\r\nHost: " + d.up.Hostname + "\r\nConnection: close, Authorization\r\nTransfer-Encoding: chunked\r\n" +
		"Trailer: Remote-User, X-Sum, Iottunnel-Error, X-Forwarded-For, X-Forwarded-User, Authorization, X-User, Forwarded\r\n\r\n" +
		"5\r\nhello\r\n0\r\nRemote-User: admin\r\nX-Sum: 1\r\nIottunnel-Error: x\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-User: admin\r\n" +
		"Authorization: Bearer x\r\nX-User: admin\r\nForwarded: for=6.6.6.6\r\n" +
		"X-Real-Ip: 6.6.6.6\r\nremote_user: admin\r\nIottunnel-More: x\r\n\r\n") // not announced
	if want := `1 "hello" <nil> map[X-Sum:[1]]`; r.body != want {
		t.Errorf("the device saw %s, want %s", r.body, want)
	}
}

func TestUpgrades(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", testSite())
	for _, protocol := range []string{"h2c", "H2C", "TLS/1.0", "lines", "websocket, h2c", "h2c, websocket", "websocket/13", ""} {
		r := f.raw("GET /headers HTTP/1.1\r\nHost: " + d.up.Hostname + "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + "\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
		for _, name := range []string{"Upgrade:", "Http2-Settings:", "Connection:"} {
			if r.StatusCode != 200 || strings.Contains(r.body, name) {
				t.Errorf("%q: %d, the device saw\n%s", protocol, r.StatusCode, r.body)
				break
			}
		}
		// A device that switches all the same has nobody to talk to.
		r = f.raw("GET /echo HTTP/1.1\r\nHost: " + d.up.Hostname + "\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n")
		if r.StatusCode != 502 {
			t.Errorf("%q: the device's 101 became %d", protocol, r.StatusCode)
		}
	}
	f.upgrade(d.up.Hostname).mustEcho(t, "hello")
}

// TestUpgradeWithBody: the body would be read beside the protocol that is switched to.
func TestUpgradeWithBody(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", testSite())
	for _, body := range []string{"Content-Length: 5\r\n\r\nhello", "Content-Length: 100000\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"} {
		v := f.visitor()
		fmt.Fprintf(v, "GET /echo HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n%s", d.up.Hostname, body)
		v.mustAnswer(t, 502) // the device switches all the same
	}
	v := f.visitor()
	fmt.Fprintf(v, "GET /headers HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello", d.up.Hostname)
	res := v.mustAnswer(t, 200)
	if b, err := io.ReadAll(res.Body); err != nil || strings.Contains(string(b), "Upgrade:") {
		t.Errorf("the device saw %s %v", b, err)
	}
}

// TestConnectionNamesHeaders has a visitor call headers hop-by-hop that handlers
// in front have set: the device gets them all the same.
func TestConnectionNamesHeaders(t *testing.T) {
	f := start(t, config{site: `route {
		@visitors host *.` + testDomain + `
		request_header @visitors Remote-User alice
		request_header @visitors X-Api-Key secret
		request_header @visitors Authorization "Bearer of-the-device"
		iottunnel {
			keep_headers Remote-User X-Api-Key
		}
	}`})
	d := f.connect("cam-1", testSite())
	r := f.raw("GET /headers HTTP/1.1\r\nHost: " + d.up.Hostname + "\r\nConnection: close, remote-user ,X-Api-Key\r\nConnection: Authorization, X-Hop\r\nX-Hop: 1\r\n\r\n")
	for _, want := range []string{"Remote-User: alice\r\n", "X-Api-Key: secret\r\n", "Authorization: Bearer of-the-device\r\n"} {
		if !strings.Contains(r.body, want) {
			t.Errorf("no %q in what the device saw:\n%s", want, r.body)
		}
	}
	if strings.Contains(r.body, "X-Hop") {
		t.Errorf("the device saw\n%s", r.body)
	}
}
