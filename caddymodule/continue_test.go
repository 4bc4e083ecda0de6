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
