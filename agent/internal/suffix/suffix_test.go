package suffix

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/publicsuffix"

	"github.com/iottunnel/iottunnel/internal/golden"
)

func TestPublic(t *testing.T) {
	for domain, want := range map[string]bool{
		"com": true, "local": true, "co.uk": true, "github.io": true, "duckdns.org": true, "ck": true, "any.ck": true, "www.ck": false,
		"kawasaki.jp": false, "any.kawasaki.jp": true, "city.kawasaki.jp": false,
		"example.com": false, "edge.example.com": false, "a.co.uk": false, "mine.github.io": false, "": true,
	} {
		if got := Public(domain); got != want {
			t.Errorf("%q: %v", domain, got)
		}
	}
}

// The table is that of the list in golang.org/x/net; go test -update makes it anew.
// That package answers like this one for each of its rules, and for what is around
// them.
func TestTable(t *testing.T) {
	rules := list(t)
	if len(rules) < 7000 {
		t.Fatalf("%d rules found", len(rules))
	}
	var hashes []uint32
	for _, r := range rules {
		hashes = append(hashes, hash(r))
	}
	slices.Sort(hashes)
	var b []byte
	for _, h := range slices.Compact(hashes) {
		b = binary.BigEndian.AppendUint32(b, h)
	}
	if golden.Update() {
		if err := os.WriteFile("suffixes.bin", b, 0o644); err != nil {
			t.Fatal(err)
		}
		table = string(b)
	}
	if table != string(b) {
		t.Error("suffixes.bin is of another list; go test -update makes it anew")
	}
	wrong := 0
	for _, r := range rules {
		r = strings.TrimPrefix(strings.TrimPrefix(r, "*."), "!")
		_, parent, _ := strings.Cut(r, ".")
		for _, domain := range []string{r, parent, "x." + r, "x.y." + r, "x" + r, "x." + parent} {
			theirs, _ := publicsuffix.PublicSuffix(domain)
			if Public(domain) != (theirs == domain) {
				wrong++
				t.Logf("%s is public: %v; the list says %s", domain, Public(domain), theirs)
			}
		}
	}
	if wrong > 1 { // two names may have one hash
		t.Errorf("%d differ", wrong)
	}
}

// list reads the rules of two labels or more out of the files that package
// publicsuffix embeds. Its table.go says how they are made.
func list(t *testing.T) (rules []string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/net/publicsuffix").Output()
	if err != nil {
		t.Skip("the Go command does not say where golang.org/x/net is: ", err)
	}
	file := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "data", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	text, nodes, children := file("text"), file("nodes"), file("children")
	node := func(i uint32) (label string, child uint32) {
		b := nodes[5*i : 5*i+5]
		x := uint64(b[0])<<32 | uint64(binary.BigEndian.Uint32(b[1:]))
		at, length := x>>6&0xffff, x&0x3f
		return string(text[at : at+length]), binary.BigEndian.Uint32(children[4*(x>>23&0x3ff):])
	}
	var walk func(from, to uint32, parent string)
	walk = func(from, to uint32, parent string) {
		for i := from; i < to; i++ {
			label, child := node(i)
			name := label + parent
			switch kind := child >> 28 & 3; {
			case kind == 0 && parent != "":
				rules = append(rules, name)
			case kind == 1:
				rules = append(rules, "!"+name)
			}
			if child>>30&1 == 1 {
				rules = append(rules, "*."+name)
			}
			walk(child&0x3fff, child>>14&0x3fff, "."+name)
		}
	}
	var top uint32 // the first node that is nobody's child
	for i := uint32(0); int(i) < len(nodes)/5; i++ {
		if _, child := node(i); child&0x3fff != child>>14&0x3fff {
			top = child & 0x3fff
			break
		}
	}
	walk(0, top, "")
	return rules
}
