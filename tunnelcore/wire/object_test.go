package wire

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestTexts(t *testing.T) {
	for text, want := range map[string]map[string]string{
		`{}`:                     {},
		` { } `:                  {},
		`{"a":"b"}`:              {"a": "b"},
		"\t{\"a\" :\r\n\"b\" } ": {"a": "b"},
		`{"a":"b","a":"c"}`:      {"a": "c"},
		`{"a":1,"b":[{"x":"]}"},"\\\""],"c":"\"{[","d":{"e":"f"},"g":true,"h":null,"i":-1.5e3,"j":"k"}`: {"c": `"{[`, "j": "k"},
		`{"\u0061\t":"\"\\\/\b\f\n\r\t\u00fc\u20ac"}`:                                                   {"a\t": "\"\\/\b\f\n\r\tü€"},
		`{"a":"\ud83d\ude00\ud83d","b":"\ude00\ud83d\u0041","c":"\ud83d\n"}`:                            {"a": "😀\ufffd", "b": "\ufffd\ufffdA", "c": "\ufffd\n"},
		"{\"a\":\"\xff\xe2\x82\",\"\xff\":\"\"}":                                                        {"a": "\ufffd\ufffd\ufffd", "\ufffd": ""},
		`{"a":"","":"b"}`:                                                                               {"a": "", "": "b"},
		``:                                                                                              nil, `{`: nil, `"a"`: nil, `[]`: nil, `null`: nil, `1`: nil, `{"a":"b"}{}`: nil, `{"a":"b",}`: nil, `{"a":"\x"}`: nil,
	} {
		if got := Texts([]byte(text)); !reflect.DeepEqual(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// FuzzTexts compares with package encoding/json.
func FuzzTexts(f *testing.F) {
	for _, v := range messageVectors {
		f.Add([]byte(v.Input))
	}
	f.Add([]byte(`{"a":[{"b":"\"]}"},2],"c":"\ud83d\ude00\ud83d\u0000","d":{},"e":1e3 ,"f":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var all map[string]any
		var want map[string]string
		if json.Unmarshal(text, &all) == nil && all != nil {
			want = make(map[string]string)
			for name, v := range all {
				if s, ok := v.(string); ok {
					want[name] = s
				}
			}
		} else if strings.Contains(string(text), "e") && json.Valid(text) {
			return // a number that fits no float
		}
		got := Texts(text)
		for name := range got { // of two with one name the last counts there, whatever it is
			if _, ok := want[name]; !ok && want != nil {
				if _, there := all[name]; there {
					delete(got, name)
				}
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q: %q, want %q", text, got, want)
		}
	})
}

// FuzzDecodeAsJSON compares what Decode makes of a message with package encoding/json.
func FuzzDecodeAsJSON(f *testing.F) {
	for _, v := range messageVectors {
		f.Add([]byte(v.Input))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Decode(text)
		if err != nil {
			return
		}
		want := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
		if err := json.Unmarshal(text, want); err != nil {
			t.Fatalf("%q is %+v, and no JSON of that: %v", text, m, err)
		}
		if r, ok := want.(*Refused); ok {
			r.Reason = cut(r.Reason, MaxReason)
		}
		if !reflect.DeepEqual(m, want) && !otherCase(text, m) {
			t.Fatalf("%q is %+v, want %+v", text, m, want)
		}
	})
}

// otherCase reports whether a name of the object is one of m's but for its case:
// encoding/json takes it for that, the protocol does not (§4.3).
func otherCase(text []byte, m Message) bool {
	other := false
	_ = members(text, func(name, _ string) error {
		fields := reflect.TypeOf(m).Elem()
		for i := range fields.NumField() {
			tag, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
			other = other || tag != name && strings.EqualFold(tag, name)
		}
		return nil
	})
	return other
}

// Each field that Encode writes is one that Decode reads.
func TestFields(t *testing.T) {
	for _, m := range []Message{&Ready{}, &PortInfo{}, &Open{}, &Refused{}, &Drain{}, &Attach{}, &Attached{}} {
		v := reflect.ValueOf(m).Elem()
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			p := reflect.ValueOf(m.field(name))
			if !p.IsValid() || p.Pointer() != v.Field(i).Addr().Pointer() {
				t.Errorf("%T: %q is not where Encode takes it from", m, name)
			}
			if err := assign(m.field(name), "{}"); err == nil {
				t.Errorf("%T: %q may be an object", m, name)
			}
		}
		if m.field("type") != nil || m.field("") != nil {
			t.Errorf("%T has a field too many", m)
		}
	}
}
