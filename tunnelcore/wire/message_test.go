package wire

import (
	"encoding/json"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

const (
	tunnelID = "9f86d081884c7d659a2feaa0c55ad015"
	streamID = "4355a46b19d348dc2f57c046f8ef63d4"
	secret   = "60303ae22b998861bce3b28f33eec1be"
	transfer = "/.iottunnel/v1/transfer?node=edge-1&tunnel=" + tunnelID
)

// ready is a Ready of the basic profile with every rule kept.
func ready() *Ready {
	return &Ready{
		Tunnel: tunnelID, Heartbeat: 25, Label: "k3qz7h5mwx2c4v6b", Hostname: "k3qz7h5mwx2c4v6b.devices.example.net",
		Lease: 2592000, Streams: 256, MessageMax: 65536, Transfer: transfer, Secret: secret,
	}
}

// readyText is ready, encoded.
const readyText = `{"type":"ready","tunnel":"` + tunnelID + `","caps":"","heartbeat_s":25,` +
	`"label":"k3qz7h5mwx2c4v6b","hostname":"k3qz7h5mwx2c4v6b.devices.example.net","lease_s":2592000,` +
	`"streams":256,"message_max":65536,"transfer":"` + transfer + `","secret":"` + secret + `"}`

func TestEncode(t *testing.T) {
	full := ready()
	full.Caps, full.Early, full.EarlyTotal = "redirect,early", 65536, 1048576
	for _, c := range []struct {
		m    Message
		want string
	}{
		{ready(), readyText},
		{full, strings.NewReplacer(`"caps":""`, `"caps":"redirect,early"`,
			`65536,"transfer"`, `65536,"early":65536,"early_total":1048576,"transfer"`).Replace(readyText)},
		{&PortInfo{Port: 80, Kind: HTTP, URL: "https://a.example/?x=1&y=<2>"},
			`{"type":"port","port":80,"kind":"http","url":"https://a.example/?x=1&y=<2>"}`},
		{&PortInfo{Port: 22, Kind: TCP, Addr: "tcp.example:20022"},
			`{"type":"port","port":22,"kind":"tcp","addr":"tcp.example:20022"}`},
		{&PortInfo{Port: 22, Kind: TCP}, `{"type":"port","port":22,"kind":"tcp"}`},
		{&Open{Stream: 1, ID: streamID, Port: 80, From: "203.0.113.9:51234"},
			`{"type":"open","stream":1,"id":"` + streamID + `","port":80,"from":"203.0.113.9:51234"}`},
		{&Open{Stream: math.MaxUint32, ID: streamID, Port: 65535, From: "[2001:db8::1]:443", Early: 4096},
			`{"type":"open","stream":4294967295,"id":"` + streamID + `","port":65535,"from":"[2001:db8::1]:443","early":4096}`},
		{&Refused{Stream: 2, Reason: "connection refused"},
			`{"type":"refused","stream":2,"reason":"connection refused"}`},
		{&Refused{Stream: 2, Reason: "Gerät \"aus\"\r\n\x00\x7f 😀\u2028\xff"},
			`{"type":"refused","stream":2,"reason":"Ger\u00e4t \"aus\"\r\n\u0000` + "\x7f" + ` \ud83d\ude00\u2028\ufffd"}`},
		{&Drain{Within: 30}, `{"type":"drain","within_s":30}`},
		{&Drain{}, `{"type":"drain","within_s":0}`},
		{&Attach{Stream: 7, ID: streamID}, `{"type":"attach","stream":7,"id":"` + streamID + `"}`},
		{&Attached{Stream: math.MaxUint32}, `{"type":"attached","stream":4294967295}`},
	} {
		if got := string(Encode(c.m)); got != c.want {
			t.Errorf("Encode(%+v)\n got %s\nwant %s", c.m, got, c.want)
		}
	}
}

// A microcontroller keeps MaxFlat bytes for what the edge sends, so the greatest
// value of every field has to fit.
func TestEncodeGreatest(t *testing.T) {
	host := strings.Repeat(strings.Repeat("a", 63)+".", 4)[:253]
	zone := "[" + strings.Repeat("ffff:", 7) + "ffff%" + strings.Repeat("z", 15) + "]:65535"
	if len(zone) != MaxFrom-1 {
		t.Fatalf("the longest from has %d characters", len(zone))
	}
	for _, c := range []struct {
		m    Message
		kept bool // nothing had to be left out
	}{
		{&Open{Stream: math.MaxUint32, ID: streamID, Port: 65535, From: zone, Early: MaxMessage}, true},
		{&Open{Stream: math.MaxUint32, ID: streamID, Port: 65535, From: strings.Repeat("\u2028", MaxText), Early: MaxMessage}, false},
		{&Open{Stream: 1, ID: streamID, Port: 80, From: netip.AddrPort{}.String()}, false}, // "invalid AddrPort"
		{&PortInfo{Port: 65535, Kind: HTTPS, URL: "https://" + host + ":65535/"}, true},
		{&PortInfo{Port: 65535, Kind: HTTPS, URL: "https://" + strings.Repeat("a", MaxText)}, false},
		{&PortInfo{Port: 80, Kind: HTTP, URL: "https://a b/"}, false},
		{&PortInfo{Port: 22, Kind: TCP, Addr: "münchen.example:22"}, false},
		{&PortInfo{Port: 65535, Kind: HTTPS, Addr: host + ":65535"}, true},
		{&PortInfo{Port: 65535, Kind: HTTPS, URL: "https://" + host + ":65535/", Addr: host + ":65535"}, false},
		{&PortInfo{Port: 65535, Kind: HTTPS, URL: strings.Repeat("\x00", MaxText), Addr: strings.Repeat("ü", MaxText)}, false},
		{&Drain{Within: MaxDrain}, true},
	} {
		b := Encode(c.m)
		if len(b) > MaxFlat {
			t.Errorf("%d bytes: %s", len(b), b)
		}
		if _, err := Decode(b); err != nil {
			t.Errorf("an agent would refuse %s: %v", b, err)
		}
		checkASCII(t, b)
		if kept := string(b) == string(encode(c.m)); kept != c.kept {
			t.Errorf("%+v became %s", c.m, b)
		}
	}

	// What is left out first is the address; the URL is what visitors are given.
	b := Encode(&PortInfo{Port: 80, Kind: HTTP, URL: "https://" + host + "/", Addr: strings.Repeat("a", 300)})
	if want := `{"type":"port","port":80,"kind":"http","url":"https://` + host + `/"}`; string(b) != want {
		t.Errorf("got %s\nwant %s", b, want)
	}

	most := &Ready{
		Tunnel: tunnelID, Caps: strings.Repeat("c", maxCaps), Heartbeat: MaxHeartbeat, Label: host[:63], Hostname: host,
		Lease: math.MaxInt64, Streams: MaxStreams, MessageMax: MaxMessage, Early: MaxMessage, EarlyTotal: MaxEarlyTotal,
		Transfer: "/?" + strings.Repeat(`"`, MaxTransfer-2), Secret: strings.Repeat(`\`, MaxSecret),
	}
	if b := Encode(most); len(b) > MaxText {
		t.Errorf("ready of %d bytes", len(b))
	} else if m, err := Decode(b); err != nil || !reflect.DeepEqual(m, most) {
		t.Errorf("Decode(%s) = %+v, %v", b, m, err)
	}
}

func TestEncodeCutsReason(t *testing.T) {
	for in, want := range map[string]int{
		strings.Repeat("x", MaxReason-1):          MaxReason - 1,
		strings.Repeat("x", MaxReason):            MaxReason,
		strings.Repeat("x", MaxReason+1):          MaxReason,
		strings.Repeat("x", MaxReason-1) + "ü":    MaxReason - 1, // 2 bytes, of which 1 would fit
		strings.Repeat("x", MaxReason-3) + "😀":    MaxReason - 3, // 4 bytes, of which 3 would fit
		strings.Repeat("x", MaxReason-4) + "😀":    MaxReason,
		strings.Repeat("\x00", 2*MaxReason):       MaxReason,
		strings.Repeat("\xff", MaxReason):         len("\ufffd"), // one for the run
		strings.Repeat("x", MaxReason-1) + "\xff": MaxReason - 1,
	} {
		m := &Refused{Stream: 1, Reason: in}
		b := Encode(m)
		if m.Reason != in {
			t.Errorf("Encode changed the message of its caller")
		}
		got, err := Decode(b)
		if err != nil {
			t.Errorf("Decode(%s): %v", b, err)
			continue
		}
		if n := len(got.(*Refused).Reason); n != want || len(b) > MaxText {
			t.Errorf("reason %q became %d bytes, %d of JSON; want %d", in, n, len(b), want)
		}
	}
}

func TestDecodeLimits(t *testing.T) {
	pad := func(text string, n int) []byte { return []byte(text + strings.Repeat(" ", n-len(text))) }
	for _, c := range []struct {
		name string
		text []byte
		ok   bool
	}{
		{"ready of MaxText", pad(readyText, MaxText), true},
		{"ready of MaxText + 1", pad(readyText, MaxText+1), false},
		{"refused of MaxText", pad(`{"type":"refused","stream":1}`, MaxText), true},
		{"refused of MaxText + 1", pad(`{"type":"refused","stream":1}`, MaxText+1), false},
		{"drain of MaxFlat - 1", pad(`{"type":"drain"}`, MaxFlat-1), true},
		{"drain of MaxFlat", pad(`{"type":"drain"}`, MaxFlat), true},
		{"drain of MaxFlat + 1", pad(`{"type":"drain"}`, MaxFlat+1), false},
		{"port of MaxFlat", pad(`{"type":"port","port":1,"kind":"tcp"}`, MaxFlat), true},
		{"port of MaxFlat + 1", pad(`{"type":"port","port":1,"kind":"tcp"}`, MaxFlat+1), false},
		{"attached of MaxFlat", pad(`{"type":"attached","stream":1}`, MaxFlat), true},
		{"attached of MaxFlat + 1", pad(`{"type":"attached","stream":1}`, MaxFlat+1), false},
		{"attach of MaxText", pad(`{"type":"attach","stream":1,"id":"`+streamID+`"}`, MaxText), true},
		{"open of MaxFlat", pad(`{"type":"open","stream":1,"id":"`+streamID+`","port":1}`, MaxFlat), true},
		{"open of MaxFlat + 1", pad(`{"type":"open","stream":1,"id":"`+streamID+`","port":1}`, MaxFlat+1), false},
	} {
		if _, err := Decode(c.text); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// with is readyText with the value of one field replaced: old and new are JSON.
func with(field, old, new string) string {
	from := `"` + field + `":` + old
	if strings.Count(readyText, from) != 1 {
		panic(from)
	}
	return strings.Replace(readyText, from, `"`+field+`":`+new, 1)
}

// messageVector is a case of testdata/messages.json: a text message, and either
// how Encode writes the same, byte for byte, or why it is no message: "malformed"
// closes the socket with 4100, "unknown" is ignored.
type messageVector struct {
	Name     string          `json:"name"`
	Input    string          `json:"input"`
	Expected json.RawMessage `json:"expected,omitempty"`
	Error    string          `json:"error,omitempty"`
}

// same is a vector whose input is as Encode writes it.
func same(name, text string) messageVector {
	return messageVector{Name: name, Input: text, Expected: json.RawMessage(text)}
}

// as is a vector whose input Encode would have written otherwise.
func as(name, input, want string) messageVector {
	return messageVector{Name: name, Input: input, Expected: json.RawMessage(want)}
}

func malformed(name, input string) messageVector {
	return messageVector{Name: name, Input: input, Error: "malformed"}
}

func unknown(name, input string) messageVector {
	return messageVector{Name: name, Input: input, Error: "unknown"}
}

var messageVectors = []messageVector{
	same("ready", readyText),
	same("ready with capabilities", strings.NewReplacer(`"caps":""`, `"caps":"redirect,early"`,
		`65536,"transfer"`, `65536,"early":65536,"early_total":1048576,"transfer"`).Replace(readyText)),
	as("ready with an escaped &", strings.ReplaceAll(readyText, "&", `\u0026`), readyText),
	as("ready with escaped slashes", strings.ReplaceAll(readyText, "/", `\/`), readyText),
	as("ready with unknown fields", with("caps", `""`, `"","later":"\u00fc","more":-1.5e3,"yes":true,"no":false,"nothing":null`), readyText),
	same("ready with the least values", strings.NewReplacer(`"heartbeat_s":25`, `"heartbeat_s":1`, `"streams":256`, `"streams":1`,
		`65536`, `512`, `2592000`, `0`).Replace(readyText)),
	same("port with a url", `{"type":"port","port":80,"kind":"http","url":"https://k3qz7h5mwx2c4v6b.devices.example.net/"}`),
	same("port with an address", `{"type":"port","port":22,"kind":"tcp","addr":"tcp.devices.example.net:20022"}`),
	same("port with neither", `{"type":"port","port":22,"kind":"tcp"}`),
	same("port of a kind that is new", `{"type":"port","port":53,"kind":"udp"}`),
	as("port with its type last", `{"port":65535,"kind":"https","type":"port"}`, `{"type":"port","port":65535,"kind":"https"}`),
	same("open", `{"type":"open","stream":1,"id":"`+streamID+`","port":80,"from":"203.0.113.9:51234"}`),
	same("open from IPv6", `{"type":"open","stream":2,"id":"`+streamID+`","port":80,"from":"[2001:db8::9]:51234"}`),
	same("open with the last stream and credit", `{"type":"open","stream":4294967295,"id":"`+streamID+`","port":65535,"from":"","early":65536}`),
	as("open with white space", " {\t\"type\" : \"open\" ,\r\n\"stream\":3,\"id\":\""+streamID+"\",\"port\":22 } ",
		`{"type":"open","stream":3,"id":"`+streamID+`","port":22,"from":""}`),
	as("open with escapes in names and values", `{"\u0074ype":"\u006fpen","stream":3,"id":"`+streamID+`","port":22}`,
		`{"type":"open","stream":3,"id":"`+streamID+`","port":22,"from":""}`),
	same("refused", `{"type":"refused","stream":1,"reason":"connection refused"}`),
	same("refused with escapes", `{"type":"refused","stream":1,"reason":"Ger\u00e4t \"aus\" \\ \ud83d\ude00\n"}`),
	as("refused with raw UTF-8", `{"type":"refused","stream":1,"reason":"Gerät 😀"}`, `{"type":"refused","stream":1,"reason":"Ger\u00e4t \ud83d\ude00"}`),
	as("refused without a reason", `{"type":"refused","stream":1}`, `{"type":"refused","stream":1,"reason":""}`),
	as("refused with half a surrogate pair", `{"type":"refused","stream":1,"reason":"\ud83d"}`, `{"type":"refused","stream":1,"reason":"\ufffd"}`),
	as("refused with a reason that is too long", `{"type":"refused","stream":1,"reason":"`+strings.Repeat("x", MaxReason+1)+`"}`,
		`{"type":"refused","stream":1,"reason":"`+strings.Repeat("x", MaxReason)+`"}`),
	same("drain", `{"type":"drain","within_s":30}`),
	same("drain at once", `{"type":"drain","within_s":0}`),
	same("drain within a day", `{"type":"drain","within_s":86400}`),
	as("drain without a time", `{"type":"drain"}`, `{"type":"drain","within_s":0}`),
	same("attach", `{"type":"attach","stream":7,"id":"`+streamID+`"}`),
	same("attached", `{"type":"attached","stream":4294967295}`),

	unknown("new type", `{"type":"teleport","stream":"1"}`),
	unknown("type in upper case", `{"type":"OPEN"}`),
	unknown("type with a space", `{"type":"open "}`),

	malformed("empty", ``),
	malformed("white space", ` `),
	malformed("object cut short", `{"type":"drain","within_s":30`),
	malformed("two objects", `{"type":"drain","within_s":30}{"type":"drain","within_s":30}`),
	malformed("comma behind the last field", `{"type":"drain","within_s":30,}`),
	malformed("single quotes", `{'type':'drain'}`),
	malformed("raw line feed in a string", "{\"type\":\"refused\",\"stream\":1,\"reason\":\"\n\"}"),
	malformed("unknown escape", `{"type":"refused","stream":1,"reason":"\x"}`),
	malformed("array", `[{"type":"drain"}]`),
	malformed("string", `"drain"`),
	malformed("null", `null`),
	malformed("no type", `{"within_s":30}`),
	malformed("empty type", `{"type":""}`),
	malformed("type is a number", `{"type":1}`),

	malformed("ready without a tunnel", with("tunnel", `"`+tunnelID+`"`, `""`)),
	malformed("ready with a tunnel in upper case", with("tunnel", `"`+tunnelID+`"`, `"`+strings.ToUpper(tunnelID)+`"`)),
	malformed("ready with a line end in caps", with("caps", `""`, `"early\r\n"`)),
	malformed("ready with heartbeat 0", with("heartbeat_s", "25", "0")),
	malformed("ready with heartbeat 901", with("heartbeat_s", "25", "901")),
	malformed("ready with an escape character in its label", with("label", `"k3qz7h5mwx2c4v6b"`, `"\u001b[2J"`)),
	malformed("ready with a hostname of 254", with("hostname", `"k3qz7h5mwx2c4v6b.devices.example.net"`, `"`+strings.Repeat("a", 254)+`"`)),
	malformed("ready with a lease below 0", with("lease_s", "2592000", "-1")),
	malformed("ready with streams 0", with("streams", "256", "0")),
	malformed("ready with streams 65536", with("streams", "256", "65536")),
	malformed("ready with message_max 511", with("message_max", "65536", "511")),
	malformed("ready with message_max 1048577", with("message_max", "65536", "1048577")),
	malformed("ready with transfer on another host", with("transfer", `"`+transfer+`"`, `"//evil.example/?a=b"`)),
	malformed("ready with transfer as a whole URL", with("transfer", `"`+transfer+`"`, `"wss://evil.example/?a=b"`)),
	malformed("ready with transfer without a query", with("transfer", `"`+transfer+`"`, `"/.iottunnel/v1/transfer"`)),
	malformed("ready with transfer and fragment", with("transfer", `"`+transfer+`"`, `"`+transfer+`#a"`)),
	malformed("ready with a line end in transfer", with("transfer", `"`+transfer+`"`, `"/?a=b HTTP/1.1\r\nHost: evil.example"`)),
	malformed("ready with a transfer of 513", with("transfer", `"`+transfer+`"`, `"/?`+strings.Repeat("a", 511)+`"`)),
	malformed("ready without a secret", with("secret", `"`+secret+`"`, `""`)),
	malformed("ready with a line end in its secret", with("secret", `"`+secret+`"`, `"a\r\nHost: evil.example"`)),
	malformed("ready with a secret of 129", with("secret", `"`+secret+`"`, `"`+strings.Repeat("a", 129)+`"`)),

	malformed("port 0", `{"type":"port","port":0,"kind":"tcp"}`),
	malformed("port 65536", `{"type":"port","port":65536,"kind":"tcp"}`),
	malformed("port below 0", `{"type":"port","port":-1,"kind":"tcp"}`),
	malformed("port as a string", `{"type":"port","port":"80","kind":"http"}`),
	malformed("port with a fraction", `{"type":"port","port":80.0,"kind":"http"}`),
	malformed("port with an exponent", `{"type":"port","port":8e1,"kind":"http"}`),
	malformed("port with a zero in front", `{"type":"port","port":080,"kind":"http"}`),
	malformed("port without a kind", `{"type":"port","port":80}`),
	malformed("port with a space in its url", `{"type":"port","port":80,"kind":"http","url":"https://a b/"}`),
	malformed("port with a terminal escape in its url", `{"type":"port","port":80,"kind":"http","url":"https://\u001b[2J/"}`),
	malformed("port with a line end in its address", `{"type":"port","port":22,"kind":"tcp","addr":"a:1\n80/http https://b/"}`),

	malformed("open without a stream", `{"type":"open","id":"`+streamID+`","port":80,"from":""}`),
	malformed("open with stream 0", `{"type":"open","stream":0,"id":"`+streamID+`","port":80,"from":""}`),
	malformed("open with stream 4294967296", `{"type":"open","stream":4294967296,"id":"`+streamID+`","port":80,"from":""}`),
	malformed("open with an id of 31 digits", `{"type":"open","stream":1,"id":"`+streamID[1:]+`","port":80,"from":""}`),
	malformed("open with a query in its id", `{"type":"open","stream":1,"id":"4355a46b19d348dc2f57c046f8ef63d&","port":80,"from":""}`),
	malformed("open without a port", `{"type":"open","stream":1,"id":"`+streamID+`","from":""}`),
	malformed("open with a line end in from", `{"type":"open","stream":1,"id":"`+streamID+`","port":80,"from":"a\nb"}`),
	malformed("open with a from of 65", `{"type":"open","stream":1,"id":"`+streamID+`","port":80,"from":"`+strings.Repeat("a", 65)+`"}`),
	malformed("open with credit below 0", `{"type":"open","stream":1,"id":"`+streamID+`","port":80,"from":"","early":-1}`),

	malformed("refused without a stream", `{"type":"refused","reason":"no"}`),
	malformed("refused with a reason that is no string", `{"type":"refused","stream":1,"reason":["no"]}`),
	malformed("drain below 0", `{"type":"drain","within_s":-1}`),
	malformed("drain of more than a day", `{"type":"drain","within_s":86401}`),
	malformed("attach without a stream", `{"type":"attach","id":"`+streamID+`"}`),
	malformed("attach without an id", `{"type":"attach","stream":7}`),
	malformed("attach with an id in upper case", `{"type":"attach","stream":7,"id":"`+strings.ToUpper(streamID)+`"}`),
	malformed("attached without a stream", `{"type":"attached"}`),
	malformed("attached with stream 0", `{"type":"attached","stream":0}`),
}

func checkMessageVectors(t *testing.T) {
	for _, v := range messageVectors {
		m, err := Decode([]byte(v.Input))
		switch {
		case v.Error == "unknown":
			if !errors.Is(err, ErrUnknownMessage) {
				t.Errorf("%s: %v; want ErrUnknownMessage", v.Name, err)
			}
		case v.Error != "":
			if err == nil || errors.Is(err, ErrUnknownMessage) {
				t.Errorf("%s: Decode(%s) = %+v, %v; want it malformed", v.Name, v.Input, m, err)
			}
		case err != nil:
			t.Errorf("%s: %v", v.Name, err)
		default:
			if got := Encode(m); string(got) != string(v.Expected) {
				t.Errorf("%s:\n got %s\nwant %s", v.Name, got, v.Expected)
			}
		}
		if err != nil && m != nil {
			t.Errorf("%s: a message and an error", v.Name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, v := range messageVectors {
		f.Add([]byte(v.Input))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Decode(text)
		if err != nil {
			return
		}
		b := Encode(m)
		checkASCII(t, b)
		most := MaxText
		switch m.(type) {
		case *PortInfo, *Open, *Drain, *Attached:
			most = MaxFlat
		}
		if len(b) > most {
			t.Fatalf("%s: %d bytes: %s", text, len(b), b)
		}
		again, err := Decode(b)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%s\nis  %+v\nand %s\nis  %+v, %v", text, m, b, again, err)
		}
	})
}

// FuzzRefused encodes what an agent was told by its own system, whatever it is.
func FuzzRefused(f *testing.F) {
	f.Add(uint32(1), "connection refused")
	f.Add(uint32(math.MaxUint32), strings.Repeat("ü", 100)+"\xff\x00\U0010ffff")
	f.Fuzz(func(t *testing.T, stream uint32, reason string) {
		b := Encode(&Refused{Stream: stream, Reason: reason})
		checkASCII(t, b)
		m, err := Decode(b)
		if stream == 0 {
			if err == nil {
				t.Fatalf("%s is content", b)
			}
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		got := m.(*Refused)
		valid := strings.ToValidUTF8(reason, "\ufffd")
		if got.Stream != stream || len(got.Reason) > MaxReason || !strings.HasPrefix(valid, got.Reason) || len(valid)-len(got.Reason) > max(0, len(valid)-MaxReason+3) {
			t.Fatalf("%q became %q", reason, got.Reason)
		}
	})
}

func checkASCII(t *testing.T, b []byte) {
	t.Helper()
	if !json.Valid(b) {
		t.Fatalf("not JSON: %q", b)
	}
	for _, c := range b {
		if c < ' ' || c > '\x7f' {
			t.Fatalf("%#02x in %q", c, b)
		}
	}
}
