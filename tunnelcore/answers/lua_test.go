package answers

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/golden"
)

// TestLua keeps what the Lua router makes its answers of; lua/spec compares them
// with testdata.
func TestLua(t *testing.T) {
	var b strings.Builder
	b.WriteString("-- Written by `go test ./tunnelcore/answers -run TestLua -update`: do not edit.\n\nlocal _M = {}\n\n\n")
	fmt.Fprintf(&b, "_M.refresh_min, _M.refresh_max = %d, %d\n", refreshMin, refreshMax)
	fmt.Fprintf(&b, "_M.content_security_policy = %s\n", luaString(contentPolicy))
	b.WriteString("_M.fragments = {\n")
	for _, f := range [][2]string{
		{"refresh", refreshFragment}, {"again", againFragment}, {"seen", seenFragment},
		{"detail", detailFragment}, {"refresh_sentence", refreshSentence},
	} {
		fmt.Fprintf(&b, "    %s = %s,\n", f[0], luaString(f[1]))
	}
	b.WriteString("}\n_M.codes = {\n")
	for _, e := range table {
		fmt.Fprintf(&b, "    %s = {\n        status = %d,\n        fault = %s,\n        refresh = %d,\n", e.Code, e.Status, luaString(e.Fault), e.Refresh)
		fmt.Fprintf(&b, "        message = %s,\n        title = %s,\n", luaString(e.Message), luaString(e.Title))
		fmt.Fprintf(&b, "        text = %s,\n        next = %s,\n    },\n", luaString(e.Text), luaString(e.Next))
	}
	// A long bracket swallows the line feed that follows it.
	fmt.Fprintf(&b, "}\n_M.page = [==[\n%s]==]\n\n\nreturn _M\n", pageTemplate)
	if strings.Contains(pageTemplate, "]==]") {
		t.Fatal("the page would end the Lua string that holds it")
	}
	golden.Check(t, "../../../lua/iottunnel/pages.lua", b.String())
}

// luaString writes s as Lua reads it; bytes beyond ASCII stay as they are.
func luaString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c < ' ' || c == 0x7f:
			b.WriteString(`\` + fmt.Sprintf("%03s", strconv.Itoa(int(c))))
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
