package wire

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// rules maps the numbers of docs/protocol.md, of sections ("4") and of rules
// ("4.1"), to their text.
func rules(t *testing.T) map[string]string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(doc)
	all := make(map[string]string)
	for _, kind := range []*regexp.Regexp{
		regexp.MustCompile(`(?m)^## (\d+)\. `),
		regexp.MustCompile(`(?m)^(?:\*\*(\d+\.\d+)|## \d)`),
	} {
		found := kind.FindAllStringSubmatchIndex(text, -1)
		for i, at := range found {
			if at[2] < 0 {
				continue // a section's heading, where rules end
			}
			end := len(text)
			if i+1 < len(found) {
				end = found[i+1][0]
			}
			number := text[at[2]:at[3]]
			if _, twice := all[number]; twice {
				t.Errorf("docs/protocol.md has two rules %s", number)
			}
			all[number] = text[at[0]:end]
		}
	}
	return all
}

// TestDocumentedFields wants every field of every message in the rule that
// describes it, and every parameter in that of the control URL.
func TestDocumentedFields(t *testing.T) {
	all := rules(t)
	check := func(rule, name string) {
		t.Helper()
		if !strings.Contains(all[rule], "`"+name+"`") {
			t.Errorf("rule %s does not speak of `%s`", rule, name)
		}
	}
	for rule, m := range map[string]Message{
		"4.1": new(Ready), "4.2": new(PortInfo), "5.4": new(Drain), "6.1": new(Open), "6.4": new(Refused),
		"11.2": new(Attach), "11.3": new(Attached),
	} {
		check(rule, m.messageType())
		check("4.6", m.messageType())
		for f := range reflect.TypeOf(m).Elem().Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			check(rule, name)
		}
	}
	for _, name := range parameters {
		check("3.1", name)
	}
	for _, name := range capNames {
		check("3.5", name)
	}
	for _, kind := range []Kind{HTTP, HTTPS, TCP} {
		check("3.3", string(kind))
	}
	check("2.1", Root+"v1/")
	check("2.1", ControlPath)
	check("2.3", "Sec-WebSocket-Protocol: "+Subprotocol)
	check("2.9", VersionsHeader)
	check("2.9", Versions)
}

// TestDocumentedCodes wants a row for every error code and every close code
// that the package declares.
func TestDocumentedCodes(t *testing.T) {
	all := rules(t)
	codes, closes := 0, 0
	for name, value := range constants(t) {
		switch {
		case value.Kind() == constant.String && strings.HasPrefix(name, "Code "):
			codes++
			if row := fmt.Sprintf("\n| `%s` | ", constant.StringVal(value)); !strings.Contains(all["7.1"], row) {
				t.Errorf("rule 7.1 has no row for %s", value)
			}
		case strings.HasPrefix(name, "Close"):
			closes++
			if row := fmt.Sprintf("\n| %s | ", value); !strings.Contains(all["5.5"], row) {
				t.Errorf("rule 5.5 has no row for %s %s", name, value)
			}
		}
	}
	if codes < 10 || closes < 5 {
		t.Errorf("found only %d error codes and %d close codes", codes, closes)
	}
}

// constants are the package's own, by name; those of type Code as "Code NAME".
func constants(t *testing.T) map[string]constant.Value {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	pkg, err := new(types.Config).Check("wire", fset, []*ast.File{file}, nil) // it imports nothing
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]constant.Value)
	for _, name := range pkg.Scope().Names() {
		c, ok := pkg.Scope().Lookup(name).(*types.Const)
		if !ok {
			continue
		}
		if named, ok := c.Type().(*types.Named); ok && named.Obj().Name() == "Code" {
			name = "Code " + name
		}
		all[name] = c.Val()
	}
	return all
}

// TestDocumentedFrames wants a row for every kind of frame.
func TestDocumentedFrames(t *testing.T) {
	all := rules(t)
	for k, name := range frameKinds {
		if row := fmt.Sprintf("\n| %d | %s | ", k, name); !strings.Contains(all["9.2"], row) {
			t.Errorf("rule 9.2 has no row for %d %s", k, name)
		}
	}
	for _, said := range []string{fmt.Sprintf("at most %d", MaxFrame), fmt.Sprintf("longer than %d bytes", FrameHeader+MaxFrame), fmt.Sprintf("1 to %d |", MaxMessage)} {
		if !strings.Contains(strings.Join(strings.Fields(all["9.1"]+all["9.2"]), " "), said) {
			t.Errorf("rules 9.1 and 9.2 do not say: %s", said)
		}
	}
}

// TestDocumentedLimits holds the table of limits to the constants.
func TestDocumentedLimits(t *testing.T) {
	table := rules(t)["8.1"]
	for _, row := range []string{
		fmt.Sprintf("| a text message, `ready` and those of agents included | %d |", MaxText),
		fmt.Sprintf("| a text message from the edge other than `ready` | %d |", MaxFlat),
		fmt.Sprintf("| ports of a device | %d |", MaxPorts),
		fmt.Sprintf("`message_max` out of `ready`: %d to %d; %d where the agent names none |", MinMessage, MaxMessage, DefaultMessage),
		fmt.Sprintf("| payload of a frame | %d, and `message_max` less %d from the edge |", MaxFrame, FrameHeader),
		fmt.Sprintf("| parked transfer sockets of a tunnel | %d |", MaxParked),
		fmt.Sprintf("`streams` out of `ready`: 1 to %d; %d unless", MaxStreams, DefaultStreams),
		fmt.Sprintf("| `transfer` | %d |", MaxTransfer),
		fmt.Sprintf("| `secret` | %d |", MaxSecret),
		fmt.Sprintf("| `from` | %d |", MaxFrom),
		fmt.Sprintf("| `reason` of `refused`, and of a close frame | %d |", MaxReason),
		fmt.Sprintf("| `heartbeat_s` | %d to %d seconds; %d unless", MinHeartbeat, MaxHeartbeat, DefaultHeartbeat),
		fmt.Sprintf("| `within_s` | %d seconds |", MaxDrain),
		fmt.Sprintf("| life of a stream's id | %d seconds |", IDLifetime),
	} {
		if !strings.Contains(table, row) {
			t.Errorf("rule 8.1 does not say: %s", row)
		}
	}
	params := rules(t)["3.1"]
	for _, values := range []string{
		fmt.Sprintf("| most streams at once | 1 to %d |", MaxStreams),
		fmt.Sprintf("| %d to %d |", MinMessage, MaxMessage),
		fmt.Sprintf("| 1 to %d; 1 to %d |", MaxMessage, MaxEarlyTotal),
		fmt.Sprintf("| %d to %d |", MinHeartbeat, MaxHeartbeat),
	} {
		if !strings.Contains(params, values) {
			t.Errorf("rule 3.1 does not say: %s", values)
		}
	}
}

// TestCitations wants every rule that a comment of the repository cites.
func TestCitations(t *testing.T) {
	all := rules(t)
	cited := regexp.MustCompile(`protocol §(\d+(?:\.\d+)?)`)
	err := filepath.WalkDir(filepath.Join("..", ".."), func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && (name == ".git" || name == "node_modules" || name == "bin" || name == "dist"):
			return filepath.SkipDir
		case d.IsDir():
			return nil
		}
		switch filepath.Ext(path) {
		case ".go", ".c", ".h", ".lua":
		default:
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range cited.FindAllSubmatch(text, -1) {
			if _, ok := all[string(m[1])]; !ok {
				t.Errorf("%s cites protocol §%s, which docs/protocol.md has not", path, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
