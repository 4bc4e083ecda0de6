package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/tunnelcore/registry"
)

const dashboardSite = "handle_path /dash/* {\nroute {\niottunnel_dashboard\nrespond \"nothing\" 404\n}\n}\nhandle {\niottunnel\n}"

func TestDashboard(t *testing.T) {
	f := start(t, config{site: "route {\n" + dashboardSite + "\n}"})
	base := f.url("localhost") + "dash/"
	page := f.get(base)
	if page.StatusCode != 200 || !strings.Contains(page.body, "dashboard.js") {
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
	for _, name := range []string{"dashboard.js", "device.js", "text.js", "traffic.js"} {
		script := f.get(base + name)
		tag := script.Header.Get("ETag")
		if !strings.Contains(script.Header.Get("Content-Type"), "javascript") || tag == "" ||
			strings.Contains(script.body, "innerHTML") || strings.Contains(script.body, "insertAdjacent") || strings.Contains(script.body, "eval(") {
			t.Errorf("%s: %v", name, script.Header)
		}
		if r := f.do("GET", base+name, nil, "If-None-Match", tag); r.StatusCode != 304 {
			t.Errorf("%s again: %d", name, r.StatusCode)
		}
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

// dashboardOf is a dashboard below /dash/, behind what guard says.
func dashboardOf(guard, block string) config {
	return config{
		app:  "auth enrolled\nauth static {\ndevice cam-1 " + testToken + "\n}",
		site: "route {\nhandle_path /dash/* {\nroute {\n" + guard + "\niottunnel_dashboard {\n" + block + "\n}\nrespond nothing 404\n}\n}\nhandle {\niottunnel\n}\n}",
	}
}

// act has the dashboard do something, as its page does.
func (f *fixture) act(path, body string, headers ...string) reply {
	f.t.Helper()
	return f.do("POST", f.url("localhost")+"dash/api/devices/"+path, strings.NewReader(body), append([]string{"Content-Type", "application/json"}, headers...)...)
}

func TestDashboardActions(t *testing.T) {
	f := start(t, dashboardOf("", "manage"))
	o := newOperator(t)
	first := strings.TrimSpace(o.must("enroll", "door-1"))
	d := f.connect("cam-1", testSite())

	if r := f.act("cam-1/disconnect", "{}"); r.StatusCode != 200 || !strings.Contains(r.body, "disconnected") {
		t.Errorf("disconnect: %d %s", r.StatusCode, r.body)
	}
	select {
	case <-d.downs:
	case <-time.After(testWait):
		t.Error("the device was not disconnected")
	}
	if r := f.act("door-1/tags", `{"tags":["lyon"]}`); r.StatusCode != 200 || strings.Join(o.view("door-1").Tags, " ") != "lyon" {
		t.Errorf("tags: %d %s", r.StatusCode, r.body)
	}
	var token tokenView
	if r := f.act("door-1/rotate", "{}"); json.Unmarshal([]byte(r.body), &token) != nil || token.Token == "" || token.Token == first || r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("rotate: %d %s", r.StatusCode, r.body)
	}
	if r := f.act("door-1/revoke", "{}"); r.StatusCode != 200 || o.view("door-1").Secret != "revoked" {
		t.Errorf("revoke: %d %s", r.StatusCode, r.body)
	}
	for path, status := range map[string]int{
		"nobody/rotate": 409, "door-1/disconnect": 409, "Bad_Id/revoke": 400, "door-1/forget": 404, "door-1/tags/x": 404,
	} {
		if r := f.act(path, "{}"); r.StatusCode != status {
			t.Errorf("%s: %d %s, want %d", path, r.StatusCode, r.body, status)
		}
	}
	if r := f.act("door-1/tags", `{"tags":["`+strings.Repeat("x", 10<<10)+`"]}`); r.StatusCode != 400 {
		t.Errorf("a long body: %d", r.StatusCode)
	}
	if r := f.get(f.url("localhost") + "dash/api/devices/door-1/revoke"); r.StatusCode != 405 || r.Header.Get("Allow") != "POST" {
		t.Errorf("GET: %d", r.StatusCode)
	}

	// Other sites have a browser ask, with its user's password.
	for name, headers := range map[string][]string{
		"another site":       {"Sec-Fetch-Site", "cross-site"},
		"a sibling":          {"Sec-Fetch-Site", "same-site"},
		"an old browser":     {"Origin", "https://evil.example"},
		"a form":             {"Content-Type", "text/plain"},
		"a form, as a guess": {"Content-Type", "application/x-www-form-urlencoded"},
	} {
		if headers[0] == "Content-Type" {
			r := f.do("POST", f.url("localhost")+"dash/api/devices/cam-1/tags", strings.NewReader(`{"tags":["evil"]}`), headers...)
			if r.StatusCode != 403 {
				t.Errorf("%s: %d %s", name, r.StatusCode, r.body)
			}
			continue
		}
		if r := f.act("cam-1/tags", `{"tags":["evil"]}`, headers...); r.StatusCode != 403 {
			t.Errorf("%s: %d %s", name, r.StatusCode, r.body)
		}
	}
	if tags := o.view("cam-1").Tags; len(tags) != 0 {
		t.Errorf("tags %v were set by others", tags)
	}
	if r := f.act("cam-1/tags", `{"tags":["own"]}`, "Sec-Fetch-Site", "same-origin"); r.StatusCode != 200 {
		t.Errorf("the page itself: %d %s", r.StatusCode, r.body)
	}
}

// TestDashboardManagers: those whose name is known change devices, others look.
func TestDashboardManagers(t *testing.T) {
	const hash = "$2a$04$AlP/SYH1v7bjKL2xVYUueerd1/vbLFZ.gA6PnBfn6J3Q7aqI8p9j6" // of "secret", quick to check
	guard := "basic_auth {\nanna " + hash + "\n}"
	for _, c := range []struct {
		name, guard, block string
		login              []string
		want               int
		session            string
	}{
		{"unknown", "", "", nil, 403, `"manage":false,"why":"nobody has said who you are`},
		{"basic_auth", guard, "", []string{"Authorization", "Basic YW5uYTpzZWNyZXQ="}, 200, `{"user":"anna","manage":true}`},
		{"read_only", guard, "read_only", []string{"Authorization", "Basic YW5uYTpzZWNyZXQ="}, 403, `{"user":"anna","manage":false,"why":"this dashboard is read_only"}`},
		{"manage", "", "manage", nil, 200, `{"manage":true}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, dashboardOf(c.guard, c.block))
			f.connect("cam-1", testSite())
			if r := f.do("GET", f.url("localhost")+"dash/api/session", nil, c.login...); !strings.Contains(r.body, c.session) {
				t.Errorf("session: %s, want %s", r.body, c.session)
			}
			if r := f.act("cam-1/tags", `{"tags":["x"]}`, c.login...); r.StatusCode != c.want {
				t.Errorf("tags: %d %s, want %d", r.StatusCode, r.body, c.want)
			}
		})
	}
	f := start(t, config{})
	if err := f.load(dashboardOf("", "manage\nread_only")); err == nil || !strings.Contains(err.Error(), "contradict") {
		t.Errorf("manage and read_only: %v", err)
	}
}

func TestDashboardCodeAndTraffic(t *testing.T) {
	f := start(t, dashboardOf("", ""))
	d := f.connect("cam-1", testSite())
	base := f.url("localhost") + "dash/api/"
	r := f.get(base + "devices/cam-1/qr.svg")
	if r.StatusCode != 200 || r.Header.Get("Content-Type") != "image/svg+xml" || !strings.HasPrefix(r.body, "<svg ") || strings.Count(r.body, "h1v1h-1z") < 100 {
		t.Errorf("QR code: %d %.200s", r.StatusCode, r.body)
	}
	if r := f.get(base + "devices/nobody/qr.svg"); r.StatusCode != 404 {
		t.Errorf("QR code of nobody: %d", r.StatusCode)
	}
	before := f.traffic("cam-1", "nobody", "", "Bad_Id")
	if len(before) != 1 {
		t.Errorf("traffic: %v", before)
	}
	if r := f.get(f.url(d.up.Hostname)); r.StatusCode != 200 {
		t.Fatalf("%d", r.StatusCode)
	}
	if after := f.traffic("cam-1"); after["cam-1"][0] <= before["cam-1"][0] || after["cam-1"][1] <= before["cam-1"][1] {
		t.Errorf("traffic %v after %v", after, before)
	}
	if r := f.get(base + "traffic?ids=" + strings.Repeat(",", 200)); r.StatusCode != 400 {
		t.Errorf("traffic of too many: %d", r.StatusCode)
	}
}

func (f *fixture) traffic(ids ...string) (all map[string][2]int64) {
	f.t.Helper()
	r := f.get(f.url("localhost") + "dash/api/traffic?ids=" + strings.Join(ids, ","))
	if err := json.Unmarshal([]byte(r.body), &all); err != nil {
		f.t.Fatalf("traffic: %v in %s", err, r.body)
	}
	return all
}

func openMemory(t *testing.T) *registry.Memory {
	t.Helper()
	reg, err := registry.OpenMemory(registry.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Close() })
	return reg
}

// TestFeedOfOtherNodes: what changes elsewhere is told by hints.
func TestFeedOfOtherNodes(t *testing.T) {
	var f feed
	reg := openMemory(t)
	page, leave, _ := f.join(reg)
	defer leave()
	node := registry.NodeRef{ID: "edge-2", Epoch: "e"}
	if err := reg.Beat(t.Context(), registry.Node{NodeRef: node}); err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Claim(t.Context(), registry.Claim{Device: "cam-9", Instance: "i", Tunnel: "t", Node: node, Label: "l", Lease: time.Hour}); err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-page:
		if id != "cam-9" {
			t.Errorf("%q has changed", id)
		}
	case <-time.After(testWait):
		t.Error("no change was told")
	}
}

func TestFeedIsBounded(t *testing.T) {
	var f feed
	reg := openMemory(t)
	slow, leave, ok := f.join(reg)
	if !ok {
		t.Fatal("no room")
	}
	for range maxPages - 1 {
		_, leave, ok := f.join(reg)
		if !ok {
			t.Fatal("no room")
		}
		defer leave()
	}
	if _, _, ok := f.join(reg); ok {
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
	_, leave, ok = f.join(reg)
	if !ok {
		t.Fatal("no room after others have left")
	}
	leave()
}
