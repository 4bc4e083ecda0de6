package wire

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const instance = "00112233445566778899aabbccddeeff"

func TestParsePort(t *testing.T) {
	for in, want := range map[string]Port{
		"1":          {1, TCP},
		"22":         {22, TCP},
		"80":         {80, HTTP},
		"443":        {443, HTTPS},
		"65535":      {65535, TCP},
		"80/http":    {80, HTTP},
		"80/tcp":     {80, TCP},
		"80/https":   {80, HTTPS},
		"8080/http":  {8080, HTTP},
		"443/http":   {443, HTTP},
		"22/tcp":     {22, TCP},
		"8443/https": {8443, HTTPS},
	} {
		if got, err := ParsePort(in); got != want || err != nil {
			t.Errorf("ParsePort(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "0", "00", "080", "65536", "99999999999999999999", "-1", "+80", " 80", "80 ", "8o", "0x50", "1_000",
		"/", "/http", "80/", "80/HTTP", "80/udp", "80/http/", "80//http", "80/ http", "http/80", "80,22",
	} {
		if got, err := ParsePort(in); err == nil || got != (Port{}) {
			t.Errorf("ParsePort(%q) = %v, %v; want an error", in, got, err)
		}
	}
}

func TestPortString(t *testing.T) {
	for want, p := range map[string]Port{
		"80":        {80, HTTP},
		"80/tcp":    {80, TCP},
		"443":       {443, HTTPS},
		"443/http":  {443, HTTP},
		"22":        {22, TCP},
		"8080/http": {8080, HTTP},
	} {
		if got := p.String(); got != want {
			t.Errorf("%#v.String() = %q; want %q", p, got, want)
		}
	}
}

func TestCaps(t *testing.T) {
	for s, want := range map[string]Caps{
		"":                            0,
		"redirect":                    Redirect,
		"early":                       Early,
		"reuse":                       Reuse,
		"inline":                      Inline,
		"redirect,early":              Redirect | Early,
		"redirect,early,reuse,inline": Redirect | Early | Reuse | Inline,
	} {
		if got := ParseCaps(s); got != want {
			t.Errorf("ParseCaps(%q) = %b; want %b", s, got, want)
		}
		if got := want.String(); got != s {
			t.Errorf("Caps(%b).String() = %q; want %q", want, got, s)
		}
	}
	for s, want := range map[string]Caps{
		"early,redirect":     Redirect | Early, // in any order
		"early,early":        Early,
		"teleport,early,":    Early, // what is unknown counts for nothing
		"Early":              0,
		" early":             0,
		"early;reuse":        0,
		"earlyreuse,earl,,,": 0,
	} {
		if got := ParseCaps(s); got != want {
			t.Errorf("ParseCaps(%q) = %b; want %b", s, got, want)
		}
	}
	if c := Redirect | Early; !c.Has(Early) || c.Has(Early|Reuse) || !c.Has(0) {
		t.Errorf("%v: Has does not ask for every capability", c)
	}
}

func TestQuery(t *testing.T) {
	for want, h := range map[string]Hello{
		"device=cam-17&ports=80,22,8080/http&instance=" + instance +
			"&caps=redirect,early,reuse&streams=256&message_max=65536&early=65536,1048576&heartbeat=25": {
			Device: "cam-17", Ports: []Port{{80, HTTP}, {22, TCP}, {8080, HTTP}}, Instance: instance,
			Caps: Redirect | Early | Reuse, Streams: 256, MessageMax: 65536, Early: 65536, EarlyTotal: 1048576, Heartbeat: 25,
		},
		"device=a&ports=80&instance=" + instance: {
			Device: "a", Ports: []Port{{80, HTTP}}, Instance: instance,
			Streams: -1, EarlyTotal: 4096, // bounds that bound nothing
		},
		"device=a&ports=80&instance=" + instance + "&early=1": {
			Device: "a", Ports: []Port{{80, HTTP}}, Instance: instance, Early: 1,
		},
		"device=a%26b%3Dc+%25/,%C3%BC&ports=443": {Device: "a&b=c %/,ü", Ports: []Port{{443, HTTPS}}},
		"":                                       {},
	} {
		if got := h.Query(); got != want {
			t.Errorf("Query of %+v\n got %s\nwant %s", h, got, want)
		}
	}
}

// good is a query with the value of one parameter replaced, or added.
func good(name, value string) string {
	params := []string{"device=cam-17", "ports=80", "instance=" + instance}
	for i, p := range params {
		if strings.HasPrefix(p, name+"=") {
			params[i] = name + "=" + value
			return strings.Join(params, "&")
		}
	}
	return strings.Join(append(params, name+"="+value), "&")
}

// list joins n ports, counting from 1.
func list(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ",%d", i+1)
	}
	return b.String()[1:]
}

// helloResult is what testdata/hello.json expects of a query.
type helloResult struct {
	Device     string       `json:"device"`
	Ports      []portResult `json:"ports"`
	Instance   string       `json:"instance"`
	Caps       string       `json:"caps"` // those of version 1
	Streams    int          `json:"streams"`
	MessageMax int          `json:"message_max"`
	Early      int          `json:"early"`
	EarlyTotal int          `json:"early_total"`
	Heartbeat  int          `json:"heartbeat"`
	// Query is how the same is written by an agent.
	Query string `json:"query"`
}

type portResult struct {
	Port uint16 `json:"port"`
	Kind Kind   `json:"kind"`
}

// helloVector is a case of testdata/hello.json: a query, and either what it says
// or the parameter that is at fault.
type helloVector struct {
	Name     string       `json:"name"`
	Input    string       `json:"input"`
	Expected *helloResult `json:"expected,omitempty"`
	Error    string       `json:"error,omitempty"`
}

// plain is the result of good, changed by change.
func plain(query string, change func(*helloResult)) *helloResult {
	r := &helloResult{Device: "cam-17", Ports: []portResult{{80, HTTP}}, Instance: instance, Query: query}
	if change != nil {
		change(r)
	}
	return r
}

var helloVectors = []helloVector{
	{Name: "basic", Input: good("device", "cam-17"), Expected: plain(good("device", "cam-17"), nil)},
	{Name: "everything",
		Input: "device=cam-17&ports=80,22,8080/http&instance=" + instance +
			"&caps=redirect,early,reuse,inline&streams=256&message_max=65536&early=65536,1048576&heartbeat=25",
		Expected: &helloResult{"cam-17", []portResult{{80, HTTP}, {22, TCP}, {8080, HTTP}}, instance,
			"redirect,early,reuse,inline", 256, 65536, 65536, 1048576, 25,
			"device=cam-17&ports=80,22,8080/http&instance=" + instance +
				"&caps=redirect,early,reuse,inline&streams=256&message_max=65536&early=65536,1048576&heartbeat=25"}},
	{Name: "any order, escapes, unknown parameter", Input: "later=1&later=2&instance=" + instance + "&ports=80%2C443%2Fhttps&device=cam%2D17",
		Expected: plain("device=cam-17&ports=80,443&instance="+instance, func(r *helloResult) {
			r.Ports = []portResult{{80, HTTP}, {443, HTTPS}}
		})},
	{Name: "unknown capabilities", Input: good("caps", "teleport,early,"),
		Expected: plain(good("caps", "early"), func(r *helloResult) { r.Caps = "early" })},
	{Name: "empty bounds", Input: good("streams", "&message_max=&early=&heartbeat=&caps="),
		Expected: plain(good("device", "cam-17"), nil)},
	{Name: "least bounds", Input: good("streams", "1&message_max=512&early=1,1&heartbeat=1"),
		Expected: plain(good("streams", "1&message_max=512&early=1,1&heartbeat=1"), func(r *helloResult) {
			r.Streams, r.MessageMax, r.Early, r.EarlyTotal, r.Heartbeat = 1, 512, 1, 1, 1
		})},
	{Name: "greatest bounds", Input: good("streams", "65535&message_max=1048576&early=1048576,1073741824&heartbeat=900"),
		Expected: plain(good("streams", "65535&message_max=1048576&early=1048576,1073741824&heartbeat=900"), func(r *helloResult) {
			r.Streams, r.MessageMax, r.Early, r.EarlyTotal, r.Heartbeat = 65535, 1048576, 1048576, 1073741824, 900
		})},
	{Name: "early of one number", Input: good("early", "4096"),
		Expected: plain(good("early", "4096"), func(r *helloResult) { r.Early = 4096 })},

	{Name: "nothing", Input: "", Error: "device"},
	{Name: "escape cut short", Input: "device=%2", Error: "query"},
	{Name: "escape that is no hex", Input: "device=%zz", Error: "query"},
	{Name: "semicolon", Input: "device=cam-17;ports=80", Error: "query"},
	{Name: "device empty", Input: good("device", ""), Error: "device"},
	{Name: "device of 64", Input: good("device", strings.Repeat("a", 64)), Error: "device"},
	{Name: "device twice", Input: good("device", "cam-17&device=cam-18"), Error: "device"},
	{Name: "ports missing", Input: "device=cam-17&instance=" + instance, Error: "ports"},
	{Name: "ports empty", Input: good("ports", ""), Error: "ports"},
	{Name: "comma behind the ports", Input: good("ports", "80,"), Error: "ports"},
	{Name: "comma before the ports", Input: good("ports", ",80"), Error: "ports"},
	{Name: "port 0", Input: good("ports", "0"), Error: "ports"},
	{Name: "port 65536", Input: good("ports", "65536"), Error: "ports"},
	{Name: "port with a zero in front", Input: good("ports", "080"), Error: "ports"},
	{Name: "unknown kind", Input: good("ports", "80/gopher"), Error: "ports"},
	{Name: "kind in upper case", Input: good("ports", "80/HTTP"), Error: "ports"},
	{Name: "same port twice", Input: good("ports", "80,443,80/tcp"), Error: "ports"},
	{Name: "33 ports", Input: good("ports", list(33)), Error: "ports"},
	{Name: "instance missing", Input: "device=cam-17&ports=80", Error: "instance"},
	{Name: "instance of 31 digits", Input: good("instance", instance[1:]), Error: "instance"},
	{Name: "instance of 33 digits", Input: good("instance", instance+"0"), Error: "instance"},
	{Name: "instance in upper case", Input: good("instance", strings.ToUpper(instance)), Error: "instance"},
	{Name: "caps twice", Input: good("caps", "early&caps=reuse"), Error: "caps"},
	{Name: "streams 0", Input: good("streams", "0"), Error: "streams"},
	{Name: "streams 65536", Input: good("streams", "65536"), Error: "streams"},
	{Name: "streams with a sign", Input: good("streams", "%2B5"), Error: "streams"},
	{Name: "streams below 0", Input: good("streams", "-5"), Error: "streams"},
	{Name: "streams with a zero in front", Input: good("streams", "05"), Error: "streams"},
	{Name: "message_max 511", Input: good("message_max", "511"), Error: "message_max"},
	{Name: "message_max 1048577", Input: good("message_max", "1048577"), Error: "message_max"},
	{Name: "message_max with a unit", Input: good("message_max", "64KiB"), Error: "message_max"},
	{Name: "early 0", Input: good("early", "0,4096"), Error: "early"},
	{Name: "early 1048577", Input: good("early", "1048577"), Error: "early"},
	{Name: "early total 0", Input: good("early", "1,0"), Error: "early"},
	{Name: "early total 1073741825", Input: good("early", "1,1073741825"), Error: "early"},
	{Name: "early without its first number", Input: good("early", ",4096"), Error: "early"},
	{Name: "early without its second number", Input: good("early", "4096,"), Error: "early"},
	{Name: "early of three numbers", Input: good("early", "1,2,3"), Error: "early"},
	{Name: "heartbeat 0", Input: good("heartbeat", "0"), Error: "heartbeat"},
	{Name: "heartbeat 901", Input: good("heartbeat", "901"), Error: "heartbeat"},
	{Name: "heartbeat with a fraction", Input: good("heartbeat", "2.5"), Error: "heartbeat"},
	{Name: "heartbeat beyond every integer", Input: good("heartbeat", "99999999999999999999"), Error: "heartbeat"},
}

func checkHelloVectors(t *testing.T) {
	for _, v := range helloVectors {
		h, err := ParseHello(v.Input)
		if v.Error != "" {
			var param *ParamError
			if !errors.As(err, &param) || param.Name != v.Error || !reflect.DeepEqual(h, Hello{}) {
				t.Errorf("%s: ParseHello(%q) = %+v, %v; want an error of %s", v.Name, v.Input, h, err, v.Error)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: ParseHello(%q): %v", v.Name, v.Input, err)
			continue
		}
		ports := make([]portResult, len(h.Ports))
		for i, p := range h.Ports {
			ports[i] = portResult{p.Number, p.Kind}
		}
		got := helloResult{h.Device, ports, h.Instance, h.Caps.String(), h.Streams, h.MessageMax, h.Early, h.EarlyTotal, h.Heartbeat, h.Query()}
		if !reflect.DeepEqual(got, *v.Expected) {
			t.Errorf("%s: ParseHello(%q)\n got %+v\nwant %+v", v.Name, v.Input, got, *v.Expected)
		}
	}
}

func TestParseHelloLimits(t *testing.T) {
	for _, query := range []string{
		good("device", strings.Repeat("a", 62)),
		good("device", strings.Repeat("a", 63)),
		good("ports", list(MaxPorts-1)),
		good("ports", list(MaxPorts)),
	} {
		if _, err := ParseHello(query); err != nil {
			t.Errorf("ParseHello(%q): %v", query, err)
		}
	}
}

func TestParamErrorIsPrintable(t *testing.T) {
	for _, query := range []string{
		good("ports", "80%0d%0aSet-Cookie:%20a=b"),
		good("ports", "%ff%00%c3%bc"),
		good("ports", strings.Repeat("9", 4000)),
		good("ports", "80/"+strings.Repeat("%1b", 1000)),
		"%\xff\x00" + strings.Repeat("%", 4000),
		"device=%\n\x1b",
	} {
		_, err := ParseHello(query)
		if err == nil {
			t.Errorf("ParseHello(%q) is content", query)
			continue
		}
		checkPrintable(t, err)
	}
	want := `parameter ports: "gopher" is not a kind: http, https or tcp`
	if _, err := ParseHello(good("ports", "80/gopher")); err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
}

// checkPrintable holds an error that quotes a peer to one short line of ASCII.
func checkPrintable(t *testing.T, err error) {
	t.Helper()
	s := err.Error()
	if len(s) > 200 {
		t.Errorf("error of %d bytes: %q", len(s), s)
	}
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			t.Errorf("%#02x in the error %q", c, s)
		}
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "22/tcp", "8080/http", "443/https", "0", "080", "65535", "65536", "80/", "/http", "+1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePort(s)
		if err != nil {
			return
		}
		if p.Number == 0 {
			t.Fatalf("ParsePort(%q) = %v", s, p)
		}
		if again, err := ParsePort(p.String()); again != p || err != nil {
			t.Fatalf("%q is %v, and %q is %v, %v", s, p, p.String(), again, err)
		}
	})
}

func FuzzParseHello(f *testing.F) {
	for _, v := range helloVectors {
		f.Add(v.Input)
	}
	f.Fuzz(func(t *testing.T, query string) {
		h, err := ParseHello(query)
		if err != nil {
			var param *ParamError
			if !errors.As(err, &param) {
				t.Fatalf("%q: %T is not a *ParamError", query, err)
			}
			checkPrintable(t, err)
			return
		}
		checkBounds(t, h)
		again, err := ParseHello(h.Query())
		if err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("%q\nis  %+v\nand %q\nis  %+v, %v", query, h, h.Query(), again, err)
		}
	})
}

// checkBounds holds a parsed Hello to the limits of protocol §3 and §8.
func checkBounds(t *testing.T, h Hello) {
	t.Helper()
	within := func(n, most int) bool { return n >= 0 && n <= most }
	if h.Device == "" || len(h.Device) > 63 || len(h.Ports) == 0 || len(h.Ports) > MaxPorts || !ValidID(h.Instance) ||
		!within(h.Streams, MaxStreams) || !within(h.MessageMax, MaxMessage) || !within(h.Early, MaxMessage) ||
		!within(h.EarlyTotal, MaxEarlyTotal) || !within(h.Heartbeat, MaxHeartbeat) {
		t.Fatalf("out of bounds: %+v", h)
	}
}

// FuzzHello writes what an agent may say, and reads it back.
func FuzzHello(f *testing.F) {
	f.Add("cam-17", uint16(80), uint16(22), uint8(0), 0, 0, 0, 0, 0)
	f.Add("cam-17", uint16(8080), uint16(443), uint8(15), 256, 65536, 65536, 1<<20, 25)
	f.Add("a&b=c;%/,+ü\xff", uint16(1), uint16(65535), uint8(3), 1, 512, 1, 1, 1)
	f.Fuzz(func(t *testing.T, device string, p1, p2 uint16, caps uint8, streams, message, early, total, heartbeat int) {
		h := Hello{
			Device:     device,
			Ports:      []Port{{p1, HTTP}, {p2, DefaultKind(p2)}},
			Instance:   instance,
			Caps:       Caps(caps) & (Redirect | Early | Reuse | Inline),
			Streams:    clamp(streams, 1, MaxStreams),
			MessageMax: clamp(message, MinMessage, MaxMessage),
			Early:      clamp(early, 1, MaxMessage),
			EarlyTotal: clamp(total, 1, MaxEarlyTotal),
			Heartbeat:  clamp(heartbeat, MinHeartbeat, MaxHeartbeat),
		}
		if h.Early == 0 {
			h.EarlyTotal = 0
		}
		got, err := ParseHello(h.Query())
		if device == "" || len(device) > 63 || p1 == 0 || p2 == 0 || p1 == p2 {
			if err == nil {
				t.Fatalf("%q is content", h.Query())
			}
			return
		}
		if err != nil || !reflect.DeepEqual(got, h) {
			t.Fatalf("%q\nof  %+v\nis  %+v, %v", h.Query(), h, got, err)
		}
	})
}

// clamp is n within its bounds; 0, which names none, stays.
func clamp(n, least, most int) int {
	if n == 0 {
		return 0
	}
	return max(least, min(n, most))
}
