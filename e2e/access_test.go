package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// accessRig is an edge on one site whose pages are open by links alone, with a setting
// of its own.
func accessRig(setting string) string {
	return `{
	admin ADMIN
	persist_config off
	auto_https off
	grace_period 2s
	iottunnel {
		domain devices.test
		visitors http PORT
		auth static {
			device cam-1 token-of-cam-1
		}
		` + setting + `
	}
}
http://:PORT {
	bind 127.0.0.1
	iottunnel {
		access shared
	}
}
`
}

// TestGrants has a technician reach a port by the programs as they are built, until
// the grant is revoked.
func TestGrants(t *testing.T) {
	t.Parallel()
	r := startRig(t, accessRig("connect"))
	echo := harness.ServeTCP(t, func(c *net.TCPConn) { io.Copy(c, c) })
	a := r.start(t, "cam-1", "token-of-cam-1", "--forward", "7="+echo)
	a.WaitStdout(t, 0, harness.UpTime, "7/tcp")

	var grant struct{ ID, Token string }
	r.ask(t, "POST", "/iottunnel/grants", `{"device":"cam-1","port":7,"for":"1h"}`, &grant)
	file := writeFile(t, filepath.Join(t.TempDir(), "grant"), grant.Token+"\n")
	local := harness.Run(t, harness.Command{Name: "connect", Args: []string{
		harness.Binary(t, "iottunnel-agent"), "connect", "cam-1:7", "--server", fmt.Sprintf("ws://127.0.0.1:%d", r.port), "--token-file", file, "--listen", "127.0.0.1:0",
	}})
	at := strings.TrimSpace(local.WaitStdout(t, 0, harness.UpTime, "127.0.0.1:"))
	c, err := net.Dial("tcp", at[strings.Index(at, "127.0.0.1:"):])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(harness.Patience))
	sent := bytes.Repeat([]byte("hello "), 1000)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(io.LimitReader(c, int64(len(sent)))); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
	r.ask(t, "DELETE", "/iottunnel/grants/"+grant.ID, "", nil)
	began := time.Now()
	_, _ = io.ReadAll(c) // ends, one way or the other
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the connection has lasted for %v after the grant", took)
	}
	status, _, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "connect again", Args: []string{
		harness.Binary(t, "iottunnel-agent"), "connect", "cam-1:7", "--server", fmt.Sprintf("ws://127.0.0.1:%d", r.port), "--token-file", file,
	}})
	if status != 3 {
		t.Errorf("with a revoked grant: status %d:\n%s", status, errs)
	}
}

// TestShareLink follows a link.
func TestShareLink(t *testing.T) {
	t.Parallel()
	r := startRig(t, accessRig("connect"))
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	if got := r.get(t, host, "/echo"); got.StatusCode != http.StatusForbidden {
		t.Errorf("without a link: %s", got)
	}
	var link struct{ ID, Token, URL string }
	r.ask(t, "POST", "/iottunnel/grants", `{"device":"cam-1","port":80,"kind":"share"}`, &link)
	u, err := url.Parse(link.URL)
	if err != nil || u.Hostname() != strings.Split(host, ":")[0] || u.Fragment != link.Token {
		t.Fatalf("link %q of %s, %v", link.URL, host, err)
	}
	form := strings.NewReader(url.Values{"token": {u.Fragment}}.Encode())
	got := do(t, r.client("127.0.0.1", nil), request(t, "POST", fmt.Sprintf("http://%s:%d%s", host, r.port, u.Path), form, "Content-Type", "application/x-www-form-urlencoded", "Origin", "http://"+host))
	cookie, _, _ := strings.Cut(got.Header.Get("Set-Cookie"), ";")
	if got.StatusCode != http.StatusSeeOther || cookie == "" {
		t.Fatalf("following: %s", got)
	}
	if got := r.get(t, host, "/echo", "Cookie", cookie); got.StatusCode != http.StatusOK {
		t.Errorf("with the cookie: %s", got)
	}
	r.ask(t, "DELETE", "/iottunnel/grants/"+link.ID, "", nil)
	if got := r.get(t, host, "/echo", "Cookie", cookie); got.StatusCode != http.StatusForbidden {
		t.Errorf("revoked: %s", got)
	}
}

// visitEntry is an entry of the audit log.
type visitEntry struct {
	Kind, Device, Grant, End string
	Port                     int
	GrantedBy                string `json:"granted_by"`
	BytesIn                  int64  `json:"bytes_in"`
	BytesOut                 int64  `json:"bytes_out"`
}

func auditEntry(t *testing.T, line string) (v visitEntry) {
	t.Helper()
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	return v
}

// secureRig is a rig with TLS, whose devices are open by links alone, and that has TCP
// by name on the same port, with a setting of its own.
func secureRig(domain, byName string) string {
	return `{
	admin ADMIN
	persist_config off
	auto_https disable_redirects
	skip_install_trust
	local_certs
	grace_period 2s
	servers {
		listener_wrappers {
			iottunnel {
				` + byName + `
			}
		}
	}
	iottunnel {
		domain ` + domain + `
		visitors https PORT
		auth static {
			device cam-1 token-of-cam-1
		}
	}
}
https://localhost:PORT {
	bind 127.0.0.1
	iottunnel agents
}
https://*.` + domain + `:PORT {
	bind 127.0.0.1
	iottunnel devices {
		access shared
	}
}
`
}

// secureAgent is agent for a secureRig.
func (r *rig) secureAgent(t *testing.T, target string, flags ...string) (host string) {
	t.Helper()
	_, host = r.agent(t, "cam-1", "token-of-cam-1", target, append(flags, "--server", fmt.Sprintf("wss://localhost:%d", r.port), "--insecure-skip-verify")...)
	return host
}

// link is a grant of kind share.
type link struct{ ID, Token, URL string }

func (r *rig) share(t *testing.T, target, lasts string) (l link) {
	t.Helper()
	device, port, _ := strings.Cut(target, ":")
	r.ask(t, "POST", "/iottunnel/grants", fmt.Sprintf(`{"device":%q,"port":%s,"for":%q,"kind":"share"}`, device, port, lasts), &l)
	return l
}

// follow posts the token of a link as its page does, and returns the answer.
func (l link) follow(t *testing.T, c *http.Client) reply {
	t.Helper()
	at, token, _ := strings.Cut(l.URL, "#")
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, c, request(t, "POST", at, strings.NewReader(url.Values{"token": {token}}.Encode()),
		"Content-Type", "application/x-www-form-urlencoded", "Origin", u.Scheme+"://"+u.Host))
}

// TestShareOverTLS follows a link over HTTP/2, and tries to come in by name, where only
// links open devices.
func TestShareOverTLS(t *testing.T) {
	t.Parallel()
	r := startRig(t, secureRig("devices.test", "ports 22"))
	origin := harness.StartOrigin(t)
	banner := harness.ServeTCP(t, func(c *net.TCPConn) { io.WriteString(c, "SSH-2.0-device\r\n") })
	host := r.secureAgent(t, origin.Addr, "--forward", "22="+banner)
	c := r.client("127.0.0.1", &tls.Config{InsecureSkipVerify: true})
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	page := fmt.Sprintf("https://%s:%d/echo", host, r.port)

	l := r.share(t, "cam-1:80", "1h")
	got := l.follow(t, c)
	cookies := got.Cookies()
	if got.StatusCode != http.StatusSeeOther || got.ProtoMajor != 2 || len(cookies) != 1 {
		t.Fatalf("following: %s", got)
	}
	cookie := cookies[0]
	if cookie.Name != "__Host-iottunnel-share" || !cookie.Secure || !cookie.HttpOnly || cookie.Domain != "" || cookie.Path != "/" || cookie.SameSite != http.SameSiteLaxMode {
		t.Errorf("cookie %+v", cookie)
	}
	for value, want := range map[string]int{
		cookie.Name + "=" + cookie.Value:         http.StatusOK,
		"iottunnel-share=" + cookie.Value:        http.StatusForbidden, // any hostname beside could have set it
		cookie.Name + "=" + cookie.Value + "x":   http.StatusForbidden,
		"a=b; " + cookie.Name + "=" + l.Token:    http.StatusOK,
		"__host-iottunnel-share=" + cookie.Value: http.StatusForbidden,
	} {
		got := do(t, c, request(t, "GET", page, nil, "Cookie", value))
		if got.StatusCode != want || got.ProtoMajor != 2 {
			t.Errorf("with %s: %s", value, got)
		}
		if want == http.StatusOK && strings.Contains(fmt.Sprint(echo(t, got).Header), l.ID) {
			t.Errorf("the device gets the cookie: %q", echo(t, got).Header)
		}
	}

	// By name there is nothing to show a link with: only addresses may be let in.
	label, domain, _ := strings.Cut(host, ".")
	byName := func() string {
		raw, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.port))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(harness.Patience))
		c := tls.Client(raw, &tls.Config{ServerName: label + "--22." + domain, InsecureSkipVerify: true})
		line, _ := bufio.NewReader(c).ReadString('\n') // what comes before the end
		return line
	}
	if line := byName(); line != "" {
		t.Errorf("by name: %q", line)
	}
	r.reload(t, secureRig("devices.test", "allow 10.0.0.0/8"))
	if line := byName(); line != "" {
		t.Errorf("by name from an address that may not: %q", line)
	}
	r.reload(t, secureRig("devices.test", "allow 127.0.0.0/8"))
	if line := byName(); line != "SSH-2.0-device\r\n" {
		t.Errorf("by name from an address that may: %q", line)
	}
}

// TestShareInBrowser clicks links as people do: one that is good, one that was revoked,
// one that has expired.
func TestShareInBrowser(t *testing.T) {
	t.Parallel()
	r := startRig(t, secureRig("devices.localhost", ""))
	device := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!doctype html><title>Cold room</title><h1>Cold room, north door</h1>")
	}))
	t.Cleanup(device.Close)
	host := r.secureAgent(t, strings.TrimPrefix(device.URL, "http://"))
	page := fmt.Sprintf("https://%s:%d/", host, r.port)
	short := r.share(t, "cam-1:80", "1s")
	good := r.share(t, "cam-1:80", "1h")

	b := openBrowser(t)
	b.visit(page)
	b.sees("body", "given a link")
	b.shot("share-without.png")
	b.window(390, 800, true)
	b.shot("share-without-phone.png")
	b.window(1200, 1000, false)
	b.visit(good.URL)
	b.sees("h1", "Cold room, north door")
	b.until(`location.pathname === "/" && location.hash === "" && document.cookie === ""`)
	b.shot("share-device.png")
	b.visit(page + "again")
	b.sees("h1", "Cold room, north door")
	r.ask(t, "DELETE", "/iottunnel/grants/"+good.ID, "", nil)
	b.visit(page)
	b.sees("body", "given a link")
	b.visit("about:blank")
	b.visit(good.URL)
	b.sees("body", "was revoked, has expired")
	b.shot("share-revoked.png")

	harness.Eventually(t, harness.Patience, "the short link has expired", func() error {
		var all struct{ Grants []link }
		r.ask(t, "GET", "/iottunnel/grants", "", &all)
		if len(all.Grants) > 0 {
			return fmt.Errorf("%v", all.Grants)
		}
		return nil
	})
	b.visit("about:blank")
	b.visit(short.URL)
	b.sees("body", "was revoked, has expired")

	// Without its script the page is a form.
	b.visit("about:blank")
	b.visit(page + ".iottunnel/share")
	b.sees("h1", "Shared device")
	b.shot("share-form.png")
	b.window(390, 800, true)
	b.shot("share-form-phone.png")
	b.window(1200, 1000, false)
	other := r.share(t, "cam-1:80", "1h")
	b.enter("input[name=token]", other.Token)
	b.click("button")
	b.sees("h1", "Cold room, north door")
}

// sharedNode is a node of a cluster whose devices are open by links alone, and that has
// connect.
func sharedNode(redis *harness.Redis, id string) string {
	return `{
	admin ADMIN
	persist_config off
	auto_https off
	grace_period 2s
	iottunnel {
		domain devices.test
		visitors http PORT
		auth static {
			device cam-1 token-of-cam-1
		}
		auth enrolled
		connect
		registry redis ` + redis.URL("") + `
		node {
			id ` + id + `
			internal 127.0.0.1:INNER
			routers 127.0.0.0/8
			secret the-secret-of-this-cluster-of-two
		}
	}
}
http://:PORT {
	bind 127.0.0.1
	iottunnel {
		access shared
	}
}
http://:INNER {
	bind 127.0.0.1
	iottunnel internal {
		access shared
	}
}
`
}

// connectTo opens a connection to port 7 of cam-1 by a grant at this node.
func (r *rig) connectTo(t *testing.T, token string) net.Conn {
	t.Helper()
	local := harness.Run(t, harness.Command{Name: "connect", Args: []string{
		harness.Binary(t, "iottunnel-agent"), "connect", "cam-1:7", "--server", fmt.Sprintf("ws://127.0.0.1:%d", r.port),
		"--token-file", writeFile(t, filepath.Join(t.TempDir(), "grant"), token+"\n"), "--listen", "127.0.0.1:0",
	}})
	at := strings.TrimSpace(local.WaitStdout(t, 0, harness.UpTime, "127.0.0.1:"))
	c, err := net.Dial("tcp", at[strings.Index(at, "127.0.0.1:"):])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * harness.Patience))
	return c
}

// sendsBack sends something to a service that sends it back.
func sendsBack(t *testing.T, what string, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// TestGrantsOverNodes makes grants at one node and uses them at the other, where they end
// when they are revoked at the first; with Redis away what is known goes on, and with
// Redis back what was revoked meanwhile ends.
func TestGrantsOverNodes(t *testing.T) {
	t.Parallel()
	redis := harness.StartRedis(t, harness.RedisSetup{Durable: true})
	one, two := startRig(t, sharedNode(redis, "edge-1")), startRig(t, sharedNode(redis, "edge-2"))
	origin := harness.StartOrigin(t)
	_, host := one.agent(t, "cam-1", "token-of-cam-1", origin.Addr, "--forward", "7="+harness.ServeTCP(t, harness.Echo))
	var connects [4]struct{ ID, Token string }
	for i := range connects {
		one.ask(t, "POST", "/iottunnel/grants", `{"device":"cam-1","port":7,"for":"1h"}`, &connects[i])
	}
	l := one.share(t, "cam-1:80", "1h")
	l.URL = strings.Replace(l.URL, fmt.Sprint(one.port), fmt.Sprint(two.port), 1)
	cookie, _, _ := strings.Cut(l.follow(t, two.client("127.0.0.1", nil)).Header.Get("Set-Cookie"), ";")
	if got := two.get(t, host, "/echo", "Cookie", cookie); got.StatusCode != http.StatusOK {
		t.Fatalf("a link at the other node: %s", got)
	}
	revoked, kept := two.connectTo(t, connects[0].Token), two.connectTo(t, connects[1].Token)
	sendsBack(t, "connected at the other node", revoked)
	sendsBack(t, "connected at the other node", kept)

	began := time.Now()
	one.ask(t, "DELETE", "/iottunnel/grants/"+connects[0].ID, "", nil)
	one.ask(t, "DELETE", "/iottunnel/grants/"+l.ID, "", nil)
	_, _ = io.ReadAll(revoked) // ends, one way or the other
	inTime(t, "a connection by a grant that was revoked at another node", time.Since(began), 5*time.Second)
	harness.Eventually(t, harness.Patience, "the link is closed at the other node", func() error {
		if got := two.get(t, host, "/echo", "Cookie", cookie); got.StatusCode != http.StatusForbidden {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	inTime(t, "a link that was revoked at another node", time.Since(began), 5*time.Second)

	redis.Stop(t, harness.Patience)
	sendsBack(t, "without Redis", kept)
	again := two.connectTo(t, connects[1].Token)
	sendsBack(t, "again by the same grant, without Redis", again)
	unknown := do(t, two.client("127.0.0.1", nil), request(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/.iottunnel/v1/connect?device=cam-1&port=7", two.port), nil,
		"Authorization", "Bearer "+connects[2].Token, "Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-Websocket-Protocol", "iottunnel.v1"))
	if unknown.StatusCode != http.StatusServiceUnavailable || unknown.Header.Get("Retry-After") == "" {
		t.Errorf("a grant that the node does not know, without Redis: %s", unknown)
	}

	redis.Start(t)
	redis.Do(t, "DEL", "iottunnel:grant:{"+connects[1].ID+"}") // as another node had it
	began = time.Now()
	_, _ = io.ReadAll(kept)
	_, _ = io.ReadAll(again)
	inTime(t, "a grant that was revoked while Redis was away", time.Since(began), 10*time.Second)
	sendsBack(t, "with Redis again", two.connectTo(t, connects[2].Token))
}

// TestRevokedAtAnotherNode takes a device's secret away at a node that it is not connected
// to: it is cut off within 5 s, and stays away.
func TestRevokedAtAnotherNode(t *testing.T) {
	t.Parallel()
	redis := harness.StartRedis(t, harness.RedisSetup{})
	one, two := startRig(t, sharedNode(redis, "edge-1")), startRig(t, sharedNode(redis, "edge-2"))
	var v struct{ Token string }
	two.ask(t, "POST", "/iottunnel/devices/door-1/enroll", "", &v)
	origin := harness.StartOrigin(t)
	a, _ := one.agent(t, "door-1", v.Token, origin.Addr)
	mark := a.Stderr.Mark()
	began := time.Now()
	two.ask(t, "POST", "/iottunnel/devices/door-1/revoke", "", nil)
	a.WaitStderr(t, mark, harness.Patience, "4003")
	inTime(t, "a device that was revoked at another node", time.Since(began), 5*time.Second)
	again := one.start(t, "door-1", v.Token, "--forward", "80="+origin.Addr, "--once")
	if status := again.Wait(t, harness.Patience); status != 3 {
		t.Errorf("with the secret that was taken away: status %d", status)
	}
}

// TestGrantsWithAClockAhead makes grants at a node and uses them at another one whose
// clock is an hour ahead.
func TestGrantsWithAClockAhead(t *testing.T) {
	t.Parallel()
	redis := harness.StartRedis(t, harness.RedisSetup{})
	one, two := startRig(t, sharedNode(redis, "edge-1")), startRig(t, sharedNode(redis, "edge-2"))
	two.ShiftClock(t, time.Hour)
	origin := harness.StartOrigin(t)
	_, host := one.agent(t, "cam-1", "token-of-cam-1", origin.Addr, "--forward", "7="+harness.ServeTCP(t, harness.Echo))
	var grant struct{ ID, Token string }
	one.ask(t, "POST", "/iottunnel/grants", `{"device":"cam-1","port":7,"for":"30m"}`, &grant)
	l := one.share(t, "cam-1:80", "30m")
	l.URL = strings.Replace(l.URL, fmt.Sprint(one.port), fmt.Sprint(two.port), 1)
	cookies := l.follow(t, two.client("127.0.0.1", nil)).Cookies()
	if len(cookies) != 1 || cookies[0].MaxAge < 29*60-int(harness.Patience.Seconds()) || cookies[0].MaxAge > 30*60+5 {
		t.Fatalf("a link for half an hour leaves %v", cookies)
	}
	if got := two.get(t, host, "/echo", "Cookie", cookies[0].Name+"="+cookies[0].Value); got.StatusCode != http.StatusOK {
		t.Errorf("by the link: %s", got)
	}
	sendsBack(t, "by the grant", two.connectTo(t, grant.Token))
}

// TestSlowForms has strangers send a byte now and then of what takes a code, and of what
// takes a token: neither is waited for.
func TestSlowForms(t *testing.T) {
	t.Parallel()
	r := startRig(t, accessRig("auth enrolled"))
	for name, head := range map[string]string{
		"a code":  "POST /.iottunnel/v1/enroll HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n",
		"a token": "POST /.iottunnel/share HTTP/1.1\r\nHost: nobody.devices.test\r\nOrigin: http://nobody.devices.test\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * harness.Patience))
			io.WriteString(c, head+"Content-Length: 900\r\n\r\n")
			got, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			got.Body.Close()
			if got.StatusCode != http.StatusBadRequest {
				t.Errorf("%s", got.Status)
			}
		})
	}
}

// TestGuessesFromEverywhere guesses claim codes, each from another address: the edge bounds
// them all together, and lets a device with a good code in as soon as there is room.
func TestGuessesFromEverywhere(t *testing.T) {
	t.Parallel()
	r := startRig(t, accessRig("auth enrolled"))
	const most = 5000 // guesses
	var next atomic.Uint32
	post := func(device, code string) reply {
		n := next.Add(1)
		c := r.client(fmt.Sprintf("127.9.%d.%d", n/200, n%200+1), nil)
		defer c.CloseIdleConnections()
		return do(t, c, request(t, "POST", fmt.Sprintf("http://127.0.0.1:%d/.iottunnel/v1/enroll", r.port),
			strings.NewReader(fmt.Sprintf(`{"device":%q,"code":%q}`, device, code))))
	}
	var bounded atomic.Bool
	var guessing sync.WaitGroup
	for range 8 {
		guessing.Go(func() {
			for !bounded.Load() && next.Load() < most {
				switch got := post("cam-9", "7KQ2M-X04TB-9ZC6H-WD3NA"); {
				case got.StatusCode == http.StatusTooManyRequests && got.Header.Get("Retry-After") != "":
					bounded.Store(true)
				case got.StatusCode != http.StatusUnauthorized:
					t.Errorf("a guess: %s", got)
					return
				}
			}
		})
	}
	guessing.Wait()
	if !bounded.Load() {
		t.Errorf("%d guesses from as many addresses, and no end", next.Load())
	}
	var code struct{ Code string }
	r.ask(t, "POST", "/iottunnel/codes", `{"ttl":"1h"}`, &code)
	harness.Eventually(t, harness.Patience, "a good code is taken", func() error {
		if got := post("cam-10", code.Code); got.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
}

// TestShareBehindNginx follows a link through the router in Lua, to a site of routers
// that is open by links alone.
func TestShareBehindNginx(t *testing.T) {
	t.Parallel()
	redis := harness.StartRedis(t, harness.RedisSetup{})
	r := startRig(t, sharedNode(redis, "edge-1"))
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	n := harness.StartNginx(t, harness.NginxSetup{Settings: redisSetting(redis)})
	l := r.share(t, "cam-1:80", "1h")
	c := n.Client(t)
	if got := fetch(t, c, "GET", host, "/echo", nil); got.status != http.StatusForbidden || got.header.Get("Iottunnel-Error") != "forbidden" {
		t.Errorf("without a link: %v", got)
	}
	if got := fetch(t, c, "GET", host, "/.iottunnel/share", nil); got.status != http.StatusOK || !strings.Contains(got.body, "Shared device") {
		t.Errorf("the link's page: %v", got)
	}
	form := url.Values{"token": {l.Token}}.Encode()
	if got := fetch(t, c, "POST", host, "/.iottunnel/share", strings.NewReader(form), "Origin", "http://evil.test"); got.status != http.StatusForbidden {
		t.Errorf("from another site: %v", got)
	}
	got := fetch(t, c, "POST", host, "/.iottunnel/share", strings.NewReader(form), "Origin", "http://"+host)
	cookie, _, _ := strings.Cut(got.header.Get("Set-Cookie"), ";")
	if got.status != http.StatusSeeOther || !strings.HasPrefix(cookie, "iottunnel-share=") {
		t.Fatalf("following: %v", got)
	}
	if got := fetch(t, c, "GET", host, "/echo", nil, "Cookie", cookie); got.status != http.StatusOK || strings.Contains(got.body, l.ID) {
		t.Errorf("with the cookie: %v", got)
	}
	r.ask(t, "DELETE", "/iottunnel/grants/"+l.ID, "", nil)
	if got := fetch(t, c, "GET", host, "/echo", nil, "Cookie", cookie); got.status != http.StatusForbidden {
		t.Errorf("revoked: %v", got)
	}
}
