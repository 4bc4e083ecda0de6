package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

const dashboardSite = "handle_path /dash/* {\nroute {\niottunnel_dashboard\nrespond \"nothing\" 404\n}\n}\nhandle {\niottunnel\n}"

func TestDashboard(t *testing.T) {
	f := start(t, config{site: "route {\n" + dashboardSite + "\n}"})
	base := f.url("localhost") + "dash/"
	page := f.get(base)
	if page.StatusCode != 200 || !strings.Contains(page.body, "dashboard.js?v=") || strings.Contains(page.body, "{{") {
		t.Fatalf("page: %d %.200s", page.StatusCode, page.body)
	}
	csp := page.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("policy: %s", csp)
	}
	for _, bad := range []string{" onclick", "<style", "style=", "http://", "https://", "javascript:"} {
		if strings.Contains(page.body, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
	if script := f.get(base + "dashboard.js"); !strings.Contains(script.Header.Get("Content-Type"), "javascript") ||
		!strings.Contains(script.Header.Get("Cache-Control"), "immutable") || strings.Contains(script.body, "innerHTML") {
		t.Errorf("script: %v", script.Header)
	}
	if style := f.get(base + "dashboard.css"); !strings.Contains(style.Header.Get("Content-Type"), "css") || strings.Contains(style.body, "url(") {
		t.Errorf("style: %v", style.Header)
	}
	if r := f.get(base + "else"); r.StatusCode != 404 || r.body != "nothing" {
		t.Errorf("another path: %d %q", r.StatusCode, r.body)
	}
	if r := f.do("POST", base+"api/devices", nil); r.StatusCode != 405 {
		t.Errorf("POST: %d", r.StatusCode)
	}
	if r := f.get(base + "api/devices?limit=no"); r.StatusCode != 400 {
		t.Errorf("a bad limit: %d", r.StatusCode)
	}
	d := f.connect("cam-1", testSite())
	var list devicePage
	if r := f.get(base + "api/devices"); json.Unmarshal([]byte(r.body), &list) != nil || len(list.Devices) != 1 ||
		list.Devices[0].Hostname != d.up.Hostname || list.Devices[0].State != "online" || r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("devices: %s", r.body)
	}
	if r := f.get(base + "api/nodes"); !strings.Contains(r.body, `"nodes":[{`) {
		t.Errorf("nodes: %s", r.body)
	}
}

func TestDashboardEvents(t *testing.T) {
	c := config{site: "route {\n" + dashboardSite + "\n}"}
	f := start(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 3*testWait)
	defer cancel()
	follow := func() *bufio.Scanner {
		req, err := http.NewRequestWithContext(ctx, "GET", f.url("localhost")+"dash/api/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		client := f.client()
		client.Timeout = 0
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		lines := bufio.NewScanner(res.Body)
		if res.Header.Get("Content-Type") != "text/event-stream" || !lines.Scan() {
			t.Fatalf("events: %v", res.Header)
		}
		return lines
	}
	// next waits for a device that is in that state.
	next := func(lines *bufio.Scanner, state string) deviceView {
		t.Helper()
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			var d deviceView
			if ok && json.Unmarshal([]byte(data), &d) == nil && d.State == state {
				return d
			}
		}
		t.Fatalf("no device is %s: %v", state, lines.Err())
		return deviceView{}
	}
	lines := follow()
	d := f.connect("cam-1", testSite())
	if got := next(lines, "online"); got.Device != "cam-1" || got.Label != d.up.Label {
		t.Errorf("online: %+v", got)
	}
	d.stop()
	if got := next(lines, "offline"); got.LastClose == nil {
		t.Errorf("offline: %+v", got)
	}
	// A reload ends the stream, and the next one goes on.
	f.mustLoad(config{site: c.site, app: "wait 1s"})
	for lines.Scan() {
	}
	if err := lines.Err(); err != nil {
		t.Errorf("the end of the stream: %v", err)
	}
	lines = follow()
	f.connect("lyon-1", testSite())
	next(lines, "online")
	begin := time.Now()
	f.mustLoad(c)
	for lines.Scan() {
	}
	if d := time.Since(begin); d > testWait {
		t.Errorf("the stream ended %v after the reload", d)
	}
}

func TestFeedIsBounded(t *testing.T) {
	var f feed
	slow, leave, ok := f.join()
	if !ok {
		t.Fatal("no room")
	}
	for range maxPages - 1 {
		if _, _, ok := f.join(); !ok {
			t.Fatal("no room")
		}
	}
	if _, _, ok := f.join(); ok {
		t.Error("there is room for more pages than there may be")
	}
	for range maxBehind + 1 {
		f.send("cam-1")
	}
	n := 0
	for range slow {
		n++
	}
	if n != maxBehind {
		t.Errorf("%d changes before the end, want %d", n, maxBehind)
	}
	leave()
	if _, _, ok := f.join(); !ok {
		t.Error("no room after others have left")
	}
}
