package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"
)

func TestSilentDevice(t *testing.T) {
	f := start(t, config{app: "answer_timeout 300ms"})
	left := make(chan struct{}, 10)
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/never":
			<-r.Context().Done()
			left <- struct{}{}
		case "/slowly":
			for i := range 5 {
				fmt.Fprint(w, i)
				http.NewResponseController(w).Flush()
				time.Sleep(100 * time.Millisecond)
			}
		default:
			testSite().ServeHTTP(w, r)
		}
	}))
	page := d.up.Ports[0].URL
	for _, method := range []string{"GET", "DELETE"} { // on a kept connection and on its own
		if r := f.do(method, page+"never", nil); r.StatusCode != 504 || r.Header.Get("Iottunnel-Error") != "device_timeout" {
			t.Errorf("%s: %d %v", method, r.StatusCode, r.Header)
		}
		select {
		case <-left:
		case <-time.After(testWait):
			t.Error("the device goes on")
		}
	}
	if r := f.get(page + "slowly"); r.body != "01234" {
		t.Errorf("an answer that lasts: %d %s", r.StatusCode, r.body)
	}
	socket := f.upgrade(d.up.Hostname)
	body, upload := io.Pipe()
	go func() {
		defer upload.Close()
		for range 5 {
			io.WriteString(upload, "x")
			time.Sleep(100 * time.Millisecond)
		}
	}()
	if r := f.do("POST", page, body); r.body != `POST / "xxxxx"` {
		t.Errorf("an upload that lasts: %d %s", r.StatusCode, r.body)
	}
	socket.mustEcho(t, "still here")
	// What counts is the setting in force, for connections that are kept, too.
	f.mustLoad(config{app: "answer_timeout 100ms"})
	begun := time.Now()
	if r := f.get(page + "never"); r.StatusCode != 504 || time.Since(begun) > 5*time.Second {
		t.Errorf("after a reload: %d after %v", r.StatusCode, time.Since(begun))
	}
}

// TestBoundAuthentication wants no connection kept that could know its visitor.
func TestBoundAuthentication(t *testing.T) {
	f := start(t, config{})
	d := f.connect("cam-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Close)
	}))
	for authorization, alone := range map[string]bool{
		"":                          false,
		"Basic YWxpY2U6c2VjcmV0":    false,
		"basic YWxpY2U6c2VjcmV0":    false,
		"Bearer x":                  false,
		`Digest username="alice"`:   false,
		"NTLM TlRMTVNTUAABAAAA":     true,
		"ntlm TlRMTVNTUAABAAAA":     true,
		"Negotiate YII":             true,
		"Kerberos x":                true,
		"SomethingElse x":           true,
		"\tNTLM TlRMTVNTUAABAAAA\t": true,
	} {
		r := f.get(d.up.Ports[0].URL, "Authorization", authorization)
		if r.body != strconv.FormatBool(alone) {
			t.Errorf("%q: a connection of its own: %s, want %t", authorization, r.body, alone)
		}
	}
}
