package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// accessRig is an edge whose pages are open by links alone, and that has connect.
var accessRig = strings.Replace(untraced(plainRig("connect")), "\tlog\n\tiottunnel\n", "\tlog\n\tiottunnel {\n\t\taccess shared\n\t}\n", 1)

// TestGrants has a technician reach a port by the programs as they are built, until
// the grant is revoked.
func TestGrants(t *testing.T) {
	t.Parallel()
	r := startRig(t, accessRig)
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
	r := startRig(t, accessRig)
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
