package cluster

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/answers"
	"github.com/iottunnel/iottunnel/tunnelcore/registry"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// Every request and answer as it stands in docs/cluster.md.
var requests = map[string]request{
	`{"kind":"open","device":"cam-17","tunnel":"t1","port":80,"from":"192.0.2.7:4711"}`:      {Kind: kindOpen, Device: "cam-17", Tunnel: "t1", Port: 80, From: visitor},
	`{"kind":"open","device":"cam-17","tunnel":"t1","port":8080,"from":"[2001:db8::7]:443"}`: {Kind: kindOpen, Device: "cam-17", Tunnel: "t1", Port: 8080, From: netip.MustParseAddrPort("[2001:db8::7]:443")},
	`{"kind":"open","device":"cam-17","tunnel":"t1","port":80}`:                              {Kind: kindOpen, Device: "cam-17", Tunnel: "t1", Port: 80},
	`{"kind":"agent","remote":"192.0.2.1","tls":true}`:                                       {Kind: kindAgent, Remote: netip.MustParseAddr("192.0.2.1"), TLS: true},
	`{"kind":"agent"}`: {Kind: kindAgent},
	`{"kind":"probe","device":"cam-17","tunnel":"t1"}`:                   {Kind: kindProbe, Device: "cam-17", Tunnel: "t1"},
	`{"kind":"replaced","device":"cam-17","tunnel":"t1","generation":7}`: {Kind: kindReplaced, Device: "cam-17", Tunnel: "t1", Generation: 7},
	`{"kind":"info","device":"cam-17"}`:                                  {Kind: kindInfo, Device: "cam-17"},
}

func TestRequests(t *testing.T) {
	for text, want := range requests {
		got, err := decodeRequest([]byte(text))
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if b, err := encode(want); err != nil || string(b) != text {
			t.Errorf("%+v became %s, %v", want, b, err)
		}
	}
	for _, text := range []string{
		"", "null", "{}", "[]", `"open"`, `{"kind":"open"}`, `{"kind":"open","device":"d","tunnel":"t","port":0}`,
		`{"kind":"open","device":"d","tunnel":"t","port":65536}`, `{"kind":"open","device":"d","tunnel":"t","port":-1}`,
		`{"kind":"open","device":"d","tunnel":"t","port":80.0}`, `{"kind":"open","device":"d","tunnel":"t","port":"80"}`,
		`{"kind":"open","device":"d","tunnel":"t","port":80,"from":""}`, `{"kind":"open","device":"d","tunnel":"t","port":80,"from":"visitor"}`,
		`{"kind":"open","device":"d","tunnel":"t","port":80,"tls":true}`, `{"kind":"open","device":"","tunnel":"t","port":80}`,
		`{"kind":"open","device":"d","tunnel":"","port":80}`,
		`{"kind":"open","tunnel":"t","device":"d","port":80}`,              // another order
		`{"kind":"open","device":"d","device":"e","tunnel":"t","port":80}`, // twice
		`{"KIND":"open","device":"d","tunnel":"t","port":80}`,
		`{"kind":"open","device":"d","tunnel":"t","port":80,"via":"c"}`,
		`{"kind":"open", "device":"d","tunnel":"t","port":80}`,
		`{"kind":"open","device":"\u0064","tunnel":"t","port":80}`,
		`{"kind":"probe","device":"d","tunnel":"t"} `, "{\"kind\":\"probe\",\"device\":\"d\",\"tunnel\":\"t\"}\n",
		"{\"kind\":\"info\",\"device\":\"\xff\"}", `{"kind":"info","device":"` + strings.Repeat("x", registry.MaxName+1) + `"}`,
		`{"kind":"probe","device":"d"}`, `{"kind":"info","device":"d","tunnel":"t"}`, `{"kind":"agent","device":"d"}`,
		`{"kind":"agent","remote":"192.0.2.1:80"}`, `{"kind":"agent","tls":false}`, `{"kind":"replaced","device":"d"}`,
		`{"kind":"replaced","device":"d","tunnel":"t","generation":1e3}`,
	} {
		if q, err := decodeRequest([]byte(text)); err == nil || q != (request{}) {
			t.Errorf("%s: %+v, %v", text, q, err)
		}
	}
}

var answersThere = []string{
	`{"kind":"accepted"}`, `{"kind":"waiting"}`, `{"kind":"alive"}`, `{"kind":"silent"}`,
	`{"kind":"refused","code":"not_here"}`,
	`{"kind":"refused","code":"device_offline","message":"the device's connection broke","retry_after_ms":10000,"last_seen_ms":1700000000000}`,
	`{"kind":"known","info":{"ports":[80]}}`,
}

func TestAnswers(t *testing.T) {
	for _, text := range answersThere {
		a, err := decodeAnswer([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if b, err := encode(a); err != nil || string(b) != text {
			t.Errorf("%s became %s, %v", text, b, err)
		}
	}
	for _, text := range []string{
		"", "null", "{}", `{"kind":"open"}`, `{"kind":"refused"}`, `{"kind":"refused","code":""}`,
		`{"kind":"refused","code":"x","retry_after_ms":-1}`, `{"kind":"refused","code":"x","retry_after_ms":3600001}`,
		`{"kind":"refused","code":"x","last_seen_ms":-1}`, `{"kind":"accepted","code":"not_here"}`,
		`{"kind":"known"}`, `{"kind":"known","info": 1}`, `{"kind":"alive","info":1}`,
		`{"kind":"known","info":"` + strings.Repeat("x", maxInfo-1) + `"}`, `{"kind":"refused","code":"x","message":"a","message":"b"}`,
	} {
		if a, err := decodeAnswer([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, a)
		}
	}
}

// The longest messages that there can be fit.
func TestLongestMessages(t *testing.T) {
	name := strings.Repeat("x", registry.MaxName)
	longest := netip.AddrPortFrom(netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%interface0123456"), 65535)
	q := request{Kind: kindOpen, Device: name, Tunnel: name, Port: 65535, From: longest}
	a := refusal(&answers.Error{Code: wire.DeviceOffline, Message: strings.Repeat("<", 2*answers.MessageMax), RetryAfter: 1 << 62})
	for _, m := range []any{q, a} {
		b, err := encode(m)
		if err != nil || len(b)+macSize+1 > maxText {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
	g := greeting{registry.NodeRef{ID: strings.Repeat("\u2028", registry.MaxName/3), Epoch: name}, registry.NodeRef{ID: name, Epoch: name}, wire.NewID()}
	if got, err := parseGreeting(g.query()); err != nil || got != g {
		t.Errorf("%+v, %v", got, err)
	}
	c, _ := newChallenge(make([]string, maxSecrets), g)
	if b, err := encode(c); err != nil || len(b) > maxText {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// Whatever a close frame says, it is an error that can be told, or an abort.
func TestFailureReasons(t *testing.T) {
	for reason, want := range map[string]string{
		"device_refused 0 no":    "device_refused: no",
		"device_offline 10 a b":  "device_offline: a b",
		"device_offline 10 ":     "device_offline: the device is not connected",
		"device_offline 10":      "device_offline: the device is not connected",
		"code_of_tomorrow 1 x":   "unavailable: x",
		"":                       "",
		"device_offline":         "",
		"device_offline -1 x":    "",
		"device_offline 99999 x": "",
		" 10 x":                  "",
		"device_offline ten x":   "",
		"device_offline  10 x":   "",
	} {
		err := why(&socket.CloseError{Code: closeFailed, Reason: reason})
		if got := ""; err != nil {
			got = err.Error()
			if got != want {
				t.Errorf("%q: %s, want %s", reason, got, want)
			}
		} else if want != "" {
			t.Errorf("%q: an abort, want %s", reason, want)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for text := range requests {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decodeRequest(b)
		if err != nil {
			return
		}
		if again, err := encode(q); err != nil || string(again) != string(b) || q.check() != nil {
			t.Fatalf("%s became %s, %v", b, again, err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, text := range answersThere {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeAnswer(b)
		if err != nil {
			return
		}
		if again, err := encode(a); err != nil || string(again) != string(b) {
			t.Fatalf("%s became %s, %v", b, again, err)
		}
		if a.Kind == kindKnown && !json.Valid(a.Info) {
			t.Fatalf("%s", a.Info)
		}
		if a.Kind == kindRefused {
			_ = answers.From(a.err()).Error()
		}
	})
}

func FuzzDecodeChallenge(f *testing.F) {
	g := greeting{registry.NodeRef{ID: "a", Epoch: "1"}, registry.NodeRef{ID: "b", Epoch: "2"}, wire.NewID()}
	c, _ := newChallenge([]string{"x", "y"}, g)
	b, _ := encode(c)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeChallenge(b)
		if err != nil {
			return
		}
		if len(c.Proofs) > maxSecrets || !wire.ValidID(c.Nonce) {
			t.Fatalf("%+v", c)
		}
		if _, _, err := proved([]string{"secret"}, g, c); err == nil {
			t.Fatalf("%s proves a secret", b)
		}
	})
}

func FuzzParseGreeting(f *testing.F) {
	f.Add(greeting{registry.NodeRef{ID: "a b", Epoch: "1&"}, registry.NodeRef{ID: "b", Epoch: "2"}, wire.NewID()}.query())
	f.Fuzz(func(t *testing.T, query string) {
		g, err := parseGreeting(query)
		if err != nil {
			return
		}
		if again, err := parseGreeting(g.query()); err != nil || again != g {
			t.Fatalf("%q: %+v became %+v, %v", query, g, again, err)
		}
	})
}

func FuzzOpenSeal(f *testing.F) {
	g := greeting{registry.NodeRef{ID: "a", Epoch: "1"}, registry.NodeRef{ID: "b", Epoch: "2"}, "n"}
	f.Add(newSeals("other", g, "c", peerLabel, edgeLabel).seal([]byte("{}")))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := newSeals("secret", g, "c", edgeLabel, peerLabel).open(text); err == nil {
			t.Fatalf("%s opens", hex.EncodeToString(text))
		}
	})
}

func FuzzFailure(f *testing.F) {
	f.Add(closeLost, "device_offline 10 the device's connection broke")
	f.Fuzz(func(t *testing.T, code int, reason string) {
		err := why(&socket.CloseError{Code: code, Reason: reason})
		if err == nil {
			return
		}
		e := answers.From(err)
		if e.RetryAfter < 0 || e.RetryAfter > maxRetry || e.Status() < 400 {
			t.Fatalf("%d, %q: %#v", code, reason, e)
		}
		if _, again := farewell(err); len(again) > wire.MaxReason {
			t.Fatalf("%q is too long", again)
		}
	})
}
