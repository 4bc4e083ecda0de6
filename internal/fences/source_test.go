package fences

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// sources parses the Go files below a folder of the repository that keep
// accepts; paths are relative to the repository, with slashes.
func sources(t *testing.T, folder string, keep func(path string) bool) map[string]*ast.File {
	t.Helper()
	files := make(map[string]*ast.File)
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); len(name) > 2 && name[0] == '.' || name == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if !strings.HasSuffix(rel, ".go") || !keep(rel) {
			return nil
		}
		files[rel], err = parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// made parses a made-up file.
func made(t *testing.T, name, source string) map[string]*ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*ast.File{name: f}
}

func isTest(path string) bool { return strings.HasSuffix(path, "_test.go") }

// importNames maps the name by which a file uses an import to its path.
func importNames(f *ast.File) map[string]string {
	names := make(map[string]string)
	for _, i := range f.Imports {
		path := strings.Trim(i.Path.Value, `"`)
		name := path[strings.LastIndexByte(path, '/')+1:]
		if len(name) > 1 && name[0] == 'v' && strings.Trim(name[1:], "0123456789") == "" { // …/caddy/v2
			rest := strings.TrimSuffix(path, "/"+name)
			name = rest[strings.LastIndexByte(rest, '/')+1:]
		}
		if i.Name != nil {
			name = i.Name.Name
		}
		names[name] = path
	}
	return names
}

// selected returns the import path and the name of package.Name; both are empty
// for other expressions.
func selected(names map[string]string, n ast.Node) (path, name string) {
	s, ok := n.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	return names[x.Name], s.Sel.Name
}

func TestProtocolStartsNoGoroutine(t *testing.T) {
	report(t, goroutines(sources(t, "tunnelcore/wire", func(path string) bool { return !isTest(path) })))

	mustFind(t, 1, goroutines(made(t, "wire.go", `package wire
		func f() { func() { go f() }() }`)))
}

func goroutines(files map[string]*ast.File) (violations []string) {
	for path, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if _, ok := n.(*ast.GoStmt); ok {
				violations = append(violations, path+" starts a goroutine: the protocol is a codec, and whoever calls it decides what runs at once")
			}
			return true
		})
	}
	return violations
}

// experimental is what Caddy documents as experimental, or may change without
// notice. An empty name is the whole package.
var experimental = []struct{ path, name string }{
	{"github.com/caddyserver/caddy/v2/modules/caddyevents", ""},
	{"github.com/caddyserver/caddy/v2", "UsagePool"},
	{"github.com/caddyserver/caddy/v2", "NewUsagePool"},
	{"github.com/caddyserver/caddy/v2", "Destructor"},
	{"github.com/caddyserver/caddy/v2", "Exiting"},
	{"github.com/caddyserver/caddy/v2/modules/caddyhttp", "IdleTimeoutsFromContext"},
	{"github.com/caddyserver/caddy/v2/modules/caddyhttp", "IdleTimeoutWriter"},
	{"github.com/caddyserver/caddy/v2/modules/caddyhttp", "IdleTimeoutReader"},
}

const experimentalFile = "caddymodule/experimental.go"

func TestExperimentalCaddyInOneFile(t *testing.T) {
	report(t, experiments(sources(t, "caddymodule", func(path string) bool { return path != experimentalFile })))

	mustFind(t, 3, experiments(made(t, "caddymodule/app.go", `package caddymodule
		import (
			"github.com/caddyserver/caddy/v2"
			"github.com/caddyserver/caddy/v2/modules/caddyevents"
			web "github.com/caddyserver/caddy/v2/modules/caddyhttp"
		)
		func f() { caddy.Exiting(); web.IdleTimeoutsFromContext(nil); web.GetVar(nil, "") }`)))
}

func experiments(files map[string]*ast.File) (violations []string) {
	for path, f := range files {
		names := importNames(f)
		used := func(pkg, name string) {
			for _, e := range experimental {
				if pkg == e.path && name == e.name {
					violations = append(violations, fmt.Sprintf(
						"%s uses %s %s: what Caddy may change without notice stays in %s, where an upgrade finds it", path, pkg, name, experimentalFile))
				}
			}
		}
		for _, i := range names {
			used(i, "")
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if pkg, name := selected(names, n); name != "" {
				used(pkg, name)
			}
			return true
		})
	}
	return violations
}

// sleepers are the test files that may sleep on the real clock, and why. Asking
// again and again in a `for` until something is so needs no entry, nor does a
// file with synctest bubbles, where sleeping costs nothing.
var sleepers = map[string]string{
	"agent/cmd/iottunnel-agent/main_test.go":         "two signals at once would be one",
	"caddymodule/conns_test.go":                      "answers and uploads that take their time are the subject",
	"caddymodule/visitors_test.go":                   "that nobody more is let in is the subject",
	"e2e/agent_test.go":                              "an edge that is away for a while is the subject",
	"e2e/crowds_test.go":                             "memory is read with pauses until it rests",
	"e2e/soak_test.go":                               "faults that last for a while are the subject",
	"e2e/soakload_test.go":                           "a visitor who reads slowly is the subject",
	"e2e/hostile_test.go":                            "memory is read with pauses until it rests",
	"e2e/networks_test.go":                           "how long nothing moves is the subject",
	"tunnelcore/stream/model_test.go":                "stalls of random length are what it tries",
	"tunnelcore/registry/memory_conformance_test.go": "its clock is made up, but the file's goroutines run on the real one",
}

func TestNoTestSleeps(t *testing.T) {
	files := sources(t, ".", isTest)
	for path := range sleepers {
		if _, ok := files[path]; !ok {
			t.Errorf("sleepers names %s, which is not there any more", path)
		}
		delete(files, path)
	}
	report(t, sleeps(files))

	mustFind(t, 2, sleeps(made(t, "x_test.go", `package x
		import ("testing"; "time")
		func TestX(t *testing.T) {
			time.Sleep(1)
			for range 10 { time.Sleep(1) }
			for !done() { time.Sleep(1) }
		}`)))
	mustFind(t, 0, sleeps(made(t, "x_test.go", `package x
		import ("testing"; "testing/synctest"; "time")
		func TestX(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { time.Sleep(1) })
		}`)))
}

func sleeps(files map[string]*ast.File) (violations []string) {
	for path, f := range files {
		names := importNames(f)
		if names["synctest"] != "" {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ForStmt:
				return false
			case *ast.CallExpr:
				if pkg, name := selected(names, n.Fun); pkg == "time" && name == "Sleep" {
					violations = append(violations, path+" calls time.Sleep: wait for the event, not for the clock; where time is the subject use testing/synctest")
				}
			}
			return true
		})
	}
	return violations
}
