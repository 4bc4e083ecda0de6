package main

import (
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestYAML(t *testing.T) {
	const text = `---
# an agent
server:            # two of them
  - wss://a.example.com
  - "wss://b.example.com" # the second

device: cam-17
token_file: '/etc/it''s here/token'
forward:
- 80=127.0.0.1:8080,proxy_protocol=v2
- 22
redirect_to: [example.com, "example.net" , 'a,b']
dns: []
log_level: debug # noisy
proxy: "a\"b\\c"
once: true` + "\r\n"
	want := []setting{
		{"server", 3, true, []scalar{{"wss://a.example.com", 4}, {"wss://b.example.com", 5}}},
		{"device", 7, false, []scalar{{"cam-17", 7}}},
		{"token_file", 8, false, []scalar{{"/etc/it's here/token", 8}}},
		{"forward", 9, true, []scalar{{"80=127.0.0.1:8080,proxy_protocol=v2", 10}, {"22", 11}}},
		{"redirect_to", 12, true, []scalar{{"example.com", 12}, {"example.net", 12}, {"a,b", 12}}},
		{"dns", 13, true, nil},
		{"log_level", 14, false, []scalar{{"debug", 14}}},
		{"proxy", 15, false, []scalar{{`a"b\c`, 15}}},
		{"once", 16, false, []scalar{{"true", 16}}},
	}
	got, err := parseYAML(text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	if bad := disagreement(text, got); bad != "" {
		t.Error(bad)
	}
}

func TestYAMLRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"device":                     "line 1: not of the form",
		"device:cam":                 "line 1: not of the form",
		"a: 1\n  b: 2":               "line 2: not of the form",
		"a: 1\n  more of it":         "line 2: not of the form",
		"\"a\": 1":                   "line 1: not of the form",
		"a:\nb: 1":                   "line 1: a has no value",
		"a:\n# nothing":              "line 1: a has no value",
		"a: ~":                       "line 1: a value is missing",
		"a: null":                    "line 1: a value is missing",
		"a: &x b":                    "needs quotes",
		"a: *x":                      "needs quotes",
		"a: |":                       "needs quotes",
		"a: {b: c}":                  "needs quotes",
		"a: b: c":                    "needs quotes",
		"a: b:":                      "needs quotes",
		"a: 'b":                      "line 1: the closing quote is missing",
		"a: \"b\\x41\"":              "line 1: of the escapes",
		"a: \"b\\":                   "line 1: of the escapes",
		"a: 'b' c":                   `line 1: "c" behind a value`,
		"a: 'b'#c":                   `line 1: "#c" behind a value`,
		"a: [b":                      "line 1: a list that does not end",
		"a: [b] c":                   "line 1: a list that does not end",
		"a: [b,]":                    "line 1: a value is missing",
		"a: [b: c]":                  "needs quotes",
		"a: [[b]]":                   "needs quotes",
		"a: - b":                     "needs quotes",
		"- a":                        "line 1: a list item does not belong here",
		"a: 1\n- b":                  "line 2: a list item does not belong here",
		"a:\n  - b\n - c":            "line 3: a list item does not belong here",
		"a:\n  - b\n    - c":         "line 3: a list item does not belong here",
		"a:\n  - b: c":               "needs quotes",
		"a:\n  -":                    "line 2: a value is missing",
		"a:\n\t- b":                  `line 2: character '\t'`,
		"a: b\u2028c":                "line 1: character '\\u2028'",
		"a: 1\n---\nb: 2":            "line 2: not of the form",
		"a: 1\n...":                  "line 2: not of the form",
		"a: 1\n? b":                  "line 2: not of the form",
		"%YAML 1.2\n---\na: 1":       "line 1: not of the form",
		"a: [\"b\"\n, c]":            "line 1: a list that does not end",
		"a: 1\nb: !!str 2":           "line 2: !!str 2 needs quotes",
		"a: 1\n\n\n  # x\nb:\n c: d": "line 5: b has no value",
	} {
		if got, err := parseYAML(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
}

// What is accepted means the same to a YAML library.
func FuzzYAMLIsYAML(f *testing.F) {
	for _, text := range []string{
		"", "a: b", "a:\n- b\n- 'c' # d\n", "a: [b, \"c\"]", "a: 1\nb: x # y\n", "a: -1", "a: .5", "a: 0x1F", "a: 2001-01-01", "a: <<", "a: =", "a: é",
		"a: a#b", "a: [ ]", "a: [b:c, d://e:1]", "a: [:b, b:, c]", "a: 'b''c'", "a: \"b\\\"\"", "a-b_c: d", "---\na: b", "a: on", "a: b?", "a: b,c", "a: b]", "a: b - c", "a: -", "a: --- b", "a: a\\b",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseYAML(text)
		if err != nil {
			return
		}
		if bad := disagreement(text, got); bad != "" {
			t.Errorf("%q: %s", text, bad)
		}
	})
}

// disagreement says in what a YAML library understands text otherwise.
func disagreement(text string, got []setting) string {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return "not YAML: " + err.Error()
	}
	if doc.Kind == 0 {
		if len(got) > 0 {
			return "settings of an empty document"
		}
		return ""
	}
	top := doc.Content[0]
	if len(got) == 0 && top.Tag == "!!null" { // `---` alone
		return ""
	}
	if top.Kind != yaml.MappingNode || len(top.Content) != 2*len(got) {
		return "another number of keys"
	}
	for i, s := range got {
		key, value := top.Content[2*i], top.Content[2*i+1]
		items := []*yaml.Node{value}
		if s.list {
			items = value.Content
		}
		if key.Value != s.key || key.Line != s.line || s.list != (value.Kind == yaml.SequenceNode) || len(items) != len(s.values) {
			return "another value of " + s.key
		}
		for j, item := range items {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" || item.Value != s.values[j].text || item.Line != s.values[j].line {
				return "another value of " + s.key + ": " + item.Value
			}
		}
	}
	return ""
}
