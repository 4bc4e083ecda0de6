package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestExpectContinue sends the body of a request after a 100 alone, as strict
// clients do.
func TestExpectContinue(t *testing.T) {
	f := start(t, config{app: "wait 0s", site: "iottunnel\nhandle_errors 503 {\nrespond \"operator: {err.status_code}\"\n}"})
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusExpectationFailed)
			io.WriteString(w, "refused")
			return
		}
		testSite().ServeHTTP(w, r)
	}))
	offline := f.connect("lyon-1", testSite())
	offline.stop()
	for f.get(offline.up.Ports[0].URL).StatusCode != 503 { // the goodbye is on its way
		time.Sleep(time.Millisecond)
	}
	exchange := func(host, path string) (first int, rest reply) {
		t.Helper()
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(testWait))
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", path, host)
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Errorf("%s%s: no answer: %v", host, path, err)
			return 0, reply{}
		}
		if first = res.StatusCode; first == 100 {
			io.WriteString(c, "hello")
			for err == nil && res.StatusCode == 100 { // the device's own may follow the edge's
				res, err = http.ReadResponse(br, nil)
			}
			if err != nil {
				t.Errorf("%s%s: no answer to the body: %v", host, path, err)
				return first, reply{}
			}
		}
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Errorf("%s%s: %v", host, path, err)
		}
		if first != 100 && !res.Close {
			t.Errorf("%s%s: the connection goes on without the body", host, path)
		}
		return first, reply{res, string(b)}
	}
	if first, r := exchange(d.up.Hostname, "/a"); first != 100 || r.body != `POST /a "hello"` {
		t.Errorf("accepted: %d, %v", first, r)
	}
	if first, r := exchange(d.up.Hostname, "/refuse"); first != 417 || r.body != "refused" {
		t.Errorf("refused by the device: %d, %v", first, r)
	}
	if first, r := exchange("nobody."+testDomain, "/"); first != 404 || r.Header.Get("Iottunnel-Error") != "unknown_device" {
		t.Errorf("no such device: %d, %v", first, r)
	}
	if first, r := exchange(offline.up.Hostname, "/"); first != 503 || r.body != "operator: 503" {
		t.Errorf("offline, with an error route: %d, %v", first, r)
	}
}

// TestRefusedWithoutBody has visitors who announce a body and send none: a refusal
// does not wait for it.
func TestRefusedWithoutBody(t *testing.T) {
	port := internalPort(t)
	f := start(t, withInternal(port, "192.0.2.1"))
	offline := f.connect("lyon-1", testSite())
	offline.stop()
	f.await("the device is offline", func() bool { return f.get(offline.up.Ports[0].URL).StatusCode == 503 })
	for _, c := range []struct {
		port   int
		host   string
		target string
		status int
	}{
		{f.port, "nobody." + testDomain, "/", 404},
		{f.port, offline.up.Hostname, "/", 503},
		{f.port, offline.up.Hostname, "http://" + offline.up.Hostname, 400},
		{port, "localhost", "/", 403},
	} {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(testWait))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n\r\n", c.target, c.host)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || res.StatusCode != c.status || !res.Close {
			t.Errorf("%s %s: %v %v, want %d and the end of the connection", c.host, c.target, res, err, c.status)
		}
	}
}

// TestMalformedBody tells visitors who break the rules so, and not that they left.
func TestMalformedBody(t *testing.T) {
	f := start(t, config{site: "@small path /small\nrequest_body @small {\nmax_size 10\n}\niottunnel"})
	d := f.connect("cam-1", testSite())
	for body, want := range map[string]int{
		"5\r\nhello\r\nxyz\r\n\r\n":   400,
		"5\r\nhello!!\r\n0\r\n\r\n":   400,
		"ffffffffffffffffffff\r\n":    400,
		"5\r\nhello\r\n0\r\n\r\n":     200,
		"5;a=b\r\nhello\r\n0\r\n\r\n": 200,
	} {
		if r := f.raw("POST / HTTP/1.1\r\nHost: " + d.up.Hostname + "\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body); r.StatusCode != want {
			t.Errorf("%q: %d %s, want %d", body, r.StatusCode, r.body, want)
		}
	}
	r := f.raw("POST /small HTTP/1.1\r\nHost: " + d.up.Hostname + "\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n")
	if r.StatusCode != 413 {
		t.Errorf("longer than max_size: %d %s", r.StatusCode, r.body)
	}
}
