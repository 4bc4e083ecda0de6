package fences

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/iottunnel/iottunnel"

// pkg is what `go list` says of a package.
type pkg struct {
	ImportPath   string
	Dir          string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// list runs `go list -json` in the module's root, which needs no compiler.
func list(t *testing.T, env []string, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{
		"list", "-e", "-json=ImportPath,Dir,Standard,Imports,TestImports,XTestImports",
	}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.Bytes())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list %v: %v", args, err)
		}
		all = append(all, p)
	}
}

// own is the packages of the main module, each once.
func own(t *testing.T) []pkg {
	t.Helper()
	return list(t, []string{"CGO_ENABLED=0"}, "./...")
}

// under reports whether path is root or lies below it.
func under(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

// local takes the module's path off an import path; "" is the root, and ok is
// false for packages of others.
func local(path string) (rel string, ok bool) {
	if !under(path, module) {
		return "", false
	}
	return strings.TrimPrefix(strings.TrimPrefix(path, module), "/"), true
}

// report fails the test with each violation.
func report(t *testing.T, violations []string) {
	t.Helper()
	for _, v := range violations {
		t.Error(v)
	}
}

// mustFind makes sure that a check can fail: it has to find exactly this many
// violations in what was made up for it.
func mustFind(t *testing.T, want int, violations []string) {
	t.Helper()
	if len(violations) != want {
		t.Errorf("the check finds %d violations in the example that has %d:\n%s",
			len(violations), want, strings.Join(violations, "\n"))
	}
}
