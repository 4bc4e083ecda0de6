package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestConnectToDevice has ssh, scp, rsync and git reach a device by a grant, through the
// edge and the agents on both sides as they are built, until the grant is revoked.
func TestConnectToDevice(t *testing.T) {
	t.Parallel()
	install(t, "rsync git", "rsync", "git")
	server := startSSH(t)
	audited := oneSite{app: "connect", global: "log audit {\ninclude iottunnel.audit\noutput file DIR/audit.log\n}"}.caddyfile()
	r := startRig(t, audited)
	a := r.start(t, "cam-1", "token-of-cam-1", "--forward", "22="+server.addr)
	a.WaitStdout(t, 0, harness.UpTime, "22/tcp")
	var grant struct{ ID, Token string }
	r.ask(t, "POST", "/iottunnel/grants", `{"device":"cam-1","port":22,"for":"1h","by":"anna"}`, &grant)

	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	token := writeFile(t, path("grant"), grant.Token+"\n")
	config := program(t, "", harness.Binary(t, "iottunnel-agent"), "ssh-config", "cam-1", "--server", fmt.Sprintf("ws://127.0.0.1:%d", r.port), "--token-file", token)
	options := append([]string{"-F", writeFile(t, path("config"), config)}, server.options[2:]...) // without -F /dev/null
	ssh := append([]string{"ssh", "-l", server.user}, options...)
	by := strings.Join(append([]string{"ssh"}, options...), " ")

	if out := program(t, "typed", append(ssh, "cam-1", "echo $((6*7)); cat")...); out != "42\ntyped" {
		t.Errorf("the command said %q", out)
	}
	n := int64(8 << 20)
	sent, err := os.Create(path("sent"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(sent, harness.NewPattern(n))
	if err := errors.Join(err, sent.Close()); err != nil {
		t.Fatal(err)
	}
	scp := append([]string{"scp", "-q"}, options...)
	there := server.user + "@cam-1:"
	program(t, "", append(scp, path("sent"), there+path("there"))...)
	program(t, "", append(scp, there+path("there"), path("back"))...)
	program(t, "", "rsync", "-e", by, there+path("there"), path("synced"))
	program(t, "", "rsync", "-e", by, path("back"), there+path("returned"))
	for _, name := range []string{"there", "back", "synced", "returned"} {
		if got, sum := fileSum(t, path(name)); got != n || sum != harness.PatternSum(n) {
			t.Errorf("%s: %d of %d bytes", name, got, n)
		}
	}

	git := func(args ...string) string {
		t.Helper()
		return program(t, "", append([]string{"git", "-c", "safe.directory=*", "-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "core.sshCommand=" + by}, args...)...)
	}
	git("init", "-q", "--bare", path("bare"))
	git("clone", "-q", there+path("bare"), path("work"))
	git("-C", path("work"), "commit", "-q", "--allow-empty", "-m", "first")
	git("-C", path("work"), "push", "-q", "origin", "HEAD:refs/heads/main")
	git("clone", "-q", "--branch", "main", there+path("bare"), path("clone"))
	if pushed, cloned := git("-C", path("work"), "rev-parse", "HEAD"), git("-C", path("clone"), "rev-parse", "HEAD"); pushed != cloned {
		t.Errorf("pushed %s, cloned %s", pushed, cloned)
	}

	in, typing, err := os.Pipe() // that the session's end waits for nobody who types
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		typing.Close()
	})
	session := harness.Run(t, harness.Command{Name: "ssh session", Args: append(ssh, "cam-1", "echo here; cat"), Stdin: in})
	session.WaitStdout(t, 0, harness.UpTime, "here")
	began := time.Now()
	r.ask(t, "DELETE", "/iottunnel/grants/"+grant.ID, "", nil)
	if status := session.Wait(t, harness.Patience); status == 0 {
		t.Error("the session has a clean end")
	}
	inTime(t, "a session by a grant that was revoked", time.Since(began), 5*time.Second)
	if status, _, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "ssh", Args: append(ssh, "cam-1", "true")}); status == 0 || !strings.Contains(errs, "revoked") {
		t.Errorf("by a grant that was revoked: status %d:\n%s", status, errs)
	}

	// Of all that, the log has who, what and how much.
	harness.Eventually(t, harness.Patience, "the audit log is whole", func() error {
		log := readFile(t, filepath.Join(r.dir, "audit.log"))
		if strings.Contains(log, strings.SplitAfter(grant.Token, ".")[1]) {
			t.Fatal("the token is in the log")
		}
		var in, out, visits int64
		revoked := false
		for line := range strings.Lines(log) {
			v := auditEntry(t, line)
			if v.Kind != "connect" || v.Device != "cam-1" || v.Port != 22 || v.Grant != grant.ID || v.GrantedBy != "anna" {
				t.Fatalf("entry %s", line)
			}
			visits, in, out = visits+1, in+v.BytesIn, out+v.BytesOut
			revoked = revoked || strings.Contains(v.End, "revoked")
		}
		if visits != 9 || !revoked || in < 2*n || out < 2*n {
			return fmt.Errorf("%d visits, %d bytes in, %d out, one cut: %v; %d bytes went each way", visits, in, out, revoked, 2*n)
		}
		return nil
	})
}

// TestConnectSays has `connect` name what failed, and exit with the status for it, where
// edge, device and service are the built ones.
func TestConnectSays(t *testing.T) {
	t.Parallel()
	r := startRig(t, plainRig("connect"))
	down := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t, 1))
	a := r.start(t, "cam-1", "token-of-cam-1", "--forward", "22="+down, "--forward", "23="+down)
	a.WaitStdout(t, 0, harness.UpTime, "23/tcp")
	server := fmt.Sprintf("ws://127.0.0.1:%d", r.port)
	granted := func(device string, port int) string {
		t.Helper()
		var grant struct{ Token string }
		r.ask(t, "POST", "/iottunnel/grants", fmt.Sprintf(`{"device":%q,"port":%d,"for":"1h","by":"anna"}`, device, port), &grant)
		return grant.Token
	}
	says := func(status int, words, token, operand, server string) {
		t.Helper()
		file := writeFile(t, filepath.Join(t.TempDir(), "grant"), token)
		got, out, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "connect", Args: []string{
			harness.Binary(t, "iottunnel-agent"), "connect", operand, "--server", server, "--token-file", file,
		}})
		if got != status || out != "" || !strings.Contains(errs, words) {
			t.Errorf("%s: status %d, %q, %s; want %d and %q", operand, got, out, errs, status, words)
		}
	}
	const nobody = "The grant is unknown, has expired, was revoked, or is for another device or port"
	ssh := granted("cam-1", 22)
	says(4, "refused", ssh, "cam-1:22", server)
	says(3, nobody, "id.wrong", "cam-1:22", server)
	says(3, nobody, ssh, "cam-1:23", server)
	says(3, nobody, ssh, "cam-2:22", server)
	says(4, "connection refused", ssh, "cam-1:22", "ws://"+down)
	a.Stop(t, 30*time.Second)
	says(4, "offline", ssh, "cam-1:22", server)
}
