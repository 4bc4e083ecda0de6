package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// sharedSite is a configuration whose devices are open to those with a link, and
// whose audit log is in a file.
func sharedSite(audit string) config {
	return config{
		app:    "connect",
		global: fmt.Sprintf("log audit {\noutput file %q {\nroll_disabled\n}\ninclude iottunnel.audit\n}", audit),
		site:   "route {\niottunnel {\naccess shared\n}\nrespond \"not a device\" 200\n}",
	}
}

// follow follows a link, and returns the cookie that it gives.
func (f *fixture) follow(link string) string {
	f.t.Helper()
	at, token, _ := strings.Cut(link, "#")
	page := f.get(at)
	if page.StatusCode != 200 || !strings.Contains(page.Header.Get("Content-Security-Policy"), "script-src 'sha256-") ||
		page.Header.Get("Cache-Control") != "no-store" || !strings.Contains(page.body, "location.hash") {
		f.t.Fatalf("page of a link: %v %q", page.Response, page.body)
	}
	r := f.do("POST", at, strings.NewReader(url.Values{"token": {token}}.Encode()), "Content-Type", "application/x-www-form-urlencoded", "Origin", strings.TrimSuffix(at, "/.iottunnel/share"))
	cookies := r.Cookies()
	if r.StatusCode != http.StatusSeeOther || r.Header.Get("Location") != "/" || len(cookies) != 1 {
		f.t.Fatalf("following a link: %v %q", r.Response, r.body)
	}
	c := cookies[0]
	if c.Name != shareCookie || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Domain != "" || c.Path != "/" || c.MaxAge < 3000 || c.Secure {
		f.t.Errorf("cookie %+v", c)
	}
	return c.Name + "=" + c.Value
}

func (f *fixture) share(o *operator, target string) (link, id string) {
	f.t.Helper()
	var g grantView
	o.json(&g, "share", target, "--for", "1h")
	return g.URL, g.ID
}

func TestShare(t *testing.T) {
	audit := filepath.Join(t.TempDir(), "audit.log")
	f := start(t, sharedSite(audit))
	o := newOperator(t)
	up := f.connect("cam-1", hostileSite()).up
	host := up.Ports[0].URL
	other := f.connect("lyon-1", testSite()).up.Ports[0].URL

	for _, r := range []reply{f.get(host), f.get(host, "Cookie", shareCookie+"=x"), f.get(f.url("nobody." + testDomain))} {
		if r.StatusCode != 403 || r.Header.Get("Iottunnel-Error") != "forbidden" || r.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("without a link: %v %q", r.Response, r.body)
		}
	}
	link, id := f.share(o, "cam-1:80")
	if !strings.HasPrefix(link, host+".iottunnel/share#"+id+".") {
		t.Fatalf("link %q of %q", link, host)
	}
	cookie := f.follow(link)

	r := f.get(host+"headers", "Cookie", "a=b; "+cookie+"; c=d", "Cookie", cookie)
	if r.StatusCode != 200 || !strings.Contains(r.body, "Cookie: a=b; c=d\r\n") || strings.Contains(r.body, id) {
		t.Errorf("the device gets: %v %q", r.Response, r.body)
	}
	r = f.get(host+"set", "Cookie", cookie)
	if got := r.Header["Set-Cookie"]; !reflect.DeepEqual(got, []string{"own=1"}) {
		t.Errorf("cookies of the device: %q", got)
	}
	if got := r.Header["Cache-Control"]; !reflect.DeepEqual(got, []string{"private, max-age=60"}) || r.Header.Get("Surrogate-Control") != "" {
		t.Errorf("Cache-Control %q", got)
	}
	for what, at := range map[string]string{"another device": other, "another port": strings.Replace(host, ".", "--8080.", 1), "nobody": f.url("nobody." + testDomain)} {
		if r := f.get(at, "Cookie", cookie); r.StatusCode != 403 {
			t.Errorf("%s by the cookie: %v", what, r.Response)
		}
	}
	_, token, _ := strings.Cut(link, "#")
	post := func(at, form string, header ...string) reply {
		t.Helper()
		return f.do("POST", at+".iottunnel/share", strings.NewReader(form), header...)
	}
	for what, r := range map[string]reply{
		"on another device":  post(other, "token="+token, "Sec-Fetch-Site", "same-origin"),
		"wrong":              post(host, "token="+token+"x", "Sec-Fetch-Site", "same-origin"),
		"from another site":  post(host, "token="+token, "Sec-Fetch-Site", "cross-site"),
		"of who knows where": post(host, "token="+token),
		"none":               post(host, "", "Sec-Fetch-Site", "same-origin"),
		"in the query alone": f.do("POST", host+".iottunnel/share?token="+token, strings.NewReader(""), "Sec-Fetch-Site", "same-origin"),
	} {
		if r.StatusCode != 403 || len(r.Cookies()) > 0 {
			t.Errorf("token %s: %v", what, r.Response)
		}
	}
	if r := post(host, "token="+strings.Repeat("x", 2000), "Referer", host); r.StatusCode != 400 {
		t.Errorf("a long body: %v", r.Response)
	}

	// What runs ends with the grant: a WebSocket, and a page that never ends.
	socket := f.upgradeWith(host, cookie)
	socket.mustEcho(t, "hello")
	events, err := http.NewRequest("GET", host+"events", nil)
	if err != nil {
		t.Fatal(err)
	}
	events.Header.Set("Cookie", cookie)
	stream, err := f.client().Do(events)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if _, err := io.ReadFull(stream.Body, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if list := o.must("grants"); !strings.Contains(list, id) || strings.Contains(list, token) {
		t.Errorf("grants: %s", list)
	}
	began := time.Now()
	o.must("revoke-grant", id)
	socket.SetDeadline(time.Now().Add(testWait))
	if line, err := socket.r.ReadString('\n'); err == nil {
		t.Errorf("the WebSocket goes on: %q", line)
	}
	if _, err := io.Copy(io.Discard, stream.Body); err == nil {
		t.Error("the page has a clean end")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if r := f.get(host, "Cookie", cookie); r.StatusCode != 403 {
		t.Errorf("revoked: %v", r.Response)
	}
	o.fails("no such grant", "revoke-grant", id)

	// The audit log has all that was let in, and no secret.
	f.await("entries of the audit log", func() bool {
		text, err := os.ReadFile(audit)
		return err == nil && strings.Count(string(text), "\n") == 4
	})
	text, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	_, secret, _ := strings.Cut(token, ".")
	if log := string(text); strings.Contains(log, secret) || strings.Count(log, `"device":"cam-1"`) != 4 || strings.Count(log, `"grant":"`+id+`"`) != 4 ||
		strings.Count(log, `"end":"the grant was revoked, or has expired"`) != 2 || !strings.Contains(log, `"status":101`) ||
		!strings.Contains(log, `"path":"/headers"`) || strings.Contains(log, `"bytes_out":0,`) {
		t.Errorf("audit log: %s", log)
	}
}

func TestShareNeedsAccess(t *testing.T) {
	f := start(t, config{})
	o := newOperator(t)
	f.connect("cam-1", testSite())
	o.fails("access shared", "share", "cam-1:80")
	o.fails("`connect`", "grant", "cam-1:22")
	f.mustLoad(sharedSite(filepath.Join(f.dir, "audit.log")))
	o.fails("no hostname", "share", "nobody:80")
	o.fails("not DEVICE:PORT", "share", "cam-1")
	o.fails("for:", "share", "cam-1:80", "--for", "900d")
	token := strings.TrimSpace(o.must("grant", "cam-1:22"))
	if len(token) != 16+1+43 {
		t.Errorf("token %q", token)
	}
	if r := f.get(f.url("cam-1."+testDomain), "Cookie", shareCookie+"="+token); r.StatusCode != 403 {
		t.Errorf("a grant for connect opens pages: %v", r.Response)
	}
}

func TestExportGrants(t *testing.T) {
	f := start(t, sharedSite(filepath.Join(t.TempDir(), "audit.log")))
	o := newOperator(t)
	f.connect("cam-1", testSite())
	link, id := f.share(o, "cam-1:80")
	_, token, _ := strings.Cut(link, "#")
	text := o.must("export")
	if _, secret, _ := strings.Cut(token, "."); strings.Contains(text, secret) || !strings.Contains(text, id) {
		t.Errorf("export: %s", text)
	}
	o.must("revoke-grant", id)
	if _, say, err := o.run(text, "import"); err != nil {
		t.Fatal(say, err)
	}
	// What was revoked may be believed gone for a second.
	f.await("the imported grant", func() bool {
		at, token, _ := strings.Cut(link, "#")
		return f.do("POST", at, strings.NewReader("token="+token), "Referer", at).StatusCode == http.StatusSeeOther
	})
}

// TestShareStaysWithDevice gives the hostname that a link was made for to another
// device: what the link has left opens neither that one, nor its own under a new name.
func TestShareStaysWithDevice(t *testing.T) {
	f := start(t, sharedSite(filepath.Join(t.TempDir(), "audit.log")))
	o := newOperator(t)
	old := f.connect("cam-1", testSite())
	host := old.up.Ports[0].URL
	moved := strings.ReplaceAll(o.must("export"), `"cam-1"`, `"lyon-1"`)
	link, _ := f.share(o, "cam-1:80")
	cookie := f.follow(link)
	o.must("relabel", "cam-1")
	renamed := old.waitUp(t).Ports[0].URL
	if out, say, err := o.run(moved, "import"); err != nil || !strings.HasPrefix(out, "Devices imported: 1;") {
		t.Fatal(out, say, err)
	}
	if r := f.get(host, "Cookie", cookie); r.StatusCode != 403 {
		t.Errorf("before the other device has come: %v", r.Response)
	}
	if got := f.connect("lyon-1", testSite()).up.Ports[0].URL; got != host {
		t.Fatalf("the other device is at %s, want %s", got, host)
	}
	if r := f.get(host, "Cookie", cookie); r.StatusCode != 403 {
		t.Errorf("the other device: %v", r.Response)
	}
	if r := f.do("POST", host+".iottunnel/share", strings.NewReader("token="+link[strings.Index(link, "#")+1:]), "Referer", host); r.StatusCode != 403 {
		t.Errorf("the link at the other device: %v", r.Response)
	}
	if r := f.get(renamed, "Cookie", cookie); renamed == host || r.StatusCode != 200 {
		t.Errorf("its own device, by a browser that sends it there: %v", r.Response)
	}
}

// hostileSite is testSite with a device that would like to have the cookie.
func hostileSite() http.Handler {
	site := testSite()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/set" {
			site.ServeHTTP(w, r)
			return
		}
		for _, c := range []string{shareCookie + "=x", "own=1", " " + strings.ToUpper(shareCookie) + " =x; Path=/", shareCookieSecure + "=x; Secure"} {
			w.Header().Add("Set-Cookie", c)
		}
		w.Header().Set("Cache-Control", "public, max-age=60, s-maxage=600")
		w.Header().Set("Surrogate-Control", "max-age=600")
		io.WriteString(w, "set")
	})
}

// upgradeWith is upgrade with a cookie.
func (f *fixture) upgradeWith(page, cookie string) *upgraded {
	f.t.Helper()
	u, err := url.Parse(page)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.port))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(testWait))
	fmt.Fprintf(c, "GET /echo HTTP/1.1\r\nHost: %s\r\nCookie: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", u.Host, cookie)
	up := &upgraded{c, bufio.NewReader(c)}
	res, err := http.ReadResponse(up.r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		f.t.Fatalf("upgrade: %v %v", res, err)
	}
	return up
}

func TestKeepPrivate(t *testing.T) {
	for given, want := range map[string]string{
		"": "private", "no-store": "private, no-store", "public": "private", "Public, Max-Age=5": "private, Max-Age=5",
		`private="x", s-maxage=9 , no-cache`: "private, no-cache",
	} {
		h := http.Header{}
		if given != "" {
			h.Set("Cache-Control", given)
		}
		for _, name := range []string{"CDN-Cache-Control", "Cloudflare-CDN-Cache-Control", "Surrogate-Control", "Edge-Control"} {
			h.Set(name, "max-age=3600")
		}
		if keepPrivate(h); h.Get("Cache-Control") != want || len(h) != 1 {
			t.Errorf("%q becomes %q, want %q alone", given, h, want)
		}
	}
}

func TestFromOwnPage(t *testing.T) {
	for _, tt := range []struct {
		header []string
		want   bool
	}{
		{nil, false},
		{[]string{"Sec-Fetch-Site", "same-origin"}, true},
		{[]string{"Sec-Fetch-Site", "same-site"}, false},
		{[]string{"Sec-Fetch-Site", "cross-site", "Origin", "https://x.devices.test"}, false},
		{[]string{"Sec-Fetch-Site", "same-origin", "Origin", "https://evil.test"}, false},
		{[]string{"Origin", "https://x.devices.test"}, true},
		{[]string{"Origin", "http://X.devices.test:8080"}, true},
		{[]string{"Origin", "https://y.devices.test", "Referer", "https://x.devices.test/"}, false},
		{[]string{"Origin", "https://x.devices.test", "Origin", "https://evil.test"}, false},
		{[]string{"Origin", "null"}, false},
		{[]string{"Origin", ""}, false},
		{[]string{"Origin", "https://x.devices.test.evil.test"}, false},
		{[]string{"Origin", "https://x.devices.test@evil.test"}, false},
		{[]string{"Referer", "https://x.devices.test/.iottunnel/share"}, true},
		{[]string{"Referer", "https://evil.test/x.devices.test"}, false},
		{[]string{"Referer", "x.devices.test"}, false},
		{[]string{"Referer", "%"}, false},
	} {
		r, err := http.NewRequest("POST", "https://x.devices.test/.iottunnel/share", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(tt.header); i += 2 {
			r.Header.Add(tt.header[i], tt.header[i+1])
		}
		if got := fromOwnPage(r); got != tt.want {
			t.Errorf("%q: %v", tt.header, got)
		}
	}
}

func FuzzShareRequest(f *testing.F) {
	f.Add("iottunnel-share=a.b; x=y; =iottunnel-share", "https://x.devices.test", "https://x.devices.test/")
	f.Add(" __Host-iottunnel-share = z ;;", "null", "")
	f.Fuzz(func(t *testing.T, cookies, origin, referer string) {
		h := http.Header{"Cookie": {cookies}}
		hideShareCookie(h)
		for _, c := range (&http.Request{Header: h}).Cookies() {
			if isShareCookie(c.Name) {
				t.Errorf("%q reaches the device as %q", cookies, h)
			}
		}
		r := &http.Request{Host: "x.devices.test", Header: http.Header{"Origin": {origin}, "Referer": {referer}}}
		if fromOwnPage(r) {
			u, err := url.Parse(origin)
			if err != nil || !strings.EqualFold(strings.TrimSuffix(u.Hostname(), "."), "x.devices.test") {
				t.Errorf("from %q", origin)
			}
		}
	})
}
