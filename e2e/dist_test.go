package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestDist builds for one platform what is given out, twice, in two folders: it is the
// same to the byte. The Debian package has what it should, and nothing that lintian
// dislikes.
func TestDist(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skipf("%v: this is not Debian", err)
	}
	var sums [2]string
	var dist string
	source := ".."
	for i := range sums {
		dir := filepath.Join(t.TempDir(), "a longer name"[:i*13], "tree")
		mustRun(t, "git", "clone", "-q", "--shared", source, dir)
		source = dir                                                            // the same commit, whatever comes after
		for _, name := range []string{"scripts/dist", "packaging", "agent/c"} { // as they are now
			mustRun(t, "cp", "-r", filepath.Join("..", name), filepath.Join(dir, filepath.Dir(name)))
		}
		status, out, errs := harness.RunToEnd(t, 10*time.Minute, harness.Command{
			Name: "scripts/dist", Args: []string{"scripts/dist"}, Dir: dir, Env: []string{"DIST=linux amd64", "VERSION=v1.2.3", "LITE_CC=cc"},
		})
		if status != 0 {
			t.Fatalf("scripts/dist: %d\n%s%s", status, out, errs)
		}
		dist = filepath.Join(dir, "dist")
		data, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = string(data)
	}
	if sums[0] != sums[1] {
		t.Errorf("two builds differ:\n%s\n%s", sums[0], sums[1])
	}
	for _, name := range []string{"-linux-amd64", "_1.2.3_amd64.deb", "-lite-x86_64-linux-gnu"} {
		if !strings.Contains(sums[0], "  iottunnel-agent"+name+"\n") {
			t.Errorf("iottunnel-agent%s is not there:\n%s", name, sums[0])
		}
	}
	lite, err := os.Stat(filepath.Join(dist, "iottunnel-agent-lite-x86_64-linux-gnu"))
	if err == nil && lite.Size() > 100<<10 {
		t.Errorf("the agent in C has %d bytes", lite.Size())
	}

	deb := filepath.Join(dist, "iottunnel-agent_1.2.3_amd64.deb")
	root := t.TempDir()
	mustRun(t, "dpkg-deb", "-x", deb, root)
	if out := mustRun(t, filepath.Join(root, "usr/bin/iottunnel-agent"), "version"); !strings.Contains(out, "v1.2.3") {
		t.Errorf("the agent in it says %q", out)
	}
	unit, err := os.ReadFile(filepath.Join(root, "lib/systemd/system/iottunnel-agent.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"LoadCredential=token-file:/etc/iottunnel/token\n", "ConditionPathExists=/etc/iottunnel/agent.yaml\n", "\nRestart=always\n", "\nDynamicUser=yes\n"} {
		if strings.Count(string(unit), line) != 1 {
			t.Errorf("the unit lacks %q:\n%s", line, unit)
		}
	}
	if _, err := exec.LookPath("lintian"); err != nil {
		t.Fatalf("%v: install lintian", err)
	}
	if out := mustRun(t, "lintian", "--allow-root", "--fail-on", "error,warning", deb); out != "" {
		t.Errorf("lintian: %s", out)
	}
}

// mustRun runs a command that cannot fail, and returns what it prints.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	status, out, errs := harness.RunToEnd(t, 5*time.Minute, harness.Command{Name: args[0], Args: args})
	if status != 0 {
		t.Fatalf("%q: %d\n%s%s", args, status, out, errs)
	}
	return out
}
