package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/internal/freeport"
	"github.com/iottunnel/iottunnel/tunnelcore"
)

// adminServer serves the admin API as Caddy's admin endpoint does.
func adminServer(t *testing.T) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	for _, route := range new(AdminAPI).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := route.Handler.ServeHTTP(w, r); err != nil {
				writeAPIError(t, w, err)
			}
		})
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// operator runs `caddy iottunnel` against the admin API.
type operator struct {
	t      *testing.T
	server *httptest.Server
}

func newOperator(t *testing.T) *operator { return &operator{t, adminServer(t)} }

// run returns what a command wrote to standard output and to standard error.
func (o *operator) run(in string, args ...string) (out, say string, err error) {
	root := &cobra.Command{Use: "iottunnel"}
	addCommands(root)
	var outs, says bytes.Buffer
	root.SetIn(strings.NewReader(in))
	root.SetOut(&outs)
	root.SetErr(&says)
	root.SetArgs(append(args, "--address", strings.TrimPrefix(o.server.URL, "http://")))
	err = root.Execute()
	return outs.String(), says.String(), err
}

// must runs a command that succeeds.
func (o *operator) must(args ...string) string {
	o.t.Helper()
	out, say, err := o.run("", args...)
	if err != nil {
		o.t.Fatalf("%q: %v\n%s%s", args, err, out, say)
	}
	return out
}

// fails runs a command that fails, and says why.
func (o *operator) fails(want string, args ...string) {
	o.t.Helper()
	out, say, err := o.run("", args...)
	if err == nil || !strings.Contains(say, want) {
		o.t.Errorf("%q: %v, %q %q, want %q", args, err, out, say, want)
	}
}

func (o *operator) json(to any, args ...string) {
	o.t.Helper()
	out := o.must(append(args, "--output", "json")...)
	if err := json.Unmarshal([]byte(out), to); err != nil {
		o.t.Fatalf("%q: %v in %s", args, err, out)
	}
}

func (o *operator) device(id string) deviceView {
	o.t.Helper()
	var d deviceView
	o.json(&d, "device", id)
	return d
}

// await waits until a device is as wanted.
func (o *operator) await(id, what string, ok func(deviceView) bool) deviceView {
	o.t.Helper()
	deadline := time.Now().Add(testWait)
	for {
		d := o.device(id)
		if ok(d) {
			return d
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("%s is not %s: %+v", id, what, d)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// await waits until something is so.
func (f *fixture) await(what string, ok func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(testWait)
	for !ok() {
		if time.Now().After(deadline) {
			f.t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// agentWith starts an agent with a token, which ends with the test.
func (f *fixture) agentWith(id, token string) *device {
	f.t.Helper()
	l, forward := agent.Listen(80, agent.HTTP)
	return f.connectToken(id, token, testSite(), l, forward)
}

func TestOperate(t *testing.T) {
	f := start(t, config{app: "auth enrolled"})
	o := newOperator(t)

	// Enrol, connect, look.
	token := strings.TrimSpace(o.must("enroll", "cam-1"))
	o.fails("cam-1 is enrolled already", "enroll", "cam-1")
	d := f.agentWith("cam-1", token)
	v := o.device("cam-1")
	if v.State != "online" || v.Label != d.up.Label || v.Hostname != d.up.Hostname || v.Remote != "127.0.0.1" || v.Secret != "current" ||
		v.Agent == "" || v.Since == nil || v.Node == "" || len(v.Ports) != 1 || v.Ports[0] != (portView{Port: 80, Kind: "http", URL: d.up.Ports[0].URL}) {
		t.Errorf("device: %+v", v)
	}
	var nodes struct{ Nodes []nodeView }
	o.json(&nodes, "nodes")
	if len(nodes.Nodes) != 1 || !nodes.Nodes[0].This || nodes.Nodes[0].Capacity != 20000 {
		t.Errorf("nodes: %+v", nodes)
	}

	// The admin API goes on with the configuration in force, also after one that fails.
	if err := f.load(config{app: "auth enrolled\nnode {\nurl edge\n}"}); err == nil {
		t.Error("a node URL that is none was taken")
	}
	f.mustLoad(config{app: "auth enrolled\nwait 1s"})
	if v := o.device("cam-1"); v.State != "online" {
		t.Errorf("after a reload: %+v", v)
	}

	// Rotate: both count, until the new one is used.
	next := strings.TrimSpace(o.must("rotate", "cam-1"))
	if v := o.device("cam-1"); v.Secret != "changing" {
		t.Errorf("rotating: %+v", v)
	}
	d.stop()
	d = f.agentWith("cam-1", next)
	if v := o.device("cam-1"); v.Secret != "current" {
		t.Errorf("rotated: %+v", v)
	}

	// Relabel and disconnect.
	label := d.up.Label
	o.must("relabel", "cam-1")
	if up := d.waitUp(t); up.Label == label {
		t.Error("relabel: it came back under the same name")
	}
	o.must("disconnect", "cam-1")
	d.waitUp(t)

	// Revoke: it is cut off and stays out.
	o.must("revoke", "cam-1")
	v = o.await("cam-1", "offline", func(v deviceView) bool { return v.State == "offline" })
	if v.Secret != "revoked" || v.LastClose == nil || v.LastClose.Reason != "authorisation withdrawn" {
		t.Errorf("revoked: %+v", v)
	}
	o.fails("not connected", "disconnect", "cam-1")
	o.fails("no secret to change", "rotate", "cam-1")
	d.stop()

	// Forget: nothing is left.
	o.must("forget", "cam-1")
	o.fails("nothing is known of device cam-1", "device", "cam-1")
	o.fails("nothing is known of device cam-1", "forget", "cam-1")
	o.fails("is not allowed", "revoke", "Cam_1")
}

func TestOperateLists(t *testing.T) {
	f := start(t, config{app: "auth enrolled"})
	o := newOperator(t)
	var ids strings.Builder
	ids.WriteString("id,where\n# a comment\n")
	for i := range 1200 {
		fmt.Fprintf(&ids, "cam-%04d,somewhere\n", i)
	}
	out, say, err := o.run(ids.String(), "enroll", "--file", "-")
	if err != nil || strings.Count(out, ",iott_") != 1200 {
		t.Fatalf("%v, %d lines, %q", err, strings.Count(out, "\n"), say)
	}
	_, after, _ := strings.Cut(out, "cam-0700,")
	token, _, _ := strings.Cut(after, "\n")
	f.agentWith("cam-0700", token)

	var page devicePage
	o.json(&page, "devices")
	if len(page.Devices) != 1200 || page.Devices[1199].Device != "cam-1199" {
		t.Errorf("%d devices", len(page.Devices))
	}
	for _, c := range []struct {
		args  string
		first string
		n     int
		next  bool
	}{
		{"--limit 7", "cam-0000", 7, true},
		{"--limit 7 --after cam-0006", "cam-0007", 7, true},
		{"--limit 7 --after cam-1190", "cam-1191", 7, true},
		{"--limit 9 --after cam-1190", "cam-1191", 9, false},
		{"--state online", "cam-0700", 1, false},
		{"--state offline --q 070", "cam-0070", 11, false},
		{"--q CAM-119", "cam-1190", 10, false},
		{"--q 127.0.0.1", "cam-0700", 1, false},
		{"--q nothing", "", 0, false},
	} {
		page = devicePage{}
		o.json(&page, append([]string{"devices"}, strings.Fields(c.args)...)...)
		if len(page.Devices) != c.n || c.n > 0 && page.Devices[0].Device != c.first || (page.Next != "") != c.next {
			t.Errorf("%s: %d, next %q", c.args, len(page.Devices), page.Next)
		}
	}
	if text := o.must("devices", "--state", "online"); !strings.HasPrefix(text, "DEVICE") || !strings.Contains(text, "cam-0700") {
		t.Errorf("table:\n%s", text)
	}
	o.fails("neither online nor offline", "devices", "--state", "asleep")
	for _, path := range []string{"/iottunnel/devices?limit=0", "/iottunnel/devices?limit=1001", "/iottunnel/devices?limit=x"} {
		res, err := http.Get(o.server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 400 {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	out, say, err = o.run("cam-2000\nNot an id\ncam-0001\n", "enroll", "--file", "-")
	if err == nil || !strings.HasPrefix(out, "cam-2000,") || strings.Count(out, "\n") != 1 || strings.Count(say, "\n") != 3 {
		t.Errorf("%v %q %q", err, out, say)
	}
	o.fails("no device id", "enroll", "--file", os.DevNull)
	o.fails("takes the id of a device, or --file", "enroll")
}

func TestOperateCodes(t *testing.T) {
	f := start(t, config{app: "auth enrolled"})
	o := newOperator(t)
	codes := strings.Fields(o.must("code", "create", "--count", "2"))
	own := strings.TrimSpace(o.must("code", "create", "--device", "cam-2", "--ttl", "1h"))
	var list struct{ Codes []codeView }
	o.json(&list, "code", "list")
	if len(codes) != 2 || len(list.Codes) != 3 || list.Codes[2].Device != "cam-2" || list.Codes[0].Code != "" {
		t.Fatalf("codes %q, list %+v", codes, list)
	}
	enroll := func(device, code string) (int, string) {
		body := fmt.Sprintf(`{"device":%q,"code":%q}`, device, code)
		r := f.do("POST", f.url("localhost")+strings.TrimPrefix(tunnelcore.EnrollPath, "/"), strings.NewReader(body))
		var answer tunnelcore.EnrollAnswer
		if err := json.Unmarshal([]byte(r.body), &answer); err != nil {
			t.Errorf("%d %q: %v", r.StatusCode, r.body, err)
		}
		return r.StatusCode, answer.Token
	}
	status, token := enroll("cam-1", codes[0])
	if status != 200 {
		t.Fatalf("enroll: %d", status)
	}
	f.agentWith("cam-1", token)
	if status, _ := enroll("cam-3", codes[0]); status != 401 {
		t.Errorf("a code that was used: %d", status)
	}
	if status, _ := enroll("cam-2", own); status != 200 {
		t.Errorf("a device's own code: %d", status)
	}
	o.json(&list, "code", "list")
	if len(list.Codes) != 1 {
		t.Fatalf("list %+v", list)
	}
	o.must("code", "revoke", list.Codes[0].ID)
	o.fails("no such claim code", "code", "revoke", list.Codes[0].ID)
	if status, _ := enroll("cam-3", codes[1]); status != 401 {
		t.Errorf("a code that was revoked: %d", status)
	}
	o.fails("ttl", "code", "create", "--ttl", "99d")
	// Neither is it to be had where the devices are.
	if r := f.do("POST", f.url("x."+testDomain)+".iottunnel/v1/enroll", strings.NewReader("{}")); r.StatusCode != 404 {
		t.Errorf("on a device's hostname: %d", r.StatusCode)
	}
}

func TestExportImport(t *testing.T) {
	f := start(t, config{app: "auth enrolled"})
	o := newOperator(t)
	token := strings.TrimSpace(o.must("enroll", "cam-1"))
	d := f.agentWith("cam-1", token)
	o.must("enroll", "cam-2")
	o.must("enroll", "cam-3")
	o.must("revoke", "cam-3")
	file := filepath.Join(t.TempDir(), "devices.jsonl")
	lines := o.must("export")
	if strings.Count(lines, "\n") != 3 || strings.Contains(lines, "iott_") {
		t.Fatalf("export:\n%s", lines)
	}
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := o.must("import", file); !strings.HasPrefix(out, "Devices imported: 0;") {
		t.Errorf("import of what is there: %s", out)
	}
	label := d.up.Label
	d.stop()
	for _, id := range []string{"cam-1", "cam-2", "cam-3"} {
		o.must("forget", id)
	}
	if out := o.must("import", file); !strings.HasPrefix(out, "Devices imported: 3;") {
		t.Errorf("import: %s", out)
	}
	if v := o.device("cam-3"); v.Secret != "revoked" {
		t.Errorf("cam-3: %+v", v)
	}
	if up := f.agentWith("cam-1", token).up; up.Label != label {
		t.Errorf("label %s, want %s", up.Label, label)
	}
	out, say, err := o.run("{\"device\":\"cam-4\",\"label\":\""+label+"\",\"lease_until\":\"2999-01-01T00:00:00Z\"}\nnonsense\n{\"device\":\"cam-5\",\"current\":\"12\"}\n", "import")
	if err == nil || !strings.HasPrefix(say, "line 1: cam-4: ") || !strings.Contains(say, "\nline 2: not a line") || !strings.Contains(say, "\nline 3: cam-5: ") {
		t.Errorf("%v %q %q", err, out, say)
	}
	// A device whose label is gone gets its secret, and can come.
	line := strings.NewReplacer("cam-1", "cam-6").Replace(lines[:strings.Index(lines, "\n")])
	if out, say, err = o.run(line, "import"); err == nil || !strings.HasPrefix(say, "line 1: cam-6: label: ") {
		t.Errorf("%v %q %q", err, out, say)
	}
	f.agentWith("cam-6", token)
	// Secrets that are known are replaced only when that is asked for.
	again := strings.TrimSpace(o.must("rotate", "cam-2"))
	o.must("import", file)
	if v := o.device("cam-2"); v.Secret != "changing" {
		t.Errorf("cam-2: %+v", v)
	}
	o.must("import", "--replace", file)
	if v := o.device("cam-2"); v.Secret != "current" || again == "" {
		t.Errorf("cam-2: %+v", v)
	}
}

func TestOperateWithoutEnrolled(t *testing.T) {
	o := newOperator(t)
	o.fails("no iottunnel edge runs", "devices")
	f := start(t, config{})
	d := f.connect("cam-1", testSite())
	o.fails("auth enrolled", "enroll", "cam-2")
	o.fails("auth enrolled", "revoke", "cam-1")
	o.fails("auth enrolled", "code", "create")
	if v := o.device("cam-1"); v.State != "online" || v.Secret != "" {
		t.Errorf("cam-1: %+v", v)
	}
	o.must("disconnect", "cam-1")
	d.waitUp(t)
	f.mustLoad(config{app: "hostname device"})
	o.fails("hostname device", "relabel", "cam-1")
	if r := f.do("POST", f.url("localhost")+".iottunnel/v1/enroll", strings.NewReader("{}")); r.StatusCode != 400 {
		t.Errorf("enrolment: %d %s", r.StatusCode, r.body)
	}
}

func TestAdminIsAway(t *testing.T) {
	o := &operator{t, &httptest.Server{URL: "http://" + freeport.One(t).String()}}
	o.fails("Is Caddy running", "devices")
	o.fails("neither text nor json", "devices", "--output", "xml")
}

func TestWrongCommands(t *testing.T) {
	o := newOperator(t)
	o.fails("disconnect, drain, enroll", "revok", "cam-17")
	o.fails(`code: no command "make"; there are: create, list, revoke`, "code", "make")
	o.fails("wrong number of arguments (0); use: iottunnel rotate ID", "rotate")
	o.fails("wrong number of arguments (1); use: iottunnel nodes", "nodes", "edge-1")
	o.fails("--limit: -1", "devices", "--limit", "-1")
	for _, args := range [][]string{nil, {"code"}} {
		if out, _, err := o.run("", args...); err != nil || !strings.Contains(out, "Available Commands:") {
			t.Errorf("%q: %v, %q", args, err, out)
		}
	}
}

func TestPlain(t *testing.T) {
	if got := plain("a\x1b[31mb\r\nc ü"); got != "a·[31mb··c ü" {
		t.Errorf("%q", got)
	}
}

func writeAPIError(t *testing.T, w http.ResponseWriter, err error) {
	t.Helper()
	status, message := apiStatus(err)
	w.WriteHeader(status)
	if _, err := io.WriteString(w, message); err != nil {
		t.Log(err)
	}
}

// apiStatus is what Caddy makes of an admin handler's error.
func apiStatus(err error) (int, string) {
	var api caddy.APIError
	if !errors.As(err, &api) {
		return http.StatusInternalServerError, err.Error()
	}
	text, _ := json.Marshal(map[string]string{"error": api.Err.Error()})
	return api.HTTPStatus, string(text)
}
