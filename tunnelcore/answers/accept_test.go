package answers

import (
	"strings"
	"testing"
)

func TestFormFor(t *testing.T) {
	for _, c := range []struct {
		accept string
		want   form
	}{
		{"", formText},
		{"*/*", formText}, // curl, wget, fetch()
		{"*", formText},
		{browserAccept, formHTML},
		{"text/html", formHTML},
		{"TEXT/HTML;Level=1", formHTML},
		{"text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", formHTML}, // java.net
		{"text/html,text/plain", formHTML},
		{"application/json", formJSON},
		{"application/json; charset=utf-8", formJSON},
		{"application/json, text/plain, */*", formJSON}, // axios
		{"application/json, text/javascript, */*; q=0.01", formJSON},
		{"application/*", formJSON},
		{"text/*", formText},
		{"text/plain", formText},
		{"text/html, application/json", formHTML},
		{"text/html;q=0.9, application/json", formJSON},
		{"application/json;q=0.9,text/html;q=0.899", formJSON},
		{"application/json;q=0.5, text/html ; q=0.51", formHTML},
		{"application/json;q=0.5 , text/html\t;\tQ=0.51", formHTML},
		{"text/html;q=0, */*", formText},
		{"text/plain;q=0, text/html;q=0, */*;q=0.1", formJSON},
		{"text/html;q=0.0, application/json;q=0.000", formText}, // nothing that we have
		{"image/avif,image/webp,*/*;q=0.8", formText},           // <img>
		{"text/event-stream", formText},
		{"application/json;q=1.000,text/html;q=1", formHTML},
		{"application/json, text/html;q=2", formJSON}, // malformed weight: not there
		{"application/json;q=0.1, text/html;q=high", formJSON},
		{"application/json;q=0.1, text/html;q=", formJSON},
		{"application/json;q=0.1, text/html;q=1.001", formJSON},
		{"application/json;q=0.1, text/html;q=-1", formJSON},
		{`text/csv;a="x,text/html;q=1", application/json;q=0.2`, formJSON}, // quoted comma
		{`text/csv;a="\",text/html,\"", application/json;q=0.2`, formJSON},
		{"application/json;q=0.2;text/html", formJSON},
		{"/,;,html,text/,*/html,application/json;q=0.001", formJSON},
	} {
		if got := formFor([]string{c.accept}); got != c.want {
			t.Errorf("formFor(%q) = %d, want %d", c.accept, got, c.want)
		}
	}
	if got := formFor([]string{"application/json;q=0.4", "text/html;q=0.6"}); got != formHTML {
		t.Errorf("two fields: %d", got)
	}
	if got := formFor(nil); got != formText {
		t.Errorf("no field: %d", got)
	}
}

func TestParseWeight(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int
		ok   bool
	}{
		{"0", 0, true}, {"1", 1000, true}, {"0.", 0, true}, {"1.", 1000, true},
		{"0.5", 500, true}, {"0.05", 50, true}, {"0.005", 5, true}, {"0.0005", 0, true},
		{"0.999", 999, true}, {"0.9999", 999, true}, {"1.000", 1000, true}, {".5", 500, true},
		{"", 0, false}, {".", 0, false}, {"2", 0, false}, {"00", 0, false}, {"0.5x", 0, false},
		{"1.001", 0, false}, {"0.-5", 0, false}, {"0,5", 0, false}, {"1e0", 0, false},
	} {
		got, ok := parseWeight(c.in)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("parseWeight(%q) = %d, %v, want %d, %v", c.in, got, ok, c.want, c.ok)
		}
	}
}

func FuzzFormFor(f *testing.F) {
	for _, s := range []string{"", browserAccept, "a/b;q=.5,*;q=1", `text/html;a="\",`, "application/json;q=0.9999;x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		got := formFor([]string{accept})
		if got != formText && got != formHTML && got != formJSON {
			t.Fatalf("formFor(%q) = %d", accept, got)
		}
		for _, m := range []match{
			matchOf([]string{accept}, "text", "html"),
			matchOf([]string{accept}, "application", "json"),
			matchOf([]string{accept}, "text", "plain"),
		} {
			if m.weight < 0 || m.weight > 1000 {
				t.Fatalf("%q weighs %d", accept, m.weight)
			}
		}
		// Case of names and a range for something else change nothing; a quote
		// left open swallows what follows, so the range goes in front.
		if other := formFor([]string{"image/png;q=0.3," + strings.ToUpper(accept)}); other != got && isASCII(accept) {
			t.Fatalf("formFor(%q) = %d, in upper case %d", accept, got, other)
		}
	})
}

func isASCII(s string) bool {
	for _, c := range []byte(s) {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
